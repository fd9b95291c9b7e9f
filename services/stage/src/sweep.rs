//! What crashes left behind.

use std::time::{Duration, SystemTime};

use crate::{MANIFEST, Stage, StageError};

impl Stage {
    /// Removes the files of a folder that does not count and has not changed for `age`, and returns how many they were: 0 of
    /// a younger one, which may be being written.
    ///
    /// # Errors
    /// As [`Self::remove_debris`].
    pub async fn remove_old_debris(&self, path: &str, age: Duration) -> Result<usize, StageError> {
        if self.has_rested(path, age).await? { self.remove_debris(path).await } else { Ok(0) }
    }

    /// Files are there, and none has changed for `age`.
    async fn has_rested(&self, path: &str, age: Duration) -> Result<bool, StageError> {
        let changed = self.list(path).await?.iter().map(|entry| entry.modified).max();
        // A time in the future is young.
        Ok(changed.is_some_and(|changed| SystemTime::now().duration_since(changed).is_ok_and(|passed| passed >= age)))
    }

    /// Removes a folder, first what makes it count: after a crash in between, the rest is debris.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn remove_folder(&self, path: &str) -> Result<(), StageError> {
        let path = path.trim_end_matches('/');
        self.delete(&format!("{path}/{MANIFEST}")).await?;
        for file in self.list(path).await? {
            self.delete(&file.path).await?;
        }
        Ok(())
    }

    /// Removes the files of a folder that does not count, and returns how many they were.
    ///
    /// # Errors
    /// [`StageError::AlreadyExists`] if the folder counts.
    pub async fn remove_debris(&self, path: &str) -> Result<usize, StageError> {
        if self.is_finished(path).await? {
            return Err(StageError::AlreadyExists { path: path.to_owned() });
        }
        let files = self.list(path).await?;
        for file in &files {
            self.delete(&file.path).await?;
        }
        Ok(files.len())
    }
}
