//! What every route has, and the time that a call of a service may take.

use std::{sync::Arc, time::Duration};

use firn_kit::Channel;
use firn_proto::{
    dataprep::v1::{data_prep_service_client::DataPrepServiceClient, file_service_client::FileServiceClient},
    inference::v1::inference_service_client::InferenceServiceClient,
    registry::v1::registry_service_client::RegistryServiceClient,
    trainer::v1::trainer_service_client::TrainerServiceClient,
};
use futures_util::{Stream, stream};
use tonic::{Status, Streaming};

use crate::metrics::Metrics;

/// Longest that a call takes which is no answer.
const CALL_TIME: Duration = Duration::from_secs(10);

/// What every route has.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) inference: InferenceServiceClient<Channel>,
    pub(crate) trainer: TrainerServiceClient<Channel>,
    pub(crate) registry: RegistryServiceClient<Channel>,
    pub(crate) data_prep: DataPrepServiceClient<Channel>,
    pub(crate) files: FileServiceClient<Channel>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_upload_bytes: usize,
    /// What `base` means where a job is asked for.
    pub(crate) base: Arc<str>,
    pub(crate) answer_timeout: Duration,
    /// How often a silent stream shows that it is alive.
    pub(crate) heartbeat: Duration,
    /// How long a function's batch is waited for before it is to be polled.
    pub(crate) function_patience: Duration,
}

/// A call that must not take long.
pub(crate) fn within<T>(message: T) -> tonic::Request<T> {
    timed(message, CALL_TIME)
}

/// A call that may take so long.
pub(crate) fn timed<T>(message: T, time: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(time);
    request
}

/// What a service streams, up to the first error.
pub(crate) fn each<T: Send + 'static>(stream: Streaming<T>) -> impl Stream<Item = Result<T, Status>> + Send {
    stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        match stream.message().await {
            Ok(item) => item.map(|item| (Ok(item), Some(stream))),
            Err(status) => Some((Err(status), None)),
        }
    })
}
