//! One LoRA training step: the explicit backward against Burn's autodiff over the same model, in one run.
//!
//! The shape is 6 layers of 256, 4096 ids, 8 sequences of 256 tokens, rank 8 on all linear layers, loss on every token.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firn_llm::config::{ModelConfig, Widths};
use firn_llm::device::Device;
use firn_llm::model::{Adapter, Decoder, LoraConfig};
use firn_llm::train::{Document, Tuner, TunerConfig, pack, plain};

const SEQUENCE: u32 = 256;
const BATCH: u32 = 8;

fn steps(criterion: &mut Criterion) {
    let config = ModelConfig::llama(Widths {
        vocab: 4096,
        hidden: 256,
        intermediate: 704,
        layers: 6,
        heads: 8,
        kv_heads: 4,
        context: 512,
    });
    let device = Device::cpu();
    let decoder = Decoder::random(config.clone(), 1, &device);
    let adapter = Adapter::new(&config, LoraConfig::all_linear(8), 2, &device);
    let document = |row: u32| Document {
        ids: (0..SEQUENCE).map(|at| (at * 7919 + row * 104_729) % 4096).collect(),
        loss_mask: vec![1; SEQUENCE as usize],
    };
    let blocks = pack(&(0..BATCH).map(document).collect::<Vec<_>>(), SEQUENCE as usize);
    let mut group = criterion.benchmark_group("lora_step");
    group.throughput(Throughput::Elements(u64::from(SEQUENCE * BATCH))).sample_size(10);
    let mut tuner = Tuner::new(decoder.clone(), Some(adapter.clone()), &TunerConfig::default());
    group.bench_function("explicit", |bencher| bencher.iter(|| tuner.step(&blocks, 1e-4)));
    group.bench_function("autodiff", |bencher| {
        bencher.iter(|| {
            let weight = 1.0 / (SEQUENCE * BATCH) as f32;
            blocks.iter().map(|block| plain::autodiff(&decoder, Some(&adapter), block, weight).0).sum::<f64>()
        });
    });
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
