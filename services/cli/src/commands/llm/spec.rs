//! From flags to a job's specification.

use std::path::Path;

use anyhow::{Context, Result};
use firn_proto::dataprep::v1::{CreateSnapshotRequest, RowFormat};
use firn_proto::trainer::v1::{Hyperparameters, JobSpec, LoraSpec};

use super::args::{LlmArgs, Trainer};
use super::rows;

/// The job that the flags ask for.
pub(super) fn spec(args: &LlmArgs, base: String, source: &Path) -> Result<JobSpec> {
    let model = model_name(&args.project_name)?;
    let lora = (args.trainer != Trainer::Default || args.peft).then(|| LoraSpec {
        r: args.lora_r,
        alpha: args.lora_alpha,
        target_modules: args.target_modules.iter().filter(|name| *name != "all-linear").cloned().collect(),
        dropout: args.lora_dropout,
        rslora: args.use_rslora,
    });
    Ok(JobSpec {
        base: base.clone(),
        model: model.clone(),
        alias: "latest".to_owned(),
        data: Some(CreateSnapshotRequest {
            dataset: model,
            source: source.to_str().context("the path of the data is no UTF-8")?.to_owned(),
            base,
            format: Some(RowFormat { format: Some(rows::format(&args.rows, args.trainer.is_preference(), source)?) }),
            held_out_rows: args.held_out_rows,
            held_out_source: rows::held_out_source(&args.rows)?,
            seed: args.seed,
            max_tokens: args.rows.model_max_length,
            chat_template: args.rows.template_name(),
        }),
        lora,
        hyperparameters: Some(Hyperparameters {
            learning_rate: args.lr,
            epochs: Some(args.epochs),
            batch_size: Some(args.batch_size),
            block_size: Some(args.block_size),
            warmup_ratio: Some(args.warmup_ratio),
            scheduler: Some(args.scheduler.clone()),
            weight_decay: Some(args.weight_decay),
            max_grad_norm: Some(args.max_grad_norm),
            seed: Some(args.seed),
            no_shuffle: args.no_shuffle,
            budget_seconds: args.budget_seconds,
            packing: args.packing.clone(),
            gradient_accumulation: args.gradient_accumulation,
            beta: Some(args.dpo_beta),
            eval_strategy: args.eval_strategy.clone(),
            eval_steps: args.eval_steps,
            early_stopping_patience: args.early_stopping_patience,
            early_stopping_threshold: args.early_stopping_threshold,
            keep_best: args.load_best_model_at_end,
            fit_memory: args.auto_find_batch_size,
            keep_activations: args.disable_gradient_checkpointing,
        }),
        max_answer_tokens: 0,
        answered_rows: args.answered_rows.min(args.held_out_rows),
        objective: args.trainer.objective().into(),
        quantization: args.quantization.clone(),
        adapter: args.adapter.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        prove_merge: args.merge_adapter,
    })
}

fn absolute(path: &Path) -> Result<String> {
    let path = path.canonicalize().with_context(|| format!("failed to open {}", path.display()))?;
    path.to_str().map(str::to_owned).with_context(|| format!("{} is no UTF-8", path.display()))
}

/// The registry's name for a project: its folder's name in lower case, with hyphens for what a name may not hold.
pub(super) fn model_name(project: &Path) -> Result<String> {
    let last = project.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let name: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_matches('-').to_owned();
    firn_kit::names::check_id(&name)
        .with_context(|| format!("--project-name {}: its last part can't name a model", project.display()))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::model_name;

    #[test]
    fn a_project_names_its_model() {
        assert_eq!(model_name(Path::new("stage/Llama_2-ft")).unwrap(), "llama-2-ft");
        assert!(model_name(Path::new("stage/123")).is_err());
    }
}
