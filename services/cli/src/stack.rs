//! All services in this process.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use firn_data_prep::DataPrep;
use firn_gateway::Gateway;
use firn_inference::Inference;
use firn_kit::ServerArgs;
use firn_llm::device::DeviceSpec;
use firn_model_registry::Registry;
use firn_stage::Stage;
use firn_trainer::Trainer;
use firn_trainer::hub::{self, HubOptions, Progress, Repo};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::base;
use crate::clients::Endpoints;

/// Longest wait for the services to end.
const STOP: Duration = Duration::from_secs(30);

/// Where the services listen.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    data_prep: SocketAddr,
    trainer: SocketAddr,
    registry: SocketAddr,
    inference: SocketAddr,
    http: SocketAddr,
}

impl Addresses {
    /// Any free ports.
    fn any() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { data_prep: any, trainer: any, registry: any, inference: any, http: any }
    }

    /// The ports that clients look for, and the gateway's.
    pub(crate) fn fixed(http: SocketAddr) -> Self {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { data_prep: at(7001), trainer: at(7002), registry: at(7003), inference: at(7004), http }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    /// Folder of the stage.
    pub(crate) stage: &'a str,
    pub(crate) device: DeviceSpec,
    /// The bundled base, a folder, or a path on the stage.
    pub(crate) base: &'a str,
    pub(crate) addresses: Addresses,
    /// Steps from one checkpoint of a job to the next; `None`: the trainer's default.
    pub(crate) checkpoint_steps: Option<NonZeroU64>,
    /// How to reach the hub, for a base that is named `org/name`.
    pub(crate) hub: HubOptions,
}

impl<'a> Wanted<'a> {
    /// On any free ports.
    pub(crate) fn new(stage: &'a str, device: DeviceSpec, base: &'a str) -> Self {
        Self { stage, device, base, addresses: Addresses::any(), checkpoint_steps: None, hub: HubOptions::default() }
    }
}

/// The running services.
pub(crate) struct Stack {
    stage: Stage,
    base: String,
    endpoints: Endpoints,
    http: SocketAddr,
    shutdown: CancellationToken,
    tasks: Mutex<JoinSet<Result<()>>>,
}

impl Stack {
    /// Starts the services on a stage folder; they stop when `shutdown` is cancelled.
    pub(crate) async fn start(wanted: Wanted<'_>, shutdown: &CancellationToken) -> Result<Self> {
        let Wanted { stage: stage_root, device, base, addresses, checkpoint_steps, hub } = wanted;
        let stage = Stage::open(stage_root)?;
        let base = locate_base(&stage, base, &hub, shutdown).await?;
        let shutdown = shutdown.child_token();
        let args = |listen| ServerArgs { listen, ..ServerArgs::loopback() };
        let scheme = firn_kit::scheme()?;
        let url = |addr: SocketAddr| format!("{scheme}://{addr}");
        let data_prep = DataPrep::bind_with(&args(addresses.data_prep), stage.clone()).await?;
        let registry = Registry::bind_with(args(addresses.registry), stage.clone()).await?;
        let (data_prep_endpoint, registry_endpoint) = (url(data_prep.local_addr()), url(registry.local_addr()));
        let mut options = firn_trainer::Options::new(data_prep_endpoint.as_str(), registry_endpoint.as_str());
        options.device = device.to_string();
        options.hub = hub;
        options.checkpoint_steps = checkpoint_steps.unwrap_or(options.checkpoint_steps);
        let trainer = Trainer::bind_with(&args(addresses.trainer), stage.clone(), &options).await?;
        let mut options = firn_inference::Options::new(base.as_str());
        options.registry_endpoint.clone_from(&registry_endpoint);
        // Several GPUs are for training.
        options.device = device.first();
        let inference = Inference::bind_with(&args(addresses.inference), options, stage.clone()).await?;
        let endpoints = Endpoints {
            data_prep_endpoint,
            trainer_endpoint: url(trainer.local_addr()),
            registry_endpoint,
            inference_endpoint: url(inference.local_addr()),
        };
        let mut options = firn_gateway::Options { http: addresses.http, ..firn_gateway::Options::default() };
        options.data_prep_endpoint.clone_from(&endpoints.data_prep_endpoint);
        options.trainer_endpoint.clone_from(&endpoints.trainer_endpoint);
        options.registry_endpoint.clone_from(&endpoints.registry_endpoint);
        options.inference_endpoint.clone_from(&endpoints.inference_endpoint);
        options.base.clone_from(&base);
        let gateway = Gateway::bind_with(options).await?;
        let http = gateway.local_addr();
        let mut tasks = JoinSet::new();
        let token = || shutdown.clone();
        let (a, b, c, d, e) = (token(), token(), token(), token(), token());
        tasks.spawn(async move { data_prep.run(a).await.context("data-prep stopped") });
        tasks.spawn(async move { registry.run(b).await.context("the model registry stopped") });
        tasks.spawn(async move { trainer.run(c).await.context("the trainer stopped") });
        tasks.spawn(async move { inference.run(d).await.context("inference stopped") });
        tasks.spawn(async move {
            gateway.run(e).await;
            Ok(())
        });
        Ok(Self { stage, base, endpoints, http, shutdown, tasks: Mutex::new(tasks) })
    }

    /// The stage.
    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The base's folder, as the services name it.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Where the services are.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Ends when a service ends by itself, which none should.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        match self.tasks.lock().await.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => anyhow!(error).context("a service broke"),
            _ => anyhow!("a service stopped by itself"),
        }
    }

    /// Stops all services and waits for their ends.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        let mut tasks = self.tasks.into_inner();
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            Ok(())
        };
        tokio::time::timeout(STOP, all).await.context("a service did not stop in time")?
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoints { data_prep_endpoint, trainer_endpoint, registry_endpoint, inference_endpoint } = &self.endpoints;
        writeln!(f, "page and HTTP API  http://{}", self.http)?;
        writeln!(f, "data-prep          {data_prep_endpoint}")?;
        writeln!(f, "trainer            {trainer_endpoint}")?;
        writeln!(f, "model-registry     {registry_endpoint}")?;
        writeln!(f, "inference          {inference_endpoint}")?;
        write!(f, "base               {}", self.base)
    }
}

/// The bundled base is put on the stage; another base is a folder, a path on the stage, or a model on the hub, which is
/// pulled to the stage once.
pub(crate) async fn locate_base(
    stage: &Stage,
    base: &str,
    options: &HubOptions,
    stop: &CancellationToken,
) -> Result<String> {
    if base == base::BUNDLED {
        return base::install(stage).await;
    }
    let folder = Path::new(base);
    if folder.is_dir() {
        let folder = folder.canonicalize().with_context(|| format!("failed to open {base}"))?;
        return folder.to_str().map(str::to_owned).with_context(|| format!("{base} is no UTF-8"));
    }
    if stage.local_root().is_some_and(|root| root.join(base).is_dir()) {
        return Ok(base.to_owned());
    }
    let repo: Repo = base.parse().map_err(|error| {
        anyhow!("there is no base at {base}: name a folder with a checkpoint, or a path on the stage ({error})")
    })?;
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("  {prefix} {bar:28.cyan/blue} {bytes}/{total_bytes} {eta} left") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    let tell = |progress| {
        let (what, done, total) = match progress {
            Progress::Pulled { done, total } => ("pulling", done, total),
            Progress::Stored { done, total } => ("storing", done, total),
            _ => return,
        };
        bar.set_prefix(format!("{what} {base}"));
        bar.set_length(total);
        bar.set_position(done);
    };
    let pulled = hub::pull(stage, &repo, options, tell, stop).await;
    bar.finish_and_clear();
    Ok(pulled?)
}
