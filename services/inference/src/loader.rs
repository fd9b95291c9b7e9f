//! Adapters into memory: found, fetched, checked against the base, and loaded once each.

use std::{path::PathBuf, sync::Arc, time::Duration};

use firn_kit::names::{NameError, child};
use firn_llm::{
    device::Device,
    model::{ADAPTER_FILES, Adapter, AdapterError},
    template::KnownTemplate,
};
use firn_proto::registry::v1::{GetVersionRequest, Version, registry_service_client::RegistryServiceClient};
use firn_stage::{Stage, StageError};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};
use tonic::Status;

use crate::{
    base::Base,
    models::{Models, Served},
};

/// Longest that a version may take to come from the stage.
const FETCH_TIME: Duration = Duration::from_secs(600);
/// Longest that the registry may take to say what a version is.
const CALL_TIME: Duration = Duration::from_secs(10);
/// File of a job's checkpoint that says what its adapter belongs to.
const LINEAGE: &str = "lineage.json";
/// Ids of jobs begin so, and go on with so many hexadecimal digits.
const JOB: &str = "job-";
const JOB_DIGITS: usize = 32;

/// Why an adapter is not served. Another try helps for some of these.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("`{id}` is no version and no checkpoint: ask for `model@3` or `job-…@50`")]
    Id { id: String },
    #[error("there is no checkpoint of step {step} in {job} now: it keeps its last ones")]
    Checkpoint { job: String, step: u64 },
    #[error("it is a full model, and only adapters of the base are served")]
    FullModel,
    #[error("it gives rewards, not text: `firn score` takes it")]
    Reward,
    #[error("it was trained with chat template {trained}, but the base has {base}")]
    Template { trained: String, base: String },
    #[error("{most} adapters are served already: raise --max-adapters, or unload one")]
    TooMany { most: usize },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("failed to fetch it: {0}")]
    Stage(#[from] StageError),
    #[error("it did not come from the stage within {} seconds", FETCH_TIME.as_secs())]
    Slow,
    #[error("it does not fit the base: {0}")]
    Adapter(#[from] AdapterError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
    #[error("the registry does not give it: {}", .0.message())]
    Registry(Box<Status>),
}

impl LoadError {
    /// True if the version itself is fine as far as is known.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Stage(error) => !error.is_damaged(),
            // Another one may be unloaded.
            Self::TooMany { .. } | Self::Slow | Self::Worker(_) | Self::Registry(_) => true,
            _ => false,
        }
    }
}

/// What a checkpoint's adapter belongs to, as the trainer notes it.
#[derive(Debug, Deserialize)]
struct Lineage {
    /// sha256 of the chat template; empty if the rows have seen none.
    template_sha256: String,
}

/// Loads adapters of one base.
#[derive(Clone, Debug)]
pub(crate) struct Loader {
    /// Held from the look at what is there until the new one is: two callers that want the same load it once, and together
    /// they keep to the limit.
    pub(crate) loading: Arc<Mutex<()>>,
    pub(crate) stage: Stage,
    pub(crate) base: Arc<Base>,
    pub(crate) device: Device,
    pub(crate) models: Models,
    pub(crate) registry: RegistryServiceClient<firn_kit::Channel>,
    pub(crate) work_dir: PathBuf,
    pub(crate) max_adapters: usize,
}

impl Loader {
    /// Loads what `model@3` or `job@50` names, and serves it.
    pub(crate) async fn load(&self, id: &str) -> Result<Served, LoadError> {
        let _one = self.loading.lock().await;
        if let Some(served) = self.models.get(id) {
            return Ok(served);
        }
        let served = self.named(id).await?;
        tracing::info!(model = id, version = served.version, "adapter is served, as a call asked");
        self.models.set(id, served.clone());
        Ok(served)
    }

    /// Serves a version as `id`, as an alias says.
    pub(crate) async fn follow(&self, id: &str, version: &Version) -> Result<(), LoadError> {
        let _one = self.loading.lock().await;
        self.models.set(id, self.version(id, version).await?);
        Ok(())
    }

    async fn named(&self, id: &str) -> Result<Served, LoadError> {
        let wrong = || LoadError::Id { id: id.chars().take(80).collect() };
        let (owner, number) = id.rsplit_once('@').ok_or_else(wrong)?;
        // One id a version: `+3` and `03` are none.
        let number = number.parse::<u64>().ok().filter(|parsed| parsed.to_string() == number).ok_or_else(wrong)?;
        let served = match owner.strip_prefix(JOB) {
            Some(digits) if digits.len() == JOB_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                self.checkpoint(id, owner, number).await?
            }
            _ => {
                let name = format!("models/{owner}/versions/{number}");
                child(&name, &["models", "versions"]).map_err(|_| wrong())?;
                let mut request = tonic::Request::new(GetVersionRequest { name });
                request.set_timeout(CALL_TIME);
                let version = self.registry.clone().get_version(request).await;
                let version = version.map_err(|status| LoadError::Registry(Box::new(status)))?.into_inner();
                self.version(id, &version).await?
            }
        };
        Ok(Served { loaded: true, ..served })
    }

    /// Loads a version to be served as `id`.
    async fn version(&self, id: &str, version: &Version) -> Result<Served, LoadError> {
        let parts = child(&version.name, &["models", "versions"])?;
        let number = match parts.get(1).map(|number| number.parse()) {
            Some(Ok(number)) => number,
            _ => return Err(NameError::Id { id: version.name.clone() }.into()),
        };
        if !version.files.iter().any(|file| file.path == ADAPTER_FILES[0]) {
            return Err(LoadError::FullModel);
        }
        let trained = version.lineage.as_ref().map_or("", |lineage| lineage.template_sha256.as_str());
        let template = self.template(trained)?;
        self.check_room(id)?;
        let adapter = match self.models.of_version(&version.name) {
            Some(served) => served.adapter,
            None => self.fetch(&version.name, &version.path).await?,
        };
        Ok(Served { number, version: version.name.clone(), adapter, template, loaded: false })
    }

    /// Loads what a job has saved after a step.
    async fn checkpoint(&self, id: &str, job: &str, step: u64) -> Result<Served, LoadError> {
        let name = format!("jobs/{job}/checkpoints/{step}");
        self.check_room(id)?;
        let (adapter, template) = match self.models.of_version(&name) {
            Some(served) => (served.adapter, served.template),
            None => {
                let missing = || LoadError::Checkpoint { job: job.to_owned(), step };
                let path = self.checkpoint_path(job, step).await?.ok_or_else(missing)?;
                let lineage = self.stage.get_json::<Lineage>(&format!("{path}/{LINEAGE}")).await;
                let lineage = match lineage {
                    Ok(lineage) => lineage,
                    // The trainer may have removed it meanwhile.
                    Err(StageError::NotFound { .. }) if !self.stage.is_finished(&path).await? => return Err(missing()),
                    Err(StageError::NotFound { .. }) => return Err(LoadError::FullModel),
                    Err(error) => return Err(error.into()),
                };
                let template = self.template(&lineage.template_sha256)?;
                (self.fetch(&name, &path).await?, template)
            }
        };
        Ok(Served { number: step, version: name, adapter, template, loaded: false })
    }

    /// The last folder of a job that holds a step's weights.
    async fn checkpoint_path(&self, job: &str, step: u64) -> Result<Option<String>, LoadError> {
        for folder in ["checkpoints", "best"] {
            let parent = format!("jobs/{job}/{folder}");
            let mut names = self.stage.list_dirs(&parent).await?;
            // `000050`, or `000050.2` beside the debris of a crash.
            names.retain(|name| name.split('.').next().and_then(|name| name.parse().ok()) == Some(step));
            names.sort();
            for name in names.iter().rev() {
                let path = format!("{parent}/{name}");
                if self.stage.is_finished(&path).await? {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    /// The template that takes the place of the base's own for an adapter. One of ready-made text has seen none.
    fn template(&self, trained: &str) -> Result<Option<KnownTemplate>, LoadError> {
        if trained.is_empty() || trained == self.base.template_sha256 {
            return Ok(None);
        }
        let known = KnownTemplate::of_sha256(trained).filter(|known| self.base.with_template(*known).is_some());
        let other = || LoadError::Template { trained: trained.to_owned(), base: self.base.template_sha256.clone() };
        known.map(Some).ok_or_else(other)
    }

    fn check_room(&self, id: &str) -> Result<(), LoadError> {
        if self.models.get(id).is_none() && self.models.count() >= self.max_adapters {
            return Err(LoadError::TooMany { most: self.max_adapters });
        }
        Ok(())
    }

    async fn fetch(&self, name: &str, path: &str) -> Result<Arc<Adapter>, LoadError> {
        // The name was checked, so it stays below the folder.
        let into = self.work_dir.join(name);
        // A checkpoint also holds the optimiser's state, which is larger than the adapter.
        let fetching = self.stage.fetch_files(path, &into, |name| ADAPTER_FILES.contains(&name));
        timeout(FETCH_TIME, fetching).await.map_err(|_| LoadError::Slow)??;
        let (base, device, dir) = (Arc::clone(&self.base), self.device.clone(), into.clone());
        let loaded = tokio::task::spawn_blocking(move || Adapter::load(&dir, &base.config, &device)).await?;
        // It is in memory now, or of no use.
        if let Err(error) = tokio::fs::remove_dir_all(&into).await {
            tracing::debug!(%error, "failed to remove a local copy");
        }
        let loaded = loaded?;
        if loaded.is_reward() { Err(LoadError::Reward) } else { Ok(Arc::new(loaded)) }
    }
}
