//! The registry as a value: bound, then run.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use firn_kit::{Clock, GrpcServer, ServerArgs};
use firn_proto::registry::v1::registry_service_server::RegistryServiceServer;
use firn_stage::Stage;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    catalog::Catalog,
    config::{Config, MAX_REQUEST},
    error::Error,
    follow::Follower,
    rpc::Rpc,
};

/// A registry that listens but does not answer yet.
#[derive(Debug)]
pub struct Registry {
    server: GrpcServer,
    catalog: Arc<Catalog>,
    /// Reads what another registry writes, if this one does not.
    follower: Option<Follower>,
    stopping: CancellationToken,
    /// What writes get whose callers went away, after the last call has ended.
    grace: Duration,
}

impl Registry {
    /// Opens the stage, reads what is registered and binds the address.
    ///
    /// # Errors
    /// If the stage cannot be read or the address is taken.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let stage = Stage::open(&config.stage)?;
        match config.follow {
            Some(every) => Self::follow_with(config.server, stage, every).await,
            None => Self::bind_with(config.server, stage).await,
        }
    }

    /// As [`Self::bind`], for a process that has the stage already.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with(args: ServerArgs, stage: Stage) -> Result<Self, Error> {
        let server = GrpcServer::bind("registry", &args).await?;
        let catalog = Arc::new(Catalog::load(stage, Clock::system()).await?);
        Ok(Self::new(server, catalog, None, args.grace))
    }

    /// As [`Self::bind_with`], but writes nothing, and takes up what another registry writes to the stage: it looks for it
    /// as often as `every` says.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn follow_with(args: ServerArgs, stage: Stage, every: Duration) -> Result<Self, Error> {
        let server = GrpcServer::bind("registry", &args).await?;
        let catalog = Arc::new(Catalog::following(stage, Clock::system()));
        let follower = Follower::begin(Arc::clone(&catalog), every).await?;
        Ok(Self::new(server, catalog, Some(follower), args.grace))
    }

    fn new(server: GrpcServer, catalog: Arc<Catalog>, follower: Option<Follower>, grace: Duration) -> Self {
        let stopping = CancellationToken::new();
        let rpc = Rpc { catalog: Arc::clone(&catalog), stopping: stopping.clone() };
        let service = RegistryServiceServer::new(rpc).max_decoding_message_size(MAX_REQUEST);
        Self { server: server.add_service(service), catalog, follower, stopping, grace }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// The address of `/livez` and `/readyz`, if there is one.
    #[must_use]
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.server.health_addr()
    }

    /// Answers until `shutdown`, then ends the watches and lets calls and writes finish, for the grace time at most.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { server, catalog, follower, stopping, grace } = self;
        server.readiness().set(true);
        // However this ends, no watch outlives it.
        let _stop = stopping.clone().drop_guard();
        let stop = stopping.clone();
        let _following = follower.map(|follower| AbortOnDropHandle::new(tokio::spawn(follower.run(stop))));
        let mut serving = std::pin::pin!(server.run(stopping.clone()));
        tokio::select! {
            served = &mut serving => served?,
            () = shutdown.cancelled() => {
                stopping.cancel();
                serving.await?;
            }
        }
        if tokio::time::timeout(grace, catalog.finish_writes()).await.is_err() {
            tracing::warn!(grace_seconds = grace.as_secs_f64(), "writes cut off; what they left does not count");
        }
        Ok(())
    }
}
