//! All snapshots: those on the stage, and those being prepared.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use firn_kit::Clock;
use firn_proto::dataprep::v1::{RowSide, Snapshot, SnapshotState};
use firn_stage::{Stage, StageError};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    config::Limits,
    contains, debris,
    error::{CreateError, GetError},
    plan::{Plan, Request},
    report,
    snapshot::{self, PrepareError, REPORT, Report},
};

/// Snapshots prepared at once: each takes all cores, fills a shard of each side in memory, and has one that is being
/// written.
const AT_ONCE: usize = 2;
/// Snapshots that may wait for that, each with its tokenizer open; one more is refused.
const MOST_PENDING: usize = 32;
/// Failed snapshots that are remembered. They are nowhere on the stage, so a caller that fails for ever must not fill the
/// memory.
const MOST_FAILED: usize = 1_000;

/// Knows all snapshots, and prepares new ones.
#[derive(Clone, Debug)]
pub(crate) struct Catalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    limits: Limits,
    clock: Clock,
    snapshots: Mutex<HashMap<String, watch::Sender<Snapshot>>>,
    slots: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Catalog {
    /// Reads what the stage holds. A folder that cannot be read is logged and left out; an old one that was never finished is
    /// removed.
    pub(crate) async fn load(stage: Stage, limits: Limits) -> Result<Self, StageError> {
        let mut snapshots = HashMap::new();
        for dataset in stage.list_dirs("datasets").await? {
            for folder in stage.list_dirs(&format!("datasets/{dataset}")).await? {
                let path = format!("datasets/{dataset}/{folder}");
                match stored(&stage, &path).await {
                    Ok(Some(snapshot)) => {
                        snapshots.entry(snapshot.name.clone()).or_insert_with(|| watch::Sender::new(snapshot));
                    }
                    Ok(None) => debris::remove(&stage, &path).await,
                    Err(error) => tracing::warn!(path, %error, "unreadable snapshot left out"),
                }
            }
        }
        tracing::info!(snapshots = snapshots.len(), "snapshots found on the stage");
        Ok(Self(Arc::new(Inner {
            stage,
            limits,
            clock: Clock::system(),
            snapshots: Mutex::new(snapshots),
            slots: Semaphore::new(AT_ONCE),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// Starts to prepare a snapshot, or finds the one that is there already.
    pub(crate) async fn create(&self, request: Request) -> Result<Snapshot, CreateError> {
        let inner = Arc::clone(&self.0);
        let open = move || Plan::open(request, inner.stage.local_root(), &inner.limits);
        let plan = tokio::task::spawn_blocking(open).await??;
        let (snapshot, new) = self.enter(&plan)?;
        if new {
            let catalog = self.clone();
            let name = snapshot.name.clone();
            let span = tracing::info_span!("snapshot.prepare", name);
            self.0.tasks.spawn(async move { catalog.prepare(plan, name).await }.instrument(span));
        }
        Ok(snapshot)
    }

    /// Returns one snapshot.
    pub(crate) fn get(&self, name: &str) -> Result<Snapshot, GetError> {
        Ok(self.watch(name)?.borrow().clone())
    }

    /// Follows one snapshot.
    pub(crate) fn watch(&self, name: &str) -> Result<watch::Receiver<Snapshot>, GetError> {
        firn_kit::names::child(name, &["datasets", "snapshots"])?;
        let snapshots = self.snapshots();
        snapshots.get(name).map(watch::Sender::subscribe).ok_or_else(|| GetError::NotFound { name: name.to_owned() })
    }

    fn get_ready(&self, name: &str) -> Result<Snapshot, GetError> {
        let snapshot = self.get(name)?;
        match snapshot.state() {
            SnapshotState::Ready => Ok(snapshot),
            _ => Err(GetError::NotReady { name: name.to_owned() }),
        }
    }

    /// The sides of rows in a snapshot that is ready, by their hashes.
    pub(crate) async fn contains(&self, name: &str, hashes: &[String]) -> Result<Vec<RowSide>, GetError> {
        let snapshot = self.get_ready(name)?;
        Ok(contains::sides(&self.0.stage, &snapshot.path, hashes).await?)
    }

    /// What was found in the rows of a snapshot that is ready: its report as it is on the stage.
    pub(crate) async fn report(&self, name: &str) -> Result<String, GetError> {
        let snapshot = self.get_ready(name)?;
        report::read(&self.0.stage, &snapshot.path).await
    }

    /// All snapshots, oldest first.
    pub(crate) fn list(&self) -> Vec<Snapshot> {
        let mut list: Vec<Snapshot> = self.snapshots().values().map(|sender| sender.borrow().clone()).collect();
        list.sort_by(|a, b| age(a).cmp(&age(b)).then_with(|| a.name.cmp(&b.name)));
        list
    }

    /// Cancelled when the service stops.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Stops all preparations and waits until they have.
    pub(crate) async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Notes a new snapshot; `false` if it is there and has not failed.
    fn enter(&self, plan: &Plan) -> Result<(Snapshot, bool), CreateError> {
        if self.0.stop.is_cancelled() {
            return Err(CreateError::Stopping);
        }
        let mut snapshots = self.snapshots();
        let counts = |state| snapshots.values().filter(|sender| sender.borrow().state() == state).count();
        let pending = counts(SnapshotState::Preparing);
        let failed = counts(SnapshotState::Failed);
        let snapshot = Snapshot {
            name: plan.name(),
            state: SnapshotState::Preparing.into(),
            template_sha256: plan.template_sha256.clone(),
            create_time: Some(firn_kit::clock::to_proto(self.0.clock.now())),
            ..Snapshot::default()
        };
        match snapshots.entry(snapshot.name.clone()) {
            Entry::Occupied(entry) if entry.get().borrow().state() != SnapshotState::Failed => {
                return Ok((entry.get().borrow().clone(), false));
            }
            _ if pending >= MOST_PENDING => return Err(CreateError::Busy { limit: MOST_PENDING }),
            Entry::Occupied(entry) => {
                // Its watchers have had their last message.
                entry.get().send_replace(snapshot.clone());
            }
            Entry::Vacant(entry) => {
                entry.insert(watch::Sender::new(snapshot.clone()));
                if failed > MOST_FAILED {
                    forget_oldest_failure(&mut snapshots);
                }
            }
        }
        Ok((snapshot, true))
    }

    async fn prepare(&self, plan: Plan, name: String) {
        let result = self.make(plan, &name).await;
        let outcome = match result {
            Ok(snapshot) => {
                tracing::info!(rows = snapshot.rows, tokens = snapshot.train_tokens, "snapshot ready");
                snapshot
            }
            Err(error) => {
                tracing::warn!(%error, "snapshot failed");
                let Ok(mut snapshot) = self.get(&name) else { return };
                snapshot.set_state(SnapshotState::Failed);
                snapshot.error = error.to_string();
                snapshot
            }
        };
        self.update(&name, |snapshot| *snapshot = outcome);
    }

    async fn make(&self, plan: Plan, name: &str) -> Result<Snapshot, PrepareError> {
        let inner = &self.0;
        let _slot = tokio::select! {
            slot = inner.slots.acquire() => slot.map_err(|_| PrepareError::Stopped)?,
            () = inner.stop.cancelled() => return Err(PrepareError::Stopped),
        };
        let create_time = self.get(name).ok().and_then(|snapshot| snapshot.create_time).unwrap_or_default().to_string();
        let (catalog, named) = (self.clone(), name.to_owned());
        let progress = move |rows| catalog.update(&named, |snapshot| snapshot.rows = rows);
        let (limits, plan) = (inner.limits.clone(), Arc::new(plan));
        let (report, path) = snapshot::make(&inner.stage, plan, create_time, limits, progress, &inner.stop).await?;
        Ok(ready(report, path))
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut Snapshot)) {
        if let Some(sender) = self.snapshots().get(name) {
            sender.send_modify(change);
        }
    }

    fn snapshots(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Snapshot>>> {
        // Nothing is left half-changed under the lock, so a panic elsewhere does not spoil it.
        self.0.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_oldest_failure(snapshots: &mut HashMap<String, watch::Sender<Snapshot>>) {
    let failed = snapshots.values().map(|sender| sender.borrow()).filter(|s| s.state() == SnapshotState::Failed);
    let oldest = failed.min_by_key(|snapshot| age(snapshot)).map(|snapshot| snapshot.name.clone());
    if let Some(name) = oldest {
        snapshots.remove(&name);
    }
}

fn age(snapshot: &Snapshot) -> (i64, i32) {
    snapshot.create_time.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

/// Reads a finished snapshot's report; `None` if the folder does not count.
async fn stored(stage: &Stage, path: &str) -> Result<Option<Snapshot>, StageError> {
    if !stage.is_finished(path).await? {
        return Ok(None);
    }
    let report: Report = stage.get_json(&format!("{path}/{REPORT}")).await?;
    Ok(Some(ready(report, path.to_owned())))
}

fn ready(report: Report, path: String) -> Snapshot {
    Snapshot {
        name: report.name,
        state: SnapshotState::Ready.into(),
        path,
        rows: report.rows,
        train_rows: report.train_rows,
        held_out_rows: report.held_out_rows,
        train_tokens: report.train_tokens,
        completion_tokens: report.completion_tokens,
        truncated_rows: report.truncated_rows,
        duplicate_rows: report.duplicate_rows,
        template_sha256: report.template_sha256,
        error: String::new(),
        create_time: report.create_time.parse().ok(),
    }
}
