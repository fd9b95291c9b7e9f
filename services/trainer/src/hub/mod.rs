//! Base models from the Hugging Face hub, pulled to the stage once.
//!
//! ```text
//! find on the stage ─► lock ─► list ─► config, index ─► files to the local disk ─► folder on the stage, manifest last
//!                                        │                    │
//!                                  refuse early      resume, check hashes
//! ```
//!
//! Only files that Firn reads are fetched: configuration, tokenizer, safetensors, and the papers. Pickle and code are
//! never touched. What a pull brought stays on the local disk until all of it is on the stage, so the next pull goes on
//! from there, by a range request and the hash of the whole. The token goes to the hub's own address alone, never to
//! where the hub redirects, and is written nowhere.
//!
//! This stands on `reqwest` rather than on the hub's own crate: `hf-hub` (1.0) starts a cut download over, does not
//! compare what came with the hub's hashes, keeps a cache of its own with links, and brings the client of a storage
//! protocol that a base fetched once gains nothing from. What is needed of the hub is a list and a range of a file.

mod client;
mod digest;
mod download;
mod error;
mod listing;
mod options;
mod repo;
mod retry;
mod spool;
mod store;

use firn_llm::config::ModelConfig;
use firn_stage::Stage;
use tokio_util::sync::CancellationToken;

use client::Hub;
use download::{Download, Meter};
pub use error::HubError;
use listing::Listing;
pub use options::{ENDPOINT, HubLimits, HubOptions, default_offline};
pub use repo::{Repo, RepoError};
use retry::retry;
use spool::{Spool, blocking};
use store::Origin;

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another pull of the same model is at work; told again and again.
    Waiting,
    /// Bytes on the local disk.
    Pulled {
        /// So far, those of an earlier pull included.
        done: u64,
        /// Of all files.
        total: u64,
    },
    /// Bytes on the stage.
    Stored {
        /// So far.
        done: u64,
        /// Of all files.
        total: u64,
    },
}

/// Returns the path on the stage of a base, pulled if it is not there yet. Of two pulls at once on one machine, one
/// works and the other waits for it. A base that lies on the stage is found without asking anybody.
///
/// # Errors
/// See [`HubError`]. What came is kept for the next pull, and nothing on the stage counts.
pub async fn pull(
    stage: &Stage,
    repo: &Repo,
    options: &HubOptions,
    tell: impl Fn(Progress) + Send + Sync,
    stop: &CancellationToken,
) -> Result<String, HubError> {
    if let Some(path) = store::find(stage, repo).await? {
        return Ok(path);
    }
    if options.offline() {
        return Err(HubError::Offline { repo: repo.to_string(), folder: repo.folder() });
    }
    let limit = options.limits.deadline;
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(HubError::Stopped { repo: repo.to_string() }),
        pulled = tokio::time::timeout(limit, work(stage, repo, options, &tell)) => {
            pulled.unwrap_or_else(|_| Err(HubError::Deadline { repo: repo.to_string(), limit }))
        }
    }
}

async fn work(
    stage: &Stage,
    repo: &Repo,
    options: &HubOptions,
    tell: &(dyn Fn(Progress) + Sync),
) -> Result<String, HubError> {
    let spool = Spool::lock(&options.scratch(), repo, || tell(Progress::Waiting)).await?;
    if let Some(path) = store::find(stage, repo).await? {
        return Ok(path);
    }
    let hub = open(options, repo).await?;
    let listing = Listing::fetch(&hub).await?;
    let folder = spool.commit(&listing.commit).await?;
    let download = Download { hub: &hub, spool: &spool, commit: &listing.commit, folder: &folder };
    let first = listing.first(&hub).await?;
    download.all(&first, &Meter::new(&|_| {})).await?;
    let config = ModelConfig::from_dir(&folder);
    config.map_err(|source| HubError::Model { repo: repo.to_string(), source })?;
    let files = listing.all(&hub, &folder).await?;
    let total = files.iter().map(|file| file.size).sum();
    tracing::info!(%repo, commit = listing.commit, files = files.len(), bytes = total, "pulling a base from the hub");
    download.all(&files, &Meter::new(&|done| tell(Progress::Pulled { done, total }))).await?;
    let origin =
        Origin { endpoint: hub.endpoint().to_string(), repo: repo.to_string(), commit: listing.commit.clone() };
    let stored = |done| tell(Progress::Stored { done, total });
    let path = store::write(stage, repo, &origin, &files, &folder, stored).await?;
    // It is on the stage; what is left here costs space and nothing more.
    if let Err(error) = spool.clear().await {
        tracing::warn!(%error, "files on their way were not removed");
    }
    Ok(path)
}

/// The token's file and this machine's certificates are read where blocking is allowed.
async fn open(options: &HubOptions, repo: &Repo) -> Result<Hub, HubError> {
    let (given, named) = (options.clone(), repo.clone());
    let opened = blocking(move || Ok(Hub::open(&given, &named))).await;
    opened.map_err(|error| HubError::Endpoint { reason: error.to_string() })?
}
