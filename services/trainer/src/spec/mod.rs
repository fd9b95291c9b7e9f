//! What a job does: checked, with every default filled in.

mod data;
mod hyperparameters;

use std::path::{Component, Path, PathBuf};

use firn_llm::{model::LoraConfig, quant::Quantization, train::Preference};
use firn_proto::trainer::v1 as pb;
use serde::{Deserialize, Serialize};

pub(crate) use data::Data;
pub(crate) use hyperparameters::{Hyperparameters, Measure, Packing, When};

const DEFAULT_RANK: u32 = 16;
const DEFAULT_ANSWER_TOKENS: u32 = 256;
const DEFAULT_ALIAS: &str = "latest";
/// Largest rank: beyond it LoRA is larger than what it adapts.
const MOST_RANK: u32 = 1_024;
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
    /// Compare base and adapter with what comes of folding one into the other.
    #[serde(default)]
    pub(crate) prove_merge: bool,
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
    Reward,
}

impl Objective {
    fn check(objective: i32) -> Result<Self, FieldError> {
        match pb::Objective::try_from(objective) {
            Ok(pb::Objective::Unspecified | pb::Objective::Likelihood) => Ok(Self::Likelihood),
            Ok(pb::Objective::Dpo) => Ok(Self::Dpo),
            Ok(pb::Objective::Orpo) => Ok(Self::Orpo),
            Ok(pb::Objective::Reward) => Ok(Self::Reward),
            Err(_) => Err(FieldError::new("spec.objective", format!("{objective} is none that is known"))),
        }
    }

    fn to_proto(self) -> pb::Objective {
        match self {
            Self::Likelihood => pb::Objective::Likelihood,
            Self::Dpo => pb::Objective::Dpo,
            Self::Orpo => pb::Objective::Orpo,
            Self::Reward => pb::Objective::Reward,
        }
    }

    /// AutoTrain's name for it.
    pub(crate) fn trainer(self) -> &'static str {
        match self {
            Self::Likelihood => "sft",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
            Self::Reward => "reward",
        }
    }
}

/// An adapter's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lora {
    pub(crate) r: u32,
    pub(crate) alpha: f32,
    pub(crate) target_modules: Vec<String>,
    #[serde(default)]
    pub(crate) dropout: f32,
    #[serde(default)]
    pub(crate) rslora: bool,
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
        if objective == Objective::Reward && lora.is_none() {
            return Err(FieldError::new("spec.lora", "must be set: a reward model is an adapter with a score"));
        }
        if spec.prove_merge && (lora.is_none() || objective == Objective::Reward) {
            let reason = "only an adapter can be merged, and none that gives rewards: set spec.lora, or leave it out";
            return Err(FieldError::new("spec.prove_merge", reason));
        }
        if (objective != Objective::Likelihood) != data.format.is_preference() {
            let reason = "DPO, ORPO and reward models need rows with a chosen and a rejected answer, and nothing else takes them";
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
            prove_merge: spec.prove_merge,
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
            Objective::Reward => Some(Preference::Reward),
        }
    }

    pub(crate) fn to_proto(&self) -> pb::JobSpec {
        let lora = |Lora { r, alpha, target_modules, dropout, rslora }| pb::LoraSpec {
            r,
            alpha,
            target_modules,
            dropout,
            rslora,
        };
        let lora = self.lora.clone().map(lora);
        pb::JobSpec {
            base: self.base.clone(),
            model: self.model.clone(),
            alias: self.alias.clone(),
            data: Some(self.data.to_proto(&self.base)),
            lora,
            hyperparameters: Some(self.hyperparameters.to_proto()),
            max_answer_tokens: self.max_answer_tokens,
            answered_rows: self.answered_rows,
            objective: self.objective.to_proto().into(),
            quantization: self.quantization.clone(),
            adapter: self.adapter.clone(),
            prove_merge: self.prove_merge,
        }
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
        let (dropout, rslora) = (spec.dropout, spec.rslora);
        if !(0.0..1.0).contains(&dropout) {
            return Err(FieldError::new("spec.lora.dropout", format!("{dropout} must be from 0 and less than 1")));
        }
        Ok(Self { r, alpha, target_modules, dropout, rslora })
    }

    /// As the engine takes it.
    pub(crate) fn config(&self) -> Result<LoraConfig, firn_llm::model::AdapterError> {
        let targets = LoraConfig::parse_targets(&self.target_modules)?;
        Ok(LoraConfig { r: self.r as usize, alpha: self.alpha, rslora: self.rslora, dropout: self.dropout, targets })
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
pub(crate) mod tests;
