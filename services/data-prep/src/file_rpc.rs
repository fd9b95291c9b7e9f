//! The gRPC service of files: messages in, one call, messages out.

use std::pin::Pin;

use firn_proto::dataprep::v1::{
    AppendRowsRequest, AppendRowsResponse, DeleteFileRequest, DeleteFileResponse, File, GetFileRequest,
    ListFilesRequest, ListFilesResponse, ReadFileRequest, ReadFileResponse, UploadFileRequest,
    file_service_server::FileService,
};
use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    collections::{Collection, Collections},
    error::page_status,
    file_error::FileError,
    files::FileCatalog,
    upload,
};

/// Answers calls.
#[derive(Clone, Debug)]
pub(crate) struct FileRpc {
    files: FileCatalog,
    collections: Collections,
}

impl FileRpc {
    pub(crate) fn new(files: FileCatalog, collections: Collections) -> Self {
        Self { files, collections }
    }
}

#[tonic::async_trait]
impl FileService for FileRpc {
    async fn upload_file(&self, request: Request<Streaming<UploadFileRequest>>) -> Result<Response<File>, Status> {
        let mut parts = request.into_inner();
        let head = upload::head(&mut parts).await?;
        let bytes = upload::bytes(parts, self.files.max_bytes(), upload::CHUNK_TIME);
        Ok(Response::new(self.files.store(head, bytes).await?))
    }

    async fn get_file(&self, request: Request<GetFileRequest>) -> Result<Response<File>, Status> {
        Ok(Response::new(self.files.get(&request.get_ref().name)?))
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Result<Response<ListFilesResponse>, Status> {
        let ListFilesRequest { page_size, page_token } = request.into_inner();
        let (files, next_page_token) = self.files.list(page_size, &page_token).map_err(page_status)?;
        Ok(Response::new(ListFilesResponse { files, next_page_token }))
    }

    type ReadFileStream = Pin<Box<dyn Stream<Item = Result<ReadFileResponse, Status>> + Send>>;

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        let chunks = self.files.read(&request.get_ref().name).await?;
        let chunks = chunks.map(|chunk| Ok(ReadFileResponse { data: chunk.map_err(FileError::from)?.into() }));
        Ok(Response::new(chunks.boxed()))
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Result<Response<DeleteFileResponse>, Status> {
        self.files.delete(&request.get_ref().name).await?;
        Ok(Response::new(DeleteFileResponse {}))
    }

    async fn append_rows(&self, request: Request<AppendRowsRequest>) -> Result<Response<AppendRowsResponse>, Status> {
        let AppendRowsRequest { collection, rows } = request.into_inner();
        let Collection { path, rows } = self.collections.append(&collection, &rows).await?;
        Ok(Response::new(AppendRowsResponse { path, rows }))
    }
}
