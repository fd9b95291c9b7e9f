//! How many requests came, by route and status.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};

use super::text::Page;
use crate::app::App;

/// Stands for all paths that are no route's.
const NONE: &str = "none";

/// Requests by route and status. Both are of a limited number: a path that no route has is counted as none.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(String, u16), u64>>);

impl Requests {
    pub(crate) fn render(&self, page: &mut Page) {
        const NAME: &str = "firn_http_requests_total";
        page.family(NAME, "counter", "Requests that were answered, or whose answer has begun.");
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((route, status), count) in counts {
            page.sample(NAME, &[("route", &route), ("status", &status.to_string())], count as f64);
        }
    }

    fn add(&self, route: String, status: u16) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((route, status)).or_default() += 1;
    }
}

/// Counts what passes, for who scrapes and for a collector.
pub(crate) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or(NONE, MatchedPath::as_str).to_owned();
    let (method, started) = (request.method().clone(), Instant::now());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    firn_kit::metrics::http_request(method.as_str(), &route, status, started.elapsed().as_secs_f64());
    app.metrics.requests.add(route, status);
    response
}
