//! `config.json`, `adapter_config.json` and the index, damaged as texts and as values.

use std::path::{Path, PathBuf};

use firn_llm::config::{ModelConfig, RopeScaling};
use firn_llm::device::Device;
use firn_llm::model::Adapter;
use firn_llm::weights::Weights;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::damage::{cases, damages};

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3"];

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"))
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..600).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u32..64).prop_map(|bit| json!(1u64 << bit)),
        any::<f64>().prop_map(|number| json!(number)),
        (-320i32..308).prop_map(|power| json!(10f64.powi(power))),
        prop::sample::select(vec![
            "llama3",
            "yarn",
            "linear",
            "full_attention",
            "gemma3_text",
            "qwen2",
            "silu",
            "",
            "é"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,9}", inner), 0..3)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Replaces, removes or adds a field, at the top or one below.
fn change(value: &mut Value, at: Index, below: Index, new: Value) {
    let Some(object) = value.as_object_mut().filter(|object| !object.is_empty()) else { return };
    let name = object.keys().nth(at.index(object.len())).cloned().unwrap();
    match &mut object[&name] {
        Value::Object(inner) if !inner.is_empty() => {
            let name = inner.keys().nth(below.index(inner.len())).cloned().unwrap();
            inner[&name] = new;
        }
        field => *field = new,
    }
}

fn changes() -> impl Strategy<Value = Vec<(Index, Index, Value)>> {
    prop::collection::vec((any::<Index>(), any::<Index>(), any_value()), 1..4)
}

/// A configuration that was accepted can be computed with.
fn check_config(text: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    let config = match ModelConfig::from_dir(dir.path()) {
        Ok(config) => config,
        Err(error) => {
            prop_assert!(error.to_string().contains("config.json"), "{}", error);
            return Ok(());
        }
    };
    prop_assert!((1..=1024).contains(&config.layers()) && (1..=1 << 21).contains(&config.context));
    prop_assert!((1..=1 << 22).contains(&config.vocab) && (1..=1 << 17).contains(&config.hidden));
    prop_assert!((1..=1 << 19).contains(&config.intermediate) && (1..=1024).contains(&config.heads));
    prop_assert!(config.heads.is_multiple_of(config.kv_heads) && (2..=512).contains(&config.head_dim));
    prop_assert!(config.head_dim.is_multiple_of(2) && config.parameters() > 0);
    for number in [config.score_scale, config.rms_eps, config.embedding_scale] {
        prop_assert!(number.is_finite() && number > 0.0, "{:?}", config);
    }
    for layer in &config.attention {
        prop_assert!(layer.window != Some(0) && layer.rope.theta.is_finite() && layer.rope.theta > 1.0);
        let numbers = match layer.rope.scaling {
            RopeScaling::None => vec![],
            RopeScaling::Linear { factor } => vec![factor],
            RopeScaling::Llama3 { factor, low, high, original } => vec![factor, low, high - low, original],
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, .. } => {
                vec![factor, beta_fast, beta_slow, original, attention_factor]
            }
        };
        prop_assert!(numbers.iter().all(|number| number.is_finite() && *number > 0.0), "{:?}", layer);
    }
    Ok(())
}

fn check_adapter(text: &[u8]) -> Result<(), TestCaseError> {
    let (dir, llama) = (tempfile::tempdir().unwrap(), fixtures().join("llama"));
    let weights = Path::new("adapter_model.safetensors");
    std::fs::copy(llama.join("adapter_final").join(weights), dir.path().join(weights)).unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), text).unwrap();
    match Adapter::load(dir.path(), &ModelConfig::from_dir(&llama).unwrap(), &Device::cpu()) {
        // The file's tensors fit one rank and these layers only.
        Ok(adapter) => prop_assert!(adapter.config().r == 8 && adapter.config().alpha.is_finite()),
        Err(error) => prop_assert!(error.to_string().contains("adapter_"), "{}", error),
    }
    Ok(())
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(path)).unwrap()
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn any_text_of_a_configuration(family in prop::sample::select(&FAMILIES[..]), damages in damages()) {
        let text = read(&format!("{family}/config.json"));
        check_config(&damages.iter().fold(text, |text, damage| damage.to(text)))?;
    }

    #[test]
    fn any_value_in_a_configuration(family in prop::sample::select(&FAMILIES[..]), changes in changes()) {
        let mut value: Value = serde_json::from_slice(&read(&format!("{family}/config.json"))).unwrap();
        changes.into_iter().for_each(|(at, below, new)| change(&mut value, at, below, new));
        check_config(value.to_string().as_bytes())?;
    }

    #[test]
    fn any_text_of_an_adapters_configuration(damages in damages()) {
        let text = read("llama/adapter_final/adapter_config.json");
        check_adapter(&damages.iter().fold(text, |text, damage| damage.to(text)))?;
    }

    #[test]
    fn any_value_in_an_adapters_configuration(changes in changes()) {
        let text = read("llama/adapter_final/adapter_config.json");
        let mut value: Value = serde_json::from_slice(&text).unwrap();
        changes.into_iter().for_each(|(at, below, new)| change(&mut value, at, below, new));
        check_adapter(value.to_string().as_bytes())?;
    }

    #[test]
    fn any_index(damages in damages()) {
        let dir = tempfile::tempdir().unwrap();
        let shard = "model-00001-of-00001.safetensors";
        let header = br#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        std::fs::write(dir.path().join(shard), file).unwrap();
        let text = format!(r#"{{"metadata":{{"total_size":4}},"weight_map":{{"a":"{shard}"}}}}"#).into_bytes();
        let text = damages.iter().fold(text, |text, damage| damage.to(text));
        std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        match Weights::open_dir(dir.path()) {
            Ok(weights) => prop_assert_eq!(weights.read("a").unwrap(), (vec![0.0], vec![])),
            Err(error) => prop_assert!(error.to_string().contains("model"), "{}", error),
        }
    }
}
