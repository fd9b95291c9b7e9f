//! What every service gets from the server: each test pins something that tonic alone does differently or not at all.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod collector;
mod fake;
mod mesh;
mod telemetry;
mod tls;

use std::time::{Duration, Instant};

use fake::{PATIENCE, Running, eventually, generate, score};
use firn_kit::{BindError, GrpcServer, ServerArgs};
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt as _;

fn args() -> ServerArgs {
    ServerArgs::loopback()
}

fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

#[tokio::test]
async fn a_deadline_ends_a_unary_call() {
    let server = Running::start(args()).await;
    let status = server.client().score(within(score("hang"), Duration::from_millis(100))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(firn_kit::status::reason(&status).as_deref(), Some("DEADLINE_EXCEEDED"));
    server.ended(1).await;
}

#[tokio::test]
async fn a_unary_call_without_a_deadline_gets_the_servers() {
    let server = Running::start(ServerArgs { unary_timeout: Duration::from_millis(100), ..args() }).await;
    // The caller has no timer, so the status is the server's.
    let mut client = InferenceServiceClient::new(server.foreign_channel());
    let status = client.score(score("hang")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.get_details_error_info().unwrap().domain, "inference.firn.dev");
    server.ended(1).await;

    // A stream has no default: it goes on behind that time.
    let mut stream = client.generate(generate("forever")).await.unwrap().into_inner();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        assert!(stream.message().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_deadline_ends_a_stream() {
    for prompt in ["forever", "silent"] {
        for own in [true, false] {
            let server = Running::start(args()).await;
            let request = within(generate(prompt), Duration::from_millis(200));
            let start = Instant::now();
            let mut stream = if own {
                server.client().generate(request).await.unwrap().into_inner()
            } else {
                InferenceServiceClient::new(server.foreign_channel()).generate(request).await.unwrap().into_inner()
            };
            let status = loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{prompt}: ended without a status"),
                    Err(status) => break status,
                }
            };
            assert_eq!(status.code(), Code::DeadlineExceeded, "{prompt}, own channel: {own}");
            assert!(start.elapsed() < PATIENCE);
            server.ended(1).await;
        }
    }
}

#[tokio::test]
async fn a_panic_is_internal_and_says_nothing() {
    let server = Running::start(args()).await;
    let mut client = server.client();
    let status = client.score(score("panic")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!format!("{status:?}").contains("secret"), "{status:?}");

    let mut stream = client.generate(generate("panic")).await.unwrap().into_inner();
    // What the stream had before the panic may be lost with it; how it ends may not.
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Internal);

    client.score(score("ok")).await.unwrap();
}

#[tokio::test]
async fn one_call_too_many_is_refused_and_probes_are_not() {
    let server = Running::start(ServerArgs { max_in_flight: 1, ..args() }).await;
    let mut client = server.client();
    let stream = client.generate(generate("silent")).await.unwrap();

    let status = client.score(score("ok")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(firn_kit::status::reason(&status).as_deref(), Some("TOO_MANY_CALLS"));
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    HealthClient::new(server.channel()).check(HealthCheckRequest::default()).await.unwrap();

    drop(stream);
    server.ended(1).await;
    eventually(async || server.client().score(score("ok")).await.is_ok()).await;
}

#[tokio::test]
async fn dropping_a_call_drops_its_work() {
    let server = Running::start(args()).await;
    let mut client = server.client();
    let begun = eventually(async || server.fake.begun.load(std::sync::atomic::Ordering::SeqCst) == 1);
    tokio::select! {
        answer = client.score(score("hang")) => panic!("{answer:?}"),
        () = begun => {}
    }
    server.ended(1).await;
    let mut stream = client.generate(generate("forever")).await.unwrap().into_inner();
    stream.message().await.unwrap();
    drop(stream);
    server.ended(2).await;
}

#[tokio::test]
async fn shutdown_cuts_an_open_stream_after_the_grace_period() {
    let server = Running::start(ServerArgs { grace: Duration::from_millis(300), ..args() }).await;
    let mut stream = server.client().generate(generate("forever")).await.unwrap().into_inner();
    let _silent = TcpStream::connect(server.address).await.unwrap();
    stream.message().await.unwrap();

    let start = Instant::now();
    server.shutdown.cancel();
    let ended = std::sync::Arc::clone(&server.fake.ended);
    server.stopped().await;
    assert!(start.elapsed() >= Duration::from_millis(300), "the stream had its grace period");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(ended.load(std::sync::atomic::Ordering::SeqCst), 1, "the handler's stream was dropped");
    while let Ok(Some(_)) = stream.message().await {}
}

#[tokio::test]
async fn shutdown_lets_an_open_call_finish_and_does_not_wait_for_idle_connections() {
    let server = Running::start(args()).await;
    let mut client = server.client();
    client.score(score("ok")).await.unwrap();
    let mut stream =
        client.generate(within(generate("forever"), Duration::from_millis(500))).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let start = Instant::now();
    server.shutdown.cancel();
    let status = loop {
        if let Err(status) = stream.message().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "the stream ended by itself and was not cut");
    server.stopped().await;
    assert!(start.elapsed() < Duration::from_secs(10), "well before the grace period: {:?}", start.elapsed());
}

#[tokio::test]
async fn reflection_lists_the_services_that_are_here() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let server = Running::start(args()).await;
    let ask = async |request| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let mut client = ServerReflectionClient::new(server.channel());
        let mut answers =
            client.server_reflection_info(futures_util::stream::iter([request])).await.unwrap().into_inner();
        let ServerReflectionResponse { message_response, .. } = answers.message().await.unwrap().unwrap();
        message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
        panic!("no list");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        ["firn.inference.v1.InferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
    );
    let symbol = MessageRequest::FileContainingSymbol("firn.inference.v1.Sampling".to_owned());
    assert!(matches!(ask(symbol).await, MessageResponse::FileDescriptorResponse(_)));
}

#[tokio::test]
async fn health_follows_readiness_and_flips_at_shutdown() {
    let server = Running::start(args()).await;
    let mut client = HealthClient::new(server.channel());
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let is = |answer: HealthCheckResponse, status: ServingStatus| assert_eq!(answer.status, i32::from(status));

    const SERVICE: &str = "firn.inference.v1.InferenceService";
    is(client.check(ask(SERVICE)).await.unwrap().into_inner(), ServingStatus::NotServing);
    assert_eq!(client.check(ask("no.such.Service")).await.unwrap_err().code(), Code::NotFound);

    let mut watch = client.watch(ask("")).await.unwrap().into_inner();
    is(watch.message().await.unwrap().unwrap(), ServingStatus::NotServing);
    server.readiness.set(true);
    is(watch.message().await.unwrap().unwrap(), ServingStatus::Serving);
    is(client.check(ask(SERVICE)).await.unwrap().into_inner(), ServingStatus::Serving);

    let readiness = server.readiness.clone();
    server.shutdown.cancel();
    is(watch.message().await.unwrap().unwrap(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none(), "an open watch does not hold the shutdown up");
    readiness.set(true);
    assert!(!readiness.is_ready(), "not ready for good");
    server.stopped().await;
}

#[tokio::test]
async fn probes_over_http() {
    let server = Running::start(ServerArgs { grace: PATIENCE, ..args() }).await;
    assert_eq!(get(&server, "/livez").await, 200);
    assert_eq!(get(&server, "/readyz").await, 503);
    assert_eq!(get(&server, "/other").await, 404);
    server.readiness.set(true);
    assert_eq!(get(&server, "/readyz").await, 200);

    // While calls finish, the probe says that no more should come.
    let mut stream = server.client().generate(generate("forever")).await.unwrap().into_inner();
    stream.message().await.unwrap();
    server.shutdown.cancel();
    eventually(async || get(&server, "/readyz").await == 503).await;
    assert_eq!(get(&server, "/livez").await, 200);
    drop(stream);
    server.stopped().await;
}

async fn get(server: &Running, path: &str) -> u16 {
    let mut stream = TcpStream::connect(server.health).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_taken_address_is_named_with_its_flag() {
    let first = GrpcServer::bind("inference", &args()).await.unwrap();
    let address = first.local_addr();
    let error = GrpcServer::bind("inference", &ServerArgs { listen: address, ..args() }).await.unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }));
    let message = error.to_string();
    assert!(message.starts_with(&format!("address {address} is taken: ")), "{message}");
    assert!(message.ends_with("choose another with --listen"), "{message}");

    let error =
        GrpcServer::bind("inference", &ServerArgs { health_listen: Some(address), ..args() }).await.unwrap_err();
    assert!(error.to_string().ends_with("choose another with --health-listen"), "{error}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable_until_it_comes() {
    let args = args();
    let address = GrpcServer::bind("inference", &args).await.unwrap().local_addr();
    let endpoint = format!("http://{address}");
    let channel = firn_kit::channel(&endpoint).unwrap();
    let status = InferenceServiceClient::new(channel.clone()).score(score("ok")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with(&format!("{endpoint} does not answer")), "{status:?}");

    let call = firn_kit::retry_unavailable(PATIENCE, || {
        let mut client = InferenceServiceClient::new(channel.clone());
        async move { client.score(score("ok")).await }
    });
    let start = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Running::start(ServerArgs { listen: address, ..args.clone() }).await
    };
    let (answer, _server) = tokio::join!(call, start);
    answer.unwrap();
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    use firn_proto::registry::v1::ListModelsRequest;
    use firn_proto::registry::v1::registry_service_client::RegistryServiceClient;

    let server = Running::start(args()).await;
    let status =
        RegistryServiceClient::new(server.channel()).list_models(ListModelsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
