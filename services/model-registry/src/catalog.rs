//! Registers versions and moves aliases: the stage first, the index after it, the watchers last.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex as Lock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use firn_kit::{Clock, names::check_id};
use firn_stage::{ByteStream, Log, Manifest, Stage, StageError};
use tokio::sync::{Mutex, Semaphore, broadcast};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::{
    config::{MAX_WRITES, WATCH_QUEUE},
    error::{AliasError, CreateError, ReadError, WriteError},
    index::{Doubt, Index, LostMove, ModelView, Pointer, VersionView},
    moves::{self, Move},
    record::{
        AliasRecord, MODELS, NewVersion, VERSION_FILE, Version, VersionRecord, aliases_path, version_number,
        version_path, versions_path,
    },
};

/// All that is registered.
#[derive(Debug)]
pub(crate) struct Catalog {
    stage: Stage,
    clock: Clock,
    index: RwLock<Index>,
    writers: Lock<HashMap<String, Arc<Writer>>>,
    moves: broadcast::Sender<Pointer>,
    /// A write outlives its caller: a deadline in the middle of a large copy must not leave half of it.
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    /// Another registry writes, and this one takes up what it does.
    follows: bool,
}

/// Puts a model's writes in order. Versions and aliases apart, so that an alias can move while a version is copied.
#[derive(Debug)]
struct Writer {
    versions: Mutex<()>,
    aliases: Mutex<Log>,
}

impl Catalog {
    /// Reads what is registered from the stage. What a crash left unfinished is not; what is damaged makes only itself
    /// unknown.
    pub(crate) async fn load(stage: Stage, clock: Clock) -> Result<Self, StageError> {
        let mut index = Index::default();
        for model in stage.list_dirs(MODELS).await? {
            if check_id(&model).is_err() {
                tracing::warn!(model, "not a model's name, skipped");
                continue;
            }
            load_model(&stage, &mut index, &model).await?;
        }
        Ok(Self::new(stage, clock, index, false))
    }

    /// One that knows nothing yet and writes nothing: a [`Follower`](crate::follow::Follower) fills it.
    pub(crate) fn following(stage: Stage, clock: Clock) -> Self {
        Self::new(stage, clock, Index::default(), true)
    }

    fn new(stage: Stage, clock: Clock, index: Index, follows: bool) -> Self {
        Self {
            stage,
            clock,
            index: RwLock::new(index),
            writers: Lock::default(),
            moves: broadcast::Sender::new(WATCH_QUEUE),
            tasks: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(MAX_WRITES)),
            follows,
        }
    }

    /// Copies a finished folder into a new version and moves the alias, if one is named. A request that was seen before
    /// returns the version it made.
    pub(crate) async fn create(self: &Arc<Self>, new: NewVersion) -> Result<VersionView, CreateError> {
        let catalog = Arc::clone(self);
        self.detached(async move { catalog.create_now(new).await }).await?
    }

    /// Points an alias to a version. One that points there already is not moved again.
    pub(crate) async fn point(self: &Arc<Self>, model: &str, alias: &str, version: u64) -> Result<Pointer, AliasError> {
        let (catalog, model, alias) = (Arc::clone(self), model.to_owned(), alias.to_owned());
        self.detached(async move { catalog.point_now(&model, &alias, version).await }).await?
    }

    pub(crate) fn version(&self, model: &str, number: u64) -> Result<VersionView, ReadError> {
        let missing = || ReadError::NotFound { kind: "version", name: version_path(model, number) };
        self.read().version(model, number).ok_or_else(missing)
    }

    pub(crate) fn pointer(&self, model: &str, alias: &str) -> Result<Pointer, ReadError> {
        let index = self.read();
        if let Some(Doubt { sequence, reason, before, .. }) = index.doubt(model, alias) {
            let (alias, path) = (format!("{MODELS}/{model}/aliases/{alias}"), moves::path(model, sequence));
            return Err(ReadError::AliasLost { alias, path, reason, before });
        }
        let missing = || ReadError::NotFound { kind: "alias", name: format!("{MODELS}/{model}/aliases/{alias}") };
        index.pointer(model, alias).ok_or_else(missing)
    }

    pub(crate) fn versions(&self, model: &str) -> Result<Vec<VersionView>, ReadError> {
        let missing = || ReadError::NotFound { kind: "model", name: format!("{MODELS}/{model}") };
        self.read().versions(model).ok_or_else(missing)
    }

    pub(crate) fn models(&self) -> Vec<ModelView> {
        self.read().models()
    }

    /// All aliases as they are, those that can't be told, and every move after that: none is missed between the two.
    pub(crate) fn watch(&self) -> (Vec<Pointer>, Vec<Doubt>, broadcast::Receiver<Pointer>) {
        let index = self.read();
        (index.pointers(), index.doubts(), self.moves.subscribe())
    }

    pub(crate) async fn read_file(
        &self,
        model: &str,
        number: u64,
        file: &str,
        offset: u64,
    ) -> Result<ByteStream, ReadError> {
        let version = self.version(model, number)?.version;
        let path = format!("{}/{file}", version.path());
        if !version.files.iter().any(|entry| entry.path == file) {
            return Err(ReadError::NotFound { kind: "file", name: path });
        }
        Ok(self.stage.read_stream(&path, offset).await?)
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Takes up a version that is on the stage.
    pub(crate) fn learn(&self, version: Version) {
        self.write().insert(version);
    }

    /// Takes up a move that is on the stage, and tells the watchers unless a later one is known, or lost. Returns whether
    /// the version is known.
    pub(crate) fn moved(&self, model: &str, record: &AliasRecord, sequence: u64) -> bool {
        let mut index = self.write();
        if !index.point(model, record, sequence) {
            return false;
        }
        if let Some(pointer) = index.pointer(model, &record.alias).filter(|pointer| pointer.alias.sequence == sequence)
        {
            // Under the lock, so that a watcher that begins now gets it once. Nobody may be watching.
            let _ = self.moves.send(pointer);
        }
        true
    }

    /// Takes these moves of a model for lost, and no others, and tells the watchers of the aliases that are known again.
    pub(crate) fn lose(&self, model: &str, lost: BTreeMap<u64, LostMove>) {
        let mut index = self.write();
        for pointer in index.lose(model, lost) {
            // As above.
            let _ = self.moves.send(pointer);
        }
    }

    /// Waits for the writes whose callers have gone away.
    pub(crate) async fn finish_writes(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn create_now(&self, new: NewVersion) -> Result<VersionView, CreateError> {
        let writer = self.writer(&new.model).await.map_err(WriteError::from)?;
        let _one = writer.versions.lock().await;
        let (model, alias) = (new.model.clone(), new.alias.clone());
        let (number, may_have_moved) = match self.made_before(&new)? {
            Some(number) => (number, self.read().may_have_moved(&model, &alias, number)),
            None => (self.register(new).await?, false),
        };
        let points = self.read().pointer(&model, &alias).map_or(0, |pointer| pointer.alias.version);
        // A retry must not move the alias back.
        if !alias.is_empty() && !may_have_moved && points < number {
            self.point_now(&model, &alias, number).await?;
        }
        let missing = || AliasError::NoVersion { name: version_path(&model, number) };
        Ok(self.read().version(&model, number).ok_or_else(missing)?)
    }

    fn made_before(&self, new: &NewVersion) -> Result<Option<u64>, CreateError> {
        let Some(made) = self.read().by_request(&new.request_id) else { return Ok(None) };
        if made.record.request.fingerprint()? != new.fingerprint()? {
            return Err(CreateError::RequestReused { request_id: new.request_id.clone(), version: made.path() });
        }
        Ok(Some(made.number()))
    }

    /// Copies the source into the next free number, and returns that.
    async fn register(&self, new: NewVersion) -> Result<u64, CreateError> {
        let source = self.stage.manifest(&new.source).await.map_err(|error| match error {
            StageError::NotFound { .. } => CreateError::NoSource { source_path: new.source.clone() },
            error => source_error(error),
        })?;
        let number = self.free_number(&new.model).await.map_err(WriteError::from)?;
        let path = version_path(&new.model, number);
        let record = VersionRecord { version: number, create_time: self.clock.now(), request: new };
        let written = match self.write_version(&path, &source, &record).await {
            Ok(written) => written,
            Err(error) => {
                // It does not count in any case; what cannot be removed costs a number.
                if let Err(error) = self.stage.remove_debris(&path).await {
                    tracing::warn!(path, %error, "failed to remove an unfinished version");
                }
                return Err(error);
            }
        };
        tracing::info!(version = path, source = record.request.source, "version registered");
        self.learn(Version { record, files: written.files });
        Ok(number)
    }

    async fn write_version(
        &self,
        path: &str,
        source: &Manifest,
        record: &VersionRecord,
    ) -> Result<Manifest, CreateError> {
        let mut folder = self.stage.folder(path);
        // A version can be the source of another: its record is not its child's.
        for file in source.files.iter().filter(|file| file.path != VERSION_FILE) {
            let from = format!("{}/{}", record.request.source, file.path);
            folder.copy(&file.path, &from, file).await.map_err(source_error)?;
        }
        folder.put_json(VERSION_FILE, record).await.map_err(WriteError::from)?;
        Ok(folder.finish().await.map_err(WriteError::from)?)
    }

    /// The number after the last, debris skipped: its files cannot be overwritten.
    async fn free_number(&self, model: &str) -> Result<u64, StageError> {
        let mut number = self.read().last(model) + 1;
        while !self.stage.list(&version_path(model, number)).await?.is_empty() {
            tracing::warn!(path = version_path(model, number), "unfinished version skipped");
            number += 1;
        }
        Ok(number)
    }

    async fn point_now(&self, model: &str, alias: &str, version: u64) -> Result<Pointer, AliasError> {
        let missing = || AliasError::NoVersion { name: version_path(model, version) };
        if self.read().version(model, version).is_none() {
            return Err(missing());
        }
        let writer = self.writer(model).await.map_err(WriteError::from)?;
        let log = writer.aliases.lock().await;
        // One that can't be told points nowhere, so that it is moved, and known again, even to where it was.
        if let Some(pointer) = self.read().pointer(model, alias).filter(|pointer| pointer.alias.version == version) {
            return Ok(pointer);
        }
        let record = AliasRecord { alias: alias.to_owned(), version, time: self.clock.now() };
        let sequence = log.append(&record).await.map_err(WriteError::from)?;
        tracing::info!(model, alias, version, sequence, "alias moved");
        self.moved(model, &record, sequence);
        self.read().pointer(model, alias).ok_or_else(missing)
    }

    /// Runs a write to its end, even if the caller goes away.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, WriteError> {
        if self.follows {
            return Err(WriteError::Follows);
        }
        let busy = |_| WriteError::Busy { limit: MAX_WRITES };
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(busy)?;
        let task = async move {
            let result = work.await;
            drop(permit);
            result
        };
        self.tasks.spawn(task.in_current_span()).await.map_err(WriteError::Interrupted)
    }

    async fn writer(&self, model: &str) -> Result<Arc<Writer>, StageError> {
        let writers = || self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writers().get(model) {
            return Ok(Arc::clone(writer));
        }
        let log = self.stage.log(&aliases_path(model)).await?;
        let writer = Arc::new(Writer { versions: Mutex::new(()), aliases: Mutex::new(log) });
        // Whoever was first wins; a log that nobody wrote to can be dropped.
        Ok(Arc::clone(writers().entry(model.to_owned()).or_insert(writer)))
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy failed: because of the source, or because of the stage?
fn source_error(error: StageError) -> CreateError {
    match error {
        StageError::Damaged { path, reason } => CreateError::Damaged { path, reason },
        StageError::NotFound { path } => CreateError::MissingFile { path },
        error => WriteError::Stage(error).into(),
    }
}

async fn load_model(stage: &Stage, index: &mut Index, model: &str) -> Result<(), StageError> {
    for name in stage.list_dirs(&versions_path(model)).await? {
        let Some(number) = version_number(&name) else { continue };
        match load_version(stage, model, number).await {
            Ok(version) => index.insert(version),
            // One bad folder must not hide all other models.
            Err(error) if error.is_not_found() || error.is_damaged() => {
                tracing::warn!(path = version_path(model, number), %error, "unfinished version skipped");
            }
            Err(error) => return Err(error),
        }
    }
    let log = stage.log(&aliases_path(model)).await?;
    let mut lost = BTreeMap::new();
    for sequence in log.numbers().await? {
        let path = moves::path(model, sequence);
        match moves::read(&log, sequence).await? {
            Move::Made(record) if index.point(model, &record, sequence) => {}
            Move::Made(AliasRecord { alias, version, .. }) => {
                let reason = format!("{} can't be read", version_path(model, version));
                lost.insert(sequence, LostMove { alias: Some(alias), reason });
            }
            Move::Torn => tracing::warn!(path, "torn record skipped"),
            Move::Lost(unread) => {
                lost.insert(sequence, unread);
            }
        }
    }
    index.lose(model, lost.clone());
    for (sequence, LostMove { alias, reason }) in lost {
        let (path, doubts) = (moves::path(model, sequence), index.doubts());
        let aliases = doubts.iter().filter(|doubt| doubt.model == model && doubt.sequence == sequence);
        let unknown: Vec<&str> = aliases.map(|doubt| doubt.alias.as_str()).collect();
        if unknown.is_empty() {
            tracing::warn!(path, alias, reason, "damaged move of an alias, no alias that is known depends on it");
        } else {
            tracing::error!(
                path,
                ?unknown,
                reason,
                "damaged move of an alias: aliases can't be told until they are set again"
            );
        }
    }
    Ok(())
}

pub(crate) async fn load_version(stage: &Stage, model: &str, number: u64) -> Result<Version, StageError> {
    let path = version_path(model, number);
    let files = stage.manifest(&path).await?.files;
    let path = format!("{path}/{VERSION_FILE}");
    let record: VersionRecord = stage.get_json(&path).await?;
    if record.version != number || record.request.model != model {
        let reason = format!("it belongs to {}", version_path(&record.request.model, record.version));
        return Err(StageError::Damaged { path, reason });
    }
    Ok(Version { record, files })
}
