//! What happens around every call: trace context, the stack's secret, deadline, limit of calls at once, panics, the log line and the count.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use tracing::{Instrument as _, Span};

use crate::deadline::{self, DeadlineBody};
use crate::mesh::MeshToken;
use crate::methods::Methods;
use crate::{metrics, status, trace};

/// What a refused caller is asked to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The rules for every call of one server.
#[derive(Debug)]
pub(crate) struct Rpc {
    /// Domain of statuses that the server itself answers.
    pub(crate) domain: Arc<str>,
    /// What calls must carry, all but probes.
    pub(crate) token: Option<MeshToken>,
    pub(crate) methods: Methods,
    pub(crate) unary_timeout: Duration,
    pub(crate) permits: Arc<Semaphore>,
}

impl Rpc {
    pub(crate) async fn call(&self, routes: Routes, request: Request<Incoming>) -> Response<RpcBody> {
        let path = request.uri().path();
        let span = trace::server_span(path, request.headers());
        let counted = if is_of_grpc(path) { Counted::No } else { Counted::As(self.methods.name(path)) };
        let mut finish = Finish { span: span.clone(), started: Instant::now(), code: None, counted };
        let default = self.methods.is_unary(path).then_some(self.unary_timeout);
        let deadline = deadline::granted(request.headers()).or(default).map(|granted| finish.started + granted);

        if let Some(token) = self.token.as_ref().filter(|_| !path.starts_with("/grpc.health."))
            && let Err(status) = token.check(&self.domain, request.headers())
        {
            return self.respond(status.into_http(), None, None, finish);
        }

        // Probes and reflection must get through when the service is busy: that is when someone looks.
        let permit = if is_of_grpc(path) {
            None
        } else if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            Some(permit)
        } else {
            let status =
                status::resource_exhausted(&self.domain, "TOO_MANY_CALLS", "too many calls at once", RETRY_AFTER);
            return self.respond(status.into_http(), None, None, finish);
        };

        let call = AssertUnwindSafe(async move { routes.oneshot(request).await }).catch_unwind().instrument(span);
        let outcome = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, call).await,
            None => Ok(call.await),
        };
        let response = match outcome {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(panic)) => finish.span.in_scope(|| panicked(&self.domain, &*panic)).into_http(),
            Err(_) => deadline::exceeded(&self.domain).into_http(),
        };
        finish.see(response.headers());
        self.respond(response, deadline, permit, finish)
    }

    fn respond(
        &self,
        response: Response<tonic::body::Body>,
        deadline: Option<Instant>,
        permit: Option<OwnedSemaphorePermit>,
        mut finish: Finish,
    ) -> Response<RpcBody> {
        finish.see(response.headers());
        response.map(|body| RpcBody {
            inner: Some(DeadlineBody::new(body, deadline, Arc::clone(&self.domain))),
            domain: Arc::clone(&self.domain),
            finish,
            _permit: permit,
        })
    }
}

/// Probes and reflection, which every server has.
fn is_of_grpc(path: &str) -> bool {
    path.starts_with("/grpc.")
}

/// The status of a call whose handler panicked. The panic hook has logged where; this links it to the call.
fn panicked(domain: &str, panic: &(dyn Any + Send)) -> Status {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    status::internal(domain, &Panic(text.unwrap_or("no message").to_owned()))
}

#[derive(Debug, thiserror::Error)]
#[error("the handler panicked: {0}")]
struct Panic(String);

/// A response body that keeps the call's permit and span until its end and answers a panic of the stream as INTERNAL.
pub(crate) struct RpcBody {
    inner: Option<DeadlineBody>,
    domain: Arc<str>,
    finish: Finish,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Body for RpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let _entered = this.finish.span.clone().entered();
        let frame = match catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(cx))) {
            Ok(poll) => ready!(poll),
            Err(panic) => {
                this.inner = None;
                let status = panicked(&this.domain, &*panic);
                Some(Ok(Frame::trailers(deadline::trailers(&status))))
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.finish.see(trailers);
                }
            }
            Some(Err(status)) => this.finish.code = Some(status.code()),
            None => this.inner = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Logs and counts a call when it is over, however it ends: a call that is dropped without a status was cancelled.
struct Finish {
    span: Span,
    started: Instant,
    code: Option<Code>,
    counted: Counted,
}

/// Whether a call is counted, and as which method.
enum Counted {
    No,
    As(Option<String>),
}

impl Finish {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(value.as_bytes()));
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let name = status::code_name(code);
        let seconds = self.started.elapsed().as_secs_f64();
        self.span.record("rpc.response.status_code", name);
        let _entered = self.span.enter();
        if let Counted::As(method) = &self.counted {
            metrics::call(method.as_deref(), code, seconds);
        }
        if status::is_defect(code) {
            self.span.record("otel.status_code", "ERROR");
            tracing::warn!(status = name, seconds, "call failed");
        } else {
            tracing::debug!(status = name, seconds, "call ended");
        }
    }
}
