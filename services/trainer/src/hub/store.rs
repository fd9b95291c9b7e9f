//! The base's folder on the stage.

use std::path::Path;

use firn_stage::{FolderWriter, Stage, StageError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{HubError, Repo, digest::Digest, listing::RemoteFile};

/// Says where a folder's files came from. It is written first: a folder that has it and no manifest is what a crash left,
/// and one that has neither was put there by hand.
const ORIGIN: &str = "hub.json";
/// Fresh folders that are tried: another machine may pull the same model at the same time.
const ATTEMPTS: usize = 3;

/// What [`ORIGIN`] holds.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Origin {
    pub(super) endpoint: String,
    pub(super) repo: String,
    pub(super) commit: String,
}

/// Finds the base's folder: one that was pulled, or one that was put there by hand.
pub(super) async fn find(stage: &Stage, repo: &Repo) -> Result<Option<String>, HubError> {
    let folder = repo.folder();
    if let Some(path) = stage.finished_folder(&folder).await? {
        return Ok(Some(path));
    }
    let is_pulled = read::<Value>(stage, &format!("{folder}/{ORIGIN}")).await?.is_some();
    let by_hand = !is_pulled && read::<Value>(stage, &format!("{folder}/config.json")).await?.is_some();
    Ok(by_hand.then_some(folder))
}

/// Copies the files from `from` to a fresh folder, and counts bytes as they arrive.
pub(super) async fn write(
    stage: &Stage,
    repo: &Repo,
    origin: &Origin,
    files: &[RemoteFile],
    from: &Path,
    tell: impl Fn(u64),
) -> Result<String, HubError> {
    let mut attempt = 1;
    loop {
        let folder = stage.fresh_folder(&repo.folder()).await?;
        let path = folder.path().to_owned();
        match fill(folder, origin, files, from, &tell).await {
            Ok(()) => return Ok(path),
            Err(HubError::Stage(StageError::AlreadyExists { .. })) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn fill(
    mut folder: FolderWriter,
    origin: &Origin,
    files: &[RemoteFile],
    from: &Path,
    tell: &impl Fn(u64),
) -> Result<(), HubError> {
    folder.put_json(ORIGIN, origin).await?;
    let mut done = 0;
    for file in files {
        let entry = folder.put_file(&file.name, &from.join(&file.name)).await?;
        // The local disk may have changed what was checked.
        if let Digest::Sha256(expected) = &file.digest
            && *expected != entry.sha256
        {
            let (file, expected, found) = (file.name.clone(), expected.clone(), entry.sha256);
            return Err(HubError::Mismatch { file, expected, found });
        }
        done += entry.size;
        tell(done);
    }
    folder.finish().await?;
    Ok(())
}

/// Reads a JSON file; one that is not there, or torn, is none.
async fn read<T: for<'de> Deserialize<'de>>(stage: &Stage, path: &str) -> Result<Option<T>, StageError> {
    match stage.get_json(path).await {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() || error.is_damaged() => Ok(None),
        Err(error) => Err(error),
    }
}
