//! More than there is room for: large prompts, and many requests at once.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use firn_proto::inference::v1::generate_request::Input;
use rustix::process::{Resource, getrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Barrier,
    task::JoinSet,
};

use super::*;

/// Requests at once, where the system lets a process have so many connections.
const CROWD: usize = 10_000;
/// Files that this process has open besides.
const OTHER_FILES: usize = 1_000;
/// Longest wait for all of them: those that the system's queue has no room for knock again after 1, 2, 4 … seconds.
const CROWD_TIME: Duration = Duration::from_secs(120);
/// Times that a caller knocks whom the system dropped without a word: its queue is full while the gateway gets no processor.
const KNOCKS: usize = 5;
/// Places of the engine.
const PLACES: usize = 64;
/// What the gateway may take in memory whatever comes, in KiB.
const MOST_MEMORY: u64 = 128 << 10;

#[tokio::test]
async fn a_prompt_of_a_megabyte_is_refused_by_who_knows_the_context() {
    let running = Running::start().await;
    let prompt = "word ".repeat(200_000);
    let turns = json!([{"role": "user", "content": prompt}]);
    for (path, body, name) in [
        ("/v1/completions", json!({"model": "base", "prompt": prompt}), "prompt"),
        ("/v1/chat/completions", question(json!({"messages": turns})), "messages"),
        ("/v1/chat/completions", question(json!({"messages": turns, "stream": true})), "messages"),
    ] {
        let reason = "has 200000 tokens, more than the context of 512";
        let status = firn_kit::status::invalid_argument_because("x.firn.dev", "CONTEXT_TOO_LONG", name, reason);
        *running.fake.refusal.lock().unwrap() = Some(status);
        let (status, answer) = json_of(running.post(path, &body).await).await;
        let error = &answer["error"];
        assert_eq!((status.as_u16(), &error["code"]), (400, &json!("context_length_exceeded")), "{answer}");
        assert_eq!((&error["param"], &error["type"]), (&json!(name), &json!("invalid_request_error")));
    }
    let asked = running.fake.generated.lock().unwrap().pop().unwrap().input;
    assert!(matches!(asked, Some(Input::Prompt(text)) if text == prompt), "it went through as it was");
    let chats = running.fake.asked.lock().unwrap().len();
    let long = question(json!({"messages": [{"role": "user", "content": "x".repeat(1 << 20)}]}));
    assert_eq!(running.post("/v1/chat/completions", &long).await.status(), 413, "a larger body is not even read");
    assert_eq!(running.fake.asked.lock().unwrap().len(), chats);
    running.stop().await;
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_counted() {
    let running = Running::start_with(Options { max_connections: 1, ..Options::default() }).await;
    let mut held = connect(running.address).await;
    let health = || Request::get("/healthz").header("host", "localhost").body(Body::default()).unwrap();
    assert_eq!(within(held.send_request(health())).await.unwrap().status(), 200);
    // Not even a caller who sends all of a large body before it reads loses the answer.
    for content in ["hi".to_owned(), "x".repeat(5_000_000)] {
        let body = question(json!({"messages": [{"role": "user", "content": content}]}));
        let (status, retry_after, answer) = within(by_hand(running.address, &body)).await.unwrap();
        let error = &answer["error"];
        assert_eq!((status, retry_after.as_deref(), &error["code"]), (429, Some("1"), &json!("rate_limit_exceeded")));
        assert!(error["message"].as_str().unwrap().contains("--max-connections"));
    }
    drop(held);
    within(async {
        while running.send(health()).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let text = within(async {
        loop {
            let request = Request::get("/metrics").header("host", "localhost").body(Body::default()).unwrap();
            let response = running.send(request).await;
            if response.status() == 200 {
                return text_of(response).await;
            }
        }
    })
    .await;
    let refused = "firn_http_requests_total{route=\"none\",status=\"429\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(refused)).unwrap();
    assert!(count.parse::<u64>().unwrap() >= 2, "{count}");
    running.stop().await;
}

/// A gateway in a process of its own, whose memory can be told from the crowd's.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    async fn start(services: &str) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(env!("CARGO_BIN_EXE_firn-gateway"));
        command.args(["--http", &address.to_string(), "--health-listen", "127.0.0.1:0"]);
        for service in ["inference", "trainer", "registry", "data-prep"] {
            command.args([format!("--{service}-endpoint"), services.to_owned()]);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let process = Self { child, address };
        within(async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        process
    }

    /// Most KiB that it ever took.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches("kB").trim().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the system allow as many connections as it may, and says how many requests there are to be.
fn crowd() -> usize {
    firn_kit::raise_file_limit();
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| usize::try_from(files).unwrap());
    CROWD.min(files - OTHER_FILES)
}

/// One request by hand, which takes little memory. Its answer: status, `Retry-After` and body.
async fn by_hand(address: SocketAddr, body: &Value) -> std::io::Result<(u16, Option<String>, Value)> {
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?} is no answer"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let retry_after = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).map(str::to_owned);
    Ok((status, retry_after, serde_json::from_str(body).unwrap_or_else(|_| panic!("{body:?} is no JSON"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_is_answered_or_told_when_to_come_back_and_the_memory_stays_small() {
    let (fake, services) = fake::Fake::start().await;
    *fake.places.lock().unwrap() = PLACES;
    let gateway = Process::start(&services).await;
    let crowd = crowd();
    let start = Arc::new(Barrier::new(crowd));
    let (address, wishes) = (gateway.address, Arc::new(question(json!({"model": "crowded"}))));
    let mut asking = JoinSet::new();
    for _ in 0..crowd {
        let (start, wishes) = (Arc::clone(&start), Arc::clone(&wishes));
        asking.spawn(async move {
            start.wait().await;
            for dropped in 0..KNOCKS {
                if let Ok(answer) = by_hand(address, &wishes).await {
                    return (dropped, answer);
                }
            }
            panic!("a caller was dropped {KNOCKS} times");
        });
    }
    let answers = tokio::time::timeout(CROWD_TIME, asking.join_all()).await.unwrap();
    let (mut answered, mut refused, mut dropped) = (0, 0, 0);
    for (knocks, (status, retry_after, body)) in answers {
        dropped += knocks;
        match status {
            200 => {
                assert_eq!(body["choices"][0]["message"]["content"], "slow");
                answered += 1;
            }
            429 => {
                assert!(retry_after.is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|seconds| seconds > 0)));
                let error = &body["error"];
                let expected = (&json!("rate_limit_error"), &json!("rate_limit_exceeded"));
                assert_eq!((&error["type"], &error["code"]), expected);
                assert!(!error["message"].as_str().unwrap().is_empty());
                refused += 1;
            }
            other => panic!("{other}: {body}"),
        }
    }
    assert_eq!(answered + refused, crowd);
    assert!(answered >= PLACES && refused > 0, "{answered} were answered, {refused} refused");
    assert!(dropped < crowd / 50, "{dropped} of {crowd} heard nothing");
    let (open, most) = *fake.open.lock().unwrap();
    assert!(open == 0 && most <= PLACES, "{most} were open at once, {open} are left");
    assert!(gateway.peak() < MOST_MEMORY, "it took {} KiB", gateway.peak());
    // And it goes on.
    let (status, ..) = within(by_hand(address, &wishes)).await.unwrap();
    assert_eq!(status, 200);
}
