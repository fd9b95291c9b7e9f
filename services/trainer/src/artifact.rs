//! The artifact: a folder that the registry copies and that PEFT or transformers load.

use std::path::{Path, PathBuf};

use firn_llm::{
    config,
    model::{AdapterError, ModelError},
    tokenizer,
    weights::StoredType,
};
use firn_stage::{Stage, StageError};
use serde::Serialize;

use crate::{
    card::card,
    evaluate::Model,
    job::Job,
    record::{Evaluation, SnapshotRef, Step},
    spec::{Hyperparameters, Lora, Spec},
};

/// Points of the report's loss curve: more say nothing more.
const CURVE_POINTS: usize = 2_000;

/// Why the artifact could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// `report.json`.
#[derive(Serialize)]
struct Report<'a> {
    job: &'a str,
    spec: &'a Spec,
    snapshot: Option<&'a SnapshotRef>,
    steps: u64,
    train_tokens: u64,
    train_seconds: f64,
    trained_parameters: usize,
    base_evaluation: Option<&'a Evaluation>,
    tuned_evaluation: Option<&'a Evaluation>,
    loss_curve: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    step: u64,
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
}

/// `training_params.json`: the flat form that AutoTrain writes.
#[derive(Serialize)]
struct Parameters<'a> {
    model: &'a str,
    project_name: &'a str,
    trainer: &'static str,
    peft: bool,
    lora: Option<&'a Lora>,
    adapter: &'a str,
    quantization: &'a str,
    #[serde(flatten)]
    hyperparameters: &'a Hyperparameters,
}

/// Writes the weights to the local folder `scratch`, which is there. Blocks.
pub(crate) fn save(trained: &Model, base: &str, scratch: &Path) -> Result<Vec<PathBuf>, ArtifactError> {
    match &trained.adapter {
        Some(adapter) => {
            adapter.save(scratch, base)?;
            Ok(["adapter_config.json", "adapter_model.safetensors"].map(|name| scratch.join(name)).to_vec())
        }
        None => {
            trained.decoder.save(scratch, StoredType::Bf16)?;
            Ok(vec![scratch.join("model.safetensors")])
        }
    }
}

/// Puts the artifact on the stage, its manifest last, and returns its path.
pub(crate) async fn write(
    stage: &Stage,
    job: &Job,
    base: &Path,
    weights: &[PathBuf],
    trained_parameters: usize,
) -> Result<String, ArtifactError> {
    let (record, spec) = (job.record(), &job.spec.spec);
    let mut folder = stage.fresh_folder(&job.path("artifact")).await?;
    let path = folder.path().to_owned();
    for file in weights {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        folder.put_file(&name, file).await?;
    }
    // The tokenizer travels with the result, so that it is served as it was trained.
    let whole: &[&str] = if spec.lora.is_some() { &[] } else { &config::FILES };
    for name in tokenizer::FILES.iter().chain(whole) {
        let file = base.join(name);
        if file.is_file() {
            folder.put_file(name, &file).await?;
        }
    }
    folder.put("README.md", card(&job.spec, &record).into()).await?;
    let report = Report {
        job: job.id(),
        spec,
        snapshot: record.snapshot.as_ref(),
        steps: record.step,
        train_tokens: record.train_tokens,
        train_seconds: record.train_seconds,
        trained_parameters,
        base_evaluation: record.base_evaluation.as_ref(),
        tuned_evaluation: record.tuned_evaluation.as_ref(),
        loss_curve: curve(&job.steps()),
    };
    folder.put_json("report.json", &report).await?;
    let parameters = Parameters {
        model: &spec.base,
        project_name: &spec.model,
        trainer: spec.objective.trainer(),
        peft: spec.lora.is_some(),
        // An adapter that was gone on from has its own rank, scale and targets.
        lora: spec.lora.as_ref().filter(|_| spec.adapter.is_empty()),
        adapter: &spec.adapter,
        quantization: &spec.quantization,
        hyperparameters: &spec.hyperparameters,
    };
    folder.put_json("training_params.json", &parameters).await?;
    folder.finish().await?;
    Ok(path)
}

/// At most [`CURVE_POINTS`] steps, the last one always.
fn curve(steps: &[Step]) -> Vec<Point> {
    let stride = steps.len().div_ceil(CURVE_POINTS).max(1);
    let kept = steps.iter().rev().step_by(stride);
    let point = |step: &Step| Point {
        step: step.step,
        loss: step.loss,
        grad_norm: step.grad_norm,
        learning_rate: step.learning_rate,
    };
    let mut points: Vec<Point> = kept.map(point).collect();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::example_step;

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_end() {
        let step = |step: u64| example_step(step, 5_000);
        let points = curve(&(1..=5_000).map(step).collect::<Vec<_>>());
        assert!(points.len() <= CURVE_POINTS && points.len() > CURVE_POINTS / 2);
        assert_eq!(points.last().unwrap().step, 5_000);
        assert!(points.windows(2).all(|pair| pair[0].step < pair[1].step));
        assert_eq!(curve(&[step(1), step(2)]).len(), 2);
        assert!(curve(&[]).is_empty());
    }
}
