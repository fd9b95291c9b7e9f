//! Text as the model reads it, and back: vLLM's `/tokenize` and `/detokenize`.

use axum::{
    Json, Router,
    extract::{Request, State},
    routing::post,
};
use firn_proto::inference::v1::{TokenIds, TokenizeRequest, Turns, tokenize_request::Input};
use serde_json::{Value, json};

use crate::{
    app::{App, within},
    body::json_body,
    completions::prompt::messages,
    error::ApiError,
    fields::Fields,
    names::Names,
};

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/tokenize", post(tokenize)).route("/detokenize", post(detokenize))
}

async fn tokenize(State(mut app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::parse(&json_body(request, app.max_body_bytes).await?)?;
    let input = match fields.take::<String>("prompt")? {
        Some(text) => {
            // Special tokens come as with a request that has this prompt.
            fields.neutral("add_special_tokens", |value| *value == json!(true))?;
            Input::Text(text)
        }
        None => {
            let messages = messages(&mut fields)?;
            // The template writes the special tokens itself.
            fields.neutral("add_special_tokens", |value| *value == json!(false))?;
            Input::Chat(Turns {
                messages,
                add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
            })
        }
    };
    skip_common(&mut fields);
    fields.end()?;
    let read = app.inference.tokenize(within(TokenizeRequest { input: Some(input) })).await?.into_inner();
    let texts: Vec<_> = read.tokens.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
    Ok(Json(json!({
        "count": read.ids.len(), "max_model_len": read.context_length, "tokens": read.ids, "token_strs": texts,
        "text": read.text, "template_sha256": read.template_sha256,
    })))
}

async fn detokenize(State(mut app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::parse(&json_body(request, app.max_body_bytes).await?)?;
    let ids: Vec<u32> =
        fields.take("tokens")?.ok_or_else(|| ApiError::field("tokens", "tokens must be a list of token ids"))?;
    skip_common(&mut fields);
    fields.end()?;
    let request = TokenizeRequest { input: Some(Input::Ids(TokenIds { ids })) };
    let names = Names::default().with("ids", "tokens");
    let read = app.inference.tokenize(within(request)).await.map_err(|status| names.told(status))?.into_inner();
    Ok(Json(json!({"prompt": read.text})))
}

/// All adapters read text as their base does, and the tokens' texts come in any case.
fn skip_common(fields: &mut Fields) {
    fields.skip("model");
    fields.skip("return_token_strs");
}
