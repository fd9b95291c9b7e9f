//! A data-prep that keeps files in memory.

use std::{collections::BTreeMap, pin::Pin};

use firn_kit::status;
use firn_proto::dataprep::v1::{
    self as pb, data_prep_service_server::DataPrepService, file_service_server::FileService, upload_file_request::Part,
};
use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};

use super::Fake;

const DOMAIN: &str = "data-prep.firn.dev";

/// What was stored.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) files: BTreeMap<String, (pb::File, Vec<u8>)>,
    pub(crate) collections: BTreeMap<String, Vec<String>>,
    /// Uploads that began.
    pub(crate) begun: usize,
    /// Largest chunk.
    pub(crate) largest: usize,
}

impl Fake {
    /// Stores a file as if it had been uploaded.
    pub(crate) fn store(&self, filename: &str, purpose: &str, bytes: &[u8]) -> pb::File {
        let mut stored = self.files.lock().unwrap();
        let id = format!("file-{}", stored.files.len() + 1);
        let file = pb::File {
            name: format!("files/{id}"),
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
            size: bytes.len() as u64,
            sha256: "0".repeat(64),
            create_time: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
            path: format!("inputs/files/{id}/{filename}"),
        };
        stored.files.insert(file.name.clone(), (file.clone(), bytes.to_vec()));
        file
    }

    fn file(&self, name: &str) -> Result<(pb::File, Vec<u8>), Status> {
        let found = self.files.lock().unwrap().files.get(name).cloned();
        found.ok_or_else(|| status::not_found(DOMAIN, "file", name))
    }
}

#[tonic::async_trait]
impl FileService for Fake {
    async fn upload_file(
        &self,
        request: Request<Streaming<pb::UploadFileRequest>>,
    ) -> Result<Response<pb::File>, Status> {
        let mut parts = request.into_inner();
        self.files.lock().unwrap().begun += 1;
        let (mut head, mut bytes) = (pb::FileHead::default(), vec![]);
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Head(sent)) => head = sent,
                Some(Part::Data(data)) => {
                    let mut stored = self.files.lock().unwrap();
                    stored.largest = stored.largest.max(data.len());
                    bytes.extend(data);
                }
                None => {}
            }
            if head.filename.ends_with(".exe") {
                return Err(status::invalid_argument(DOMAIN, "head.filename", "must end in .jsonl"));
            }
        }
        if bytes.is_empty() {
            return Err(status::invalid_argument(DOMAIN, "data", "the file is empty"));
        }
        // As data-prep does: a call that was given up is dropped here.
        tokio::task::yield_now().await;
        Ok(Response::new(self.store(&head.filename, &head.purpose, &bytes)))
    }

    async fn get_file(&self, request: Request<pb::GetFileRequest>) -> Result<Response<pb::File>, Status> {
        Ok(Response::new(self.file(&request.get_ref().name)?.0))
    }

    async fn list_files(&self, _: Request<pb::ListFilesRequest>) -> Result<Response<pb::ListFilesResponse>, Status> {
        let files = self.files.lock().unwrap().files.values().map(|(file, _)| file.clone()).collect();
        Ok(Response::new(pb::ListFilesResponse { files, next_page_token: String::new() }))
    }

    type ReadFileStream = Pin<Box<dyn Stream<Item = Result<pb::ReadFileResponse, Status>> + Send>>;

    async fn read_file(&self, request: Request<pb::ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        let (_, bytes) = self.file(&request.get_ref().name)?;
        let chunks: Vec<_> =
            bytes.chunks(1 << 20).map(|chunk| Ok(pb::ReadFileResponse { data: chunk.to_vec() })).collect();
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    async fn delete_file(
        &self,
        request: Request<pb::DeleteFileRequest>,
    ) -> Result<Response<pb::DeleteFileResponse>, Status> {
        let name = &request.get_ref().name;
        self.file(name)?;
        self.files.lock().unwrap().files.remove(name);
        Ok(Response::new(pb::DeleteFileResponse {}))
    }

    async fn append_rows(
        &self,
        request: Request<pb::AppendRowsRequest>,
    ) -> Result<Response<pb::AppendRowsResponse>, Status> {
        let pb::AppendRowsRequest { collection, rows } = request.into_inner();
        let path = format!("inputs/collections/{collection}");
        let mut stored = self.files.lock().unwrap();
        let all = stored.collections.entry(collection).or_default();
        all.extend(rows);
        Ok(Response::new(pb::AppendRowsResponse { path, rows: all.len() as u64 }))
    }
}

#[tonic::async_trait]
impl DataPrepService for Fake {
    async fn create_snapshot(&self, _: Request<pb::CreateSnapshotRequest>) -> Result<Response<pb::Snapshot>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_snapshot(&self, request: Request<pb::GetSnapshotRequest>) -> Result<Response<pb::Snapshot>, Status> {
        match request.into_inner().name {
            name if name == "datasets/offers/snapshots/1234" => {
                let path = "datasets/offers/1234".to_owned();
                let state = pb::SnapshotState::Ready.into();
                Ok(Response::new(pb::Snapshot { name, path, state, completion_tokens: 9, ..Default::default() }))
            }
            other => Err(status::not_found(DOMAIN, "snapshot", &other)),
        }
    }

    async fn list_snapshots(
        &self,
        _: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsResponse>, Status> {
        let snapshot = pb::Snapshot { name: "datasets/offers/snapshots/1234".to_owned(), ..Default::default() };
        Ok(Response::new(pb::ListSnapshotsResponse { snapshots: vec![snapshot], next_page_token: String::new() }))
    }

    type WatchSnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::Snapshot, Status>> + Send>>;

    async fn watch_snapshot(
        &self,
        _: Request<pb::WatchSnapshotRequest>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn contains_rows(
        &self,
        _: Request<pb::ContainsRowsRequest>,
    ) -> Result<Response<pb::ContainsRowsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_report(
        &self,
        request: Request<pb::GetReportRequest>,
    ) -> Result<Response<pb::GetReportResponse>, Status> {
        self.get_snapshot(Request::new(pb::GetSnapshotRequest { name: request.into_inner().name })).await?;
        Ok(Response::new(pb::GetReportResponse { json: "{\"rows\": 3}\n".to_owned() }))
    }
}
