//! What a job does: checked, with every default filled in.

use std::path::{Component, Path, PathBuf};

use firn_llm::{
    model::LoraConfig,
    quant::Quantization,
    train::{AdamWConfig, Preference, Schedule, SchedulerKind},
};
use firn_proto::{
    dataprep::v1::{self as data, row_format::Format},
    trainer::v1 as pb,
};
use serde::{Deserialize, Serialize};

const DEFAULT_RANK: u32 = 16;
const DEFAULT_ANSWER_TOKENS: u32 = 256;
const DEFAULT_ALIAS: &str = "latest";
const DEFAULT_BETA: f64 = 0.1;
/// Largest rank: beyond it LoRA is larger than what it adapts.
const MOST_RANK: u32 = 1_024;
/// Most passes over the data.
const MOST_EPOCHS: f64 = 1_000.0;
/// Most blocks of a step, and most tokens of a block: a typo must not take the machine's memory.
const MOST_BATCH: u32 = 4_096;
const MOST_BLOCK: u32 = 1 << 20;
/// Most held-out rows that are answered.
const MOST_ANSWERED: u32 = 10_000;
/// Longest path or template in bytes.
const LONGEST_TEXT: usize = 64 << 10;

/// A field that can't be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct FieldError {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

impl FieldError {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// A job's specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) base: String,
    pub(crate) model: String,
    pub(crate) alias: String,
    pub(crate) data: Data,
    /// `None`: all weights.
    pub(crate) lora: Option<Lora>,
    pub(crate) hyperparameters: Hyperparameters,
    pub(crate) max_answer_tokens: u32,
    pub(crate) answered_rows: u32,
    #[serde(default)]
    pub(crate) objective: Objective,
    /// How the frozen base is kept.
    #[serde(default = "unquantised")]
    pub(crate) quantization: String,
    /// PEFT folder to go on from; empty: a new adapter.
    #[serde(default)]
    pub(crate) adapter: String,
}

fn unquantised() -> String {
    "none".to_owned()
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Objective {
    #[default]
    Likelihood,
    Dpo,
    Orpo,
}

impl Objective {
    fn check(objective: i32) -> Result<Self, FieldError> {
        match pb::Objective::try_from(objective) {
            Ok(pb::Objective::Unspecified | pb::Objective::Likelihood) => Ok(Self::Likelihood),
            Ok(pb::Objective::Dpo) => Ok(Self::Dpo),
            Ok(pb::Objective::Orpo) => Ok(Self::Orpo),
            Err(_) => Err(FieldError::new("spec.objective", format!("{objective} is none that is known"))),
        }
    }

    fn to_proto(self) -> pb::Objective {
        match self {
            Self::Likelihood => pb::Objective::Likelihood,
            Self::Dpo => pb::Objective::Dpo,
            Self::Orpo => pb::Objective::Orpo,
        }
    }

    /// AutoTrain's name for it.
    pub(crate) fn trainer(self) -> &'static str {
        match self {
            Self::Likelihood => "sft",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
        }
    }
}

/// Rows, as data-prep is asked for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Data {
    pub(crate) dataset: String,
    pub(crate) source: String,
    pub(crate) format: RowFormat,
    pub(crate) held_out_rows: u32,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
}

/// How a row becomes text; data-prep checks it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RowFormat {
    Text { column: String },
    Prompt { prompt_template: String, completion_template: String, system: String },
    Messages { column: String },
    Tokens { pairs: bool },
    Preference { prompt: String, chosen: String, rejected: String },
}

impl RowFormat {
    fn is_preference(&self) -> bool {
        matches!(self, Self::Preference { .. } | Self::Tokens { pairs: true })
    }
}

/// An adapter's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lora {
    pub(crate) r: u32,
    pub(crate) alpha: f32,
    pub(crate) target_modules: Vec<String>,
}

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
}

fn one() -> u32 {
    1
}

fn default_beta() -> f64 {
    DEFAULT_BETA
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

impl Spec {
    /// Checks what can be checked without opening a file.
    pub(crate) fn check(spec: pb::JobSpec) -> Result<Self, FieldError> {
        text("spec.base", &spec.base)?;
        id("spec.model", &spec.model)?;
        let alias = if spec.alias.is_empty() { DEFAULT_ALIAS.to_owned() } else { spec.alias };
        id("spec.alias", &alias)?;
        let data = spec.data.ok_or_else(|| FieldError::new("spec.data", "must be set"))?;
        if !data.base.is_empty() && data.base != spec.base {
            return Err(FieldError::new(
                "spec.data.base",
                "must be spec.base, or empty: rows are tokenised for one base",
            ));
        }
        if spec.answered_rows > MOST_ANSWERED {
            return Err(FieldError::new("spec.answered_rows", format!("must be at most {MOST_ANSWERED}")));
        }
        let lora = spec.lora.map(Lora::check).transpose()?;
        let hyperparameters = Hyperparameters::check(&spec.hyperparameters.unwrap_or_default(), lora.is_some())?;
        let (objective, data) = (Objective::check(spec.objective)?, Data::check(data)?);
        let quantization = if spec.quantization.is_empty() { unquantised() } else { spec.quantization };
        let parsed: Quantization =
            quantization.parse().map_err(|reason: String| FieldError::new("spec.quantization", reason))?;
        short("spec.adapter", &spec.adapter)?;
        if lora.is_none() && (parsed != Quantization::None || !spec.adapter.is_empty()) {
            let field = if spec.adapter.is_empty() { "spec.quantization" } else { "spec.adapter" };
            return Err(FieldError::new(field, "needs spec.lora: without it all weights are trained"));
        }
        if (objective != Objective::Likelihood) != data.format.is_preference() {
            let reason = "DPO and ORPO need rows with a chosen and a rejected answer, and nothing else takes them";
            return Err(FieldError::new("spec.data.format", reason));
        }
        if data.format.is_preference() && hyperparameters.packing == Packing::Wrapped {
            return Err(FieldError::new(
                "spec.hyperparameters.packing",
                "wrapped would tear pairs apart: use bfd or none",
            ));
        }
        Ok(Self {
            base: spec.base,
            model: spec.model,
            alias,
            data,
            lora,
            hyperparameters,
            max_answer_tokens: or(spec.max_answer_tokens, DEFAULT_ANSWER_TOKENS),
            answered_rows: spec.answered_rows,
            objective,
            quantization,
            adapter: spec.adapter,
        })
    }

    /// The base's folder.
    pub(crate) fn base_dir(&self, root: Option<&Path>) -> Result<PathBuf, FieldError> {
        folder("spec.base", &self.base, "config.json", root)
    }

    /// Folder of the adapter to go on from, if one is named.
    pub(crate) fn adapter_dir(&self, root: Option<&Path>) -> Result<Option<PathBuf>, FieldError> {
        let named = !self.adapter.is_empty();
        named.then(|| folder("spec.adapter", &self.adapter, "adapter_config.json", root)).transpose()
    }

    /// How the frozen base is kept.
    pub(crate) fn quantization(&self) -> Result<Quantization, FieldError> {
        self.quantization.parse().map_err(|reason: String| FieldError::new("spec.quantization", reason))
    }

    /// What the engine minimises on pairs; `None`: likelihood, on rows.
    pub(crate) fn preference(&self) -> Option<Preference> {
        let beta = self.hyperparameters.beta;
        match self.objective {
            Objective::Likelihood => None,
            Objective::Dpo => Some(Preference::Dpo { beta }),
            Objective::Orpo => Some(Preference::Orpo { beta }),
        }
    }

    /// The request for the snapshot.
    pub(crate) fn snapshot_request(&self) -> data::CreateSnapshotRequest {
        let Data { dataset, source, format, held_out_rows, seed, max_tokens } = self.data.clone();
        let format = match format {
            RowFormat::Text { column } => Format::Text(data::TextFormat { column }),
            RowFormat::Messages { column } => Format::Messages(data::MessagesFormat { column }),
            RowFormat::Tokens { pairs } => Format::Tokens(data::TokensFormat { pairs }),
            RowFormat::Preference { prompt, chosen, rejected } => {
                Format::Preference(data::PreferenceFormat { prompt, chosen, rejected })
            }
            RowFormat::Prompt { prompt_template, completion_template, system } => {
                Format::Prompt(data::PromptFormat { prompt_template, completion_template, system })
            }
        };
        let format = Some(data::RowFormat { format: Some(format) });
        data::CreateSnapshotRequest {
            dataset,
            source,
            base: self.base.clone(),
            format,
            held_out_rows,
            seed,
            max_tokens,
        }
    }

    pub(crate) fn to_proto(&self) -> pb::JobSpec {
        let lora = self.lora.clone().map(|Lora { r, alpha, target_modules }| pb::LoraSpec { r, alpha, target_modules });
        pb::JobSpec {
            base: self.base.clone(),
            model: self.model.clone(),
            alias: self.alias.clone(),
            data: Some(self.snapshot_request()),
            lora,
            hyperparameters: Some(self.hyperparameters.to_proto()),
            max_answer_tokens: self.max_answer_tokens,
            answered_rows: self.answered_rows,
            objective: self.objective.to_proto().into(),
            quantization: self.quantization.clone(),
            adapter: self.adapter.clone(),
        }
    }
}

impl Data {
    fn check(data: data::CreateSnapshotRequest) -> Result<Self, FieldError> {
        id("spec.data.dataset", &data.dataset)?;
        text("spec.data.source", &data.source)?;
        let format = match data.format.and_then(|format| format.format) {
            Some(Format::Text(data::TextFormat { column })) => {
                text("spec.data.format.text.column", &column)?;
                RowFormat::Text { column }
            }
            Some(Format::Messages(data::MessagesFormat { column })) => {
                text("spec.data.format.messages.column", &column)?;
                RowFormat::Messages { column }
            }
            Some(Format::Prompt(data::PromptFormat { prompt_template, completion_template, system })) => {
                text("spec.data.format.prompt.prompt_template", &prompt_template)?;
                text("spec.data.format.prompt.completion_template", &completion_template)?;
                short("spec.data.format.prompt.system", &system)?;
                RowFormat::Prompt { prompt_template, completion_template, system }
            }
            Some(Format::Tokens(data::TokensFormat { pairs })) => RowFormat::Tokens { pairs },
            Some(Format::Preference(data::PreferenceFormat { prompt, chosen, rejected })) => {
                text("spec.data.format.preference.prompt", &prompt)?;
                text("spec.data.format.preference.chosen", &chosen)?;
                text("spec.data.format.preference.rejected", &rejected)?;
                RowFormat::Preference { prompt, chosen, rejected }
            }
            None => {
                let reason = "must be text, prompt, messages, tokens or preference";
                return Err(FieldError::new("spec.data.format", reason));
            }
        };
        Ok(Self {
            dataset: data.dataset,
            source: data.source,
            format,
            held_out_rows: data.held_out_rows,
            seed: data.seed,
            max_tokens: data.max_tokens,
        })
    }
}

impl Lora {
    fn check(spec: pb::LoraSpec) -> Result<Self, FieldError> {
        let r = or(spec.r, DEFAULT_RANK);
        if r > MOST_RANK {
            return Err(FieldError::new("spec.lora.r", format!("must be at most {MOST_RANK}")));
        }
        let alpha = if spec.alpha == 0.0 { 2.0 * r as f32 } else { spec.alpha };
        if !alpha.is_finite() || alpha < 0.0 {
            return Err(FieldError::new("spec.lora.alpha", format!("{alpha} must be a positive number")));
        }
        let targets = LoraConfig::parse_targets(&spec.target_modules)
            .map_err(|error| FieldError::new("spec.lora.target_modules", error.to_string()))?;
        let target_modules = targets.iter().map(|module| module.name().to_owned()).collect();
        Ok(Self { r, alpha, target_modules })
    }

    /// As the engine takes it.
    pub(crate) fn config(&self) -> Result<LoraConfig, firn_llm::model::AdapterError> {
        let targets = LoraConfig::parse_targets(&self.target_modules)?;
        Ok(LoraConfig { r: self.r as usize, alpha: self.alpha, rslora: false, targets })
    }
}

impl Hyperparameters {
    fn check(spec: &pb::Hyperparameters, lora: bool) -> Result<Self, FieldError> {
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

    fn to_proto(&self) -> pb::Hyperparameters {
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
        }
    }
}

/// A folder with this file in it: an absolute path stands for itself, any other is below the stage's folder.
fn folder(field: &'static str, named: &str, file: &str, root: Option<&Path>) -> Result<PathBuf, FieldError> {
    let path = Path::new(named);
    let dir = if path.is_absolute() {
        path.to_owned()
    } else if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        let reason = format!("{named} must not leave the stage: name an absolute path, or one without ..");
        return Err(FieldError::new(field, reason));
    } else {
        let none = || format!("{named} is relative, but the stage is not a folder: name an absolute path");
        root.ok_or_else(|| FieldError::new(field, none()))?.join(path)
    };
    if dir.join(file).is_file() {
        return Ok(dir);
    }
    let what = if file == "config.json" { "checkpoint" } else { "adapter" };
    Err(FieldError::new(field, format!("{named} is no {what}: it has no {file}")))
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

fn id(field: &'static str, value: &str) -> Result<(), FieldError> {
    firn_kit::names::check_id(value).map_err(|error| FieldError::new(field, error.to_string()))
}

fn text(field: &'static str, value: &str) -> Result<(), FieldError> {
    if value.is_empty() { Err(FieldError::new(field, "must not be empty")) } else { short(field, value) }
}

fn short(field: &'static str, value: &str) -> Result<(), FieldError> {
    if value.len() > LONGEST_TEXT {
        return Err(FieldError::new(field, format!("has {} bytes, more than {LONGEST_TEXT}", value.len())));
    }
    Ok(())
}

#[cfg(test)]
#[path = "spec_tests.rs"]
pub(crate) mod tests;
