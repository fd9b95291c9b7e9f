//! A large file, written part after part.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use object_store::{Error, Extensions, MultipartUpload, PutPayload, PutResult, Result, UploadPart, path::Path};
use tokio::sync::oneshot;

use crate::{
    hash::blocking,
    volume::{finish, store_error},
};

/// The parts' futures may run in any order; a stage takes bytes in one order only. So each part waits for its turn,
/// which the part before it hands over once it is written. A part that fails hands nothing over: the later ones fail.
#[derive(Debug)]
pub(crate) struct StageUpload {
    location: Path,
    path: PathBuf,
    writer: Arc<Mutex<Option<BufWriter<File>>>>,
    turn: oneshot::Receiver<()>,
    /// False as long as the file on the stage is torn.
    complete: bool,
}

impl StageUpload {
    pub(crate) fn new(location: Path, path: PathBuf, writer: BufWriter<File>) -> Self {
        let (go, turn) = oneshot::channel();
        // The receiver is alive.
        let _ = go.send(());
        Self { location, path, writer: Arc::new(Mutex::new(Some(writer))), turn, complete: false }
    }

    fn out_of_turn(location: &Path) -> Error {
        store_error(location, std::io::Error::other("an earlier part was not written"))
    }

    /// Takes the file out and removes it: it is ours and torn.
    fn discard(&mut self) {
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Not flushed: nothing more is written to a file that goes.
            drop(writer.into_parts());
        }
        // If it cannot be removed it is debris, which readers skip.
        let _ = fs::remove_file(&self.path);
        self.complete = true;
    }
}

#[async_trait]
impl MultipartUpload for StageUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (done, next) = oneshot::channel();
        let turn = std::mem::replace(&mut self.turn, next);
        let (writer, location) = (Arc::clone(&self.writer), self.location.clone());
        Box::pin(async move {
            turn.await.map_err(|_| Self::out_of_turn(&location))?;
            let write = move || {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                let writer = writer.as_mut().ok_or_else(|| std::io::Error::other("the upload has ended"))?;
                data.iter().try_for_each(|bytes| writer.write_all(bytes))
            };
            blocking(write).await.map_err(|error| store_error(&location, error))?;
            // Nobody waits after the last part.
            let _ = done.send(());
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let closed = match self.turn.try_recv() {
            Ok(()) => {
                let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
                let writer = writer.ok_or_else(|| Self::out_of_turn(&self.location))?;
                let path = self.path.clone();
                let finished = blocking(move || finish(writer, &path, Ok(()))).await;
                finished.map_err(|error| store_error(&self.location, error))
            }
            Err(_) => Err(Self::out_of_turn(&self.location)),
        };
        match closed {
            Ok(()) => self.complete = true,
            Err(_) => self.discard(),
        }
        closed.map(|()| PutResult { e_tag: None, version: None, extensions: Extensions::new() })
    }

    async fn abort(&mut self) -> Result<()> {
        if !self.complete {
            self.discard();
        }
        Ok(())
    }
}

impl Drop for StageUpload {
    fn drop(&mut self) {
        if !self.complete {
            self.discard();
        }
    }
}
