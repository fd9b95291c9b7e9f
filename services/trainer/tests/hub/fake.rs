//! The hub: a list of files with hashes, small files at once, large ones by a redirect to another host.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use tokio::net::TcpListener;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Bytes of a body's frame.
const FRAME: usize = 64 << 10;

/// A request, as a server saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// `list`, or the file's name.
    pub(crate) what: String,
    pub(crate) by_storage: bool,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// What is wrong today.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Every body of the storage ends, with its connection, after so many bytes; so often.
    pub(crate) cut: Option<(usize, usize)>,
    /// Bodies of the storage never go on after their first frame.
    pub(crate) stalls: bool,
    /// The storage sends another byte somewhere.
    pub(crate) corrupt: bool,
    /// The storage announces so many bytes more or fewer than the file has.
    pub(crate) lie: i64,
    /// The storage announces nothing and sends a byte more.
    pub(crate) longer: bool,
    /// The storage knows no ranges.
    pub(crate) no_ranges: bool,
    /// The storage does not have bytes from the middle on.
    pub(crate) no_middle: bool,
    /// The list has names alone.
    pub(crate) names_alone: bool,
    /// Headers have no hash.
    pub(crate) no_tags: bool,
    /// The list is elsewhere, on this host, so often.
    pub(crate) moved: usize,
    /// Answers to give before the right one.
    pub(crate) busy: Vec<StatusCode>,
    /// Who does not send it is a stranger.
    pub(crate) token: Option<&'static str>,
    /// Files are for those who accepted the terms.
    pub(crate) gated: bool,
}

struct Shared {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<Asked>>,
    sent: Mutex<usize>,
    storage: String,
}

/// A running hub with one repository, `acme/tiny`.
#[derive(Clone)]
pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

impl FakeHub {
    pub(crate) async fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let (hub, storage) = (listen().await, listen().await);
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let shared = Arc::new(Shared {
            files: Mutex::new(files),
            faults: Mutex::default(),
            asked: Mutex::default(),
            sent: Mutex::default(),
            storage: format!("http://{}", storage.local_addr().unwrap()),
        });
        let routes = Router::new()
            .route("/api/models/acme/tiny/revision/{revision}", get(list))
            .route("/moved/{count}", get(moved))
            .route("/acme/tiny/resolve/{commit}/{file}", get(resolve))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(hub, routes).await });
        let routes = Router::new().route("/signed/{file}", get(blob)).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(storage, routes).await });
        Self { endpoint, shared }
    }

    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.shared.faults.lock().unwrap();
        *faults = Faults::default();
        change(&mut faults);
    }

    /// Adds or replaces a file; `None` removes it.
    pub(crate) fn file(&self, name: &str, bytes: Option<&[u8]>) {
        let mut files = self.shared.files.lock().unwrap();
        match bytes {
            Some(bytes) => files.insert(name.to_owned(), bytes.to_vec()),
            None => files.remove(name),
        };
    }

    /// The requests since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }

    /// Bytes of files that the storage has given away.
    pub(crate) fn sent(&self) -> usize {
        *self.shared.sent.lock().unwrap()
    }
}

impl Shared {
    fn note(&self, request: &Request, what: &str, by_storage: bool) {
        let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let asked = Asked {
            method: request.method().clone(),
            what: what.to_owned(),
            by_storage,
            range: header(header::RANGE),
            authorization: header(header::AUTHORIZATION),
        };
        self.asked.lock().unwrap().push(asked);
    }

    /// What the hub says before it looks at a request.
    fn refuse(&self, request: &Request, is_file: bool) -> Option<Response> {
        let mut faults = self.faults.lock().unwrap();
        if !faults.busy.is_empty() {
            return Some((faults.busy.remove(0), [(header::RETRY_AFTER, "0")]).into_response());
        }
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let wanted = faults.token.map(|token| format!("Bearer {token}"));
        if wanted.is_some() && wanted.as_deref() != given {
            return Some((StatusCode::UNAUTHORIZED, [("x-error-code", "RepoNotFound")]).into_response());
        }
        let gated = faults.gated && is_file;
        gated.then(|| (StatusCode::FORBIDDEN, [("x-error-code", "GatedRepo")]).into_response())
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    firn_stage::sha256_hex(bytes)
}

fn git(bytes: &[u8]) -> String {
    let hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

async fn list(State(shared): State<Arc<Shared>>, Path(revision): Path<String>, request: Request) -> Response {
    shared.note(&request, "list", false);
    if let Some(refused) = shared.refuse(&request, false) {
        return refused;
    }
    let moved = shared.faults.lock().unwrap().moved;
    if moved > 0 {
        return redirect(&format!("/moved/{moved}"));
    }
    if !["main", "v1"].contains(&revision.as_str()) {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response();
    }
    Json(listing(&shared)).into_response()
}

async fn moved(State(shared): State<Arc<Shared>>, Path(count): Path<usize>, request: Request) -> Response {
    shared.note(&request, "list", false);
    if count > 1 { redirect(&format!("/moved/{}", count - 1)) } else { Json(listing(&shared)).into_response() }
}

fn redirect(to: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.to_owned())]).into_response()
}

fn listing(shared: &Shared) -> Value {
    let names_alone = shared.faults.lock().unwrap().names_alone;
    let files = shared.files.lock().unwrap();
    let siblings = files.iter().map(|(name, bytes)| {
        if names_alone {
            return json!({ "rfilename": name });
        }
        let lfs = is_large(name).then(|| json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 }));
        json!({ "rfilename": name, "size": bytes.len(), "blobId": git(bytes), "lfs": lfs })
    });
    json!({ "id": "acme/tiny", "sha": COMMIT, "private": false, "siblings": siblings.collect::<Vec<_>>() })
}

async fn resolve(
    State(shared): State<Arc<Shared>>,
    Path((commit, file)): Path<(String, String)>,
    request: Request,
) -> Response {
    shared.note(&request, &file, false);
    if let Some(refused) = shared.refuse(&request, true) {
        return refused;
    }
    let bytes = shared.files.lock().unwrap().get(&file).cloned();
    let Some(bytes) = bytes.filter(|_| commit == COMMIT) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    let tags = !shared.faults.lock().unwrap().no_tags;
    let mut headers = HeaderMap::new();
    if is_large(&file) {
        headers.insert(header::LOCATION, format!("{}/signed/{file}?signature=xyzzy", shared.storage).parse().unwrap());
        headers.insert("x-linked-size", bytes.len().into());
        if tags {
            headers.insert("x-linked-etag", format!("\"{}\"", sha256(&bytes)).parse().unwrap());
        }
        return (StatusCode::FOUND, headers).into_response();
    }
    if tags {
        headers.insert(header::ETAG, format!("\"{}\"", git(&bytes)).parse().unwrap());
    }
    (headers, bytes).into_response()
}

async fn blob(State(shared): State<Arc<Shared>>, Path(file): Path<String>, request: Request) -> Response {
    shared.note(&request, &file, true);
    let Some(mut bytes) = shared.files.lock().unwrap().get(&file).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut faults = shared.faults.lock().unwrap();
    let range = request.headers().get(header::RANGE).and_then(|range| range.to_str().unwrap().strip_prefix("bytes="));
    let from = range.and_then(|range| range.strip_suffix('-')?.parse().ok()).filter(|_| !faults.no_ranges);
    let total = bytes.len();
    if from.is_some() && faults.no_middle {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    if faults.corrupt {
        bytes[total / 2] ^= 1;
    }
    if faults.longer {
        bytes.push(0);
    }
    let rest = bytes.split_off(from.unwrap_or(0));
    let mut headers = HeaderMap::new();
    if let Some(from) = from {
        headers.insert(header::CONTENT_RANGE, format!("bytes {from}-{}/{total}", total - 1).parse().unwrap());
    }
    if !faults.longer {
        let announced = rest.len() as i64 + faults.lie;
        headers.insert(header::CONTENT_LENGTH, announced.into());
    }
    let cut = match &mut faults.cut {
        Some((bytes, times)) if *times > 0 => {
            *times -= 1;
            Some(*bytes)
        }
        _ => None,
    };
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    (status, headers, body(rest, cut, faults.stalls, Arc::clone(&shared))).into_response()
}

fn body(bytes: Vec<u8>, cut: Option<usize>, stalls: bool, shared: Arc<Shared>) -> Body {
    let kept = cut.unwrap_or(bytes.len()).min(bytes.len());
    let frames: Vec<Bytes> = bytes[..kept].chunks(FRAME).map(Bytes::copy_from_slice).collect();
    let frames = stream::iter(frames.into_iter().enumerate()).then(move |(index, frame)| {
        let shared = Arc::clone(&shared);
        async move {
            // The client must have read one frame before the connection may be cut after another.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if stalls && index > 0 {
                std::future::pending::<()>().await;
            }
            *shared.sent.lock().unwrap() += frame.len();
            Ok(frame)
        }
    });
    let end = stream::iter(cut.map(|_| Err(io::Error::other("cut")))).then(|cut| async move {
        // What was sent is on its way before the connection goes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        cut
    });
    Body::from_stream(frames.chain(end))
}
