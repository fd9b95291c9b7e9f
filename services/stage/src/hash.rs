//! sha256, off the executor's threads.

use std::{fmt::Write as _, fs::File, io::Read, path::Path};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Returns the sha256 of `bytes`, in lower-case hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Counts and hashes what passes.
#[derive(Default)]
pub(crate) struct Hasher {
    digest: Sha256,
    size: u64,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// As [`Self::update`], on a thread that may block: 8 MiB take milliseconds.
    pub(crate) async fn absorb(mut self, bytes: Bytes) -> std::io::Result<Self> {
        blocking(move || {
            self.update(&bytes);
            Ok(self)
        })
        .await
    }

    /// Bytes and sha256 in hex.
    pub(crate) fn finish(self) -> (u64, String) {
        (self.size, hex(&self.digest.finalize()))
    }
}

/// Hashes a local file. Blocks.
pub(crate) fn hash_file(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Runs `work` on a thread that may block. It runs to its end even if the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
