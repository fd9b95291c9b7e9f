//! The service over gRPC, with a real registry beside it, on the tiny reference checkpoint.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adapters;
mod answers;
mod damage;
mod load;
mod loading;
mod oip;

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use firn_inference::{Inference, Options, RunError};
use firn_kit::ServerArgs;
use firn_llm::device::DeviceSpec;
use firn_model_registry::Registry;
use firn_proto::{
    inference::v1::{
        Finish, GenerateRequest, GenerateResponse, ListModelsRequest, Sampling, ServedModel, TokenIds,
        generate_request, generate_response::Event, inference_service_client::InferenceServiceClient,
    },
    registry::v1::registry_service_client::RegistryServiceClient,
};
use firn_stage::Stage;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

type Client = InferenceServiceClient<firn_kit::Channel>;

/// A running service with its registry.
struct Running {
    client: Client,
    channel: firn_kit::Channel,
    registry: RegistryServiceClient<firn_kit::Channel>,
    stage: Stage,
    shutdown: CancellationToken,
    service: JoinHandle<Result<(), RunError>>,
    registry_task: JoinHandle<()>,
    registry_address: SocketAddr,
    /// Ends the registry alone.
    registry_shutdown: CancellationToken,
    _work: TempDir,
}

impl Running {
    async fn start() -> Self {
        let work = tempfile::tempdir().unwrap();
        let stage = Stage::memory();
        let shutdown = CancellationToken::new();
        let registry = Registry::bind_with(ServerArgs::loopback(), stage.clone()).await.unwrap();
        let registry_address = registry.local_addr();
        let registry_endpoint = format!("http://{registry_address}");
        let registry_shutdown = shutdown.child_token();
        let run = registry.run(registry_shutdown.clone());
        let registry_task = tokio::spawn(async move { run.await.unwrap() });
        let options = Options {
            registry_endpoint: registry_endpoint.clone(),
            device: DeviceSpec::Cpu,
            work_dir: work.path().to_owned(),
            max_sequences: 16,
            ..Options::new(llama().display().to_string())
        };
        let service = Inference::bind_with(&ServerArgs::loopback(), options, stage.clone()).await.unwrap();
        let channel = firn_kit::channel(&format!("http://{}", service.local_addr())).unwrap();
        let client = Client::new(channel.clone());
        let service = tokio::spawn(service.run(shutdown.clone()));
        let registry = RegistryServiceClient::new(firn_kit::channel(&registry_endpoint).unwrap());
        let running = Self {
            client,
            channel,
            registry,
            stage,
            shutdown,
            service,
            registry_task,
            registry_address,
            registry_shutdown,
            _work: work,
        };
        let loaded = firn_kit::retry_unavailable(Duration::from_secs(60), || async {
            let mut pieces = running.generate(ids_request("", vec![1], greedy(1))).await?;
            pieces.message().await
        });
        loaded.await.unwrap();
        running
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within(self.service).await.unwrap().unwrap();
        within(self.registry_task).await.unwrap();
    }

    async fn generate(&self, request: GenerateRequest) -> Result<Streaming<GenerateResponse>, Status> {
        Ok(within(self.client.clone().generate(request)).await?.into_inner())
    }

    async fn answer(&self, request: GenerateRequest) -> Answer {
        rest(self.generate(request).await.unwrap()).await
    }

    async fn models(&self) -> Vec<ServedModel> {
        within(self.client.clone().list_models(ListModelsRequest {})).await.unwrap().into_inner().models
    }

    /// Waits until a model is served in a version.
    async fn until_served(&self, id: &str, version: &str) {
        within(async {
            while !self.models().await.iter().any(|model| model.id == id && model.version == version) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

/// A whole answer.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    finish: Finish,
}

/// Reads a stream to its end.
async fn rest(mut pieces: Streaming<GenerateResponse>) -> Answer {
    let (mut text, mut ids, mut logprobs) = (String::new(), vec![], vec![]);
    loop {
        match within(pieces.message()).await.unwrap().unwrap().event.unwrap() {
            Event::Delta(delta) => {
                text += &delta.text;
                ids.extend(delta.ids);
                logprobs.extend(delta.logprobs);
            }
            Event::Finish(finish) => {
                assert!(within(pieces.message()).await.unwrap().is_none(), "the finish is the last");
                return Answer { text, ids, logprobs, finish };
            }
        }
    }
}

fn llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama")
}

/// Integer tensors of what the Python stack computed.
fn golden(name: &str) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(llama().join("golden.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let (quads, _) = view.data().as_chunks::<4>();
    let values: Vec<u32> = quads.iter().map(|quad| u32::try_from(i32::from_le_bytes(*quad)).unwrap()).collect();
    values.chunks(*view.shape().last().unwrap()).map(<[u32]>::to_vec).collect()
}

fn greedy(max_tokens: u32) -> Sampling {
    Sampling { temperature: Some(0.0), max_tokens: Some(max_tokens), ignore_eos: true, ..Default::default() }
}

fn ids_request(model: &str, ids: Vec<u32>, sampling: Sampling) -> GenerateRequest {
    let input = Some(generate_request::Input::Ids(TokenIds { ids }));
    GenerateRequest { model: model.to_owned(), input, sampling: Some(sampling), tenant: String::new() }
}

/// No test waits longer than this.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap()
}
