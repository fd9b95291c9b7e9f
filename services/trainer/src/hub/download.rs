//! One file after another from the hub to the local disk.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};

use super::{
    HubError,
    client::{Hub, host},
    listing::RemoteFile,
    retry::Tries,
    spool::{Part, Spool, blocking},
};

/// Counts bytes that are on the local disk.
pub(super) struct Meter<'a> {
    done: AtomicU64,
    tell: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Meter<'a> {
    pub(super) fn new(tell: &'a (dyn Fn(u64) + Sync)) -> Self {
        Self { done: AtomicU64::new(0), tell }
    }

    /// A file that had `before` bytes has `now`.
    fn moved(&self, before: u64, now: u64) {
        // Wrapping, as a file that starts over goes back.
        let change = now.wrapping_sub(before);
        (self.tell)(self.done.fetch_add(change, Ordering::Relaxed).wrapping_add(change));
    }
}

/// Where files come from, and where to.
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) spool: &'a Spool,
    pub(super) commit: &'a str,
    /// The commit's folder.
    pub(super) folder: &'a Path,
}

impl Download<'_> {
    /// Fetches files, some at once. If one fails, what came of the others stays for the next pull.
    pub(super) async fn all(&self, files: &[RemoteFile], meter: &Meter<'_>) -> Result<(), HubError> {
        let fetches: Vec<_> = files.iter().map(|file| self.file(file, meter)).collect();
        stream::iter(fetches).buffer_unordered(self.hub.limits().connections.max(1)).try_collect().await
    }

    async fn file(&self, file: &RemoteFile, meter: &Meter<'_>) -> Result<(), HubError> {
        let path = self.folder.join(&file.name);
        let (digest, found, size) = (file.digest.clone(), path.clone(), file.size);
        let is_whole = blocking(move || digest.is_of(&found, size));
        if is_whole.await.map_err(|error| HubError::local("read", &path, error))? {
            meter.moved(0, file.size);
            return Ok(());
        }
        let mut part = self.spool.part(self.folder, file).await?;
        meter.moved(0, part.len());
        let mut tries = Tries::new(self.hub.limits());
        loop {
            let before = part.len();
            if let Err(error) = self.rest(file, &mut part, meter).await {
                tries.after(error, part.len() > before).await?;
                continue;
            }
            let Err(found) = part.finish(&path).await? else { return Ok(()) };
            let again = part.is_resumed();
            self.restart(&mut part, meter).await?;
            if !again {
                let expected = file.digest.hex().to_owned();
                return Err(HubError::Mismatch { file: file.name.clone(), expected, found });
            }
            tracing::warn!(file = file.name, "what an earlier pull left is damaged; fetching all of it");
        }
    }

    async fn restart(&self, part: &mut Part, meter: &Meter<'_>) -> Result<(), HubError> {
        let before = part.len();
        part.restart().await?;
        meter.moved(before, 0);
        Ok(())
    }

    /// Asks for what is missing, and takes what comes.
    async fn rest(&self, file: &RemoteFile, part: &mut Part, meter: &Meter<'_>) -> Result<(), HubError> {
        let from = part.len();
        if from == file.size {
            return Ok(());
        }
        let mut response = self.hub.get(&file.name, self.hub.file_url(self.commit, &file.name)?, from).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, from) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.restart(part, meter).await?;
                return Err(self.cut(file, &response, format!("it does not go on from byte {from}")));
            }
            // All of it, whatever was asked for.
            _ if from > 0 => self.restart(part, meter).await?,
            _ => {}
        }
        let announced = response.content_length().map(|rest| part.len().saturating_add(rest));
        if let Some(found) = announced.filter(|announced| *announced != file.size) {
            return Err(self.size(file, &response, found.to_string()));
        }
        let taken = self.take(file, &mut response, part, meter).await;
        part.flush().await?;
        taken?;
        if part.len() < file.size {
            return Err(self.cut(file, &response, format!("it ended after {} of {} bytes", part.len(), file.size)));
        }
        Ok(())
    }

    fn cut(&self, file: &RemoteFile, response: &Response, reason: String) -> HubError {
        HubError::Connection { host: host(response.url()), what: file.name.clone(), reason }
    }

    fn size(&self, file: &RemoteFile, response: &Response, found: String) -> HubError {
        HubError::Size { file: file.name.clone(), host: host(response.url()), expected: file.size, found }
    }

    async fn take(
        &self,
        file: &RemoteFile,
        response: &mut Response,
        part: &mut Part,
        meter: &Meter<'_>,
    ) -> Result<(), HubError> {
        while let Some(chunk) = self.hub.chunk(&file.name, response).await? {
            let before = part.len();
            if before.saturating_add(chunk.len() as u64) > file.size {
                self.restart(part, meter).await?;
                return Err(self.size(file, response, "more".to_owned()));
            }
            part.push(chunk).await?;
            meter.moved(before, part.len());
        }
        Ok(())
    }
}

/// Does the answer begin at this byte?
fn begins_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
    first == Some(from)
}
