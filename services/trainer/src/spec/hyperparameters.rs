//! Hyper-parameters, each checked and with its default.

use firn_llm::train::{AdamWConfig, Schedule, SchedulerKind};
use firn_proto::trainer::v1 as pb;
use serde::{Deserialize, Serialize};

use super::{FieldError, or};

const DEFAULT_BETA: f64 = 0.1;
/// Most passes over the data.
const MOST_EPOCHS: f64 = 1_000.0;
/// Most blocks of a step, and most tokens of a block: a typo must not take the machine's memory.
const MOST_BATCH: u32 = 4_096;
const MOST_BLOCK: u32 = 1 << 20;

/// Hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hyperparameters {
    pub(crate) learning_rate: f64,
    pub(crate) epochs: f64,
    pub(crate) batch_size: u32,
    pub(crate) block_size: u32,
    pub(crate) warmup_ratio: f64,
    pub(crate) scheduler: String,
    pub(crate) weight_decay: f64,
    pub(crate) max_grad_norm: f64,
    pub(crate) seed: u64,
    pub(crate) no_shuffle: bool,
    pub(crate) budget_seconds: f64,
    #[serde(default)]
    pub(crate) packing: Packing,
    #[serde(default = "one")]
    pub(crate) gradient_accumulation: u32,
    #[serde(default = "default_beta")]
    pub(crate) beta: f64,
    #[serde(default)]
    pub(crate) measure: Measure,
    #[serde(default)]
    pub(crate) fit_memory: bool,
    #[serde(default)]
    pub(crate) keep_activations: bool,
}

/// When the held-out rows are measured while training goes on, and what follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub(crate) when: When,
    /// Measurements without a better loss that end training; 0: never.
    pub(crate) patience: u32,
    /// By how much a loss must be lower to be better.
    pub(crate) threshold: f64,
    /// The weights of the best measurement are the result.
    pub(crate) keep_best: bool,
}

/// Where in a run something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum When {
    /// At the end of each pass over the rows.
    #[default]
    Epoch,
    /// Each time so many steps are done.
    Steps(u32),
    Never,
}

/// How rows become blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Packing {
    /// Whole rows, as many as fit: each in the first open block with room, in the order of the epoch. The name is that of
    /// TRL's option, which sorts the rows first.
    #[default]
    Bfd,
    /// A row a block.
    None,
    /// All rows joined and cut.
    Wrapped,
}

fn one() -> u32 {
    1
}

fn default_beta() -> f64 {
    DEFAULT_BETA
}

impl Packing {
    fn check(name: &str) -> Result<Self, FieldError> {
        match name {
            "" | "bfd" => Ok(Self::Bfd),
            "none" => Ok(Self::None),
            "wrapped" => Ok(Self::Wrapped),
            other => {
                Err(FieldError::new("spec.hyperparameters.packing", format!("{other:?} must be bfd, none or wrapped")))
            }
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bfd => "bfd",
            Self::None => "none",
            Self::Wrapped => "wrapped",
        }
    }
}

impl Measure {
    fn check(spec: &pb::Hyperparameters) -> Result<Self, FieldError> {
        let when = match (spec.eval_strategy.as_str(), spec.eval_steps) {
            ("" | "epoch", _) => When::Epoch,
            ("no", _) => When::Never,
            ("steps", 0) => {
                let reason = "must be set: eval_strategy is steps";
                return Err(FieldError::new("spec.hyperparameters.eval_steps", reason));
            }
            ("steps", steps) => When::Steps(steps),
            (other, _) => {
                let reason = format!("{other:?} must be epoch, steps or no");
                return Err(FieldError::new("spec.hyperparameters.eval_strategy", reason));
            }
        };
        let (patience, keep_best) = (spec.early_stopping_patience, spec.keep_best);
        if when == When::Never && (patience > 0 || keep_best) {
            let field = match keep_best {
                true => "spec.hyperparameters.keep_best",
                false => "spec.hyperparameters.early_stopping_patience",
            };
            return Err(FieldError::new(field, "needs measurements: eval_strategy is no"));
        }
        Ok(Self { when, patience, threshold: spec.early_stopping_threshold, keep_best })
    }

    /// Something depends on the measurements: so the last one is taken, too, although an evaluation follows it.
    pub(crate) fn decides(&self) -> bool {
        self.patience > 0 || self.keep_best
    }
}

impl Hyperparameters {
    pub(super) fn check(spec: &pb::Hyperparameters, lora: bool) -> Result<Self, FieldError> {
        let all = Self {
            learning_rate: spec.learning_rate.unwrap_or(if lora { 1e-3 } else { 5e-4 }),
            epochs: spec.epochs.unwrap_or(3.0),
            batch_size: spec.batch_size.unwrap_or(4),
            block_size: spec.block_size.unwrap_or(512),
            warmup_ratio: spec.warmup_ratio.unwrap_or(0.1),
            scheduler: spec.scheduler.clone().unwrap_or_else(|| "linear".to_owned()),
            weight_decay: spec.weight_decay.unwrap_or(0.0),
            max_grad_norm: spec.max_grad_norm.unwrap_or(1.0),
            seed: spec.seed.unwrap_or(42),
            no_shuffle: spec.no_shuffle,
            budget_seconds: spec.budget_seconds,
            packing: Packing::check(&spec.packing)?,
            gradient_accumulation: or(spec.gradient_accumulation, 1),
            beta: spec.beta.unwrap_or(DEFAULT_BETA),
            measure: Measure::check(spec)?,
            fit_memory: spec.fit_memory,
            keep_activations: spec.keep_activations,
        };
        let within = |field, value: f64, most: f64, zero: bool| {
            if value.is_finite() && value <= most && (value > 0.0 || (zero && value == 0.0)) {
                return Ok(());
            }
            let least = if zero { "from 0" } else { "more than 0" };
            Err(FieldError::new(field, format!("{value} must be {least} and at most {most}")))
        };
        within("spec.hyperparameters.learning_rate", all.learning_rate, 1e3, true)?;
        within("spec.hyperparameters.epochs", all.epochs, MOST_EPOCHS, false)?;
        within("spec.hyperparameters.batch_size", all.batch_size.into(), MOST_BATCH.into(), false)?;
        within("spec.hyperparameters.block_size", all.block_size.into(), MOST_BLOCK.into(), false)?;
        within("spec.hyperparameters.warmup_ratio", all.warmup_ratio, 1.0, true)?;
        within("spec.hyperparameters.weight_decay", all.weight_decay, 1e3, true)?;
        within("spec.hyperparameters.max_grad_norm", all.max_grad_norm, 1e9, true)?;
        let accumulation = f64::from(all.gradient_accumulation);
        let blocks = accumulation * f64::from(all.batch_size);
        within("spec.hyperparameters.gradient_accumulation", accumulation, MOST_BATCH.into(), false)?;
        within("spec.hyperparameters.batch_size times gradient_accumulation", blocks, MOST_BATCH.into(), false)?;
        within("spec.hyperparameters.beta", all.beta, 1e3, false)?;
        within("spec.hyperparameters.budget_seconds", all.budget_seconds, 1e9, true)?;
        within("spec.hyperparameters.early_stopping_threshold", all.measure.threshold, 1e9, true)?;
        all.kind()?;
        Ok(all)
    }

    fn kind(&self) -> Result<SchedulerKind, FieldError> {
        self.scheduler.parse().map_err(|reason| FieldError::new("spec.hyperparameters.scheduler", reason))
    }

    /// The learning rate over the run.
    pub(crate) fn schedule(&self) -> Result<Schedule, FieldError> {
        Ok(Schedule { peak: self.learning_rate, kind: self.kind()?, warmup_ratio: self.warmup_ratio })
    }

    pub(crate) fn optimizer(&self) -> AdamWConfig {
        let (weight_decay, max_grad_norm) = (self.weight_decay, self.max_grad_norm);
        AdamWConfig { weight_decay, max_grad_norm, ..AdamWConfig::default() }
    }

    pub(super) fn to_proto(&self) -> pb::Hyperparameters {
        let Measure { when, patience, threshold, keep_best } = self.measure;
        let (eval_strategy, eval_steps) = match when {
            When::Epoch => ("epoch", 0),
            When::Steps(steps) => ("steps", steps),
            When::Never => ("no", 0),
        };
        pb::Hyperparameters {
            learning_rate: Some(self.learning_rate),
            epochs: Some(self.epochs),
            batch_size: Some(self.batch_size),
            block_size: Some(self.block_size),
            warmup_ratio: Some(self.warmup_ratio),
            scheduler: Some(self.scheduler.clone()),
            weight_decay: Some(self.weight_decay),
            max_grad_norm: Some(self.max_grad_norm),
            seed: Some(self.seed),
            no_shuffle: self.no_shuffle,
            budget_seconds: self.budget_seconds,
            packing: self.packing.name().to_owned(),
            gradient_accumulation: self.gradient_accumulation,
            beta: Some(self.beta),
            eval_strategy: eval_strategy.to_owned(),
            eval_steps,
            early_stopping_patience: patience,
            early_stopping_threshold: threshold,
            keep_best,
            fit_memory: self.fit_memory,
            keep_activations: self.keep_activations,
        }
    }
}
