//! Asks data-prep for the snapshot.

use std::time::Duration;

use firn_kit::{Channel, retry_unavailable};
use firn_llm::config::ModelConfig;
use firn_proto::dataprep::v1::{
    CreateSnapshotRequest, Snapshot, SnapshotState, WatchSnapshotRequest,
    data_prep_service_client::DataPrepServiceClient,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use crate::{
    config::{ABSENCE, SNAPSHOT_TIME},
    record::SnapshotRef,
    spec::Spec,
};

/// Deadline of the call that starts a preparation: the snapshot's id is a hash of its source, and to read 10 GB of a slow
/// stage for it takes minutes.
const CALL_TIME: Duration = Duration::from_secs(1_800);
/// Pause before data-prep is asked again after its watch broke.
const PAUSE: Duration = Duration::from_millis(500);

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("data-prep says: {}", .0.message())]
    Call(Status),
    #[error("{0}")]
    Failed(String),
    #[error("data-prep did not finish the snapshot within {} minutes", SNAPSHOT_TIME.as_secs() / 60)]
    Late,
}

/// Longest row in tokens if the job does not say; the base's context, if that is shorter.
const DEFAULT_ROW_TOKENS: u32 = 1_024;

/// What data-prep is asked for; `base` is where the base lies, which may be named for the hub in the specification.
pub(crate) fn request(spec: &Spec, base: &str, model: &ModelConfig) -> CreateSnapshotRequest {
    let mut request = spec.data.to_proto(base);
    if request.max_tokens == 0 {
        // Data-prep does not know how much the base can read.
        request.max_tokens = u32::try_from(model.context).unwrap_or(u32::MAX).min(DEFAULT_ROW_TOKENS);
    }
    request
}

/// Has a snapshot prepared and waits for it, over restarts of data-prep: asking again for the same rows is safe. `tell`
/// gets the number of rows read so far.
pub(crate) async fn snapshot(
    client: &DataPrepServiceClient<Channel>,
    request: &CreateSnapshotRequest,
    tell: impl Fn(u64),
) -> Result<SnapshotRef, PrepareError> {
    let waiting = async {
        let (mut heard, mut failed) = (Instant::now(), false);
        loop {
            match attempt(client, request, &tell, &mut heard).await {
                // Asked for again, a failed snapshot is tried again: data-prep may have been stopped in the middle of it.
                Err(PrepareError::Failed(error)) if !failed => {
                    tracing::info!(error, "snapshot failed, asked again");
                    failed = true;
                }
                Err(PrepareError::Call(status)) if status.code() == Code::Unavailable && heard.elapsed() < ABSENCE => {
                    tracing::info!(message = status.message(), "data-prep went away, asked again");
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    };
    tokio::time::timeout(SNAPSHOT_TIME, waiting).await.unwrap_or(Err(PrepareError::Late))
}

async fn attempt(
    client: &DataPrepServiceClient<Channel>,
    request: &CreateSnapshotRequest,
    tell: &impl Fn(u64),
    heard: &mut Instant,
) -> Result<SnapshotRef, PrepareError> {
    let created = retry_unavailable(ABSENCE, || {
        let (mut client, mut request) = (client.clone(), Request::new(request.clone()));
        request.set_timeout(CALL_TIME);
        async move { client.create_snapshot(request).await }
    });
    let mut last = created.await.map_err(PrepareError::Call)?.into_inner();
    *heard = Instant::now();
    let watch = WatchSnapshotRequest { name: last.name.clone() };
    let mut frames = client.clone().watch_snapshot(watch).await.map_err(PrepareError::Call)?.into_inner();
    while last.state() == SnapshotState::Preparing {
        let Some(frame) = frames.message().await.map_err(PrepareError::Call)? else {
            return Err(PrepareError::Call(Status::unavailable("the watch ended before the snapshot was ready")));
        };
        *heard = Instant::now();
        tell(frame.rows);
        last = frame;
    }
    match last.state() {
        SnapshotState::Ready => Ok(reference(last)),
        _ => Err(PrepareError::Failed(last.error)),
    }
}

fn reference(snapshot: Snapshot) -> SnapshotRef {
    SnapshotRef {
        name: snapshot.name,
        path: snapshot.path,
        template_sha256: snapshot.template_sha256,
        train_rows: snapshot.train_rows,
        held_out_rows: snapshot.held_out_rows,
        train_tokens: snapshot.train_tokens,
    }
}
