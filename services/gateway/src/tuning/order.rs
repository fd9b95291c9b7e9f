//! OpenAI's request for a job, read and turned into the protocol's.

use firn_proto::{
    dataprep::v1::CreateSnapshotRequest,
    trainer::v1::{JobSpec, Objective},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    source,
    spec::{Format, Lora, Tuning, objective},
};
use crate::{
    app::App,
    error::ApiError,
    fields::{Fields, is_nothing},
};

/// Name of a tuned model if the caller gives none.
const USUAL_MODEL: &str = "tuned";
/// The trainer's peak learning rates, which a multiplier multiplies.
const RATE: f64 = 5e-4;
const LORA_RATE: f64 = 1e-3;

/// A request, checked as far as it can be without asking anybody.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) model: String,
    pub(crate) training_file: String,
    pub(crate) validation_file: Option<String>,
    pub(crate) suffix: Option<String>,
    pub(crate) seed: Option<u64>,
    pub(crate) objective: Objective,
    pub(crate) own: Own,
}

/// What is Firn's own, under `firn`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Own {
    pub(crate) alias: String,
    pub(crate) dataset: Option<String>,
    pub(crate) format: Option<Format>,
    pub(crate) lora: Option<Lora>,
    pub(crate) held_out_rows: u32,
    pub(crate) max_tokens: u32,
    pub(crate) max_answer_tokens: u32,
    pub(crate) answered_rows: u32,
    pub(crate) objective: Option<String>,
    pub(crate) quantization: String,
    pub(crate) adapter: String,
    pub(crate) hyperparameters: Tuning,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
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
struct Usual {
    n_epochs: Value,
    batch_size: Value,
    learning_rate_multiplier: Value,
    beta: Value,
}

impl Order {
    /// Reads a body of `/v1/fine_tuning/jobs`.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let training_file = fields.take("training_file")?;
        let mut own: Own = fields.take("firn")?.unwrap_or_default();
        let usual: Option<Usual> = fields.take("hyperparameters")?;
        let (by_method, objective) = method(fields.take("method")?)?;
        let objective = match (own.objective.as_deref().map(named).transpose()?, objective) {
            (Some(own), Some(method)) if own != method => {
                return Err(ApiError::field("firn", "firn: objective must be that of method"));
            }
            (own, method) => own.or(method).unwrap_or(Objective::Likelihood),
        };
        if let Some(usual) = by_method.or(usual) {
            own.fill(usual)?;
        }
        let order = Self {
            model: fields
                .take("model")?
                .ok_or_else(|| ApiError::field("model", "model must be given, such as base"))?,
            training_file: training_file
                .ok_or_else(|| ApiError::field("training_file", "training_file must be given"))?,
            validation_file: fields.take("validation_file")?,
            suffix: fields.take("suffix")?,
            seed: fields.take("seed")?,
            objective,
            own,
        };
        fields.neutral("integrations", is_nothing)?;
        // Bookkeeping of the caller's, which a job has no place for.
        fields.skip("metadata");
        fields.end()?;
        Ok(order)
    }

    /// Finds what is named, and makes the job's specification.
    pub(crate) async fn spec(self, app: &App) -> Result<JobSpec, ApiError> {
        let start = source::start(app, &self.model).await?;
        let rows = source::rows(app, "training_file", &self.training_file).await?;
        let held_out_source = match &self.validation_file {
            Some(file) => source::rows(app, "validation_file", file).await?.path,
            None => String::new(),
        };
        let of_preferences = self.objective != Objective::Likelihood;
        let own = self.own;
        let format = own.format.unwrap_or_else(|| rows.format(of_preferences));
        let model = self.suffix.unwrap_or_else(|| USUAL_MODEL.to_owned());
        firn_kit::names::check_id(&model).map_err(|error| ApiError::field("suffix", format!("suffix: {error}")))?;
        let data = CreateSnapshotRequest {
            dataset: own.dataset.unwrap_or_else(|| model.clone()),
            source: rows.path,
            base: start.base.clone(),
            format: Some(format.into_proto()),
            held_out_rows: own.held_out_rows,
            seed: self.seed.unwrap_or_default(),
            max_tokens: own.max_tokens,
            held_out_source,
        };
        Ok(JobSpec {
            base: start.base,
            model,
            alias: own.alias,
            data: Some(data),
            lora: Lora::into_proto(own.lora),
            hyperparameters: Some(own.hyperparameters.into_proto(self.seed)),
            max_answer_tokens: own.max_answer_tokens,
            answered_rows: own.answered_rows,
            objective: self.objective.into(),
            quantization: own.quantization,
            adapter: if own.adapter.is_empty() { start.adapter } else { own.adapter },
        })
    }
}

impl Own {
    /// Takes OpenAI's hyper-parameters where Firn's own do not say otherwise.
    fn fill(&mut self, usual: Usual) -> Result<(), ApiError> {
        let tuning = &mut self.hyperparameters;
        tuning.epochs = tuning.epochs.or(number("n_epochs", usual.n_epochs)?);
        tuning.batch_size = tuning.batch_size.or(number("batch_size", usual.batch_size)?);
        tuning.beta = tuning.beta.or(number("beta", usual.beta)?);
        let rate = usual_rate(!matches!(self.lora, Some(Lora::Wanted(false))));
        let multiplier: Option<f64> = number("learning_rate_multiplier", usual.learning_rate_multiplier)?;
        tuning.learning_rate = tuning.learning_rate.or(multiplier.map(|multiplier| multiplier * rate));
        Ok(())
    }
}

/// The learning rate that the multiplier 1 means.
pub(super) fn usual_rate(lora: bool) -> f64 {
    if lora { LORA_RATE } else { RATE }
}

/// A method's hyper-parameters, and what it minimises.
fn method(method: Option<Method>) -> Result<(Option<Usual>, Option<Objective>), ApiError> {
    let Some(Method { r#type, supervised, dpo }) = method else { return Ok((None, None)) };
    let (body, other, objective) = match r#type.as_str() {
        "supervised" => (supervised, dpo, Objective::Likelihood),
        "dpo" => (dpo, supervised, Objective::Dpo),
        _ => return Err(ApiError::field("method", "method: type must be supervised or dpo")),
    };
    if other.is_some() {
        return Err(ApiError::field("method", format!("method: type is {}, so only that may be set", r#type)));
    }
    Ok((body.and_then(|body| body.hyperparameters), Some(objective)))
}

fn named(name: &str) -> Result<Objective, ApiError> {
    let wrong = || ApiError::field("firn", "firn: objective must be likelihood, dpo, orpo or reward");
    objective(name).ok_or_else(wrong)
}

fn number<T: DeserializeOwned>(name: &str, value: Value) -> Result<Option<T>, ApiError> {
    match value {
        Value::Null => Ok(None),
        Value::String(word) if word == "auto" => Ok(None),
        value => serde_json::from_value(value)
            .map(Some)
            .map_err(|error| ApiError::field(name, format!("{name} must be a number, or auto: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(extra: Value) -> Result<Order, Value> {
        let mut body = json!({"model": "base", "training_file": "file-1"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Order::read(body.to_string().as_bytes()).map_err(|error| error.body()["error"].take())
    }

    #[test]
    fn openai_s_hyper_parameters_become_the_trainer_s() {
        let order =
            read(json!({"hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 2}}));
        let tuning = order.unwrap().own.hyperparameters;
        assert_eq!((tuning.epochs, tuning.batch_size, tuning.learning_rate), (Some(2.0), None, Some(2e-3)));
        let dpo = json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "learning_rate_multiplier": 1}}});
        let own = json!({"lora": false, "hyperparameters": {"batch_size": 7}});
        let order = read(json!({"method": dpo, "firn": own})).unwrap();
        let tuning = order.own.hyperparameters;
        assert_eq!(order.objective, Objective::Dpo);
        assert_eq!((tuning.beta, tuning.batch_size, tuning.learning_rate), (Some(0.3), Some(7), Some(5e-4)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (extra, param) in [
            (json!({"model": null}), "model"),
            (json!({"training_file": null}), "training_file"),
            (json!({"method": {"type": "reinforcement"}}), "method"),
            (json!({"method": {"type": "dpo", "supervised": {}}}), "method"),
            (json!({"method": {"type": "dpo"}, "firn": {"objective": "orpo"}}), "firn"),
            (json!({"firn": {"objective": "best"}}), "firn"),
            (json!({"firn": {"unheard_of": 1}}), "firn"),
            (json!({"firn": {"lora": {"rank": 1}}}), "firn"),
            (json!({"hyperparameters": {"n_epochs": "many"}}), "n_epochs"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"unheard_of": 1}), "unheard_of"),
        ] {
            assert_eq!(read(extra.clone()).unwrap_err()["param"], param, "{extra}");
        }
        assert!(read(json!({"metadata": {"a": "b"}, "integrations": []})).is_ok());
    }
}
