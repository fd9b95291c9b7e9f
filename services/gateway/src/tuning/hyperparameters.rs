//! Hyper-parameters: one list for JSON bodies, for SQL's options and for what is shown of a job.

use firn_proto::trainer::v1::Hyperparameters;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{error::ApiError, fields::Fields};

/// Seed of a job, and of its split of the rows, if the caller says none: the trainer's own.
pub(crate) const SEED: u64 = 42;

macro_rules! tuning {
    ($($field:ident: $kind:ty,)*) => {
        /// Hyper-parameters by the protocol's names; what is not said is the trainer's default. The seed is apart: it is the
        /// split's, too.
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct Tuning {
            $(pub(crate) $field: $kind,)*
        }

        impl Tuning {
            /// Takes them from fields among which others are.
            pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
                Ok(Self { $($field: fields.take(stringify!($field))?.unwrap_or_default(),)* })
            }

            pub(crate) fn into_proto(self, seed: Option<u64>) -> Hyperparameters {
                Hyperparameters { seed, $($field: self.$field,)* }
            }
        }

        impl From<Hyperparameters> for Tuning {
            fn from(of: Hyperparameters) -> Self {
                Self { $($field: of.$field,)* }
            }
        }
    };
}

tuning! {
    learning_rate: Option<f64>,
    epochs: Option<f64>,
    batch_size: Option<u32>,
    block_size: Option<u32>,
    warmup_ratio: Option<f64>,
    scheduler: Option<String>,
    weight_decay: Option<f64>,
    max_grad_norm: Option<f64>,
    no_shuffle: bool,
    budget_seconds: f64,
    packing: String,
    gradient_accumulation: u32,
    beta: Option<f64>,
    eval_strategy: String,
    eval_steps: u32,
    early_stopping_patience: u32,
    early_stopping_threshold: f64,
    keep_best: bool,
    fit_memory: bool,
    keep_activations: bool,
}

/// Shows them.
pub(super) fn object(of: Hyperparameters) -> Value {
    let seed = of.seed;
    let mut object = json!(Tuning::from(of));
    object["seed"] = seed.into();
    object
}
