//! Clients of a running stack.

use std::time::Duration;

use anyhow::Result;
use firn_kit::{Channel, channel};
use firn_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use firn_proto::registry::v1::registry_service_client::RegistryServiceClient;
use firn_proto::trainer::v1::trainer_service_client::TrainerServiceClient;
use tonic::Status;

/// How long a call may take to be answered at first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where the services of a running stack are.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Where the stack is")]
pub(crate) struct Endpoints {
    /// Data-prep.
    #[arg(
        long,
        env = "FIRN_DATA_PREP_ENDPOINT",
        default_value = "http://127.0.0.1:7001",
        value_name = "URL",
        global = true
    )]
    pub(crate) data_prep_endpoint: String,
    /// Trainer.
    #[arg(
        long,
        env = "FIRN_TRAINER_ENDPOINT",
        default_value = "http://127.0.0.1:7002",
        value_name = "URL",
        global = true
    )]
    pub(crate) trainer_endpoint: String,
    /// Model registry.
    #[arg(
        long,
        env = "FIRN_REGISTRY_ENDPOINT",
        default_value = "http://127.0.0.1:7003",
        value_name = "URL",
        global = true
    )]
    pub(crate) registry_endpoint: String,
    /// Inference.
    #[arg(
        long,
        env = "FIRN_INFERENCE_ENDPOINT",
        default_value = "http://127.0.0.1:7004",
        value_name = "URL",
        global = true
    )]
    pub(crate) inference_endpoint: String,
}

impl Endpoints {
    pub(crate) fn data_prep(&self) -> Result<DataPrepServiceClient<Channel>> {
        Ok(DataPrepServiceClient::new(channel(&self.data_prep_endpoint)?))
    }

    pub(crate) fn trainer(&self) -> Result<TrainerServiceClient<Channel>> {
        Ok(TrainerServiceClient::new(channel(&self.trainer_endpoint)?))
    }

    pub(crate) fn registry(&self) -> Result<RegistryServiceClient<Channel>> {
        Ok(RegistryServiceClient::new(channel(&self.registry_endpoint)?))
    }

    pub(crate) fn inference(&self) -> Result<InferenceServiceClient<Channel>> {
        Ok(InferenceServiceClient::new(channel(&self.inference_endpoint)?))
    }
}

/// A request with a deadline.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    request_within(message, PATIENCE)
}

/// A call that may take longer.
pub(crate) fn request_within<T>(message: T, patience: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(patience);
    request
}

/// Calls `each` with every item of a list, page by page; `page` takes a page's token, and gives its items and the next
/// page's token.
pub(crate) async fn pages<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String)>,
    mut each: impl FnMut(T),
) -> Result<()> {
    let mut token = String::new();
    loop {
        let (items, next) = page(token).await?;
        items.into_iter().for_each(&mut each);
        if next.is_empty() {
            return Ok(());
        }
        token = next;
    }
}

/// A status as a person reads it.
pub(crate) fn describe(status: &Status) -> String {
    match status.code() {
        tonic::Code::Unavailable => format!("{} (is the stack running? start it with `firn up`)", status.message()),
        _ => status.message().to_owned(),
    }
}
