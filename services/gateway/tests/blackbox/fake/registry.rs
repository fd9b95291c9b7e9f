//! The registry, with one model.

use std::pin::Pin;

use firn_proto::registry::v1::{self as registry, registry_service_server::RegistryService};
use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::Fake;

#[tonic::async_trait]
impl RegistryService for Fake {
    type WatchAliasesStream = Pin<Box<dyn Stream<Item = Result<registry::AliasEvent, Status>> + Send>>;
    type ReadFileStream = Pin<Box<dyn Stream<Item = Result<registry::ReadFileResponse, Status>> + Send>>;

    async fn list_models(
        &self,
        _: Request<registry::ListModelsRequest>,
    ) -> Result<Response<registry::ListModelsResponse>, Status> {
        let alias = registry::Alias { name: "models/offers/aliases/best".to_owned(), version: 2, sequence: 2 };
        let model = registry::Model { name: "models/offers".to_owned(), versions: 2, aliases: vec![alias] };
        Ok(Response::new(registry::ListModelsResponse { models: vec![model], next_page_token: String::new() }))
    }

    async fn create_version(
        &self,
        _: Request<registry::CreateVersionRequest>,
    ) -> Result<Response<registry::Version>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_version(
        &self,
        _: Request<registry::GetVersionRequest>,
    ) -> Result<Response<registry::Version>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_versions(
        &self,
        _: Request<registry::ListVersionsRequest>,
    ) -> Result<Response<registry::ListVersionsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn set_alias(&self, _: Request<registry::SetAliasRequest>) -> Result<Response<registry::Alias>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn watch_aliases(
        &self,
        _: Request<registry::WatchAliasesRequest>,
    ) -> Result<Response<Self::WatchAliasesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn read_file(&self, _: Request<registry::ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
