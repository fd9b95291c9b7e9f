//! The service as a value: bound, then run.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use firn_kit::{GrpcServer, Readiness, ServerArgs};
use firn_llm::{cache::KvCache, device::Device, model::Decoder};
use firn_proto::{
    inference::v1::inference_service_server::InferenceServiceServer,
    inference_v2::grpc_inference_service_server::GrpcInferenceServiceServer,
    registry::v1::registry_service_client::RegistryServiceClient,
};
use firn_stage::Stage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    aliases::Watcher,
    base::Base,
    batch::Limits,
    config::{CacheWish, Config, Options},
    engine::{EngineError, State, Worker, engine},
    error::{RunError, StartError},
    loader::Loader,
    models::Models,
    oip::OpenInference,
    rpc::Rpc,
    serving::Serving,
};

/// Largest request in bytes: a long context as text.
const LARGEST_REQUEST: usize = 4 << 20;
/// What the engine gets to end: a step, or the load of the base, can't be interrupted.
const STOP_TIME: Duration = Duration::from_secs(5);

/// The service, listening but not yet answering.
#[derive(Debug)]
pub struct Inference {
    server: GrpcServer,
    base: Arc<Base>,
    device: Device,
    cache: CacheWish,
    worker: Worker,
    state: watch::Receiver<State>,
    watcher: Watcher,
}

impl Inference {
    /// Opens the stage, checks the base and takes the address. The weights are read by [`Self::run`].
    ///
    /// # Errors
    /// The stage, the base, the device or an address cannot be used.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let stage = Stage::open(&config.stage)?;
        Self::bind_with(&config.server, config.options, stage).await
    }

    /// As [`Self::bind`], on a stage that is open already: for services inside one process.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with(args: &ServerArgs, options: Options, stage: Stage) -> Result<Self, StartError> {
        let device = Device::open_one(options.device)?;
        let base = Arc::new(Base::open(&options.base, &stage, &options.work_dir).await?);
        let registry = RegistryServiceClient::new(firn_kit::channel(&options.registry_endpoint)?);
        let models = Models::default();
        let limits = Limits { sequences: options.max_sequences, step_tokens: options.max_step_tokens };
        let (engine, worker) = engine(options.max_queue, limits);
        let state = engine.state();
        let cache = options.cache();
        let loader = Loader {
            stage,
            base: Arc::clone(&base),
            device: device.clone(),
            models: models.clone(),
            registry,
            work_dir: options.work_dir,
            max_adapters: options.max_adapters,
            loading: Arc::default(),
        };
        let serving = Serving::new(Arc::clone(&base), models, loader.clone(), engine);
        let service = InferenceServiceServer::new(Rpc(serving.clone())).max_decoding_message_size(LARGEST_REQUEST);
        let open = GrpcInferenceServiceServer::new(OpenInference(serving)).max_decoding_message_size(LARGEST_REQUEST);
        let server = GrpcServer::bind("inference", args).await?.add_service(service).add_service(open);
        let watcher = Watcher(loader);
        Ok(Self { server, base, device, cache, worker, state, watcher })
    }

    /// Address for gRPC.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Address for GET /livez and /readyz, if there is one.
    #[must_use]
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.server.health_addr()
    }

    /// Loads the base, then answers until `shutdown` is cancelled. It is ready once the base is loaded; adapters come as
    /// the registry names them, whether it is there already or not.
    ///
    /// # Errors
    /// The base cannot be loaded, the engine breaks, or the listener fails. Open calls have ended then.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Self { server, base, device, cache, worker, state, watcher } = self;
        let readiness = server.readiness();
        // The server also ends if the engine does.
        let serving_stop = shutdown.child_token();
        let engine_stop = CancellationToken::new();
        let _engine_end = engine_stop.clone().drop_guard();
        let load = move || {
            let model = Decoder::load(&base.dir, &device)?;
            // What is free is known once the weights are there.
            let cache = KvCache::new(&model, cache.tokens(&base.config, &device));
            Ok((model, cache))
        };
        worker.start(load, engine_stop.clone()).map_err(|error| Arc::new(EngineError::Thread(error)))?;

        let engine = async {
            let too_late = async {
                engine_stop.cancelled().await;
                tokio::time::sleep(STOP_TIME).await;
            };
            let error = tokio::select! {
                error = engine_end(state, &readiness) => error,
                () = too_late => None,
            };
            // Who asks now gets no answer, so nobody should be sent here.
            readiness.set(false);
            serving_stop.cancel();
            error
        };
        let serving = async {
            let served = server.run(serving_stop.clone()).await;
            engine_stop.cancel();
            served
        };
        let (ended, served) = tokio::select! {
            both = async { tokio::join!(engine, serving) } => both,
            never = watcher.run() => match never {},
        };
        if let Some(error) = ended {
            return Err(RunError::Engine(error));
        }
        Ok(served?)
    }
}

/// Follows the engine to its end and says when it is ready.
async fn engine_end(mut state: watch::Receiver<State>, readiness: &Readiness) -> Option<Arc<EngineError>> {
    loop {
        match &*state.borrow_and_update() {
            State::Loading => {}
            State::Ready => readiness.set(true),
            State::Ended(error) => return error.clone(),
        }
        if state.changed().await.is_err() {
            return None;
        }
    }
}
