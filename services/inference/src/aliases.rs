//! The registry's aliases, followed: each move fetches, checks and loads an adapter, and swaps it in.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use firn_kit::names::{NameError, child};
use firn_llm::{
    device::Device,
    model::{Adapter, AdapterError},
};
use firn_proto::registry::v1::{
    AliasEvent, Version, WatchAliasesRequest, registry_service_client::RegistryServiceClient,
};
use firn_stage::{Stage, StageError};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Status;

use crate::{
    base::Base,
    models::{Models, Served},
};

/// Pause before the registry is asked again; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Longest that a version may take to come from the stage.
const FETCH_TIME: Duration = Duration::from_secs(600);
/// File that makes a version an adapter; one without it is a full model.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Why a version is not served. Another try helps for some of these.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("it is a full model, and only adapters of the base are served")]
    FullModel,
    #[error("it gives rewards, not text: `firn score` takes it")]
    Reward,
    #[error("it was trained with chat template {trained}, but the base has {base}")]
    Template { trained: String, base: String },
    #[error("{most} aliases are served already: raise --max-adapters")]
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
}

impl LoadError {
    /// True if the version itself is fine as far as is known.
    fn is_transient(&self) -> bool {
        match self {
            Self::Stage(error) => !error.is_damaged(),
            Self::Slow | Self::Worker(_) => true,
            _ => false,
        }
    }
}

/// Keeps [`Models`] as the registry's aliases say.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) stage: Stage,
    pub(crate) base: Arc<Base>,
    pub(crate) device: Device,
    pub(crate) models: Models,
    pub(crate) registry: RegistryServiceClient<firn_kit::Channel>,
    pub(crate) work_dir: PathBuf,
    pub(crate) max_adapters: usize,
}

impl Watcher {
    /// Follows the aliases; never ends by itself.
    pub(crate) async fn run(self) -> std::convert::Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            let status = self.watch(&mut pause).await;
            let wait = jittered(pause);
            let error =
                status.map_or_else(|| "a version must be fetched again".to_owned(), |status| status.to_string());
            tracing::warn!(error, wait_seconds = wait.as_secs_f64(), "aliases are not followed now; trying again");
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Follows the aliases over one stream; ends with what ended it, or nothing if something must be tried again.
    async fn watch(&self, pause: &mut Duration) -> Option<Status> {
        let mut registry = self.registry.clone();
        let mut events = match registry.watch_aliases(WatchAliasesRequest {}).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Some(status),
        };
        let mut seen = BTreeSet::new();
        let mut again: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                event = events.message() => event,
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => return None,
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => return Some(Status::unavailable("the registry ended the watch")),
                Err(status) => return Some(status),
            };
            let current = event.current;
            if let Some(id) = alias_id(&event) {
                if !self.follow(&id, event).await && again.is_none() {
                    again = Some(Instant::now() + jittered(*pause));
                }
                seen.insert(id);
            }
            if current {
                self.models.retain(&seen);
                seen.clear();
                if again.is_none() {
                    *pause = FIRST_PAUSE;
                }
            }
        }
    }

    /// Serves what an alias names now; false if it must be tried again.
    async fn follow(&self, id: &str, event: AliasEvent) -> bool {
        let Some(version) = event.version else { return true };
        if self.models.get(id).is_some_and(|served| served.version == version.name) {
            return true;
        }
        match self.load(id, &version).await {
            Ok(served) => {
                let base = version.lineage.map(|lineage| lineage.base).unwrap_or_default();
                tracing::info!(model = id, version = version.name, trained_on = base, "adapter is served");
                self.models.set(id, served);
                true
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(model = id, version = version.name, %error, "version is not served yet");
                false
            }
            Err(error) => {
                self.models.remove(id);
                match error {
                    LoadError::FullModel => {
                        tracing::info!(model = id, version = version.name, %error, "version is skipped");
                    }
                    _ => tracing::error!(model = id, version = version.name, %error, "version is refused"),
                }
                true
            }
        }
    }

    async fn load(&self, id: &str, version: &Version) -> Result<Served, LoadError> {
        let parts = child(&version.name, &["models", "versions"])?;
        let number = match parts.get(1).map(|number| number.parse()) {
            Some(Ok(number)) => number,
            _ => return Err(NameError::Id { id: version.name.clone() }.into()),
        };
        if !version.files.iter().any(|file| file.path == ADAPTER_CONFIG) {
            return Err(LoadError::FullModel);
        }
        let trained = version.lineage.as_ref().map_or("", |lineage| lineage.template_sha256.as_str());
        // An adapter of ready-made text has seen no template.
        if !trained.is_empty() && trained != self.base.template_sha256 {
            let base = self.base.template_sha256.clone();
            return Err(LoadError::Template { trained: trained.to_owned(), base });
        }
        if self.models.get(id).is_none() && self.models.count() >= self.max_adapters {
            return Err(LoadError::TooMany { most: self.max_adapters });
        }
        let adapter = match self.models.of_version(&version.name) {
            Some(adapter) => adapter,
            None => self.fetch(version).await?,
        };
        Ok(Served { number, version: version.name.clone(), adapter })
    }

    async fn fetch(&self, version: &Version) -> Result<Arc<Adapter>, LoadError> {
        // The name was checked, so it stays below the folder.
        let into = self.work_dir.join(&version.name);
        let fetched = timeout(FETCH_TIME, self.stage.fetch_dir(&version.path, &into)).await;
        let dir = fetched.map_err(|_| LoadError::Slow)??;
        let (base, device) = (Arc::clone(&self.base), self.device.clone());
        let loaded = tokio::task::spawn_blocking(move || Adapter::load(&dir, &base.config, &device)).await??;
        if loaded.is_reward() { Err(LoadError::Reward) } else { Ok(Arc::new(loaded)) }
    }
}

/// `models/x/aliases/best` is served as `x@best`.
fn alias_id(event: &AliasEvent) -> Option<String> {
    let alias = event.alias.as_ref()?;
    match child(&alias.name, &["models", "aliases"]).as_deref() {
        Ok([model, alias]) => Some(format!("{model}@{alias}")),
        _ => {
            tracing::error!(alias = alias.name, "the registry sent a name that is none");
            None
        }
    }
}

/// Half of the pause to all of it, so that instances that lost the registry together don't come back together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1000;
    pause.mul_f64(0.5 + random as f64 / 2000.0)
}
