//! The artifact: a folder that the registry copies and that PEFT or transformers load.

use std::path::{Path, PathBuf};

use firn_llm::{
    config,
    model::{ADAPTER_FILES, AdapterError, ModelError},
    tokenizer,
    weights::StoredType,
};
use firn_stage::{Stage, StageError};
use serde::Serialize;

use crate::{
    card::card,
    evaluate::Model,
    job::Job,
    report::{Report, ReportError},
    spec::{Hyperparameters, Lora},
};

/// Why the artifact could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Report(#[from] ReportError),
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
            Ok(ADAPTER_FILES.map(|name| scratch.join(name)).to_vec())
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
    let template = spec.data.known_template();
    for name in tokenizer::FILES.iter().chain(whole) {
        let file = base.join(name);
        match template.filter(|_| *name == tokenizer::TEMPLATE_FILE) {
            Some(known) => folder.put(name, known.source().into()).await?,
            None if file.is_file() => {
                folder.put_file(name, &file).await?;
            }
            None => {}
        }
    }
    folder.put("README.md", card(&job.spec, &record).into()).await?;
    let report = Report::new(job, trained_parameters);
    folder.put_json("report.json", &report).await?;
    folder.put("report.html", report.html()?.into()).await?;
    folder.put("loss.svg", report.loss_svg()?.into()).await?;
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
