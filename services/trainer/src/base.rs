//! Where a job's base is: a folder, a path on the stage, or a model on the hub that is pulled to the stage once.

use std::path::PathBuf;

use firn_stage::Stage;
use tokio_util::sync::CancellationToken;

use crate::{
    error::WorkError,
    hub::{self, HubOptions, Progress, Repo},
    spec::{FieldError, Spec},
};

/// A base that is there.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Its folder on this machine.
    pub(crate) dir: PathBuf,
    /// As other services name it: an absolute path, or a path on the stage.
    pub(crate) name: String,
}

/// Refuses a base that is neither there nor could be on the hub.
pub(crate) fn check(stage: &Stage, spec: &Spec) -> Result<(), FieldError> {
    match (spec.base_dir(stage.local_root()), spec.base.parse::<Repo>()) {
        (Err(error), Err(_)) => Err(error),
        _ => Ok(()),
    }
}

/// Finds the base, or pulls it; `tell` gets bytes that are done, and of how many.
pub(crate) async fn locate(
    stage: &Stage,
    spec: &Spec,
    options: &HubOptions,
    tell: impl Fn(u64, u64) + Send + Sync,
    stop: &CancellationToken,
) -> Result<Located, WorkError> {
    let missing = match spec.base_dir(stage.local_root()) {
        Ok(dir) => return Ok(Located { dir, name: spec.base.clone() }),
        Err(error) => error,
    };
    let (Ok(repo), Some(root)) = (spec.base.parse::<Repo>(), stage.local_root()) else { return Err(missing.into()) };
    let told = |progress| {
        if let Progress::Pulled { done, total } | Progress::Stored { done, total } = progress {
            tell(done, total);
        }
    };
    let name = hub::pull(stage, &repo, options, told, stop).await?;
    Ok(Located { dir: root.join(&name), name })
}
