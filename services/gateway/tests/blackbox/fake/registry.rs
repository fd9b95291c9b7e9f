//! A registry with one model.

use std::pin::Pin;

use firn_kit::status;
use firn_proto::registry::v1::{self as pb, registry_service_server::RegistryService};
use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::Fake;

const DOMAIN: &str = "registry.firn.dev";

fn version(number: u64) -> pb::Version {
    let file = |path: &str| pb::File { path: path.to_owned(), size: 2, sha256: "0".repeat(64) };
    pb::Version {
        name: format!("models/offers/versions/{number}"),
        path: format!("models/offers/versions/{number}"),
        files: vec![file("adapter_config.json"), file("report.html")],
        lineage: Some(pb::Lineage { base: "bases/org/model".to_owned(), ..Default::default() }),
        metrics: [("tuned.loss".to_owned(), 1.5)].into(),
        create_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
        aliases: if number == 2 { vec!["best".to_owned()] } else { vec![] },
    }
}

#[tonic::async_trait]
impl RegistryService for Fake {
    type WatchAliasesStream = Pin<Box<dyn Stream<Item = Result<pb::AliasEvent, Status>> + Send>>;
    type ReadFileStream = Pin<Box<dyn Stream<Item = Result<pb::ReadFileResponse, Status>> + Send>>;

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let alias = pb::Alias { name: "models/offers/aliases/best".to_owned(), version: 2, sequence: 2 };
        let model = pb::Model { name: "models/offers".to_owned(), versions: 2, aliases: vec![alias] };
        Ok(Response::new(pb::ListModelsResponse { models: vec![model], next_page_token: String::new() }))
    }

    async fn create_version(&self, _: Request<pb::CreateVersionRequest>) -> Result<Response<pb::Version>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_version(&self, request: Request<pb::GetVersionRequest>) -> Result<Response<pb::Version>, Status> {
        match request.get_ref().name.as_str() {
            "models/offers/versions/1" => Ok(Response::new(version(1))),
            "models/offers/versions/2" | "models/offers/aliases/best" => Ok(Response::new(version(2))),
            other => Err(status::not_found(DOMAIN, "version", other)),
        }
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        let pb::ListVersionsRequest { parent, page_size, .. } = request.into_inner();
        if parent != "models/offers" {
            return Err(status::not_found(DOMAIN, "model", &parent));
        }
        let (versions, next_page_token) = match page_size {
            1 => (vec![version(1)], "next".to_owned()),
            _ => (vec![version(1), version(2)], String::new()),
        };
        Ok(Response::new(pb::ListVersionsResponse { versions, next_page_token }))
    }

    async fn set_alias(&self, request: Request<pb::SetAliasRequest>) -> Result<Response<pb::Alias>, Status> {
        let pb::SetAliasRequest { name, version } = request.into_inner();
        if version > 2 {
            return Err(status::not_found(DOMAIN, "version", &version.to_string()));
        }
        Ok(Response::new(pb::Alias { name, version, sequence: 3 }))
    }

    async fn watch_aliases(
        &self,
        _: Request<pb::WatchAliasesRequest>,
    ) -> Result<Response<Self::WatchAliasesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    /// Version 1 has a report that is too large to be shown.
    async fn read_file(&self, request: Request<pb::ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        let pb::ReadFileRequest { name, path, .. } = request.into_inner();
        let (chunks, data) = match (name.as_str(), path.as_str()) {
            ("models/offers/versions/1", "report.json") => (5, vec![b' '; 1 << 20]),
            ("models/offers/versions/2", "report.html" | "README.md" | "loss.svg" | "report.json") => {
                (2, b"<b>".to_vec())
            }
            _ => return Err(status::not_found(DOMAIN, "file", &path)),
        };
        let chunk = move |_| Ok(pb::ReadFileResponse { data: data.clone(), offset: 0 });
        Ok(Response::new(stream::iter((0..chunks).map(chunk).collect::<Vec<_>>()).boxed()))
    }
}
