//! The gRPC service: messages in, one call, messages out.

use std::pin::Pin;

use firn_kit::page::page;
use firn_llm::template::KnownTemplate;
use firn_proto::dataprep::v1::{
    ContainsRowsRequest, ContainsRowsResponse, CreateSnapshotRequest, GetReportRequest, GetReportResponse,
    GetSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot, SnapshotState, WatchSnapshotRequest,
    data_prep_service_server::DataPrepService, row_format::Format,
};
use futures_util::{Stream, stream};
use tonic::{Response, Status};

use crate::{
    catalog::Catalog,
    contains,
    error::{CreateError, page_status, stopping},
    plan::{FormatSpec, Request},
};

/// Tokens of a row if the request does not say.
const DEFAULT_MAX_TOKENS: u32 = 1_024;
/// Most tokens of a row that can be asked for.
const MOST_MAX_TOKENS: u32 = 1 << 20;
/// Most hashes of one question.
const MOST_HASHES: usize = 10_000;
/// Longest template or system message in bytes: requests and reports stay small.
const LONGEST_TEXT: usize = 64 << 10;

/// Answers calls.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    catalog: Catalog,
}

impl Rpc {
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }
}

#[tonic::async_trait]
impl DataPrepService for Rpc {
    async fn create_snapshot(
        &self,
        request: tonic::Request<CreateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = checked(request.into_inner())?;
        Ok(Response::new(self.catalog.create(request).await?))
    }

    async fn get_snapshot(&self, request: tonic::Request<GetSnapshotRequest>) -> Result<Response<Snapshot>, Status> {
        Ok(Response::new(self.catalog.get(&request.get_ref().name)?))
    }

    async fn list_snapshots(
        &self,
        request: tonic::Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let (snapshots, next_page_token) =
            page(self.catalog.list(), request.page_size, &request.page_token).map_err(page_status)?;
        Ok(Response::new(ListSnapshotsResponse { snapshots, next_page_token }))
    }

    async fn contains_rows(
        &self,
        request: tonic::Request<ContainsRowsRequest>,
    ) -> Result<Response<ContainsRowsResponse>, Status> {
        let ContainsRowsRequest { name, sha256 } = request.into_inner();
        if sha256.len() > MOST_HASHES {
            return Err(refused("sha256", &format!("has more than {MOST_HASHES} hashes: ask in parts")).into());
        }
        if let Some(odd) = sha256.iter().find(|hash| !contains::is_hash(hash)) {
            return Err(refused("sha256", &format!("{odd:?} is no sha256 in lower-case hex")).into());
        }
        let sides = self.catalog.contains(&name, &sha256).await?;
        Ok(Response::new(ContainsRowsResponse { sides: sides.into_iter().map(Into::into).collect() }))
    }

    async fn get_report(
        &self,
        request: tonic::Request<GetReportRequest>,
    ) -> Result<Response<GetReportResponse>, Status> {
        let json = self.catalog.report(&request.get_ref().name).await?;
        Ok(Response::new(GetReportResponse { json }))
    }

    type WatchSnapshotStream = Pin<Box<dyn Stream<Item = Result<Snapshot, Status>> + Send>>;

    async fn watch_snapshot(
        &self,
        request: tonic::Request<WatchSnapshotRequest>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        let mut receiver = self.catalog.watch(&request.get_ref().name)?;
        receiver.mark_changed();
        let stopped = self.catalog.stopped().clone();
        // `None` after the last message.
        let frames = stream::unfold(Some((receiver, stopped)), |state| async move {
            let (mut receiver, stopped) = state?;
            // What is known goes out before the news that the service stops.
            let changed = tokio::select! {
                biased;
                changed = receiver.changed() => changed.is_ok(),
                () = stopped.cancelled() => false,
            };
            if !changed {
                return Some((Err(stopping()), None));
            }
            let snapshot = receiver.borrow_and_update().clone();
            let last = snapshot.state() != SnapshotState::Preparing;
            Some((Ok(snapshot), (!last).then_some((receiver, stopped))))
        });
        Ok(Response::new(Box::pin(frames)))
    }
}

/// Checks what can be checked without opening a file.
pub(crate) fn checked(request: CreateSnapshotRequest) -> Result<Request, CreateError> {
    firn_kit::names::check_id(&request.dataset)
        .map_err(|error| CreateError::Field { field: "dataset", reason: error.to_string() })?;
    must_be_there("source", &request.source)?;
    must_be_there("base", &request.base)?;
    must_be_short("held_out_source", &request.held_out_source)?;
    let format = match request.format.and_then(|format| format.format) {
        Some(Format::Text(text)) => {
            must_be_there("format.text.column", &text.column)?;
            FormatSpec::Text { column: text.column }
        }
        Some(Format::Messages(messages)) => {
            must_be_there("format.messages.column", &messages.column)?;
            FormatSpec::Messages { column: messages.column }
        }
        Some(Format::Prompt(prompt)) => {
            must_be_there("format.prompt.prompt_template", &prompt.prompt_template)?;
            must_be_there("format.prompt.completion_template", &prompt.completion_template)?;
            must_be_short("format.prompt.system", &prompt.system)?;
            FormatSpec::Prompt {
                prompt_template: prompt.prompt_template,
                completion_template: prompt.completion_template,
                system: prompt.system,
            }
        }
        Some(Format::Tokens(tokens)) => FormatSpec::Tokens { pairs: tokens.pairs },
        Some(Format::Preference(columns)) => {
            must_be_there("format.preference.prompt", &columns.prompt)?;
            must_be_there("format.preference.chosen", &columns.chosen)?;
            must_be_there("format.preference.rejected", &columns.rejected)?;
            FormatSpec::Preference { prompt: columns.prompt, chosen: columns.chosen, rejected: columns.rejected }
        }
        None => return Err(refused("format", "must be text, prompt, messages, tokens or preference")),
    };
    let max_tokens = if request.max_tokens == 0 { DEFAULT_MAX_TOKENS } else { request.max_tokens };
    if !(2..=MOST_MAX_TOKENS).contains(&max_tokens) {
        return Err(refused(
            "max_tokens",
            &format!("must be from 2 to {MOST_MAX_TOKENS}, or 0 for {DEFAULT_MAX_TOKENS}"),
        ));
    }
    let chat_template = match request.chat_template.as_str() {
        "" => None,
        name => Some(KnownTemplate::named(name).ok_or_else(|| {
            let names = KnownTemplate::ALL.map(KnownTemplate::name).join(" or ");
            refused("chat_template", &format!("must be {names}, or empty for the base's own"))
        })?),
    };
    Ok(Request {
        dataset: request.dataset,
        source: request.source,
        base: request.base,
        format,
        held_out_rows: request.held_out_rows,
        held_out_source: request.held_out_source,
        seed: request.seed,
        max_tokens,
        chat_template,
    })
}

fn must_be_there(field: &'static str, text: &str) -> Result<(), CreateError> {
    if text.is_empty() { Err(refused(field, "must not be empty")) } else { must_be_short(field, text) }
}

fn must_be_short(field: &'static str, text: &str) -> Result<(), CreateError> {
    if text.len() > LONGEST_TEXT {
        return Err(refused(field, &format!("has {} bytes, more than {LONGEST_TEXT}", text.len())));
    }
    Ok(())
}

fn refused(field: &'static str, reason: &str) -> CreateError {
    CreateError::Field { field, reason: reason.to_owned() }
}
