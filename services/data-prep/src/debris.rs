//! Folders that a crash, a kill or a cut upload has left unfinished.

use std::time::Duration;

use firn_stage::Stage;

/// Age from which on an unfinished folder is taken for debris: a younger one may be another process's.
const AGE: Duration = Duration::from_secs(3600);

/// Removes a folder that does not count, if it is old enough. What stays costs space and nothing else.
pub(crate) async fn remove(stage: &Stage, path: &str) {
    match stage.remove_old_debris(path, AGE).await {
        Ok(0) => tracing::info!(path, "unfinished folder left out"),
        Ok(files) => tracing::info!(path, files, "unfinished folder removed"),
        Err(error) => tracing::warn!(path, %error, "failed to remove an unfinished folder"),
    }
}
