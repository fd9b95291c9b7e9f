//! `firn generate`: one completion from a checkpoint on disk.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use firn_llm::cache::KvCache;
use firn_llm::generate::{Part, Sampling, Sequence, Stepped, step};
use firn_llm::tokenizer::{Message, Tokenizer};
use serde_json::json;

use super::score::ModelArgs;

/// Completes one prompt with a checkpoint on disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn generate --model base --prompt 'The shop in Salt Haven' --max-tokens 40\n  \
                        firn generate --model base --adapter out --messages '[{\"role\":\"user\",\"content\":\"Hello\"}]'")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue.
    #[arg(long, group = "input")]
    prompt: Option<String>,
    /// Token ids to continue, as a JSON list.
    #[arg(long, group = "input", value_name = "JSON")]
    ids: Option<String>,
    /// Chat to answer, as a JSON list of {"role","content"}.
    #[arg(long, group = "input", value_name = "JSON")]
    messages: Option<String>,
    /// Most new tokens.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Smallest set of tokens whose probability reaches this.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// The most probable tokens; 0: all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Log-probability of each token, in the JSON.
    #[arg(long)]
    logprobs: bool,
    /// Go on after the end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let (decoder, adapter) = args.model.load()?;
    let tokenizer = match args.model.tokenizer() {
        Ok(tokenizer) => Some(tokenizer),
        // Ids in, ids out: that much works without one.
        Err(_) if args.ids.is_some() => None,
        Err(error) => return Err(error),
    };
    let prompt = prompt(args, tokenizer.as_ref())?;
    ensure!(!prompt.is_empty(), "the prompt has no tokens");
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        ..Sampling::default()
    };
    let adapter = adapter.as_ref();
    let context = decoder.config().context;
    let mut cache = KvCache::new(&decoder, context.min(prompt.len() + args.max_tokens));
    let mut sequence = Sequence::new(&decoder, prompt, sampling)?;
    if args.logprobs {
        sequence = sequence.with_logprobs(0);
    }
    sequence.attach(&mut cache, adapter);
    let mut text = tokenizer.as_ref().map(Tokenizer::decoder);
    let (mut ids, mut logprobs, mut whole, mut reason) = (Vec::new(), Vec::new(), String::new(), "length");
    while ids.len() < args.max_tokens && sequence.context() <= context {
        let part = Part { sequence: &mut sequence, adapter, tokens: usize::MAX };
        let stepped = step(&decoder, &mut cache, &mut [part])?;
        let Some(Stepped::Chose(token)) = stepped.first() else { break };
        let ends = tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.eos_ids().contains(&token.id));
        if ends && !args.ignore_eos {
            reason = "stop";
            break;
        }
        ids.push(token.id);
        logprobs.extend(token.logprob);
        let piece = text.as_mut().map(|text| text.push(token.id)).transpose()?.flatten();
        emit(&mut whole, piece, args.json)?;
    }
    let rest = text.as_mut().map(|text| text.finish()).transpose()?.flatten();
    emit(&mut whole, rest, args.json)?;
    if args.json {
        let mut out = json!({ "ids": ids, "text": whole, "finish_reason": reason });
        if args.logprobs {
            out["logprobs"] = json!(logprobs);
        }
        println!("{out}");
    } else {
        println!();
    }
    Ok(())
}

fn prompt(args: &GenerateArgs, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    if let Some(ids) = &args.ids {
        return serde_json::from_str(ids).context("--ids is no JSON list of token ids");
    }
    match (tokenizer, &args.prompt, &args.messages) {
        (Some(tokenizer), Some(prompt), _) => Ok(tokenizer.encode(prompt, true)?),
        (Some(tokenizer), _, Some(messages)) => {
            let messages: Vec<Message> =
                serde_json::from_str(messages).context("--messages is no JSON list of {\"role\",\"content\"}")?;
            Ok(tokenizer.render(&messages, true)?.ids)
        }
        _ => bail!("give one of --prompt, --ids and --messages"),
    }
}

fn emit(whole: &mut String, piece: Option<String>, json: bool) -> Result<()> {
    let Some(piece) = piece else { return Ok(()) };
    if !json {
        print!("{piece}");
        std::io::stdout().flush()?;
    }
    whole.push_str(&piece);
    Ok(())
}
