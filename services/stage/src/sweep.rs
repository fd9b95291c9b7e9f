//! What crashes left behind.

use std::time::{Duration, SystemTime};

use crate::{MANIFEST, Stage, StageError};

impl Stage {
    /// Lists the paths of the folders directly in `prefix` that do not count and have not changed for `age`. Younger
    /// ones may be being written.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn debris(&self, prefix: &str, age: Duration) -> Result<Vec<String>, StageError> {
        let (prefix, now) = (prefix.trim_end_matches('/'), SystemTime::now());
        let mut found = vec![];
        for name in self.list_dirs(prefix).await? {
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if self.is_finished(&path).await? {
                continue;
            }
            let changed = self.list(&path).await?.iter().map(|entry| entry.modified).max();
            // A time in the future is young.
            if changed.is_some_and(|changed| now.duration_since(changed).is_ok_and(|passed| passed >= age)) {
                found.push(path);
            }
        }
        Ok(found)
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
