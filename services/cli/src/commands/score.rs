//! `firn score`: log-probabilities of given tokens.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use firn_llm::device::{Device, DeviceSpec};
use firn_llm::model::{Adapter, Decoder};
use firn_llm::quant::Quantization;
use firn_llm::tokenizer::{Message, Tokenizer};
use serde::Deserialize;
use serde_json::json;

use super::template::each_line;

/// Log-probability of each token given those before it: a JSON line in, a JSON line out. With a reward adapter also the
/// reward of the whole.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  echo '{\"text\":\"Good morning\"}' > rows.jsonl\n  firn score --model base --input rows.jsonl"
)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON lines with one of "ids", "text" and "messages".
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
}

/// A checkpoint on disk, with an adapter or without.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Checkpoint folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// PEFT folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Keep the base's linear layers as none, int8, int4 (NF4) or int4-double.
    #[arg(long, default_value = "none", value_parser = str::parse::<Quantization>)]
    quantization: Quantization,
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    pub(crate) device: DeviceSpec,
}

impl ModelArgs {
    /// Loads the decoder and the adapter.
    pub(crate) fn load(&self) -> Result<(Decoder, Option<Adapter>)> {
        let device = Device::open_one(self.device)?;
        let decoder = Decoder::load_quantized(&self.model, &device, self.quantization)?;
        let adapter = self.adapter.as_ref().map(|dir| Adapter::load(dir, decoder.config(), &device)).transpose()?;
        Ok((decoder, adapter))
    }

    /// Opens the model's tokenizer, with the template that the adapter was trained with.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer(&self.model, self.adapter.as_deref())
    }
}

/// A checkpoint's tokenizer, with the template that an adapter was trained with.
pub(crate) fn tokenizer(model: &Path, adapter: Option<&Path>) -> Result<Tokenizer> {
    let own = Tokenizer::from_dir(model)?;
    Ok(adapter.map(|dir| own.with_template_of(dir)).transpose()?.unwrap_or(own))
}

/// A row of tokens, in one of three ways.
#[derive(Deserialize)]
pub(crate) struct Row {
    ids: Option<Vec<u32>>,
    text: Option<String>,
    messages: Option<Vec<Message>>,
}

/// A row's ids; ids alone need no tokenizer, which is opened at the first row that does.
pub(crate) fn ids_of(
    row: Row,
    tokenizer: &mut Option<Tokenizer>,
    open: impl FnOnce() -> Result<Tokenizer>,
) -> Result<Vec<u32>> {
    match (row.ids, row.text, row.messages) {
        (Some(ids), None, None) => Ok(ids),
        (None, text, messages) if text.is_some() != messages.is_some() => {
            let tokenizer = match tokenizer {
                Some(tokenizer) => tokenizer,
                None => tokenizer.insert(open()?),
            };
            match (text, messages) {
                (Some(text), _) => Ok(tokenizer.encode(&text, true)?),
                (_, messages) => Ok(tokenizer.render(&messages.unwrap_or_default(), false)?.ids),
            }
        }
        _ => bail!("a row needs exactly one of \"ids\", \"text\" and \"messages\""),
    }
}

/// Runs the command.
pub(crate) fn run(args: &ScoreArgs) -> Result<()> {
    let (decoder, adapter) = args.model.load()?;
    let mut tokenizer = None;
    each_line(&args.input, |row: Row| {
        let ids = ids_of(row, &mut tokenizer, || args.model.tokenizer())?;
        let scores = decoder.score(&ids, adapter.as_ref())?;
        let sum: f64 = scores.iter().copied().map(f64::from).sum();
        let mut logprobs: Vec<Option<f32>> = vec![None; usize::from(!ids.is_empty())];
        logprobs.extend(scores.into_iter().map(Some));
        let mut line = json!({ "ids": ids, "logprobs": logprobs, "sum": sum });
        if let Some(adapter) = adapter.as_ref().filter(|adapter| adapter.is_reward()) {
            line["reward"] = json!(decoder.reward(&ids, adapter)?);
        }
        println!("{line}");
        Ok(())
    })
}
