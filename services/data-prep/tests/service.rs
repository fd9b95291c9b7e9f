//! The service from outside: over gRPC, on a stage in a temporary folder.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::{net::SocketAddr, path::Path};

use firn_data_prep::DataPrep;
use firn_kit::ServerArgs;
use firn_proto::dataprep::v1::{
    ContainsRowsRequest, CreateSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest, PromptFormat, RowFormat,
    RowSide, Snapshot, SnapshotState, TextFormat, WatchSnapshotRequest,
    data_prep_service_client::DataPrepServiceClient, row_format::Format,
};
use firn_stage::Stage;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;

type Client = DataPrepServiceClient<firn_kit::Channel>;

struct Service {
    client: Client,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Service {
    async fn start(root: &Path) -> Self {
        let stage = Stage::open(root.to_str().unwrap()).unwrap();
        let service = DataPrep::bind_with(&ServerArgs::loopback(), stage).await.unwrap();
        let client = client(service.local_addr());
        let stop = CancellationToken::new();
        let run = service.run(stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        Self { client, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// Asks for a snapshot and waits for its last state.
    async fn prepare(&mut self, request: CreateSnapshotRequest) -> Snapshot {
        let name = self.client.create_snapshot(request).await.unwrap().into_inner().name;
        let mut frames = self.client.watch_snapshot(WatchSnapshotRequest { name }).await.unwrap().into_inner();
        let mut last = None;
        while let Some(frame) = frames.message().await.unwrap() {
            last = Some(frame);
        }
        last.unwrap()
    }
}

fn client(address: SocketAddr) -> Client {
    DataPrepServiceClient::new(firn_kit::channel(&format!("http://{address}")).unwrap())
}

/// A stage with a base and `offers.csv` of 30 rows.
fn stage() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().join("bases/tiny/llama");
    std::fs::create_dir_all(&base).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama").join(file);
        std::fs::copy(from, base.join(file)).unwrap();
    }
    let rows: String = (0..30).map(|index| format!("Fern {index},${}\n", 5 * index)).collect();
    std::fs::write(root.path().join("offers.csv"), format!("ORGANIZATION_NAME,REWARD\n{rows}")).unwrap();
    root
}

fn request() -> CreateSnapshotRequest {
    let prompt = PromptFormat {
        prompt_template: "Say it: {{ row | tojson }}".to_owned(),
        completion_template: "{{ ORGANIZATION_NAME }} gives {{ REWARD }}.".to_owned(),
        system: String::new(),
    };
    CreateSnapshotRequest {
        dataset: "offers".to_owned(),
        source: "offers.csv".to_owned(),
        base: "bases/tiny/llama".to_owned(),
        format: Some(RowFormat { format: Some(Format::Prompt(prompt)) }),
        held_out_rows: 5,
        seed: 1,
        ..CreateSnapshotRequest::default()
    }
}

#[tokio::test]
async fn a_snapshot_is_made_once_and_outlives_the_service() {
    let root = stage();
    let mut service = Service::start(root.path()).await;
    let snapshot = service.prepare(request()).await;
    assert_eq!(snapshot.error, "");
    assert_eq!(snapshot.state(), SnapshotState::Ready);
    assert_eq!((snapshot.rows, snapshot.train_rows, snapshot.held_out_rows), (30, 25, 5));
    assert!(snapshot.train_tokens > snapshot.completion_tokens && snapshot.completion_tokens > 0);
    assert_eq!(snapshot.template_sha256.len(), 64);
    assert!(root.path().join(&snapshot.path).join("manifest.json").is_file());
    // Which rows it was made of can be asked.
    let mut hashes = Vec::new();
    firn_data_prep::hash_rows(&root.path().join("offers.csv"), |row| hashes.push(row.sha256)).unwrap();
    hashes.push("0".repeat(64));
    let question = ContainsRowsRequest { name: snapshot.name.clone(), sha256: hashes };
    let answer = service.client.contains_rows(question).await.unwrap().into_inner();
    let count = |side: RowSide| answer.sides().filter(|found| *found == side).count();
    assert_eq!([RowSide::Train, RowSide::HeldOut, RowSide::Absent].map(count), [25, 5, 1]);
    assert_eq!(answer.sides().next_back(), Some(RowSide::Absent));
    let odd = ContainsRowsRequest { name: snapshot.name.clone(), sha256: vec!["x".to_owned()] };
    assert_eq!(service.client.contains_rows(odd).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let again = service.client.create_snapshot(request()).await.unwrap().into_inner();
    assert_eq!(again, snapshot, "the same request finds the same snapshot");
    service.stop().await;

    let mut service = Service::start(root.path()).await;
    let list = service.client.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.snapshots, std::slice::from_ref(&snapshot));
    assert_eq!(list.next_page_token, "");
    let found =
        service.client.get_snapshot(GetSnapshotRequest { name: snapshot.name.clone() }).await.unwrap().into_inner();
    assert_eq!(found, snapshot);
    assert_eq!(service.prepare(request()).await, snapshot, "not prepared a second time");
    service.stop().await;
}

#[tokio::test]
async fn a_failure_says_why_leaves_nothing_and_can_be_repaired() {
    let root = stage();
    let mut service = Service::start(root.path()).await;
    let good = std::fs::read_to_string(root.path().join("offers.csv")).unwrap();
    std::fs::write(root.path().join("offers.csv"), format!("{good}one,two,three\n")).unwrap();
    let failed = service.prepare(request()).await;
    assert_eq!(failed.state(), SnapshotState::Failed);
    assert_eq!(failed.error, "row 31 of offers.csv (line 32) has 3 values, but the header has 2");
    assert!(!root.path().join("datasets").exists());
    assert_eq!(service.prepare(request()).await.error, failed.error, "asked again, it tries again");
    std::fs::write(root.path().join("offers.csv"), good).unwrap();
    assert_eq!(service.prepare(request()).await.state(), SnapshotState::Ready);
    service.stop().await;
}

#[tokio::test]
async fn wrong_requests_name_their_field() {
    let root = stage();
    let mut service = Service::start(root.path()).await;
    let format = |format| Some(RowFormat { format: Some(format) });
    let bad_template =
        PromptFormat { prompt_template: "{{".to_owned(), completion_template: "x".to_owned(), system: String::new() };
    let cases = [
        ("dataset", CreateSnapshotRequest { dataset: "Offers!".to_owned(), ..request() }),
        ("source", CreateSnapshotRequest { source: String::new(), ..request() }),
        ("source", CreateSnapshotRequest { source: "none.csv".to_owned(), ..request() }),
        ("source", CreateSnapshotRequest { source: "../offers.csv".to_owned(), ..request() }),
        ("source", CreateSnapshotRequest { source: "offers.xlsx".to_owned(), ..request() }),
        ("base", CreateSnapshotRequest { base: "bases/none".to_owned(), ..request() }),
        ("format", CreateSnapshotRequest { format: None, ..request() }),
        (
            "format.text.column",
            CreateSnapshotRequest { format: format(Format::Text(TextFormat::default())), ..request() },
        ),
        ("format.prompt", CreateSnapshotRequest { format: format(Format::Prompt(bad_template)), ..request() }),
        ("max_tokens", CreateSnapshotRequest { max_tokens: 1, ..request() }),
        ("chat_template", CreateSnapshotRequest { chat_template: "alpaca".to_owned(), ..request() }),
    ];
    for (field, request) in cases {
        let status = service.client.create_snapshot(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field, "{}", status.message());
    }
    let name = |name: &str| GetSnapshotRequest { name: name.to_owned() };
    let missing = service.client.get_snapshot(name("datasets/a/snapshots/b")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(service.client.get_snapshot(name("models/a")).await.unwrap_err().code(), Code::InvalidArgument);
    let page = ListSnapshotsRequest { page_size: -1, ..ListSnapshotsRequest::default() };
    assert_eq!(service.client.list_snapshots(page).await.unwrap_err().code(), Code::InvalidArgument);
    service.stop().await;
}

#[tokio::test]
async fn ready_text_is_prepared_too() {
    let root = stage();
    std::fs::write(root.path().join("t.jsonl"), "{\"text\":\"Salt Bay.\"}\n{\"text\":\"Crow Fell.\"}\n").unwrap();
    let mut service = Service::start(root.path()).await;
    let text = TextFormat { column: "text".to_owned() };
    let format = Some(RowFormat { format: Some(Format::Text(text)) });
    let request = CreateSnapshotRequest { source: "t.jsonl".to_owned(), format, held_out_rows: 0, ..request() };
    let snapshot = service.prepare(request).await;
    assert_eq!((snapshot.error.as_str(), snapshot.train_rows, snapshot.held_out_rows), ("", 2, 0));
    assert_eq!(snapshot.template_sha256, "");
    assert_eq!(snapshot.completion_tokens, snapshot.train_tokens - 2, "nothing predicts a row's first token");
    service.stop().await;
}
