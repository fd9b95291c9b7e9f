//! A snapshot's files on their way to the stage: written once, from front to back, while rows are still read.

use std::sync::Arc;

use bytes::Bytes;
use firn_stage::{FileEntry, FolderWriter, Stage, StageError};
use futures_util::stream;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    shard::Shard,
    snapshot::{Built, PrepareError, REPORT},
};

/// Bytes of lines that are handed on at once.
const PIECE: usize = 1 << 20;
/// Pieces of a file of lines that may wait for the stage.
const WAITING: usize = 4;

/// What became of a file.
type Written = Result<FileEntry, StageError>;
/// The same of a task, which may have panicked.
type Joined = Result<Written, JoinError>;

/// The folder of a snapshot. All but [`Self::open`] and [`Self::end`] blocks.
#[derive(Debug)]
pub(crate) struct Output {
    stage: Stage,
    folder: FolderWriter,
    runtime: Handle,
    stop: CancellationToken,
    writes: JoinSet<Written>,
    written: Vec<FileEntry>,
    /// Held by the shard that is being written: the next one waits, for each is in memory as a whole.
    slot: Arc<Semaphore>,
}

impl Output {
    /// Finds a fresh folder. Nothing is written yet.
    pub(crate) async fn open(stage: &Stage, path: &str, stop: &CancellationToken) -> Result<Self, StageError> {
        Ok(Self {
            stage: stage.clone(),
            folder: stage.fresh_folder(path).await?,
            runtime: Handle::current(),
            stop: stop.clone(),
            writes: JoinSet::new(),
            written: Vec::new(),
            slot: Arc::new(Semaphore::new(1)),
        })
    }

    /// Writes a shard beside what follows, once the one before is written.
    pub(crate) fn shard(&mut self, name: &str, shard: Shard) -> Result<(), PrepareError> {
        let free = self.stop.run_until_cancelled(Arc::clone(&self.slot).acquire_owned());
        let Some(Ok(slot)) = self.runtime.block_on(free) else { return Err(PrepareError::Stopped) };
        while let Some(write) = self.writes.try_join_next() {
            self.note(write)?;
        }
        let (file, pieces) = (self.folder.file(name)?, shard.into_pieces()?);
        let write = async move {
            let written = file.write(stream::iter(pieces.into_iter().map(Ok::<_, StageError>))).await;
            drop(slot);
            written
        };
        self.writes.spawn_on(write, &self.runtime);
        Ok(())
    }

    /// Begins a file whose bytes come through the channel.
    fn begin(&mut self, name: &str) -> Result<mpsc::Sender<Bytes>, StageError> {
        let (sender, pieces) = mpsc::channel(WAITING);
        let file = self.folder.file(name)?;
        let pieces = stream::unfold(pieces, |mut pieces| async move {
            let piece: Bytes = pieces.recv().await?;
            Some((Ok::<_, StageError>(piece), pieces))
        });
        self.writes.spawn_on(file.write(pieces), &self.runtime);
        Ok(sender)
    }

    /// Why a file takes no more bytes.
    fn failure(&mut self) -> PrepareError {
        while let Some(write) = self.runtime.block_on(self.writes.join_next()) {
            if let Err(error) = self.note(write) {
                return error;
            }
        }
        PrepareError::Worker
    }

    fn note(&mut self, write: Joined) -> Result<(), PrepareError> {
        self.written.push(entry(write)?);
        Ok(())
    }

    /// Waits for all files, adds report and manifest, and returns the folder's path. If the rows, a file or the end failed,
    /// nothing stays.
    pub(crate) async fn end(self, built: Result<Built, PrepareError>) -> Result<(Built, String), PrepareError> {
        let Self { stage, folder, mut writes, written, .. } = self;
        let path = folder.path().to_owned();
        let ended = match built {
            Ok(built) => finish(folder, &mut writes, written, &built).await.map(|()| built),
            Err(error) => Err(error),
        };
        if ended.is_err() {
            // None of them may write after the folder was cleared.
            while writes.join_next().await.is_some() {}
            if let Err(error) = stage.remove_debris(&path).await {
                tracing::warn!(path, %error, "failed to remove an unfinished snapshot");
            }
        }
        ended.map(|built| (built, path))
    }
}

async fn finish(
    mut folder: FolderWriter,
    writes: &mut JoinSet<Written>,
    mut written: Vec<FileEntry>,
    built: &Built,
) -> Result<(), PrepareError> {
    while let Some(write) = writes.join_next().await {
        written.push(entry(write)?);
    }
    // Which was written first is chance.
    written.sort_by_key(|file| built.files.iter().position(|name| *name == file.path));
    for file in written {
        folder.add(file);
    }
    folder.put_json(REPORT, &built.report).await?;
    folder.finish().await?;
    Ok(())
}

fn entry(write: Joined) -> Result<FileEntry, PrepareError> {
    Ok(write.map_err(|_| PrepareError::Worker)??)
}

/// A file of lines. It is begun on the stage when there is a piece of it.
#[derive(Debug)]
pub(crate) struct Lines {
    name: &'static str,
    /// Lines that are not yet handed on.
    pub(crate) buffer: Vec<u8>,
    pieces: Option<mpsc::Sender<Bytes>>,
}

impl Lines {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, buffer: Vec::new(), pieces: None }
    }

    /// Ends a line, and hands a piece on if there is one.
    pub(crate) fn end_line(&mut self, output: &mut Output) -> Result<(), PrepareError> {
        self.buffer.push(b'\n');
        if self.buffer.len() >= PIECE { self.hand_on(output) } else { Ok(()) }
    }

    /// Hands the rest on: the file ends.
    pub(crate) fn finish(mut self, output: &mut Output) -> Result<(), PrepareError> {
        self.hand_on(output)
    }

    fn hand_on(&mut self, output: &mut Output) -> Result<(), PrepareError> {
        let pieces = match &mut self.pieces {
            Some(pieces) => pieces,
            none => none.insert(output.begin(self.name)?),
        };
        let piece = std::mem::take(&mut self.buffer).into();
        match output.runtime.block_on(output.stop.run_until_cancelled(pieces.send(piece))) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(output.failure()),
            None => Err(PrepareError::Stopped),
        }
    }
}
