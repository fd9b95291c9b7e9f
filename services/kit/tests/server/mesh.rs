//! The secret that services share.

use std::time::Duration;

use firn_kit::{GrpcServer, MeshToken, ServerArgs};
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::fake::{Running, generate, score};
use crate::telemetry::{child, in_child};

const SECRET: &str = "correct-horse-battery-staple";
/// After it, whoever uses a secret looks at its file again.
const LATER: Duration = Duration::from_millis(1100);

fn token(secret: &str) -> Option<MeshToken> {
    Some(MeshToken::new(secret).unwrap())
}

#[tokio::test]
async fn only_calls_that_carry_the_secret_are_answered_and_probes_need_none() {
    let server = Running::start_with(ServerArgs::loopback(), token(SECRET)).await;
    let client = |token| InferenceServiceClient::new(server.channel().with_token(token));
    client(token(SECRET)).score(score("ok")).await.unwrap();
    server.ended(1).await;

    for wrong in [None, token("correct-horse-battery-stable")] {
        let status = client(wrong.clone()).score(score("ok")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(firn_kit::status::reason(&status).as_deref(), Some("WRONG_MESH_TOKEN"));
        assert!(status.message().contains("FIRN_MESH_TOKEN") && !status.message().contains("horse"), "{status:?}");
        assert_eq!(client(wrong).generate(generate("forever")).await.unwrap_err().code(), Code::Unauthenticated);
    }
    // Nobody's work was begun for them.
    assert_eq!(server.fake.ended.load(std::sync::atomic::Ordering::SeqCst), 1);

    let channel = server.channel().with_token(None);
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    let request = futures_util::stream::iter([ServerReflectionRequest::default()]);
    let status = ServerReflectionClient::new(channel).server_reflection_info(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_secret_that_changes_on_disk_counts_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let mounted = || Some(MeshToken::read(&path).unwrap());
    let server = Running::start_with(ServerArgs::loopback(), mounted()).await;
    let renewed = server.channel().with_token(mounted());
    let call = async |channel| InferenceServiceClient::new(channel).score(score("ok")).await.map(drop);
    let with = |secret| server.channel().with_token(token(secret));
    call(renewed.clone()).await.unwrap();
    call(with(SECRET)).await.unwrap();

    // What can't be a secret, as in the middle of a renewal, leaves all as it was.
    std::fs::write(&path, "").unwrap();
    tokio::time::sleep(LATER).await;
    call(renewed.clone()).await.unwrap();
    call(with(SECRET)).await.unwrap();

    const NEXT: &str = "quite-another-secret";
    std::fs::write(&path, NEXT).unwrap();
    tokio::time::sleep(LATER).await;
    call(renewed.clone()).await.unwrap();
    call(with(NEXT)).await.unwrap();
    let status = call(with(SECRET)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(!status.message().contains("another-secret"), "{status:?}");

    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(LATER).await;
    call(renewed).await.unwrap();
}

#[tokio::test]
async fn a_secret_is_renewed_everywhere_without_a_refused_call() {
    const NEXT: &str = "quite-another-secret";
    let folder = tempfile::tempdir().unwrap();
    let files = ["caller", "receiver"].map(|name| folder.path().join(name));
    let write = |file: usize, lines: &[&str]| std::fs::write(&files[file], lines.join("\n")).unwrap();
    write(0, &[SECRET]);
    write(1, &[SECRET]);
    let mounted = |file: usize| Some(MeshToken::read(&files[file]).unwrap());
    let server = Running::start_with(ServerArgs::loopback(), mounted(1)).await;
    let caller = server.channel().with_token(mounted(0));
    let call = async |channel| InferenceServiceClient::new(channel).score(score("ok")).await.map(drop);
    // Not at once: who calls has each step before who answers, and the other way round.
    for (step, lines) in [&[SECRET, NEXT][..], &[NEXT, SECRET], &[NEXT]].into_iter().enumerate() {
        for file in if step % 2 == 0 { [0, 1] } else { [1, 0] } {
            write(file, lines);
            tokio::time::sleep(LATER).await;
            call(caller.clone()).await.unwrap();
        }
    }
    let status = call(server.channel().with_token(token(SECRET))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_server_without_a_secret_answers_those_who_have_one() {
    let server = Running::start(ServerArgs::loopback()).await;
    InferenceServiceClient::new(server.channel().with_token(token(SECRET))).score(score("ok")).await.unwrap();
}

#[test]
fn the_environment_gives_servers_and_channels_the_secret() {
    const NAME: &str = "mesh::the_environment_gives_servers_and_channels_the_secret";
    if in_child() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(with_the_environments_secret());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let run = |variables: &[(&str, &str)]| {
        let output = child(NAME).envs(variables.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let file = file.to_str().unwrap();
    for variables in [
        [("FIRN_MESH_TOKEN", SECRET), ("FIRN_MESH_TOKEN_FILE", "")],
        [("FIRN_MESH_TOKEN", ""), ("FIRN_MESH_TOKEN_FILE", file)],
    ] {
        let (succeeded, stderr) = run(&variables);
        assert!(succeeded, "{stderr}");
        assert!(!stderr.contains(SECRET), "{stderr}");
    }
    for (variables, word) in [
        (vec![("FIRN_MESH_TOKEN", SECRET), ("FIRN_MESH_TOKEN_FILE", file)], "both"),
        (vec![("FIRN_MESH_TOKEN", "guess")], "openssl"),
        (vec![("FIRN_MESH_TOKEN_FILE", "/nowhere/token")], "/nowhere/token"),
    ] {
        let (succeeded, stderr) = run(&variables);
        assert!(!succeeded && stderr.contains(word), "{stderr}");
    }
}

/// A server and a channel as the services make them, in a process whose environment names the secret.
async fn with_the_environments_secret() {
    let channel = firn_kit::channel("http://127.0.0.1:1").map_err(|error| error.to_string()).unwrap();
    assert!(format!("{channel:?}").contains("MeshToken(Secret(…))"), "{channel:?}");
    let server = GrpcServer::bind("inference", &ServerArgs::loopback()).await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(tokio_util::sync::CancellationToken::new()));
    let channel = firn_kit::channel(&format!("http://{address}")).unwrap();
    // No service is there, so what comes behind the check is UNIMPLEMENTED.
    let call =
        |channel| async move { InferenceServiceClient::new(channel).score(score("ok")).await.unwrap_err().code() };
    assert_eq!(call(channel.clone()).await, Code::Unimplemented);
    assert_eq!(call(channel.with_token(None)).await, Code::Unauthenticated);
}
