//! The model card: what a person needs to know of a version.

use std::fmt::Write as _;

use crate::{
    record::{Evaluation, SpecRecord, StateRecord},
    spec::Spec,
};

/// Writes the card in Markdown, with the front matter that model hubs read.
pub(crate) fn card(spec: &SpecRecord, record: &StateRecord) -> String {
    let SpecRecord { job, spec, .. } = spec;
    let mut text = front_matter(spec);
    let kind = if spec.lora.is_some() { "A LoRA adapter of" } else { "All weights of" };
    line(&mut text, &format!("# {}\n\n{kind} `{}`, trained by Firn in `jobs/{job}`.\n", spec.model, spec.base));
    text.push_str("## Data\n\n");
    if let Some(snapshot) = &record.snapshot {
        table(
            &mut text,
            ["data", "value"],
            &[
                ("snapshot", format!("`{}`", snapshot.name)),
                ("training rows", snapshot.train_rows.to_string()),
                ("held-out rows", snapshot.held_out_rows.to_string()),
                ("tokens of the training rows", snapshot.train_tokens.to_string()),
                ("sha256 of the chat template", code_or_none(&snapshot.template_sha256)),
            ],
        );
    }
    text.push_str("\n## Results\n\nMeasured on the held-out rows, which were not trained on.\n\n");
    text.push_str("| metric | base | tuned |\n|---|---|---|\n");
    let (base, tuned) = (record.base_evaluation.as_ref(), record.tuned_evaluation.as_ref());
    let row = |name: &str, value: fn(&Evaluation) -> Option<f64>| {
        let show =
            |side: Option<&Evaluation>| side.and_then(value).map_or("–".to_owned(), |value| format!("{value:.4}"));
        format!("| {name} | {} | {} |", show(base), show(tuned))
    };
    line(&mut text, &row("loss, nats a completion token", |evaluation| Some(evaluation.loss)));
    line(&mut text, &row("field recall of greedy answers", |evaluation| evaluation.field_recall));
    if spec.preference().is_some() {
        line(&mut text, &row("pairs whose chosen answer is preferred", |evaluation| evaluation.preference_accuracy));
    }
    line(&mut text, &row("completion tokens foretold", |evaluation| evaluation.token_accuracy));
    text.push_str("\n## Training\n\n![Loss over the steps](loss.svg)\n\n");
    table(&mut text, ["hyper-parameter", "value"], &hyperparameters(spec));
    let (tokens, seconds) = (record.train_tokens, record.train_seconds);
    line(&mut text, &format!("\n{} steps, {tokens} tokens, {seconds:.1} seconds.", record.step));
    if record.best_step > 0 {
        line(&mut text, &format!("The weights are those of step {}, the best measured.", record.best_step));
    }
    text
}

fn front_matter(spec: &Spec) -> String {
    // A base on the stage lies in `bases/` under its name on the hub. A JSON string is a YAML string, too.
    let base = serde_json::Value::from(spec.base.strip_prefix("bases/").unwrap_or(&spec.base));
    let (library, adapter, relation) = match spec.lora {
        Some(_) => ("peft", "- lora\n", "adapter"),
        None => ("transformers", "", "finetune"),
    };
    format!(
        "---\nbase_model: {base}\nbase_model_relation: {relation}\nlibrary_name: {library}\n\
         pipeline_tag: text-generation\ntags:\n{adapter}- firn\n- {trainer}\n---\n\n",
        trainer = spec.objective.trainer(),
    )
}

fn hyperparameters(spec: &Spec) -> Vec<(&'static str, String)> {
    let hyper = &spec.hyperparameters;
    let mut rows = vec![];
    if !spec.adapter.is_empty() {
        rows.push(("went on from the adapter", spec.adapter.clone()));
    } else if let Some(lora) = &spec.lora {
        rows.push(("LoRA rank", lora.r.to_string()));
        rows.push(("LoRA alpha", lora.alpha.to_string()));
        rows.push(("target modules", lora.target_modules.join(", ")));
    }
    if let Some(lora) = spec.lora.as_ref().filter(|lora| lora.dropout > 0.0) {
        rows.push(("LoRA dropout", lora.dropout.to_string()));
    }
    if spec.quantization != "none" {
        rows.push(("frozen base kept as", spec.quantization.clone()));
    }
    if spec.preference().is_some() {
        rows.push(("objective", format!("{}, beta {}", spec.objective.trainer(), hyper.beta)));
    }
    rows.push(("learning rate", hyper.learning_rate.to_string()));
    rows.push(("schedule", format!("{}, warm-up {}", hyper.scheduler, hyper.warmup_ratio)));
    rows.push(("epochs", hyper.epochs.to_string()));
    rows.push(("blocks a step", (hyper.batch_size * hyper.gradient_accumulation).to_string()));
    rows.push(("packing", hyper.packing.name().to_owned()));
    rows.push(("tokens a block", hyper.block_size.to_string()));
    rows.push(("weight decay", hyper.weight_decay.to_string()));
    rows.push(("largest gradient norm", hyper.max_grad_norm.to_string()));
    rows.push(("seed", hyper.seed.to_string()));
    if hyper.budget_seconds > 0.0 {
        rows.push(("budget in seconds", hyper.budget_seconds.to_string()));
    }
    rows
}

fn table(text: &mut String, head: [&str; 2], rows: &[(&str, String)]) {
    line(text, &format!("| {} | {} |\n|---|---|", head[0], head[1]));
    rows.iter().for_each(|(name, value)| line(text, &format!("| {name} | {value} |")));
}

fn line(text: &mut String, content: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{content}");
}

fn code_or_none(value: &str) -> String {
    if value.is_empty() { "none: ready-made text or tokens".to_owned() } else { format!("`{value}`") }
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod tests;
