//! A file that lies about sizes costs no more memory than it takes on the disk, times a small constant.
//!
//! One test, so that nothing else allocates while it measures.
#![cfg(feature = "engine")]

use std::path::Path;

use firn_llm::weights::Weights;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes held at most beside each byte of the file: a shape's `0,` becomes a number of eight, in a vector that doubles.
const TIMES: usize = 24;
/// And whatever the file: names, paths and sentences.
const BESIDE: usize = 16 << 10;

fn read_all(path: &Path) {
    if let Ok(weights) = Weights::open_file(path) {
        for name in weights.names() {
            let _ = weights.read(name);
        }
    }
}

/// A header of entries that claim anything, and some bytes after it.
fn file() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![0u64..9, (0u32..64).prop_map(|bit| 1 << bit)];
    let shape =
        prop_oneof![prop::collection::vec(size.clone(), 0..4), (0usize..2_000).prop_map(|count| vec![0; count]),];
    let entry = ("[a-z]{1,40}", shape, size.clone(), size);
    let entries = prop::collection::vec(entry, 0..40);
    (entries, prop::option::of(0u64..u64::MAX), prop::collection::vec(any::<u8>(), 0..300)).prop_map(
        |(entries, length, data)| {
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(name, shape, start, end)| {
                    format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
                })
                .collect();
            let text = format!("{{{}}}", entries.join(",")).replace(", ", ",");
            let length = length.unwrap_or(text.len() as u64);
            [&length.to_le_bytes()[..], text.as_bytes(), &data].concat()
        },
    )
}

#[test]
fn a_lie_about_sizes_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // What is set up once, such as the pool of threads, is not the file's.
    read_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/model.safetensors")));
    let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
    let measured = |bytes: Vec<u8>| {
        std::fs::write(&path, &bytes).unwrap();
        let most = TIMES * bytes.len() + BESIDE;
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        read_all(&path);
        let held = ALLOCATOR.peak_usage().saturating_sub(before);
        prop_assert!(held <= most, "{} bytes for a file of {}", held, bytes.len());
        Ok(())
    };
    TestRunner::new(config).run(&file(), measured).unwrap();
    // A valid file whose values take twice what they do on the disk, and are more than a piece.
    let count = 1 << 20;
    let header = format!(r#"{{"a":{{"dtype":"BF16","shape":[{count}],"data_offsets":[0,{}]}}}}"#, 2 * count);
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; 2 * count]].concat();
    measured(bytes).unwrap();
}
