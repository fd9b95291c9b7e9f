//! The routes: each group is its own module's, here they are put together.

use axum::{Router, http::StatusCode, middleware};

use crate::{
    adapters,
    app::App,
    auth::{self, Access},
    completions,
    connections::{self, Routers},
    datasets,
    error::ApiError,
    files, functions, health, jobs,
    limits::{self, Limits},
    lists, metrics, models, page, tokens, tuning, versions, votes,
};

/// All routes, and what there is for those who find no place.
pub(crate) fn routers(app: App, access: Access, limits: Limits) -> Routers {
    let refused = Router::new()
        .fallback(connections::refuse)
        .layer(middleware::from_fn_with_state(app.clone(), metrics::count))
        .with_state(app.clone());
    Routers { served: router(app, access, limits), refused }
}

fn router(app: App, access: Access, limits: Limits) -> Router {
    guarded()
        // The lower one comes first: whose request it is must be known before it is counted.
        .route_layer(middleware::from_fn_with_state(limits, limits::check))
        .route_layer(middleware::from_fn_with_state(access, auth::check))
        .merge(page::routes())
        .merge(health::routes())
        .merge(metrics::routes())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), metrics::count))
        .with_state(app)
}

/// Those that ask who calls.
fn guarded() -> Router<App> {
    Router::new()
        // A line a group.
        .merge(completions::routes())
        .merge(models::routes())
        .merge(adapters::routes())
        .merge(tokens::routes())
        .merge(functions::routes())
        .merge(files::routes())
        .merge(tuning::routes())
        .merge(jobs::routes())
        .merge(versions::routes())
        .merge(votes::routes())
        .merge(datasets::routes())
        .merge(lists::routes())
}

async fn unknown_path() -> ApiError {
    ApiError::unknown_path()
}

async fn wrong_method() -> ApiError {
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}
