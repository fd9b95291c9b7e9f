//! A registry that follows another: it reads what that one writes to the stage, and writes nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use firn_kit::names::check_id;
use firn_stage::{Log, StageError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{Catalog, load_version},
    moves::{self, Move},
    record::{MODELS, aliases_path, version_number, version_path, versions_path},
};

/// What reading a model's news may take; a stage that does not answer must not hold the other models up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes up versions and moves of aliases as they appear on the stage, in whatever order they do.
#[derive(Debug)]
pub(crate) struct Follower {
    catalog: Arc<Catalog>,
    every: Duration,
    models: HashMap<String, Seen>,
    /// What could not be read the last time: it is told once.
    failing: HashSet<String>,
}

/// What is known of a model's alias log.
#[derive(Debug, Default)]
struct Seen {
    log: Option<Log>,
    moves: HashSet<u64>,
}

impl Follower {
    /// Reads what is there.
    ///
    /// # Errors
    /// If the stage does not say which models there are. What else can't be read is read later.
    pub(crate) async fn begin(catalog: Arc<Catalog>, every: Duration) -> Result<Self, StageError> {
        let mut follower = Self { catalog, every, models: HashMap::new(), failing: HashSet::new() };
        follower.look().await?;
        Ok(follower)
    }

    /// Looks for what is new until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let looking = async {
            loop {
                tokio::time::sleep(self.every).await;
                let looked = self.look().await;
                self.tell(MODELS, looked);
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    async fn look(&mut self) -> Result<(), StageError> {
        let models = self.catalog.stage().list_dirs(MODELS).await?;
        for model in models.into_iter().filter(|model| check_id(model).is_ok()) {
            let path = format!("{MODELS}/{model}");
            match timeout(PATIENCE, self.look_at(&model)).await {
                Ok(looked) => self.tell(&path, looked),
                Err(_) => {
                    self.tell(&path, Err(format!("the stage has not answered for {} seconds", PATIENCE.as_secs())))
                }
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, model: &str) -> Result<(), StageError> {
        // Versions first: aliases point to them.
        for name in self.catalog.stage().list_dirs(&versions_path(model)).await? {
            let Some(number) = version_number(&name) else { continue };
            if self.catalog.version(model, number).is_ok() {
                continue;
            }
            let path = version_path(model, number);
            match load_version(self.catalog.stage(), model, number).await {
                Ok(version) => {
                    tracing::info!(version = path, "version found");
                    self.catalog.learn(version);
                    self.tell(&path, Ok::<_, StageError>(()));
                }
                // It is being written.
                Err(error) if error.is_not_found() => tracing::debug!(path, "unfinished version"),
                Err(error) => self.tell(&path, Err(error)),
            }
        }
        let (mut made, mut lost, mut whole) = (vec![], BTreeMap::new(), true);
        for sequence in self.unread(model).await? {
            let told = match self.read(model, sequence).await {
                Ok(Move::Made(record)) => {
                    made.push((sequence, record));
                    Ok(())
                }
                Ok(Move::Torn) => Err("it is torn, or not written to its end".to_owned()),
                Ok(Move::Lost(unread)) => {
                    let reason = unread.reason.clone();
                    lost.insert(sequence, unread);
                    Err(reason)
                }
                Err(error) => {
                    whole = false;
                    Err(error.to_string())
                }
            };
            self.tell(&moves::path(model, sequence), told);
        }
        // First what is lost: no move before it is told as if it were the last.
        if whole {
            self.catalog.lose(model, lost);
        }
        for (sequence, record) in made {
            // Its version may not have appeared yet.
            if self.catalog.moved(model, &record, sequence) {
                tracing::info!(
                    model,
                    alias = record.alias,
                    version = record.version,
                    sequence,
                    "move of an alias found"
                );
                self.models.entry(model.to_owned()).or_default().moves.insert(sequence);
            }
        }
        Ok(())
    }

    /// The moves that were not taken up yet, oldest first.
    async fn unread(&mut self, model: &str) -> Result<Vec<u64>, StageError> {
        let seen = self.models.entry(model.to_owned()).or_default();
        let log = match &mut seen.log {
            Some(log) => log,
            none => none.insert(self.catalog.stage().log(&aliases_path(model)).await?),
        };
        Ok(log.numbers().await?.into_iter().filter(|number| !seen.moves.contains(number)).collect())
    }

    /// One that [`Self::unread`] has named.
    async fn read(&self, model: &str, sequence: u64) -> Result<Move, StageError> {
        match self.models.get(model).and_then(|seen| seen.log.as_ref()) {
            Some(log) => moves::read(log, sequence).await,
            None => Ok(Move::Torn),
        }
    }

    /// Logs what can't be read, once until it can.
    fn tell(&mut self, path: &str, outcome: Result<(), impl ToString>) {
        match outcome {
            Ok(()) => {
                if self.failing.remove(path) {
                    tracing::info!(path, "can be read again");
                }
            }
            Err(error) => {
                if self.failing.insert(path.to_owned()) {
                    tracing::warn!(path, error = error.to_string(), "cannot be read, it is tried again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use firn_kit::Clock;
    use firn_stage::Stage;

    use super::*;

    #[tokio::test]
    async fn what_cannot_be_read_is_told_once_until_it_can() {
        let stage = Stage::memory();
        for (path, content) in [
            ("models/m/versions/1/manifest.json", "{\"files"),
            ("models/m/versions/2/version.json", "{}"),
            ("models/m/aliases/000001.json", "{}\n"),
            ("models/m/aliases/000002.json", "{"),
            ("models/X/versions/1/manifest.json", "{"),
        ] {
            stage.put(path, content.into()).await.unwrap();
        }
        let catalog = Arc::new(Catalog::following(stage.clone(), Clock::system()));
        let mut follower = Follower::begin(catalog, Duration::from_secs(1)).await.unwrap();
        // A version without a manifest is being written, and nothing to tell of.
        let told = ["models/m/versions/1", "models/m/aliases/000001.json", "models/m/aliases/000002.json"];
        assert_eq!(follower.failing, told.map(str::to_owned).into());
        follower.look().await.unwrap();
        assert_eq!(follower.failing, told.map(str::to_owned).into());

        // Whole now, but its version is still not there.
        stage.delete("models/m/aliases/000002.json").await.unwrap();
        let record = "{\"alias\":\"a\",\"version\":1,\"time\":\"2026-01-01T00:00:00Z\"}\n";
        stage.put("models/m/aliases/000002.json", record.into()).await.unwrap();
        follower.look().await.unwrap();
        let [version, first, _] = told.map(str::to_owned);
        assert_eq!(follower.failing, [version, first].into());
    }
}
