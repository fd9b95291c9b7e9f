//! `firn bench train`: LoRA steps on random weights and tokens.

use std::time::Instant;

use anyhow::Result;
use firn_llm::device::{Device, DeviceSpec};
use firn_llm::model::{Adapter, Decoder, LoraConfig};
use firn_llm::quant::Quantization;
use firn_llm::train::{Document, Fit, Layout, MemoryEstimate, Tuner, TunerConfig, pack, seconds_per_token};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{architectures, median};

#[derive(Debug, clap::Args)]
pub(super) struct TrainArgs {
    /// Model whose shape is used, such as plain-6x256, firn-tiny, smollm2_135m, qwen25_0_5b or llama32_1b.
    #[arg(long)]
    arch: String,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Sequences a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// How the frozen weights are kept: none, int8, int4 or int4-double.
    #[arg(long, default_value = "none", value_parser = str::parse::<Quantization>)]
    quantization: Quantization,
    /// Keep each layer's input alone, and compute the rest again in the backward: less memory, half more work.
    #[arg(long)]
    recompute: bool,
    /// Steps that are timed, after one that is not.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// auto, cpu, cuda:N, cuda:N:f32, cuda:N-M (GPUs N to M together) or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// What the device could do, TFLOP/s: mfu is measured against it.
    #[arg(long)]
    peak_tflops: Option<f64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &TrainArgs) -> Result<()> {
    let begin = Instant::now();
    let device = Device::open(args.device)?;
    let config = architectures::architecture(&args.arch, args.seq)?;
    let decoder = Decoder::synthetic(config.clone(), args.quantization, &device);
    let adapter = Adapter::new(&config, LoraConfig::all_linear(args.rank), 2, &device);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut document = || Document {
        ids: (0..args.seq).map(|_| rng.random_range(0..config.vocab as u32)).collect(),
        loss_mask: vec![1; args.seq],
    };
    let documents: Vec<_> = (0..args.batch).map(|_| document()).collect();
    let blocks = pack(&documents, args.seq);
    let tuning = TunerConfig { recompute: args.recompute, ..TunerConfig::default() };
    let mut tuner = Tuner::new(decoder, Some(adapter), &tuning);
    let ready_seconds = begin.elapsed().as_secs_f64();
    let first = tuner.step(&blocks, 1e-4);
    let first_seconds = begin.elapsed().as_secs_f64();
    let mut seconds = Vec::with_capacity(args.steps);
    let mut last = first;
    for _ in 0..args.steps.max(1) {
        let begin = Instant::now();
        last = tuner.step(&blocks, 1e-4);
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let median = median(&mut seconds);
    let speed = last.tokens as f64 / median;
    let tflops = speed * architectures::lora_flops_per_token(&config, args.seq, args.rank) / 1e12;
    let lora = LoraConfig::all_linear(args.rank);
    let layout = Layout::new(&device, &config, true);
    let memory = MemoryEstimate::new(&config, Some(&lora), args.quantization, layout, args.seq, args.seq);
    let blocks = layout.side_by_side(&device, args.seq, args.batch, false);
    let estimated = memory.total(Fit { blocks, recompute: args.recompute });
    let mfu = args.peak_tflops.map(|peak| tflops / peak);
    if args.json {
        println!(
            "{}",
            json!({
                "arch": args.arch, "parameters": config.parameters(), "seq": args.seq, "batch": args.batch,
                "rank": args.rank, "median_step_seconds": median, "tokens_per_second": speed,
                "tflops": tflops, "mfu": mfu, "ready_seconds": ready_seconds, "first_step_seconds": first_seconds,
                "loss": first.loss, "last_loss": last.loss, "grad_norm": first.grad_norm, "device_memory_bytes": device.reserved_memory(),
                "peak_memory_bytes": firn_kit::memory::peak(), "estimated_memory_bytes": estimated,
                "estimated_tokens_per_second": seconds_per_token(&config, true, args.recompute, &device).recip(),
            })
        );
    } else {
        println!("{speed:.0} tokens/s, {:.1} ms a step, {tflops:.2} TFLOP/s", median * 1e3);
    }
    Ok(())
}
