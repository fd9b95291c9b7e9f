//! The service as a value: bound, then run.

use std::net::SocketAddr;

use firn_kit::{Clock, GrpcServer, ServeError, ServerArgs};
use firn_proto::trainer::v1::trainer_service_server::TrainerServiceServer;
use firn_stage::Stage;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Options, STOP_TIME},
    error::StartError,
    queue::Jobs,
    rpc::Rpc,
    runner::Runner,
};

/// Largest request in bytes: templates, no rows.
const LARGEST_REQUEST: usize = 1 << 20;

/// The service, listening but not yet answering.
#[derive(Debug)]
pub struct Trainer {
    server: GrpcServer,
    jobs: Jobs,
    runner: Runner,
}

impl Trainer {
    /// Opens the stage, reads which jobs it holds, opens the device and takes the address.
    ///
    /// # Errors
    /// The stage, the device or the address cannot be used, or an endpoint is none.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let stage = Stage::open(&config.stage)?;
        Self::bind_with(&config.server, stage, &config.options).await
    }

    /// As [`Self::bind`], on a stage that is open already: for services inside one process.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with(args: &ServerArgs, stage: Stage, options: &Options) -> Result<Self, StartError> {
        let jobs = Jobs::load(stage.clone(), Clock::system()).await?;
        let runner = Runner::new(jobs.clone(), stage, Clock::system(), options)?;
        let rpc = Rpc { jobs: jobs.clone(), forecaster: runner.forecaster() };
        let service = TrainerServiceServer::new(rpc).max_decoding_message_size(LARGEST_REQUEST);
        let server = GrpcServer::bind("trainer", args).await?.add_service(service);
        Ok(Self { server, jobs, runner })
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

    /// Answers and runs jobs until `shutdown` is cancelled; then ends the running step and leaves the job unfinished on
    /// the stage, so that the next start goes on with it. Dropped, it leaves the stage as a kill would.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { server, jobs, runner } = self;
        let stop = jobs.stopped().clone();
        // However this ends, the threads that compute end, too.
        let _stop = stop.clone().drop_guard();
        server.readiness().set(true);
        let serving = async {
            let served = server.run(shutdown.clone()).await;
            stop.cancel();
            served
        };
        let stopping = async {
            tokio::select! {
                () = shutdown.cancelled() => stop.cancel(),
                () = stop.cancelled() => {}
            }
        };
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_TIME).await;
        };
        let working = async {
            tokio::select! {
                () = runner.run() => {}
                () = late => tracing::warn!("the running step did not end in time"),
            }
        };
        let (served, (), ()) = tokio::join!(serving, stopping, working);
        if tokio::time::timeout(STOP_TIME, jobs.finish_writes()).await.is_err() {
            tracing::warn!("writes cut off; what they left does not count");
        }
        served
    }
}
