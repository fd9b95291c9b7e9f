//! Which files of a repository make a base.

use std::{collections::BTreeMap, path::Path};

use firn_llm::{config, tokenizer};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use serde::Deserialize;
use serde_json::Value;

use super::{HubError, client::Hub, client::host, digest::Digest, retry};

/// Largest list of files in bytes.
const LARGEST_LISTING: usize = 16 << 20;
/// Files for people that come along; the licence of a model must.
const PAPERS: [&str; 5] = ["README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"];
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Endings of weights, which an error names: what Firn does not read is pickle, which runs code, or another format.
const ENDINGS: [&str; 9] = [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".safetensors", ".h5", ".msgpack", ".onnx"];
/// Names that an error shows.
const SHOWN: usize = 3;

/// A file of a commit: its name, its bytes, and what they hash to.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// A commit's files.
pub(super) struct Listing {
    pub(super) commit: String,
    files: BTreeMap<String, Sibling>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub.
    pub(super) async fn fetch(hub: &Hub) -> Result<Self, HubError> {
        let bytes = retry(hub.limits(), || read(hub)).await?;
        let refuse = |reason: String| HubError::NoHub { host: host(hub.endpoint()), reason };
        let info: Info = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        // The commit becomes a part of paths.
        if !matches!(Digest::parse(&info.sha), Some(Digest::GitBlob(sha)) if sha == info.sha) {
            return Err(refuse("its sha is not that of a commit".to_owned()));
        }
        let files = info.siblings.into_iter().map(|file| (file.rfilename.clone(), file)).collect();
        let listing = Self { commit: info.sha, files };
        listing.check(hub)?;
        Ok(listing)
    }

    /// What a base needs is there. Code, pickle and whatever else lies there is never looked at.
    fn check(&self, hub: &Hub) -> Result<(), HubError> {
        let repo = hub.repo().to_string();
        if !self.has(WEIGHTS) && !self.has(INDEX) {
            let is_weights = |name: &&str| ENDINGS.iter().any(|ending| name.ends_with(ending));
            let others: Vec<&str> = self.files.keys().map(String::as_str).filter(is_weights).take(SHOWN + 1).collect();
            let found = match others.as_slice() {
                [] => "and no other weights".to_owned(),
                few if few.len() <= SHOWN => format!("only {}", few.join(", ")),
                many => format!("only {} and others", many[..SHOWN].join(", ")),
            };
            return Err(HubError::NoWeights { found, folder: hub.repo().folder(), repo });
        }
        for (file, way_out) in [
            (CONFIG, "name a repository that transformers can load"),
            (TOKENIZER, "save its tokenizer with transformers once, or name a repository that has one"),
        ] {
            if !self.has(file) {
                return Err(HubError::MissingFile { repo, file: file.to_owned(), way_out });
            }
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The files that tell whether the rest is worth its way.
    pub(super) async fn first(&self, hub: &Hub) -> Result<Vec<RemoteFile>, HubError> {
        self.describe(hub, &self.present([CONFIG, INDEX])).await
    }

    /// All files of the base, weights last; `dir` holds the first ones.
    pub(super) async fn all(&self, hub: &Hub, dir: &Path) -> Result<Vec<RemoteFile>, HubError> {
        let small = config::FILES.into_iter().chain(tokenizer::FILES).chain(PAPERS).chain([INDEX]);
        let mut files = self.describe(hub, &self.present(small)).await?;
        for file in &files {
            check_size(hub, &file.name, file.size, firn_stage::MAX_SMALL)?;
        }
        let shards = if self.has(INDEX) { self.shards(hub, &dir.join(INDEX)).await? } else { vec![WEIGHTS.to_owned()] };
        files.extend(self.describe(hub, &shards).await?);
        for file in &files {
            check_size(hub, &file.name, file.size, hub.limits().file)?;
        }
        let total = files.iter().fold(0_u64, |total, file| total.saturating_add(file.size));
        check_size(hub, "all of the model", total, hub.limits().total)?;
        Ok(files)
    }

    /// The files that an index names, each once.
    async fn shards(&self, hub: &Hub, index: &Path) -> Result<Vec<String>, HubError> {
        let refuse = |reason: String| HubError::Index { repo: hub.repo().to_string(), reason };
        let bytes = tokio::fs::read(index).await.map_err(|error| HubError::local("read", index, error))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.filter(|map| !map.is_empty()).ok_or_else(|| refuse("it has no weight_map".to_owned()))?;
        let named: Option<Vec<&str>> = map.values().map(Value::as_str).collect();
        let mut shards = named.ok_or_else(|| refuse("its weight_map must map names to files".to_owned()))?;
        shards.sort_unstable();
        shards.dedup();
        for shard in &shards {
            if !shard.ends_with(".safetensors") || shard.contains(['/', '\\']) {
                return Err(refuse(format!("it names {shard:?}, which is no safetensors file beside it")));
            }
            if !self.has(shard) {
                return Err(refuse(format!("it names {shard}, which the repository does not have")));
            }
        }
        Ok(shards.into_iter().map(str::to_owned).collect())
    }

    /// Those of the names that the commit has.
    fn present(&self, names: impl IntoIterator<Item = &'static str>) -> Vec<String> {
        names.into_iter().filter(|name| self.has(name)).map(str::to_owned).collect()
    }

    async fn describe(&self, hub: &Hub, names: &[String]) -> Result<Vec<RemoteFile>, HubError> {
        let mut described = vec![];
        for name in names {
            let listed = self.files.get(name).and_then(Sibling::describe);
            let (size, digest) = match listed {
                Some(listed) => listed,
                // A mirror may list names alone.
                None => ask(hub, &self.commit, name).await?,
            };
            described.push(RemoteFile { name: name.clone(), size, digest });
        }
        Ok(described)
    }
}

impl Sibling {
    fn describe(&self) -> Option<(u64, Digest)> {
        match &self.lfs {
            Some(lfs) => Some((lfs.size.or(self.size)?, Digest::parse(lfs.sha256.as_deref()?)?)),
            None => Some((self.size?, Digest::parse(self.blob_id.as_deref()?)?)),
        }
    }
}

async fn read(hub: &Hub) -> Result<Vec<u8>, HubError> {
    let what = "the list of files";
    let mut response = hub.get(what, hub.listing_url()?, 0).await?;
    let mut bytes = vec![];
    while let Some(chunk) = hub.chunk(what, &mut response).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LARGEST_LISTING {
            check_size(hub, what, bytes.len() as u64, LARGEST_LISTING as u64)?;
        }
    }
    Ok(bytes)
}

/// What the hub's headers say about a file.
async fn ask(hub: &Hub, commit: &str, name: &str) -> Result<(u64, Digest), HubError> {
    let headers = retry(hub.limits(), || async { hub.head(name, hub.file_url(commit, name)?).await }).await?;
    let text = |linked: &str, plain| text(&headers, linked).or_else(|| text(&headers, plain));
    let missing = |what| HubError::Unchecked { file: name.to_owned(), what };
    let digest = text("x-linked-etag", ETAG.as_str()).and_then(Digest::parse).ok_or_else(|| missing("hash"))?;
    let size = text("x-linked-size", CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
    Ok((size.ok_or_else(|| missing("size"))?, digest))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn check_size(hub: &Hub, what: &str, size: u64, limit: u64) -> Result<(), HubError> {
    if size <= limit {
        return Ok(());
    }
    Err(HubError::TooLarge { repo: hub.repo().to_string(), what: what.to_owned(), size, limit })
}
