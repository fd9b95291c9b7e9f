//! From the arguments of `CREATE` to a job's specification.

use firn_proto::{
    dataprep::v1::{CreateSnapshotRequest, MessagesFormat, PromptFormat, RowFormat, TextFormat, row_format::Format},
    trainer::v1::{JobSpec, LoraSpec},
};
use serde_json::Value;

use super::complete::options;
use crate::{
    error::ApiError,
    fields::Fields,
    names::Names,
    tuning::hyperparameters::{SEED, Tuning},
};

/// Rows have what Snowflake's FINETUNE wants: a prompt and a completion.
const PROMPT: &str = "{{ prompt }}";
const COMPLETION: &str = "{{ completion }}";

/// Reads `model, base, rows[, held-out rows][, options]`: a job, and what a row calls its fields.
pub(crate) fn spec(mut arguments: impl Iterator<Item = Value>) -> Result<(JobSpec, Names), ApiError> {
    let model = text("model", arguments.next())?;
    let base = text("base", arguments.next())?;
    let source = text("rows", arguments.next())?;
    let (held_out_source, given) = match arguments.next() {
        Some(Value::String(rows)) => (rows, arguments.next()),
        Some(Value::Null) => (String::new(), arguments.next()),
        given => (String::new(), given),
    };
    if arguments.next().is_some() {
        return Err(ApiError::field(
            "data",
            "CREATE has a model, a base, rows, held-out rows and options, and no more",
        ));
    }
    let mut fields = Fields::from(options(given.unwrap_or_default())?);
    let names = names(&fields);
    // Snowflake's one option has another name.
    let (max_epochs, seed) = (fields.take("max_epochs")?, fields.take("seed")?);
    let mut tuning = Tuning::take(&mut fields)?;
    tuning.epochs = tuning.epochs.or(max_epochs);
    let data = CreateSnapshotRequest {
        dataset: model.clone(),
        source,
        base: base.clone(),
        format: Some(RowFormat { format: Some(format(&mut fields)?) }),
        held_out_rows: fields.take("held_out_rows")?.unwrap_or(0),
        seed: seed.unwrap_or(SEED),
        max_tokens: fields.take("max_tokens")?.unwrap_or(0),
        held_out_source,
        ..CreateSnapshotRequest::default()
    };
    let spec = JobSpec {
        base,
        model,
        alias: fields.take("alias")?.unwrap_or_default(),
        data: Some(data),
        lora: lora(&mut fields)?,
        hyperparameters: Some(tuning.into_proto(seed)),
        answered_rows: fields.take("answered_rows")?.unwrap_or(0),
        quantization: fields.take("quantization")?.unwrap_or_default(),
        prove_merge: fields.take("prove_merge")?.unwrap_or(false),
        ..JobSpec::default()
    };
    fields.end()?;
    Ok((spec, names))
}

fn names(options: &Fields) -> Names {
    let names = match options.has("max_epochs") && !options.has("epochs") {
        true => Names::default().with("spec.hyperparameters.epochs", "max_epochs"),
        false => Names::default(),
    };
    names
        .with("spec.hyperparameters.", "")
        .with("spec.lora.target_modules", "target_modules")
        .with("spec.lora.", "lora_")
        .with("spec.data.source", "rows")
        .with("spec.data.held_out_source", "held-out rows")
        .with("spec.data.format.text.column", "text_column")
        .with("spec.data.format.messages.column", "messages_column")
        .with("spec.data.format.prompt.", "")
        .with("spec.data.", "")
}

fn text(name: &str, given: Option<Value>) -> Result<String, ApiError> {
    match given {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        _ => Err(ApiError::field(name, format!("{name} must be a text"))),
    }
}

/// An adapter, unless all weights are asked for.
fn lora(fields: &mut Fields) -> Result<Option<LoraSpec>, ApiError> {
    let lora = LoraSpec {
        r: fields.take("lora_r")?.unwrap_or(0),
        alpha: fields.take("lora_alpha")?.unwrap_or(0.0),
        dropout: fields.take("lora_dropout")?.unwrap_or(0.0),
        target_modules: fields.take("target_modules")?.unwrap_or_default(),
        ..LoraSpec::default()
    };
    match fields.take("lora")?.unwrap_or(true) {
        true => Ok(Some(lora)),
        false if lora == LoraSpec::default() => Ok(None),
        false => Err(ApiError::field("lora", "lora is false, so nothing can be said of the adapter")),
    }
}

fn format(fields: &mut Fields) -> Result<Format, ApiError> {
    let (text, messages) = (fields.take::<String>("text_column")?, fields.take::<String>("messages_column")?);
    let prompt = fields.take("prompt_template")?;
    let completion = fields.take("completion_template")?;
    let system = fields.take("system")?;
    match (text, messages) {
        (None, None) => Ok(Format::Prompt(PromptFormat {
            prompt_template: prompt.unwrap_or_else(|| PROMPT.to_owned()),
            completion_template: completion.unwrap_or_else(|| COMPLETION.to_owned()),
            system: system.unwrap_or_default(),
        })),
        (Some(_), Some(_)) => Err(ApiError::field("text_column", "give text_column or messages_column, not both")),
        _ if prompt.is_some() || completion.is_some() || system.is_some() => {
            Err(ApiError::field("prompt_template", "rows of one column take no templates and no system message"))
        }
        (Some(column), None) => Ok(Format::Text(TextFormat { column })),
        (None, Some(column)) => Ok(Format::Messages(MessagesFormat { column })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(arguments: Value) -> Result<JobSpec, Value> {
        let Value::Array(arguments) = arguments else { panic!("a list") };
        spec(arguments.into_iter()).map(|(spec, _)| spec).map_err(|error| error.body()["error"].take())
    }

    #[test]
    fn snowflake_s_arguments_are_enough() {
        let job =
            read(json!(["offers", "bases/a/b", "inputs/train.parquet", "inputs/valid.parquet", {"max_epochs": 2}]));
        let job = job.unwrap();
        let data = job.data.unwrap();
        assert_eq!((job.model.as_str(), job.base.as_str(), data.dataset.as_str()), ("offers", "bases/a/b", "offers"));
        assert_eq!(
            (data.source.as_str(), data.held_out_source.as_str()),
            ("inputs/train.parquet", "inputs/valid.parquet")
        );
        assert_eq!((job.hyperparameters.unwrap().epochs, job.lora), (Some(2.0), Some(LoraSpec::default())));
        let Some(Format::Prompt(format)) = data.format.unwrap().format else { panic!("prompts") };
        assert_eq!((format.prompt_template.as_str(), format.completion_template.as_str()), (PROMPT, COMPLETION));
    }

    #[test]
    fn options_reach_the_job() {
        let options = json!({
            "lora_r": 8, "learning_rate": 0.002, "seed": 7, "alias": "trial", "messages_column": "turns",
            "held_out_rows": 5, "answered_rows": 3, "quantization": "int4", "early_stopping_patience": 2, "prove_merge": true,
        });
        for arguments in [json!(["m", "b", "s", options]), json!(["m", "b", "s", null, options.to_string()])] {
            let job = read(arguments).unwrap();
            let (data, lora) = (job.data.unwrap(), job.lora.unwrap());
            assert_eq!((data.held_out_rows, data.seed, lora.r, job.answered_rows), (5, 7, 8, 3));
            assert_eq!((job.alias.as_str(), job.quantization.as_str(), job.prove_merge), ("trial", "int4", true));
            let tuning = job.hyperparameters.unwrap();
            assert_eq!((tuning.learning_rate, tuning.seed, tuning.early_stopping_patience), (Some(0.002), Some(7), 2));
            assert_eq!(
                data.format.unwrap().format,
                Some(Format::Messages(MessagesFormat { column: "turns".to_owned() }))
            );
        }
        assert_eq!(read(json!(["m", "b", "s", {"lora": false}])).unwrap().lora, None);
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        for (arguments, param) in [
            (json!([]), "model"),
            (json!(["m", "b"]), "rows"),
            (json!(["m", 1, "s"]), "base"),
            (json!(["m", "b", "s", 1]), "options"),
            (json!(["m", "b", "s", {"epoch": 1}]), "epoch"),
            (json!(["m", "b", "s", {"lora": false, "lora_r": 8}]), "lora"),
            (json!(["m", "b", "s", {"text_column": "a", "system": "b"}]), "prompt_template"),
            (json!(["m", "b", "s", {"text_column": "a", "messages_column": "b"}]), "text_column"),
            (json!(["m", "b", "s", "v", {}, 1]), "data"),
        ] {
            assert_eq!(read(arguments).unwrap_err()["param"], param);
        }
    }
}
