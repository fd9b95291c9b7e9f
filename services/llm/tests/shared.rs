//! Many adapters share one copy of the base.
//!
//! One test, so that nothing else allocates while it measures.
#![cfg(feature = "engine")]
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::path::Path;

use firn_llm::{
    cache::KvCache,
    device::Device,
    generate::{Part, Sampling, Sequence, Stepped, step},
    model::{Adapter, Decoder, LoraConfig},
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Answers one prompt as all of these at once; gives the answers.
fn answer(model: &Decoder, adapters: &[Option<&Adapter>]) -> Vec<Vec<u32>> {
    let mut cache = KvCache::new(model, 64 * adapters.len());
    let mut open: Vec<Sequence> = adapters
        .iter()
        .map(|adapter| {
            let mut sequence = Sequence::new(model, vec![40, 41, 42, 43], Sampling::greedy()).unwrap();
            sequence.attach(&mut cache, *adapter);
            sequence
        })
        .collect();
    let mut answers = vec![Vec::new(); adapters.len()];
    for _ in 0..8 {
        let parts = open.iter_mut().zip(adapters).map(|(sequence, adapter)| Part {
            sequence,
            adapter: *adapter,
            tokens: usize::MAX,
        });
        let stepped = step(model, &mut cache, &mut parts.collect::<Vec<_>>()).unwrap();
        for (answer, stepped) in answers.iter_mut().zip(stepped) {
            if let Stepped::Chose(token) = stepped {
                answer.push(token.id);
            }
        }
    }
    answers
}

#[test]
fn the_base_and_eight_adapters_take_little_more_than_the_base() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/base");
    let before = ALLOCATOR.current_usage();
    let model = Decoder::load(&folder, &Device::cpu()).unwrap();
    let alone = answer(&model, &[None]);
    let base = ALLOCATOR.current_usage() - before;
    assert!(base >= 4 * model.config().parameters(), "{base} bytes");

    let lora = LoraConfig::all_linear(8);
    let own = 4 * lora.parameters(model.config());
    let adapters: Vec<Adapter> =
        (0..8).map(|seed| Adapter::new(model.config(), lora.clone(), seed, model.device())).collect();
    let all: Vec<Option<&Adapter>> = [None].into_iter().chain(adapters.iter().map(Some)).collect();
    let together = answer(&model, &all);
    let whole = ALLOCATOR.current_usage() - before;
    // New adapters change nothing yet: all nine say what the base says.
    assert!(together.iter().all(|answer| *answer == alone[0]));
    let most = base + base / 10 + 8 * own;
    assert!(whole <= most, "{whole} bytes, and at most {most}: base {base}, an adapter {own}");
    println!("base {base} bytes, with eight adapters of {own} bytes each {whole} bytes");
}
