//! Certificates between services.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use firn_kit::{Channel, GrpcServer, ServerArgs, Tls, channel_with};
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::collector::collect;
use crate::fake::{PATIENCE, Running, eventually, score};
use crate::telemetry::{child, in_child, json_args};

/// An authority that makes certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these hosts, and its key.
    fn issue(&self, hosts: &[&str]) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let certificate = CertificateParams::new(hosts).unwrap().signed_by(&key, &self.issuer).unwrap();
        [certificate.pem(), key.serialize_pem()]
    }
}

/// What a service has mounted.
struct Mounted(TempDir);

impl Mounted {
    /// Whom to trust, and a certificate of its own.
    fn new(trusted: &Authority, [cert, key]: [String; 2]) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        mounted.write(&trusted.pem, &cert, &key);
        mounted
    }

    fn write(&self, ca: &str, cert: &str, key: &str) {
        for (name, content) in [("ca.pem", ca), ("cert.pem", cert), ("key.pem", key)] {
            std::fs::write(self.file(name), content).unwrap();
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tls(&self) -> Tls {
        Tls::read(&self.file("ca.pem"), &self.file("cert.pem"), &self.file("key.pem")).unwrap()
    }
}

/// After it, whoever uses certificates looks at their files again.
const LATER: Duration = Duration::from_millis(1100);
const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

async fn serve(mounted: &Mounted) -> Running {
    Running::start_as(ServerArgs::loopback(), None, Some(mounted.tls())).await
}

/// A channel to `host` on the server's port.
fn channel(server: &Running, host: &str, tls: Option<Tls>) -> Channel {
    let scheme = if tls.is_some() { "https" } else { "http" };
    channel_with(&format!("{scheme}://{host}:{}", server.address.port()), tls).unwrap()
}

async fn call(channel: Channel) -> Result<(), Status> {
    let mut client = InferenceServiceClient::new(channel);
    tokio::time::timeout(PATIENCE, client.score(score("ok"))).await.expect("it is answered").map(drop)
}

#[tokio::test]
async fn services_with_certificates_of_one_authority_call_each_other_by_name_and_address() {
    let authority = Authority::new("stack");
    let server = serve(&Mounted::new(&authority, authority.issue(&HERE))).await;
    let own = Mounted::new(&authority, authority.issue(&["gateway"]));
    for host in HERE {
        call(channel(&server, host, Some(own.tls()))).await.unwrap();
    }
    // Probes go on as they were.
    let mut probe = TcpStream::connect(server.health).await.unwrap();
    probe.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn certificates_that_the_script_makes_are_for_every_service_as_caller_and_as_called() {
    if std::process::Command::new("openssl").arg("version").output().is_err() {
        return eprintln!("skipped: there is no openssl");
    }
    let folder = tempfile::tempdir().unwrap();
    let make = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/certificates");
        let output = std::process::Command::new("bash").arg(script).arg(folder.path()).arg("default.svc").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make();
    let file = |service: &str, name: &str| folder.path().join(service).join(name);
    let tls = |service: &str| {
        let [ca, cert, key] = ["ca.crt", "tls.crt", "tls.key"].map(|name| file(service, name));
        Tls::read(&ca, &cert, &key).unwrap()
    };
    for service in ["data-prep", "trainer", "model-registry", "inference", "gateway", "firn"] {
        let cert = CertificateDer::from_pem_file(file(service, "tls.crt")).unwrap();
        let cert = rustls::server::ParsedCertificate::try_from(&cert).unwrap();
        let is_for = |name: &str| {
            rustls::client::verify_server_name(&cert, &ServerName::try_from(name.to_owned()).unwrap()).is_ok()
        };
        for name in [service, &format!("{service}.default.svc"), "localhost", "127.0.0.1", "::1"] {
            assert!(is_for(name), "{service}: {name}");
        }
        assert!(!is_for("elsewhere") && !is_for("default.svc"), "{service}");
        let server = Running::start_as(ServerArgs::loopback(), None, Some(tls(service))).await;
        call(channel(&server, "localhost", Some(tls("gateway")))).await.unwrap();
    }
    // A renewal keeps the authority, so that who has the old certificate and who has the new one trust each other.
    let before = std::fs::read(file("trainer", "tls.crt")).unwrap();
    let (old, own) = (tls("trainer"), tls("gateway"));
    make();
    assert_ne!(std::fs::read(file("trainer", "tls.crt")).unwrap(), before);
    for (served, shown) in [(old, tls("gateway")), (tls("trainer"), own)] {
        let server = Running::start_as(ServerArgs::loopback(), None, Some(served)).await;
        call(channel(&server, "localhost", Some(shown))).await.unwrap();
    }
}

#[tokio::test]
async fn who_is_not_of_the_authority_is_told_what_is_wrong_and_gets_no_work_done() {
    let (authority, stranger) = (Authority::new("stack"), Authority::new("other"));
    let server = serve(&Mounted::new(&authority, authority.issue(&["127.0.0.1"]))).await;
    let own = || authority.issue(&["gateway"]);
    let to = |host, mounted: &Mounted| channel(&server, host, Some(mounted.tls()));

    let foreign = to("127.0.0.1", &Mounted::new(&authority, stranger.issue(&["gateway"])));
    let trusts_another = to("127.0.0.1", &Mounted::new(&stranger, own()));
    let wrong_host = to("localhost", &Mounted::new(&authority, own()));
    for (channel, words) in [
        (foreign, ["127.0.0.1 refused this service's certificate, which FIRN_TLS_CERT", "UnknownCA"]),
        (trusts_another, ["no TLS with 127.0.0.1", "UnknownIssuer"]),
        (wrong_host, ["no TLS with localhost", "not valid for name"]),
    ] {
        let status = call(channel).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(words.iter().all(|word| status.message().contains(word)), "{words:?}: {status:?}");
        assert!(status.message().starts_with("https://"), "{status:?}");
    }

    let status = call(channel(&server, "127.0.0.1", None)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(firn_kit::status::reason(&status).as_deref(), Some("TLS_REQUIRED"));
    assert!(status.message().contains("FIRN_TLS_CA") && status.message().contains("https://"), "{status:?}");
    assert_eq!(server.fake.begun.load(std::sync::atomic::Ordering::SeqCst), 0, "nobody's work was begun");
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let authority = Authority::new("stack");
    let server = serve(&Mounted::new(&authority, authority.issue(&HERE))).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    // The server is heard out: what it says after the handshake reaches also one who writes on.
    for part in [b"PRI * HTTP/2.0\r\n\r\n", b"SM\r\n\r\nand so on..."] {
        stream.write_all(part).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let error = stream.read_u8().await.unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn a_service_that_speaks_no_tls_is_no_peer() {
    let authority = Authority::new("stack");
    let server = Running::start(ServerArgs::loopback()).await;
    let own = Mounted::new(&authority, authority.issue(&["gateway"]));
    let status = call(channel(&server, "127.0.0.1", Some(own.tls()))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no TLS with 127.0.0.1"), "{status:?}");
}

#[tokio::test]
async fn certificates_that_change_on_disk_count_for_new_connections() {
    let (old, new) = (Authority::new("stack"), Authority::new("other"));
    let [served, own] = [&HERE[..], &["gateway"]].map(|hosts| Mounted::new(&old, old.issue(hosts)));
    let server = serve(&served).await;
    let open = channel(&server, "localhost", Some(own.tls()));
    call(open.clone()).await.unwrap();

    // A key that is not the certificate's, as in the middle of a renewal: what was read before goes on to count.
    let [renewed, key] = new.issue(&HERE);
    std::fs::write(served.file("cert.pem"), &renewed).unwrap();
    tokio::time::sleep(LATER).await;
    call(channel(&server, "localhost", Some(own.tls()))).await.unwrap();

    served.write(&new.pem, &renewed, &key);
    tokio::time::sleep(LATER).await;
    let status = call(channel(&server, "localhost", Some(own.tls()))).await.unwrap_err();
    assert!(status.message().contains("UnknownIssuer"), "{status:?}");
    let [cert, key] = new.issue(&["gateway"]);
    let renewed = Mounted::new(&new, [cert.clone(), key.clone()]);
    call(channel(&server, "localhost", Some(renewed.tls()))).await.unwrap();
    // What is open stays open, and a channel that must connect again does so with what is there by then.
    call(open.clone()).await.unwrap();
    own.write(&new.pem, &cert, &key);
    let address = server.address;
    server.shutdown.cancel();
    server.stopped().await;
    let args = ServerArgs { listen: address, ..ServerArgs::loopback() };
    let server = Running::start_as(args, None, Some(served.tls())).await;
    eventually(async || call(open.clone()).await.is_ok()).await;
    server.ended(1).await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_cut_and_keeps_nobody_waiting() {
    let authority = Authority::new("stack");
    let server = serve(&Mounted::new(&authority, authority.issue(&HERE))).await;
    let start = Instant::now();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    // The head of a record that never comes.
    slow.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let own = Mounted::new(&authority, authority.issue(&["gateway"]));
    call(channel(&server, "localhost", Some(own.tls()))).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "others are answered meanwhile");
    for stream in [&mut silent, &mut slow] {
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.expect("it is cut");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    assert!(start.elapsed() >= Duration::from_secs(4), "{:?}", start.elapsed());

    // One that is under way does not hold a shutdown up.
    let _open = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    server.shutdown.cancel();
    server.stopped().await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_counted_by_cause() {
    const NAME: &str = "tls::refused_connections_are_counted_by_cause";
    if in_child() {
        let _guard = firn_kit::telemetry::init("inference", &json_args()).unwrap();
        let (authority, stranger) = (Authority::new("stack"), Authority::new("other"));
        let server = serve(&Mounted::new(&authority, authority.issue(&HERE))).await;
        let foreign = Mounted::new(&authority, stranger.issue(&["gateway"]));
        call(channel(&server, "localhost", Some(foreign.tls()))).await.unwrap_err();
        call(channel(&server, "localhost", None)).await.unwrap_err();
        // Whoever only looks whether the port is open counts for nothing.
        drop(TcpStream::connect(server.address).await.unwrap());
        server.shutdown.cancel();
        return server.stopped().await;
    }
    let (received, address, _collector) = collect().await;
    let mut child = child(NAME).env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &address).spawn().unwrap();
    assert!(tokio::task::block_in_place(|| child.wait()).unwrap().success());
    let mut counts = received.counts.lock().unwrap().clone();
    counts.sort();
    let counted = |cause: &str| ("tls.server.handshake.failures".to_owned(), cause.to_owned(), 1);
    assert_eq!(counts, [counted("handshake"), counted("plain")]);
}

#[test]
fn the_environment_gives_servers_and_channels_the_certificates() {
    const NAME: &str = "tls::the_environment_gives_servers_and_channels_the_certificates";
    if in_child() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(with_the_environments_certificates());
    }
    let authority = Authority::new("stack");
    let mounted = Mounted::new(&authority, authority.issue(&HERE));
    let run = |variables: &[(&str, &Path)]| {
        let output = child(NAME).envs(variables.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| mounted.file(name));
    let all = [("FIRN_TLS_CA", &*ca), ("FIRN_TLS_CERT", &*cert), ("FIRN_TLS_KEY", &*key)];
    let (succeeded, stderr) = run(&all);
    assert!(succeeded, "{stderr}");
    let (succeeded, stderr) = run(&all[..2]);
    assert!(!succeeded && stderr.contains("FIRN_TLS_KEY is not set"), "{stderr}");
    let (succeeded, stderr) = run(&[all[0], all[1], ("FIRN_TLS_KEY", Path::new("/nowhere/key.pem"))]);
    assert!(!succeeded && stderr.contains("/nowhere/key.pem"), "{stderr}");
}

/// A server and channels as the services make them, in a process whose environment names certificates.
async fn with_the_environments_certificates() {
    let made = |endpoint: &str| firn_kit::channel(endpoint).map_err(|error| error.to_string());
    let scheme = firn_kit::scheme().map_err(|error| error.to_string()).unwrap();
    let server =
        GrpcServer::bind("inference", &ServerArgs::loopback()).await.map_err(|error| error.to_string()).unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(tokio_util::sync::CancellationToken::new()));
    // No service is there, so what comes behind the handshake is UNIMPLEMENTED.
    let status = call(made(&format!("{scheme}://{address}")).unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    let refusal = made(&format!("http://{address}")).unwrap_err();
    assert!(refusal.contains("write https://"), "{refusal}");
}
