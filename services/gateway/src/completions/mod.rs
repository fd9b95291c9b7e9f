//! Answers: `/v1/chat/completions` and `/v1/completions`.

mod ask;
mod reply;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::post,
};

use self::{
    ask::{Ask, Input},
    reply::{Reply, Shape},
};
use crate::{
    app::{App, timed},
    body::json_body,
    error::ApiError,
};

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/v1/chat/completions", post(chat)).route("/v1/completions", post(completions))
}

async fn chat(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let ask = Ask::chat(&json_body(request, app.max_body_bytes).await?)?;
    answer(app, ask, Shape::Chat).await
}

async fn completions(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let ask = Ask::text(&json_body(request, app.max_body_bytes).await?)?;
    answer(app, ask, Shape::Text).await
}

async fn answer(mut app: App, ask: Ask, shape: Shape) -> Result<Response, ApiError> {
    let pieces = match ask.input {
        Input::Chat(request) => app.inference.chat(timed(request, app.answer_timeout)).await,
        Input::Text(request) => app.inference.generate(timed(request, app.answer_timeout)).await,
    };
    let pieces = pieces?.into_inner();
    let reply = Reply::new(shape, ask.model);
    if ask.stream { Ok(reply.events(pieces, ask.include_usage)) } else { reply.whole(pieces).await }
}
