//! Answers: `/v1/chat/completions` and `/v1/completions`.

mod ask;
mod calls;
mod events;
mod logprobs;
pub(crate) mod prompt;
mod reply;
mod sampling;
mod schema;

use axum::{
    Extension, Router,
    extract::{Request, State},
    response::Response,
    routing::post,
};

#[cfg(test)]
pub(crate) use self::ask::Input;
use self::reply::{Reply, Shape};
pub(crate) use self::{
    ask::Ask,
    calls::{call, collect},
    events::UNBUFFERED,
};
use crate::{app::App, body::json_body, error::ApiError, tenant::Tenant};

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/v1/chat/completions", post(chat)).route("/v1/completions", post(completions))
}

async fn chat(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    request: Request,
) -> Result<Response, ApiError> {
    let ask = Ask::chat(&json_body(request, app.max_body_bytes).await?, tenant.into())?;
    answer(&app, ask, Shape::Chat).await
}

async fn completions(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    request: Request,
) -> Result<Response, ApiError> {
    let ask = Ask::text(&json_body(request, app.max_body_bytes).await?, tenant.into())?;
    answer(&app, ask, Shape::Text).await
}

async fn answer(app: &App, ask: Ask, shape: Shape) -> Result<Response, ApiError> {
    let calls = calls::open(app, &ask).await.map_err(|status| ask.names.told(status))?;
    let reply = Reply::new(shape, ask.model, ask.logprobs, ask.names);
    if ask.stream {
        Ok(events::events(reply, calls, ask.include_usage, app.heartbeat))
    } else {
        reply.whole(calls).await
    }
}
