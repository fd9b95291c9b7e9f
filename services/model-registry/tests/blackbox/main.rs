//! The registry alone, over gRPC.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod aliases;
mod damage;
mod follower;
mod versions;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use firn_kit::ServerArgs;
use firn_model_registry::Registry;
use firn_proto::registry::v1::{
    CreateVersionRequest, GetVersionRequest, Lineage, ListModelsRequest, ListVersionsRequest, SetAliasRequest, Version,
    registry_service_client::RegistryServiceClient,
};
use firn_stage::Stage;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

type Client = RegistryServiceClient<firn_kit::Channel>;

/// A running registry.
struct Running {
    client: Client,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), firn_model_registry::Error>>,
}

impl Running {
    async fn start(stage: &Stage) -> Self {
        let registry = Registry::bind_with(ServerArgs::loopback(), stage.clone()).await.unwrap();
        let channel = firn_kit::channel(&format!("http://{}", registry.local_addr())).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(registry.run(shutdown.clone()));
        Self { client: Client::new(channel), shutdown, task }
    }

    /// Stops it in much less than its grace time, even with open watches.
    async fn stop(self) {
        drop(self.client);
        self.shutdown.cancel();
        within(self.task).await.unwrap().unwrap();
    }
}

/// No test waits longer than this.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap()
}

fn on_disk() -> (TempDir, Stage) {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::open(folder.path().to_str().unwrap()).unwrap();
    (folder, stage)
}

/// Writes a finished adapter to the stage and returns its path.
async fn adapter(stage: &Stage, job: &str) -> String {
    let path = format!("jobs/{job}/adapter");
    let mut folder = stage.folder(&path);
    folder.put("adapter_model.safetensors", Bytes::from(format!("weights of {job}"))).await.unwrap();
    folder.put("tokenizer/tokenizer.json", Bytes::from_static(b"{}")).await.unwrap();
    folder.finish().await.unwrap();
    path
}

fn request(model: &str, source: &str, alias: &str, request_id: &str) -> CreateVersionRequest {
    CreateVersionRequest {
        model: model.to_owned(),
        source: source.to_owned(),
        lineage: Some(Lineage { base: "org/base".to_owned(), job: "jobs/j".to_owned(), ..Default::default() }),
        metrics: [("tuned.loss".to_owned(), 1.25), ("base.loss".to_owned(), 2.0)].into(),
        alias: alias.to_owned(),
        request_id: request_id.to_owned(),
    }
}

async fn create(client: &mut Client, request: CreateVersionRequest) -> Result<Version, Status> {
    within(client.create_version(request)).await.map(tonic::Response::into_inner)
}

async fn get(client: &mut Client, name: &str) -> Result<Version, Status> {
    within(client.get_version(GetVersionRequest { name: name.to_owned() })).await.map(tonic::Response::into_inner)
}

async fn set(client: &mut Client, name: &str, version: u64) -> Result<u64, Status> {
    let request = SetAliasRequest { name: name.to_owned(), version };
    within(client.set_alias(request)).await.map(|response| response.into_inner().sequence)
}

async fn version_names(client: &mut Client, model: &str) -> Vec<String> {
    let request = ListVersionsRequest { parent: format!("models/{model}"), ..Default::default() };
    client.list_versions(request).await.unwrap().into_inner().versions.into_iter().map(|version| version.name).collect()
}

async fn model_names(client: &mut Client) -> Vec<String> {
    let models = client.list_models(ListModelsRequest::default()).await.unwrap().into_inner().models;
    models.into_iter().map(|model| model.name).collect()
}
