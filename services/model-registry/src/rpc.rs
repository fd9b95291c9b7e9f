//! The RPCs: a message in, a call of the catalog, a message out.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use firn_kit::{
    clock::to_proto,
    names::{check_id, child},
    page::page,
    status::invalid_argument,
};
use firn_proto::registry::v1::{self as pb, registry_service_server::RegistryService};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    catalog::Catalog,
    config::MAX_REQUEST_ID,
    error::{DOMAIN, ReadError, stopping},
    index::{AliasView, Doubt, ModelView, Pointer, VersionView},
    record::{Lineage, NewVersion},
};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The generated service over the catalog.
#[derive(Debug)]
pub(crate) struct Rpc {
    pub(crate) catalog: Arc<Catalog>,
    /// Ends the watches, which do not end by themselves.
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl RegistryService for Rpc {
    type WatchAliasesStream = Events<pb::AliasEvent>;
    type ReadFileStream = Events<pb::ReadFileResponse>;

    async fn create_version(
        &self,
        request: Request<pb::CreateVersionRequest>,
    ) -> Result<Response<pb::Version>, Status> {
        let new = new_version(request.into_inner())?;
        Ok(Response::new(version(self.catalog.create(new).await?)))
    }

    async fn get_version(&self, request: Request<pb::GetVersionRequest>) -> Result<Response<pb::Version>, Status> {
        let name = request.into_inner().name;
        let found = if let Ok(parts) = child(&name, &["models", "aliases"]) {
            let (model, alias) = alias_parts("name", &parts)?;
            self.catalog.pointer(model, alias)?.version
        } else {
            let (model, number) = version_name(&name)?;
            self.catalog.version(model, number)?
        };
        Ok(Response::new(version(found)))
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        let pb::ListVersionsRequest { parent, page_size, page_token } = request.into_inner();
        let parts = child(&parent, &["models"]).map_err(|error| invalid("parent", error))?;
        let [model] = parts[..] else { return Err(invalid("parent", "name one model")) };
        let (versions, next_page_token) = page(self.catalog.versions(model)?, page_size, &page_token)
            .map_err(|error| invalid(error.field(), error))?;
        let versions = versions.into_iter().map(version).collect();
        Ok(Response::new(pb::ListVersionsResponse { versions, next_page_token }))
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let pb::ListModelsRequest { page_size, page_token } = request.into_inner();
        let (models, next_page_token) =
            page(self.catalog.models(), page_size, &page_token).map_err(|error| invalid(error.field(), error))?;
        let models = models.into_iter().map(model).collect();
        Ok(Response::new(pb::ListModelsResponse { models, next_page_token }))
    }

    async fn set_alias(&self, request: Request<pb::SetAliasRequest>) -> Result<Response<pb::Alias>, Status> {
        let pb::SetAliasRequest { name, version } = request.into_inner();
        let parts = child(&name, &["models", "aliases"]).map_err(|error| invalid("name", error))?;
        let (model, name) = alias_parts("name", &parts)?;
        Ok(Response::new(alias(self.catalog.point(model, name, version).await?.alias)))
    }

    async fn watch_aliases(
        &self,
        _: Request<pb::WatchAliasesRequest>,
    ) -> Result<Response<Self::WatchAliasesStream>, Status> {
        let events = watch(Arc::clone(&self.catalog));
        let stopped = self.stopping.clone().cancelled_owned();
        let end = stream::once(async { Err(stopping()) });
        Ok(Response::new(events.map(Ok).take_until(stopped).chain(end).boxed()))
    }

    async fn read_file(&self, request: Request<pb::ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        let pb::ReadFileRequest { name, path, mut offset } = request.into_inner();
        let (model, number) = version_name(&name)?;
        let bytes = self.catalog.read_file(model, number, &path, offset).await?;
        let chunks = bytes.map(move |chunk| {
            let data = chunk.map_err(ReadError::from)?;
            let response = pb::ReadFileResponse { offset, data: data.into() };
            offset += response.data.len() as u64;
            Ok(response)
        });
        Ok(Response::new(chunks.boxed()))
    }
}

/// The state of a watch: what is to be sent before the next move.
struct Watch {
    catalog: Arc<Catalog>,
    moves: Receiver<Pointer>,
    waiting: VecDeque<pb::AliasEvent>,
}

fn watch(catalog: Arc<Catalog>) -> impl Stream<Item = pb::AliasEvent> + Send {
    let (pointers, doubts, moves) = catalog.watch();
    let watch = Watch { catalog, moves, waiting: current(pointers, doubts) };
    stream::unfold(watch, |mut watch| async move {
        loop {
            if let Some(event) = watch.waiting.pop_front() {
                return Some((event, watch));
            }
            match watch.moves.recv().await {
                Ok(pointer) => watch.waiting.push_back(event(pointer, false)),
                Err(RecvError::Lagged(moves)) => {
                    tracing::warn!(moves, "watcher lags, all aliases are sent again");
                    let (pointers, doubts, moves) = watch.catalog.watch();
                    (watch.moves, watch.waiting) = (moves, current(pointers, doubts));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

/// All aliases; the last one is marked, and stands alone if there are none.
fn current(pointers: Vec<Pointer>, doubts: Vec<Doubt>) -> VecDeque<pb::AliasEvent> {
    let known = pointers.into_iter().map(|pointer| event(pointer, false));
    let mut events: VecDeque<_> = known.chain(doubts.into_iter().map(doubtful)).collect();
    match events.back_mut() {
        Some(last) => last.current = true,
        None => events.push_back(pb::AliasEvent { current: true, ..Default::default() }),
    }
    events
}

fn invalid(field: &str, error: impl ToString) -> Status {
    invalid_argument(DOMAIN, field, error.to_string())
}

fn version_name(name: &str) -> Result<(&str, u64), Status> {
    let parts = child(name, &["models", "versions"]).map_err(|error| invalid("name", error))?;
    match parts[..] {
        [model, number] => {
            let number = number.parse().map_err(|_| invalid("name", "a version is a number, such as 3"))?;
            Ok((model, number))
        }
        _ => Err(invalid("name", "name one version")),
    }
}

fn alias_parts<'a>(field: &str, parts: &[&'a str]) -> Result<(&'a str, &'a str), Status> {
    let [model, alias] = *parts else { return Err(invalid(field, "name one alias")) };
    check_id(model).and_then(|()| check_id(alias)).map_err(|error| invalid(field, error))?;
    Ok((model, alias))
}

fn new_version(request: pb::CreateVersionRequest) -> Result<NewVersion, Status> {
    let pb::CreateVersionRequest { model, source, lineage, metrics, alias, request_id } = request;
    check_id(&model).map_err(|error| invalid("model", error))?;
    if !alias.is_empty() {
        check_id(&alias).map_err(|error| invalid("alias", error))?;
    }
    if request_id.len() > MAX_REQUEST_ID {
        return Err(invalid("request_id", format!("it has more than {MAX_REQUEST_ID} bytes")));
    }
    if let Some((key, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
        return Err(invalid(&format!("metrics.{key}"), format!("{value} is not a finite number")));
    }
    let source = source.trim_end_matches('/').to_owned();
    let plain = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains(['\\', '\0']);
    if !source.split('/').all(plain) {
        return Err(invalid("source", format!("{source:?} is not a folder's path, relative to the stage's root")));
    }
    let pb::Lineage { base, snapshot, job, template_sha256 } = lineage.unwrap_or_default();
    let lineage = Lineage { base, snapshot, job, template_sha256 };
    Ok(NewVersion { model, source, lineage, metrics: metrics.into_iter().collect(), alias, request_id })
}

fn version(view: VersionView) -> pb::Version {
    let VersionView { version, aliases } = view;
    let Lineage { base, snapshot, job, template_sha256 } = version.record.request.lineage.clone();
    let file = |file: &firn_stage::FileEntry| pb::File {
        path: file.path.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
    };
    pb::Version {
        name: version.path(),
        path: version.path(),
        files: version.files.iter().map(file).collect(),
        lineage: Some(pb::Lineage { base, snapshot, job, template_sha256 }),
        metrics: version.record.request.metrics.clone().into_iter().collect(),
        create_time: Some(to_proto(version.record.create_time)),
        aliases,
    }
}

fn alias(view: AliasView) -> pb::Alias {
    let AliasView { model, alias, version, sequence } = view;
    pb::Alias { name: format!("models/{model}/aliases/{alias}"), version, sequence }
}

fn model(view: ModelView) -> pb::Model {
    let ModelView { model, versions, aliases } = view;
    pb::Model {
        name: format!("models/{model}"),
        versions: versions as u64,
        aliases: aliases.into_iter().map(alias).collect(),
    }
}

/// Without a version: a watcher keeps what it has.
fn doubtful(doubt: Doubt) -> pb::AliasEvent {
    let Doubt { model, alias: name, sequence, .. } = doubt;
    let alias = alias(AliasView { model, alias: name, version: 0, sequence });
    pb::AliasEvent { alias: Some(alias), version: None, current: false }
}

fn event(pointer: Pointer, current: bool) -> pb::AliasEvent {
    pb::AliasEvent { alias: Some(alias(pointer.alias)), version: Some(version(pointer.version)), current }
}

#[cfg(test)]
mod tests {
    use firn_kit::Clock;
    use firn_stage::Stage;

    use super::*;
    use crate::config::WATCH_QUEUE;

    #[tokio::test]
    async fn a_watcher_that_lags_gets_all_aliases_again() {
        let stage = Stage::memory();
        let source = stage.folder("jobs/j/adapter");
        source.finish().await.unwrap();
        let catalog = Arc::new(Catalog::load(stage, Clock::system()).await.unwrap());
        for alias in ["first", "second"] {
            let request = pb::CreateVersionRequest {
                model: "m".to_owned(),
                source: "jobs/j/adapter".to_owned(),
                alias: alias.to_owned(),
                ..Default::default()
            };
            catalog.create(new_version(request).unwrap()).await.unwrap();
        }
        let events = watch(Arc::clone(&catalog));
        let mut events = std::pin::pin!(events);
        for n in 0..WATCH_QUEUE as u64 + 10 {
            catalog.point("m", "first", n % 2 + 1).await.unwrap();
        }
        let mut seen = vec![];
        for _ in 0..4 {
            let event = events.next().await.unwrap();
            seen.push((event.alias.unwrap(), event.current));
        }
        let names: Vec<_> = seen.iter().map(|(alias, current)| (alias.name.as_str(), *current)).collect();
        let (first, second) = ("models/m/aliases/first", "models/m/aliases/second");
        assert_eq!(names, [(first, false), (second, true), (first, false), (second, true)]);
        assert_eq!(seen[0].0.sequence, 1, "as it was when the watch began");
        assert_eq!(seen[2].0, alias(catalog.pointer("m", "first").unwrap().alias), "as it is now");
        let moved = if seen[2].0.version == 1 { 2 } else { 1 };
        catalog.point("m", "first", moved).await.unwrap();
        let next = events.next().await.unwrap();
        assert_eq!((next.alias.unwrap().version, next.current), (moved, false));
    }
}
