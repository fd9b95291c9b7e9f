//! Files and collections from outside: over gRPC, on a stage in a temporary folder.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod collections;

use std::{net::SocketAddr, path::Path, time::Duration};

use clap::Parser as _;
use firn_data_prep::{Config, DataPrep};
use firn_kit::Channel;
use firn_proto::dataprep::v1::{
    self as pb, data_prep_service_client::DataPrepServiceClient, file_service_client::FileServiceClient,
    upload_file_request::Part,
};
use futures_util::{StreamExt as _, stream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const MEGABYTE: usize = 1 << 20;

struct Service {
    files: FileServiceClient<Channel>,
    snapshots: DataPrepServiceClient<Channel>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Service {
    async fn start(root: &Path) -> Self {
        let stage = root.to_str().unwrap();
        let flags = ["data-prep", "--stage", stage, "--listen=127.0.0.1:0", "--health-listen=127.0.0.1:0"];
        let limit = format!("--max-file-bytes={}", 20 * MEGABYTE);
        let config = Config::try_parse_from(flags.into_iter().chain([limit.as_str()])).unwrap();
        let service = DataPrep::bind(config).await.unwrap();
        let channel = channel(service.local_addr());
        let stop = CancellationToken::new();
        let run = service.run(stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        let files = FileServiceClient::new(channel.clone());
        Self { files, snapshots: DataPrepServiceClient::new(channel), stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    async fn upload(&mut self, filename: &str, chunks: &[&[u8]]) -> Result<pb::File, Status> {
        let parts: Vec<_> = [head(filename)].into_iter().chain(chunks.iter().map(|chunk| data(chunk))).collect();
        Ok(self.files.upload_file(stream::iter(parts)).await?.into_inner())
    }

    async fn list(&mut self, page_size: i32, page_token: &str) -> (Vec<pb::File>, String) {
        let request = pb::ListFilesRequest { page_size, page_token: page_token.to_owned() };
        let page = self.files.list_files(request).await.unwrap().into_inner();
        (page.files, page.next_page_token)
    }

    async fn append(&mut self, collection: &str, rows: &[&str]) -> Result<pb::AppendRowsResponse, Status> {
        let rows = rows.iter().map(|row| (*row).to_owned()).collect();
        let request = pb::AppendRowsRequest { collection: collection.to_owned(), rows };
        Ok(self.files.append_rows(request).await?.into_inner())
    }
}

fn channel(address: SocketAddr) -> Channel {
    firn_kit::channel(&format!("http://{address}")).unwrap()
}

fn head(filename: &str) -> pb::UploadFileRequest {
    let head = pb::FileHead { filename: filename.to_owned(), purpose: "fine-tune".to_owned() };
    pb::UploadFileRequest { part: Some(Part::Head(head)) }
}

fn data(bytes: &[u8]) -> pb::UploadFileRequest {
    pb::UploadFileRequest { part: Some(Part::Data(bytes.to_vec())) }
}

fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().unwrap().field_violations[0].field.clone()
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_and_outlives_the_service() {
    let root = tempfile::tempdir().unwrap();
    let mut service = Service::start(root.path()).await;
    // Larger than what is written at once.
    let chunk = vec![b'7'; MEGABYTE];
    let chunks = vec![chunk.as_slice(); 18];
    let file = service.upload("Überblick 1.jsonl", &chunks).await.unwrap();
    assert!(file.name.starts_with("files/file-") && file.create_time.is_some(), "{file:?}");
    assert_eq!((file.size, file.purpose.as_str()), (18 << 20, "fine-tune"));
    assert_eq!(file.sha256, firn_stage::sha256_hex(&chunks.concat()));
    assert_eq!(std::fs::read(root.path().join(&file.path)).unwrap(), chunks.concat());
    service.stop().await;

    let mut service = Service::start(root.path()).await;
    assert_eq!(service.list(0, "").await, (vec![file.clone()], String::new()));
    let name = file.name.clone();
    let found = service.files.get_file(pb::GetFileRequest { name: name.clone() }).await.unwrap().into_inner();
    assert_eq!(found, file);
    let mut read = service.files.read_file(pb::ReadFileRequest { name: name.clone() }).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = read.message().await.unwrap() {
        assert!((1..=MEGABYTE).contains(&chunk.data.len()));
        bytes.extend(chunk.data);
    }
    assert_eq!(firn_stage::sha256_hex(&bytes), file.sha256);

    service.files.delete_file(pb::DeleteFileRequest { name: name.clone() }).await.unwrap();
    let again = service.files.delete_file(pb::DeleteFileRequest { name: name.clone() }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    assert_eq!(again.get_details_resource_info().unwrap().resource_name, name);
    assert!(!root.path().join(&file.path).exists());
    assert_eq!(service.list(0, "").await.0, []);
    service.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_upload_is_named_and_nothing_stays() {
    let root = tempfile::tempdir().unwrap();
    let mut service = Service::start(root.path()).await;
    let chunk = vec![b'7'; MEGABYTE];
    let long = vec![b'7'; MEGABYTE + 1];
    for (filename, chunks, wrong) in [
        ("../a.csv", vec![b"x".as_slice()], "head.filename"),
        ("a.exe", vec![b"x".as_slice()], "head.filename"),
        ("a.csv", vec![], "data"),
        ("a.csv", vec![&long], "data"),
        ("a.csv", vec![b"x", b""], "data"),
        ("a.csv", vec![chunk.as_slice(); 21], "data"),
    ] {
        let status = service.upload(filename, &chunks).await.unwrap_err();
        assert_eq!(field(&status), wrong, "{filename}");
        if chunks.len() == 21 {
            assert!(status.message().contains("more than 20971520 bytes"), "{}", status.message());
        }
    }
    let headless = service.files.upload_file(stream::iter([data(b"x")])).await.unwrap_err();
    assert_eq!(field(&headless), "head");
    let twice = service.files.upload_file(stream::iter([head("a.csv"), head("a.csv")])).await.unwrap_err();
    assert_eq!(field(&twice), "head");
    assert_eq!(service.list(0, "").await.0, []);
    assert_eq!(files_below(root.path()), 0);
    let wrong = service.files.get_file(pb::GetFileRequest { name: "files/../x".to_owned() }).await.unwrap_err();
    assert_eq!(field(&wrong), "name");
    service.stop().await;
}

#[tokio::test]
async fn a_cut_upload_leaves_nothing_that_is_listed() {
    let root = tempfile::tempdir().unwrap();
    let mut service = Service::start(root.path()).await;
    let kept = service.upload("kept.csv", &[b"A\nx\n"]).await.unwrap();
    // However little the stage has to do for them.
    for chunks in [1, 1, 1, 1, 1, 12] {
        let parts: Vec<_> = [head("cut.csv")].into_iter().chain((0..chunks).map(|_| data(&[7; MEGABYTE]))).collect();
        let endless = stream::iter(parts).chain(stream::pending());
        let leaving = tokio::time::timeout(Duration::from_millis(200), service.files.upload_file(endless)).await;
        assert!(leaving.is_err(), "it has no end");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(service.list(0, "").await.0, std::slice::from_ref(&kept));
    service.stop().await;
    // What a crash would have left: bytes without a manifest, and a torn manifest.
    for (id, manifest) in [("file-1", None), ("file-2", Some("{\"files\":"))] {
        let folder = root.path().join("inputs/files").join(id);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.csv"), "A\nx\n").unwrap();
        if let Some(text) = manifest {
            std::fs::write(folder.join("manifest.json"), text).unwrap();
        }
    }
    let mut service = Service::start(root.path()).await;
    assert_eq!(service.list(0, "").await.0, [kept]);
    service.stop().await;
}

#[tokio::test]
async fn only_so_many_files_are_stored_at_once() {
    let root = tempfile::tempdir().unwrap();
    let mut service = Service::start(root.path()).await;
    let mut slow: Vec<_> = (0..17)
        .map(|_| {
            let mut files = service.files.clone();
            let parts = stream::iter([head("slow.csv"), data(b"A")]).chain(stream::pending());
            tokio::spawn(async move { files.upload_file(parts).await })
        })
        .collect();
    // They have no end, so the one that ends was refused.
    let (refused, _, others) = futures_util::future::select_all(slow).await;
    slow = others;
    let refused = refused.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    let full = service.upload("a.csv", &[b"A\nx\n"]).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    slow.iter().for_each(JoinHandle::abort);
    let mut stored = Err(full);
    for _ in 0..200 {
        stored = service.upload("a.csv", &[b"A\nx\n"]).await;
        if stored.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stored.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn files_are_listed_in_pages_that_a_deletion_does_not_move() {
    let root = tempfile::tempdir().unwrap();
    let mut service = Service::start(root.path()).await;
    let mut names = vec![];
    for index in 0..5 {
        names.push(service.upload(&format!("{index}.csv"), &[b"A\nx\n"]).await.unwrap().name);
    }
    let (first, token) = service.list(2, "").await;
    assert_eq!(first.iter().map(|file| &file.name).collect::<Vec<_>>(), [&names[0], &names[1]]);
    service.files.delete_file(pb::DeleteFileRequest { name: names[0].clone() }).await.unwrap();
    let (second, token) = service.list(2, &token).await;
    assert_eq!(second.iter().map(|file| &file.name).collect::<Vec<_>>(), [&names[2], &names[3]]);
    let (third, token) = service.list(2, &token).await;
    assert_eq!((third[0].name.as_str(), third.len(), token.as_str()), (names[4].as_str(), 1, ""));
    for (page_size, page_token, wrong) in [(-1, "", "page_size"), (0, "../x", "page_token")] {
        let request = pb::ListFilesRequest { page_size, page_token: page_token.to_owned() };
        assert_eq!(field(&service.files.list_files(request).await.unwrap_err()), wrong);
    }
    service.stop().await;
}

fn files_below(path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}
