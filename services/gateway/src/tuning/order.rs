//! OpenAI's request for a job, read and turned into the protocol's.

use firn_proto::{
    dataprep::v1::CreateSnapshotRequest,
    trainer::v1::{JobSpec, Objective},
};
use serde::Deserialize;

use super::{
    hyperparameters::{SEED, Tuning},
    method::{Usual, method},
    source,
    spec::{Format, Lora, objective},
};
use crate::{
    app::App,
    error::ApiError,
    fields::{Fields, is_nothing},
    names::Names,
};

/// Name of a tuned model if the caller gives none.
const USUAL_MODEL: &str = "tuned";

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
    /// What the caller calls what is in the specification.
    pub(crate) names: Names,
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
    pub(crate) prove_merge: bool,
    pub(crate) hyperparameters: Tuning,
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
        let placed = by_method.or(usual.map(|usual| (usual, "hyperparameters")));
        let names = placed.map(|placed| own.fill(placed)).transpose()?.unwrap_or_default();
        let names = own.names(names);
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
            names,
        };
        fields.neutral("integrations", is_nothing)?;
        // Bookkeeping of the caller's, which a job has no place for.
        fields.skip("metadata");
        fields.end()?;
        Ok(order)
    }

    /// Finds what is named, and makes the job's specification.
    pub(crate) async fn spec(self, app: &App) -> Result<JobSpec, ApiError> {
        let start = source::start(app, &self.names.of("spec.base"), &self.model).await?;
        let is_open = self.own.format.is_none();
        let rows = source::rows(app, &self.names.of("spec.data.source"), &self.training_file, is_open).await?;
        let held_out_source = match &self.validation_file {
            Some(file) => source::rows(app, &self.names.of("spec.data.held_out_source"), file, false).await?.path,
            None => String::new(),
        };
        let of_preferences = self.objective != Objective::Likelihood;
        let own = self.own;
        let format = own.format.unwrap_or_else(|| rows.format(of_preferences));
        let model = self.suffix.unwrap_or_else(|| USUAL_MODEL.to_owned());
        let name = self.names.of("spec.model");
        firn_kit::names::check_id(&model)
            .map_err(|error| ApiError::field(name.as_str(), format!("{name}: {error}")))?;
        let data = CreateSnapshotRequest {
            dataset: own.dataset.unwrap_or_else(|| model.clone()),
            source: rows.path,
            base: start.base.clone(),
            format: Some(format.into_proto()),
            held_out_rows: own.held_out_rows,
            seed: self.seed.unwrap_or(SEED),
            max_tokens: own.max_tokens,
            held_out_source,
            ..CreateSnapshotRequest::default()
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
            prove_merge: own.prove_merge,
        })
    }
}

impl Own {
    /// What the caller calls a job's fields, all but hyper-parameters of OpenAI's: the rest of a specification is Firn's.
    fn names(&self, names: Names) -> Names {
        let either = |is_own: bool, own: &'static str, usual: &'static str| if is_own { own } else { usual };
        names
            .with("spec.base", "model")
            .with("spec.adapter", either(!self.adapter.is_empty(), "firn.adapter", "model"))
            .with("spec.model", "suffix")
            .with("spec.hyperparameters.seed", "seed")
            .with("spec.data.seed", "seed")
            .with("spec.data.source", "training_file")
            .with("spec.data.held_out_source", "validation_file")
            .with("spec.data.dataset", either(self.dataset.is_some(), "firn.dataset", "suffix"))
            .with("spec.data.format", either(self.format.is_some(), "firn.format", "training_file"))
            .with("spec.data.", "firn.")
            .with("spec.", "firn.")
    }
}

fn named(name: &str) -> Result<Objective, ApiError> {
    let wrong = || ApiError::field("firn", "firn: objective must be likelihood, dpo, orpo or reward");
    objective(name).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
            (json!({"hyperparameters": {"n_epochs": "many"}}), "hyperparameters.n_epochs"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"unheard_of": 1}), "unheard_of"),
        ] {
            assert_eq!(read(extra.clone()).unwrap_err()["param"], param, "{extra}");
        }
        assert!(read(json!({"metadata": {"a": "b"}, "integrations": []})).is_ok());
    }
}
