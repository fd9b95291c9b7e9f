//! The service as a value: bound, then run.

use std::{net::SocketAddr, time::Duration};

use firn_kit::{GrpcServer, ServeError, ServerArgs};
use firn_proto::dataprep::v1::{
    data_prep_service_server::DataPrepServiceServer, file_service_server::FileServiceServer,
};
use firn_stage::Stage;
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::Catalog,
    collections::Collections,
    config::{Config, Limits},
    error::StartError,
    file_rpc::FileRpc,
    files::FileCatalog,
    rpc::Rpc,
};

/// Largest request in bytes: templates, no rows.
const LARGEST_REQUEST: usize = 1 << 20;
/// Largest message with a chunk of a file, or with rows for a collection, in bytes.
const LARGEST_PART: usize = 4 << 20;
/// Longest wait for a preparation to stop: it looks at each row.
const STOP_TIME: Duration = Duration::from_secs(10);

/// The service, listening but not yet answering.
#[derive(Debug)]
pub struct DataPrep {
    server: GrpcServer,
    catalog: Catalog,
}

impl DataPrep {
    /// Opens the stage, reads which snapshots it holds, and takes the address.
    ///
    /// # Errors
    /// The stage or the address cannot be used.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let stage = Stage::open(&config.stage)?;
        Self::start(&config.server, stage, config.limits).await
    }

    /// As [`Self::bind`], on a stage that is open already: for services inside one process.
    ///
    /// # Errors
    /// The stage or the address cannot be used.
    pub async fn bind_with(args: &ServerArgs, stage: Stage) -> Result<Self, StartError> {
        Self::start(args, stage, Limits::default()).await
    }

    async fn start(args: &ServerArgs, stage: Stage, limits: Limits) -> Result<Self, StartError> {
        let files = FileCatalog::load(stage.clone(), limits.max_file_bytes).await?;
        let file_rpc = FileRpc::new(files, Collections::new(stage.clone()));
        let catalog = Catalog::load(stage, limits).await?;
        let service = DataPrepServiceServer::new(Rpc::new(catalog.clone())).max_decoding_message_size(LARGEST_REQUEST);
        let files = FileServiceServer::new(file_rpc).max_decoding_message_size(LARGEST_PART);
        let server = GrpcServer::bind("data-prep", args).await?.add_service(service).add_service(files);
        Ok(Self { server, catalog })
    }

    /// Address for gRPC.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Address for GET /livez and /readyz, if there is one.
    #[must_use]
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.server.health_addr()
    }

    /// Answers until `shutdown` is cancelled; then stops preparations, which leaves nothing that counts.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { server, catalog } = self;
        server.readiness().set(true);
        let stopping = async {
            shutdown.cancelled().await;
            if tokio::time::timeout(STOP_TIME, catalog.stop()).await.is_err() {
                tracing::warn!("a preparation did not stop in time");
            }
        };
        // A server that fails by itself must take the preparations with it.
        let serving = async {
            let result = server.run(shutdown.clone()).await;
            catalog.stopped().cancel();
            result
        };
        tokio::pin!(serving, stopping);
        tokio::select! {
            result = &mut serving => {
                if shutdown.is_cancelled() {
                    stopping.await;
                }
                result
            }
            () = &mut stopping => serving.await,
        }
    }
}
