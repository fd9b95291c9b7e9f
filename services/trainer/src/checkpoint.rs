//! Checkpoints: the optimiser's state, and how far the run is.

use std::path::{Path, PathBuf};

use firn_llm::model::ADAPTER_FILES;
use firn_stage::{MANIFEST, Stage, StageError};
use serde::{Deserialize, Serialize};

use crate::{config::KEPT_CHECKPOINTS, record::job_path};

/// The optimiser's state, weights included.
pub(crate) const STATE: &str = "state.safetensors";
const PROGRESS: &str = "progress.json";
const LINEAGE: &str = "lineage.json";

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Finished steps.
    pub(crate) step: u64,
    pub(crate) train_tokens: u64,
    pub(crate) train_seconds: f64,
    /// The best measurement so far.
    #[serde(default)]
    pub(crate) best: Option<Best>,
    /// Measurements since then.
    #[serde(default)]
    pub(crate) without_gain: u32,
}

/// A measurement on the held-out rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) loss: f64,
}

/// A checkpoint on the local disk.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) progress: Progress,
    /// The optimiser's state.
    pub(crate) file: PathBuf,
}

/// What a checkpoint's adapter belongs to: who serves it checks that.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Lineage {
    /// Base checkpoint as the job names it.
    pub(crate) base: String,
    /// sha256 of the chat template that the rows went through; empty if they have seen none.
    pub(crate) template_sha256: String,
}

/// A checkpoint on the stage.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) step: u64,
    pub(crate) path: String,
    pub(crate) purpose: Purpose,
}

/// What a checkpoint is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To go on from.
    Resume,
    /// It is the best so far: its weights may become the result.
    Best,
}

impl Purpose {
    /// Name of the folder of such checkpoints.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Resume => "checkpoints",
            Self::Best => "best",
        }
    }

    /// How many are kept. The one before the last is there in case the last is damaged, and a run that goes on from an
    /// earlier checkpoint may still need the best before it.
    fn kept(self) -> usize {
        match self {
            Self::Resume => KEPT_CHECKPOINTS,
            Self::Best => KEPT_CHECKPOINTS + 1,
        }
    }
}

/// Copies a checkpoint's local folder to the stage. One of the same step that is there already is the same. With a lineage
/// its adapter can be served.
pub(crate) async fn save(
    stage: &Stage,
    job: &str,
    purpose: Purpose,
    progress: &Progress,
    local: &Path,
    lineage: Option<&Lineage>,
) -> Result<(), StageError> {
    let path = job_path(job, &format!("{}/{:06}", purpose.folder(), progress.step));
    let mut folder = match stage.fresh_folder(&path).await {
        Err(StageError::AlreadyExists { .. }) => return Ok(()),
        folder => folder?,
    };
    // What the loop writes: the state, and the adapter as PEFT reads it.
    for name in [STATE].into_iter().chain(ADAPTER_FILES) {
        let file = local.join(name);
        if file.is_file() {
            folder.put_file(name, &file).await?;
        }
    }
    if let Some(lineage) = lineage {
        folder.put_json(LINEAGE, lineage).await?;
    }
    folder.put_json(PROGRESS, progress).await?;
    folder.finish().await?;
    if let Err(error) = prune(stage, job, purpose).await {
        // It costs space, not the run.
        tracing::warn!(job, %error, "failed to remove old checkpoints");
    }
    Ok(())
}

/// The step of the last checkpoint; 0 without one.
pub(crate) async fn last_step(stage: &Stage, job: &str) -> Result<u64, StageError> {
    Ok(finished(stage, job, Purpose::Resume).await?.first().map_or(0, |(step, _)| *step))
}

/// Copies the last good checkpoint to the local folder `into`.
pub(crate) async fn restore(stage: &Stage, job: &str, into: &Path) -> Result<Option<Restored>, StageError> {
    for (step, path) in finished(stage, job, Purpose::Resume).await? {
        let into = into.join(format!("checkpoint-{step}"));
        let fetched = async {
            // The adapter beside it is for those who serve it.
            stage.fetch_files(&path, &into, |name| name == STATE).await?;
            let progress = stage.get_json(&format!("{path}/{PROGRESS}")).await?;
            Ok(Restored { progress, file: into.join(STATE) })
        };
        match fetched.await {
            Err(StageError::Damaged { path, reason }) => tracing::warn!(path, reason, "damaged checkpoint skipped"),
            Err(StageError::NotFound { path }) => tracing::warn!(path, "incomplete checkpoint skipped"),
            restored => return restored.map(Some),
        }
    }
    Ok(None)
}

/// Copies the state of the best measurement, taken at `step`, to the local folder `into`.
pub(crate) async fn restore_best(stage: &Stage, job: &str, step: u64, into: &Path) -> Result<PathBuf, StageError> {
    let found = finished(stage, job, Purpose::Best).await?.into_iter().find(|(of, _)| *of == step);
    let missing = || StageError::NotFound { path: job_path(job, &format!("best/{step:06}")) };
    let (_, path) = found.ok_or_else(missing)?;
    let into = into.join(format!("best-{step}-fetched"));
    stage.fetch_files(&path, &into, |name| name == STATE).await?;
    Ok(into.join(STATE))
}

/// All complete checkpoints, one a step.
pub(crate) async fn all(stage: &Stage, job: &str) -> Result<Vec<Found>, StageError> {
    let mut all = vec![];
    for purpose in [Purpose::Resume, Purpose::Best] {
        let found = finished(stage, job, purpose).await?;
        all.extend(found.into_iter().map(|(step, path)| Found { step, path, purpose }));
    }
    // Of a step that is kept for both, the weights are the same, and that it is the best is worth telling.
    all.sort_by_key(|found: &Found| (found.step, found.purpose == Purpose::Resume));
    all.dedup_by_key(|found| found.step);
    Ok(all)
}

/// Complete checkpoints, the last one first.
async fn finished(stage: &Stage, job: &str, purpose: Purpose) -> Result<Vec<(u64, String)>, StageError> {
    let mut found = vec![];
    for (step, path) in folders(stage, job, purpose).await? {
        if stage.is_finished(&path).await? {
            found.push((step, path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// All folders with their steps: `000050`, or `000050.2` beside the debris of a crash.
async fn folders(stage: &Stage, job: &str, purpose: Purpose) -> Result<Vec<(u64, String)>, StageError> {
    let parent = job_path(job, purpose.folder());
    let names = stage.list_dirs(&parent).await?;
    let step = |name: &str| name.split('.').next()?.parse().ok();
    Ok(names.iter().filter_map(|name| Some((step(name)?, format!("{parent}/{name}")))).collect())
}

/// Removes all but the last checkpoints.
async fn prune(stage: &Stage, job: &str, purpose: Purpose) -> Result<(), StageError> {
    let kept = finished(stage, job, purpose).await?.into_iter().nth(purpose.kept() - 1);
    let Some((oldest, _)) = kept else { return Ok(()) };
    for (_, path) in folders(stage, job, purpose).await?.into_iter().filter(|(step, _)| *step < oldest) {
        // First what makes it count.
        stage.delete(&format!("{path}/{MANIFEST}")).await?;
        for file in stage.list(&path).await? {
            stage.delete(&file.path).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: u64) -> Progress {
        Progress { step, train_tokens: 10 * step, train_seconds: 0.1 * step as f64, ..Progress::default() }
    }

    #[tokio::test]
    async fn the_last_good_checkpoint_comes_back_and_old_ones_go() {
        let (stage, local) = (Stage::memory(), tempfile::tempdir().unwrap());
        assert_eq!(last_step(&stage, "j").await.unwrap(), 0);
        assert!(restore(&stage, "j", local.path()).await.unwrap().is_none());
        let file = local.path().join(STATE);
        for step in [5, 10, 15] {
            std::fs::write(&file, format!("state {step}")).unwrap();
            save(&stage, "j", Purpose::Resume, &progress(step), local.path(), None).await.unwrap();
        }
        save(&stage, "j", Purpose::Resume, &progress(15), local.path(), None).await.unwrap();
        assert_eq!(last_step(&stage, "j").await.unwrap(), 15);
        let steps: Vec<u64> = all(&stage, "j").await.unwrap().iter().map(|found| found.step).collect();
        assert_eq!(steps, [10, 15]);
        assert!(stage.list("jobs/j/checkpoints/000005").await.unwrap().is_empty());
        let restored = restore(&stage, "j", local.path()).await.unwrap().unwrap();
        assert_eq!(restored.progress, progress(15));
        assert_eq!(std::fs::read_to_string(restored.file).unwrap(), "state 15");

        // A damaged one is passed over.
        stage.delete("jobs/j/checkpoints/000015/state.safetensors").await.unwrap();
        stage.put("jobs/j/checkpoints/000015/state.safetensors", "state 1x".into()).await.unwrap();
        let other = tempfile::tempdir().unwrap();
        assert_eq!(restore(&stage, "j", other.path()).await.unwrap().unwrap().progress, progress(10));
    }

    #[tokio::test]
    async fn debris_does_not_count() {
        let (stage, local) = (Stage::memory(), tempfile::tempdir().unwrap());
        let file = local.path().join(STATE);
        std::fs::write(&file, "state").unwrap();
        stage.put("jobs/j/checkpoints/000005/state.safetensors", "st".into()).await.unwrap();
        assert_eq!(last_step(&stage, "j").await.unwrap(), 0);
        save(&stage, "j", Purpose::Resume, &progress(5), local.path(), None).await.unwrap();
        assert_eq!(last_step(&stage, "j").await.unwrap(), 5);
        assert_eq!(restore(&stage, "j", local.path()).await.unwrap().unwrap().progress, progress(5));
    }

    #[tokio::test]
    async fn the_best_is_kept_apart() {
        let (stage, local) = (Stage::memory(), tempfile::tempdir().unwrap());
        let file = local.path().join(STATE);
        for step in [5, 10, 15, 20] {
            std::fs::write(&file, format!("best {step}")).unwrap();
            save(&stage, "j", Purpose::Best, &progress(step), local.path(), None).await.unwrap();
        }
        assert_eq!(last_step(&stage, "j").await.unwrap(), 0, "nothing goes on from it");
        for step in [10, 20] {
            let file = restore_best(&stage, "j", step, local.path()).await.unwrap();
            assert_eq!(std::fs::read_to_string(file).unwrap(), format!("best {step}"));
        }
        assert!(restore_best(&stage, "j", 5, local.path()).await.unwrap_err().is_not_found());
    }
}
