//! OpenAI's methods and their hyper-parameters.

use firn_proto::trainer::v1::Objective;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{order::Own, spec::Lora};
use crate::{error::ApiError, names::Names};

/// The trainer's peak learning rates, which a multiplier multiplies.
const RATE: f64 = 5e-4;
const LORA_RATE: f64 = 1e-3;
const MULTIPLIER: &str = "learning_rate_multiplier";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Method {
    r#type: String,
    supervised: Option<MethodBody>,
    dpo: Option<MethodBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MethodBody {
    hyperparameters: Option<Usual>,
}

/// OpenAI's hyper-parameters: a number each, or "auto".
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Usual {
    n_epochs: Value,
    batch_size: Value,
    learning_rate_multiplier: Value,
    beta: Value,
}

/// Hyper-parameters and where in the body they are.
pub(super) type Placed = (Usual, &'static str);

/// A method's hyper-parameters, and what it minimises.
pub(super) fn method(method: Option<Method>) -> Result<(Option<Placed>, Option<Objective>), ApiError> {
    let Some(Method { r#type, supervised, dpo }) = method else { return Ok((None, None)) };
    let (body, other, place, objective) = match r#type.as_str() {
        "supervised" => (supervised, dpo, "method.supervised.hyperparameters", Objective::Likelihood),
        "dpo" => (dpo, supervised, "method.dpo.hyperparameters", Objective::Dpo),
        _ => return Err(ApiError::field("method", "method: type must be supervised or dpo")),
    };
    if other.is_some() {
        return Err(ApiError::field("method", format!("method: type is {}, so only that may be set", r#type)));
    }
    let usual = body.and_then(|body| body.hyperparameters);
    Ok((usual.map(|usual| (usual, place)), Some(objective)))
}

impl Own {
    /// Takes OpenAI's hyper-parameters where Firn's own do not say otherwise. What was taken has the caller's name.
    pub(super) fn fill(&mut self, (usual, place): Placed) -> Result<Names, ApiError> {
        let tuning = &mut self.hyperparameters;
        let mut names = Names::default();
        for (field, is_own, name) in [
            ("spec.hyperparameters.epochs", tuning.epochs.is_some(), "n_epochs"),
            ("spec.hyperparameters.batch_size", tuning.batch_size.is_some(), "batch_size"),
            ("spec.hyperparameters.beta", tuning.beta.is_some(), "beta"),
            ("spec.hyperparameters.learning_rate", tuning.learning_rate.is_some(), MULTIPLIER),
        ] {
            if !is_own {
                names = names.with(field, format!("{place}.{name}"));
            }
        }
        tuning.epochs = tuning.epochs.or(number(place, "n_epochs", usual.n_epochs)?);
        tuning.batch_size = tuning.batch_size.or(number(place, "batch_size", usual.batch_size)?);
        tuning.beta = tuning.beta.or(number(place, "beta", usual.beta)?);
        let multiplier: Option<f64> = number(place, MULTIPLIER, usual.learning_rate_multiplier)?;
        // The trainer would speak of a rate that the caller has not said.
        if multiplier.is_some_and(|multiplier| multiplier < 0.0) {
            let name = format!("{place}.{MULTIPLIER}");
            return Err(ApiError::field(name.as_str(), format!("{name} must be at least 0")));
        }
        let rate = usual_rate(!matches!(self.lora, Some(Lora::Wanted(false))));
        tuning.learning_rate = tuning.learning_rate.or(multiplier.map(|multiplier| multiplier * rate));
        Ok(names)
    }
}

/// The learning rate that the multiplier 1 means.
pub(super) fn usual_rate(lora: bool) -> f64 {
    if lora { LORA_RATE } else { RATE }
}

fn number<T: DeserializeOwned>(place: &str, name: &str, value: Value) -> Result<Option<T>, ApiError> {
    match value {
        Value::Null => Ok(None),
        Value::String(word) if word == "auto" => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(|error| {
            let name = format!("{place}.{name}");
            ApiError::field(name.as_str(), format!("{name} must be a number, or auto: {error}"))
        }),
    }
}
