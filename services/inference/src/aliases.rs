//! The registry's aliases, followed: each move fetches, checks and loads an adapter, and swaps it in.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use firn_kit::names::child;
use firn_proto::registry::v1::{AliasEvent, WatchAliasesRequest};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use crate::loader::{LoadError, Loader};

/// Pause before the registry is asked again; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Keeps what is served as the registry's aliases say.
#[derive(Debug)]
pub(crate) struct Watcher(pub(crate) Loader);

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
        let mut registry = self.0.registry.clone();
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
                self.0.models.retain(&seen);
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
        if self.0.models.get(id).is_some_and(|served| served.version == version.name) {
            return true;
        }
        match self.0.follow(id, &version).await {
            Ok(()) => {
                let base = version.lineage.map(|lineage| lineage.base).unwrap_or_default();
                tracing::info!(model = id, version = version.name, trained_on = base, "adapter is served");
                true
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(model = id, version = version.name, %error, "version is not served yet");
                false
            }
            Err(error) => {
                self.0.models.remove(id);
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
