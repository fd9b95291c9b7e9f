//! `GET /metrics`: the engine's numbers and the gateway's own, as Prometheus reads them.

mod answers;
mod engine;
mod histogram;
mod requests;
mod text;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};
use firn_proto::inference::v1::{GetStatsRequest, ListModelsRequest};

use self::{answers::Answers, requests::Requests, text::Page};
pub(crate) use self::{answers::Meter, requests::count};
use crate::app::{App, timed};

/// Longest that inference may take: who scrapes doesn't wait long.
const SCRAPE_TIME: Duration = Duration::from_secs(3);
/// The text format's version.
const FORMAT: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

/// What the gateway has counted since it was started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    answers: Answers,
    requests: Requests,
}

impl Metrics {
    /// Watches one answer of a model.
    pub(crate) fn meter(self: &Arc<Self>, model: &str) -> Meter {
        Meter::new(Arc::clone(self), model)
    }
}

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let (mut numbers, mut names) = (app.inference.clone(), app.inference.clone());
    let (stats, models) = tokio::join!(
        numbers.get_stats(timed(GetStatsRequest {}, SCRAPE_TIME)),
        names.list_models(timed(ListModelsRequest {}, SCRAPE_TIME)),
    );
    let mut page = Page::default();
    page.gauge("firn_inference_up", "Whether inference says its numbers.", f64::from(u8::from(stats.is_ok())));
    if let Ok(stats) = stats {
        let models = models.map(|listed| listed.into_inner().models).unwrap_or_default();
        engine::render(&stats.into_inner(), &models, &mut page);
    }
    app.metrics.answers.render(&mut page);
    app.metrics.requests.render(&mut page);
    page.family("firn_build_info", "gauge", "The gateway's version.");
    page.sample("firn_build_info", &[("version", firn_kit::build_info::VERSION)], 1.0);
    (FORMAT, page.into_text())
}
