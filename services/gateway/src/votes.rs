//! Votes: which of two answers a reader liked better. They are rows of a collection, from which a job may learn.

use axum::{
    Json, Router,
    extract::{Request, State},
    routing::{get, post},
};
use firn_proto::trainer::v1::Objective;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    app::App,
    body::json_body,
    error::ApiError,
    fields::Fields,
    jobs,
    names::Names,
    tuning::{
        self,
        hyperparameters::Tuning,
        order::{Order, Own},
        source::{COLLECTION, collected},
        spec::Format,
    },
};

/// The collection.
const VOTES: &str = "votes";
/// Fewest votes that a job learns from.
const FEWEST: u64 = 2;
/// Longest name of a model in bytes.
const LONGEST_MODEL: usize = 200;

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/v1/votes", get(count).post(vote)).route("/v1/votes/train", post(train))
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: String,
    content: String,
}

async fn count(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let (_, rows) = collected(&app, VOTES, vec![]).await?;
    Ok(Json(json!({"rows": rows, "collection": VOTES})))
}

async fn vote(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let row = read(&json_body(request, app.max_body_bytes).await?)?;
    let (_, rows) = collected(&app, VOTES, vec![row.to_string()]).await?;
    Ok(Json(json!({"rows": rows, "collection": VOTES})))
}

/// Reads a vote as the row that it becomes.
fn read(body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut turns: Vec<Turn> = fields.take("messages")?.unwrap_or_default();
    for turn in &mut turns {
        // Newer clients call the system's turn the developer's.
        if turn.role == "developer" {
            "system".clone_into(&mut turn.role);
        }
    }
    let known = |turn: &Turn| matches!(turn.role.as_str(), "system" | "user" | "assistant");
    if !turns.iter().all(known) || turns.last().is_none_or(|turn| turn.role != "user") {
        let message = "messages must be turns of system, user and assistant, of which the user has the last";
        return Err(ApiError::field("messages", message));
    }
    let mut text = |name: &str| -> Result<String, ApiError> {
        let text: Option<String> = fields.take(name)?;
        text.filter(|text| !text.is_empty()).ok_or_else(|| ApiError::field(name, format!("{name} must be a text")))
    };
    let (chosen, rejected) = (text("chosen")?, text("rejected")?);
    if chosen == rejected {
        return Err(ApiError::field("rejected", "rejected is the same as chosen: there is nothing to learn"));
    }
    let mut model = |name: &str| -> Result<String, ApiError> {
        let model: String = fields.take(name)?.unwrap_or_default();
        if model.len() > LONGEST_MODEL {
            return Err(ApiError::field(name, format!("{name} has more than {LONGEST_MODEL} bytes")));
        }
        Ok(model)
    };
    let (chosen_model, rejected_model) = (model("chosen_model")?, model("rejected_model")?);
    fields.end()?;
    let time = firn_kit::Clock::system().now().to_string();
    Ok(json!({
        "prompt": turns, "chosen": chosen, "rejected": rejected, "chosen_model": chosen_model,
        "rejected_model": rejected_model, "time": time,
    }))
}

async fn train(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let request_id = tuning::request_id(request.headers())?;
    let mut fields = Fields::parse(&json_body(request, app.max_body_bytes).await?)?;
    let own = Own {
        alias: fields.take("alias")?.unwrap_or_default(),
        format: Some(Format::preference("prompt", "chosen", "rejected")),
        lora: fields.take("lora")?,
        held_out_rows: fields.take("held_out_rows")?.unwrap_or_default(),
        hyperparameters: Tuning::take(&mut fields)?,
        ..Own::default()
    };
    let order = Order {
        model: fields.take("base")?.unwrap_or_default(),
        training_file: format!("{COLLECTION}{VOTES}"),
        validation_file: None,
        suffix: Some(fields.take("model")?.unwrap_or_else(|| VOTES.to_owned())),
        seed: fields.take("seed")?,
        objective: Objective::Dpo,
        own,
        names: Names::default()
            .with("spec.hyperparameters.", "")
            .with("spec.data.source", "votes")
            .with("spec.data.", ""),
    };
    fields.end()?;
    let (_, rows) = collected(&app, VOTES, vec![]).await?;
    if rows < FEWEST {
        let message = format!("a job needs at least {FEWEST} votes; kept so far: {rows}");
        return Err(ApiError::field("votes", message).code("too_few_votes"));
    }
    Ok(Json(jobs::object(tuning::queue(&app, order, request_id).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_says_something() {
        let good = json!({
            "messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}],
            "chosen": "a", "rejected": "b", "chosen_model": "base",
        });
        let row = read(good.to_string().as_bytes()).unwrap();
        assert_eq!((&row["prompt"][0]["role"], &row["chosen"]), (&json!("system"), &json!("a")));
        for (name, value) in [
            ("messages", json!([])),
            ("messages", json!([{"role": "assistant", "content": "x"}])),
            ("messages", json!([{"role": "tool", "content": "x"}, {"role": "user", "content": "x"}])),
            ("chosen", json!("")),
            ("rejected", json!("a")),
            ("chosen_model", json!("x".repeat(201))),
            ("why", json!("because")),
        ] {
            let mut wrong = good.clone();
            wrong[name] = value;
            assert_eq!(read(wrong.to_string().as_bytes()).unwrap_err().body()["error"]["param"], name);
        }
    }
}
