//! The gateway over HTTP, in front of services that say what the test wants.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod adapters;
mod answers;
mod choices;
mod doors;
mod fake;
mod files;
mod finetune;
mod functions;
mod heartbeat;
mod jobs;
mod load;
mod metrics;
mod names;
mod tenants;
mod tokens;
mod tuning;
mod versions;
mod votes;

use std::{future::Future, net::SocketAddr, time::Duration};

use firn_gateway::{Gateway, Options};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type Body = Full<hyper::body::Bytes>;

/// A running gateway with its fake services.
struct Running {
    address: SocketAddr,
    health: Option<SocketAddr>,
    fake: fake::Fake,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    async fn start_with(options: Options) -> Self {
        Self::start_on(options, None).await
    }

    /// With inference elsewhere, where the fake is not.
    async fn start_on(options: Options, inference: Option<String>) -> Self {
        let shutdown = CancellationToken::new();
        let (fake, services) = fake::Fake::start().await;
        let options = Options {
            http: "127.0.0.1:0".parse().unwrap(),
            inference_endpoint: inference.unwrap_or_else(|| services.clone()),
            trainer_endpoint: services.clone(),
            registry_endpoint: services.clone(),
            data_prep_endpoint: services,
            ..options
        };
        let gateway = Gateway::bind_with(options).await.unwrap();
        let (address, health) = (gateway.local_addr(), gateway.health_addr());
        let task = tokio::spawn(gateway.run(shutdown.clone()));
        Self { address, health, fake, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within(self.task).await.unwrap();
    }

    async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        within(connect(self.address).await.send_request(request)).await.unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        json_of(self.send(Request::get(path).header("host", "localhost").body(Body::default()).unwrap()).await).await
    }

    /// The numbers, as whoever scrapes them gets them: without any secret.
    async fn metrics(&self) -> String {
        let request = Request::get("/metrics").header("host", "metrics.example").body(Body::default()).unwrap();
        let response = self.send(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        text_of(response).await
    }

    async fn post(&self, path: &str, body: &Value) -> Response<Incoming> {
        self.send(post(path, body)).await
    }
}

fn post(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

async fn connect(address: SocketAddr) -> SendRequest<Body> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn text_of(response: Response<Incoming>) -> String {
    let bytes = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn json_of(response: Response<Incoming>) -> (StatusCode, Value) {
    let status = response.status();
    let text = text_of(response).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

/// No test waits longer than this.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

/// A batch of a service function, as Snowflake sends it.
fn batch(path: &str, id: &str, rows: &Value) -> Request<Body> {
    let mut request = post(path, &json!({"data": rows}));
    if !id.is_empty() {
        request.headers_mut().insert("sf-external-function-query-batch-id", id.parse().unwrap());
    }
    request
}

fn question(extra: Value) -> Value {
    let mut body = json!({"model": "offers@best", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The data of a stream's events.
fn events(text: &str) -> Vec<String> {
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ").map(str::to_owned)).collect()
}
