//! A job's specification as JSON has it, read and shown.

use firn_proto::{
    dataprep::v1::{self as data, row_format},
    trainer::v1::{JobSpec, LoraSpec, Objective},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::hyperparameters;

/// How a row becomes text.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Format {
    Text {
        column: String,
    },
    Messages {
        column: String,
    },
    Prompt {
        prompt_template: String,
        completion_template: String,
        #[serde(default)]
        system: String,
    },
    Tokens {
        #[serde(default)]
        pairs: bool,
    },
    Preference {
        prompt: String,
        chosen: String,
        rejected: String,
    },
}

impl Format {
    pub(crate) fn preference(prompt: &str, chosen: &str, rejected: &str) -> Self {
        Self::Preference { prompt: prompt.to_owned(), chosen: chosen.to_owned(), rejected: rejected.to_owned() }
    }

    pub(crate) fn into_proto(self) -> data::RowFormat {
        use row_format::Format as Proto;
        let format = match self {
            Self::Text { column } => Proto::Text(data::TextFormat { column }),
            Self::Messages { column } => Proto::Messages(data::MessagesFormat { column }),
            Self::Prompt { prompt_template, completion_template, system } => {
                Proto::Prompt(data::PromptFormat { prompt_template, completion_template, system })
            }
            Self::Tokens { pairs } => Proto::Tokens(data::TokensFormat { pairs }),
            Self::Preference { prompt, chosen, rejected } => {
                Proto::Preference(data::PreferenceFormat { prompt, chosen, rejected })
            }
        };
        data::RowFormat { format: Some(format) }
    }

    fn of(format: row_format::Format) -> Self {
        use row_format::Format as Proto;
        match format {
            Proto::Text(data::TextFormat { column }) => Self::Text { column },
            Proto::Messages(data::MessagesFormat { column }) => Self::Messages { column },
            Proto::Prompt(data::PromptFormat { prompt_template, completion_template, system }) => {
                Self::Prompt { prompt_template, completion_template, system }
            }
            Proto::Tokens(data::TokensFormat { pairs }) => Self::Tokens { pairs },
            Proto::Preference(data::PreferenceFormat { prompt, chosen, rejected }) => {
                Self::Preference { prompt, chosen, rejected }
            }
        }
    }
}

/// An adapter's shape, or whether there is to be one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Lora {
    Wanted(bool),
    Shape(LoraShape),
}

/// An adapter's shape; what is not said is the trainer's default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LoraShape {
    r: u32,
    alpha: f32,
    target_modules: Vec<String>,
    dropout: f32,
    rslora: bool,
}

impl Lora {
    /// An adapter unless there is to be none.
    pub(crate) fn into_proto(this: Option<Self>) -> Option<LoraSpec> {
        match this {
            Some(Self::Wanted(false)) => None,
            None | Some(Self::Wanted(true)) => Some(LoraSpec::default()),
            Some(Self::Shape(LoraShape { r, alpha, target_modules, dropout, rslora })) => {
                Some(LoraSpec { r, alpha, target_modules, dropout, rslora })
            }
        }
    }
}

/// The objective's name in JSON.
pub(crate) fn objective_name(objective: Objective) -> &'static str {
    match objective {
        Objective::Unspecified | Objective::Likelihood => "likelihood",
        Objective::Dpo => "dpo",
        Objective::Orpo => "orpo",
        Objective::Reward => "reward",
    }
}

/// The objective of a name.
pub(crate) fn objective(name: &str) -> Option<Objective> {
    let all = [Objective::Likelihood, Objective::Dpo, Objective::Orpo, Objective::Reward];
    all.into_iter().find(|objective| objective_name(*objective) == name)
}

/// Shows a specification.
pub(crate) fn object(spec: JobSpec) -> Value {
    let rows = spec.data.unwrap_or_default();
    let lora = spec.lora.map(|lora| {
        json!({
            "r": lora.r, "alpha": plain(lora.alpha), "target_modules": lora.target_modules,
            "dropout": plain(lora.dropout), "rslora": lora.rslora,
        })
    });
    json!({
        "base": spec.base, "model": spec.model, "alias": spec.alias, "dataset": rows.dataset, "source": rows.source,
        "held_out_source": rows.held_out_source, "held_out_rows": rows.held_out_rows, "max_tokens": rows.max_tokens,
        "seed": rows.seed, "format": rows.format.and_then(|format| format.format).map(Format::of), "lora": lora,
        "quantization": spec.quantization, "adapter": spec.adapter, "answered_rows": spec.answered_rows,
        "max_answer_tokens": spec.max_answer_tokens, "prove_merge": spec.prove_merge,
        "hyperparameters": hyperparameters::object(spec.hyperparameters.unwrap_or_default()),
    })
}

/// The number that was meant: 0.05 of 32 bits is not 0.05 of 64.
fn plain(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}
