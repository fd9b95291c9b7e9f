//! `firn bench infer`: cached decoding on random weights and tokens.

use std::time::Instant;

use anyhow::Result;
use firn_llm::cache::KvCache;
use firn_llm::device::{Device, DeviceSpec};
use firn_llm::generate::{Part, Sampling, Sequence, step};
use firn_llm::model::{Adapter, Decoder, LoraConfig};
use firn_llm::quant::Quantization;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{architectures, median};

#[derive(Debug, clap::Args)]
pub(super) struct InferArgs {
    /// Model whose shape is used, such as plain-6x256, firn-tiny, smollm2_135m, qwen25_0_5b or llama32_1b.
    #[arg(long)]
    arch: String,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Tokens that the last prompt has less than the first; the others are in between.
    #[arg(long, default_value_t = 0)]
    spread: usize,
    /// Sequences in the batch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Adapters that the sequences take in turn; 0: the base answers.
    #[arg(long, default_value_t = 0)]
    adapters: usize,
    /// Rank of the adapters.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Tokens that each sequence says, after one that is not timed.
    #[arg(long, default_value_t = 64)]
    steps: usize,
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &InferArgs) -> Result<()> {
    let begin = Instant::now();
    let device = Device::open_one(args.device)?;
    let batch = usize::from(args.batch);
    let length = args.seq.max(1) + args.steps + 2;
    let config = architectures::architecture(&args.arch, length)?;
    let model = Decoder::synthetic(config.clone(), Quantization::None, &device);
    let lora = LoraConfig::all_linear(args.rank);
    let adapters: Vec<Adapter> =
        (0..args.adapters).map(|seed| Adapter::new(&config, lora.clone(), seed as u64, &device)).collect();
    // With room as a server has it: each may have pages before it needs them.
    let mut cache = KvCache::new(&model, batch * (length + 5 * firn_llm::cache::PAGE_TOKENS));
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut sequences = Vec::with_capacity(batch);
    let mut prompts = 0;
    for index in 0..batch {
        let length = args.seq.saturating_sub(args.spread * index / (batch - 1).max(1)).max(1);
        prompts += length;
        let prompt = (0..length).map(|_| rng.random_range(0..config.vocab as u32)).collect();
        let mut sequence = Sequence::new(&model, prompt, Sampling::greedy())?;
        // Neighbours with the same adapter share its products.
        let adapter = (!adapters.is_empty()).then(|| &adapters[index * adapters.len() / batch]);
        sequence.attach(&mut cache, adapter);
        sequences.push((sequence, adapter));
    }
    let mut advance = || -> Result<f64> {
        let begin = Instant::now();
        let mut parts: Vec<Part<'_>> = sequences
            .iter_mut()
            .map(|(sequence, adapter)| Part { sequence, adapter: *adapter, tokens: usize::MAX })
            .collect();
        step(&model, &mut cache, &mut parts)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let prefill = advance()?;
    let first_seconds = begin.elapsed().as_secs_f64();
    advance()?;
    let mut seconds = (0..args.steps.max(1)).map(|_| advance()).collect::<Result<Vec<_>>>()?;
    let median = median(&mut seconds);
    let (speed, prefill_speed) = (batch as f64 / median, prompts as f64 / prefill);
    if args.json {
        println!(
            "{}",
            json!({
                "arch": args.arch, "parameters": config.parameters(), "seq": args.seq, "spread": args.spread, "batch": batch,
                "adapters": args.adapters, "rank": args.rank, "median_step_seconds": median, "tokens_per_second": speed,
                "prefill_tokens_per_second": prefill_speed, "first_step_seconds": first_seconds,
                "peak_memory_bytes": firn_kit::memory::peak(), "device_memory_bytes": device.reserved_memory(),
                "unrecorded": cache.unrecorded(),
            })
        );
    } else {
        println!("{speed:.0} tokens/s, {:.2} ms a step, prompts at {prefill_speed:.0} tokens/s", median * 1e3);
        if let Some(reason) = cache.unrecorded() {
            println!("steps are launched kernel by kernel: {reason}");
        }
    }
    Ok(())
}
