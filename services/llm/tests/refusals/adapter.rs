//! An adapter's folder.

use firn_llm::config::ModelConfig;
use firn_llm::device::Device;
use firn_llm::model::Adapter;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{fixture, folder, raw, refused, rewrite};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const FACTOR: &str = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight";

fn adapter() -> TempDir {
    folder(&fixture().join("adapter_final"), &[CONFIG, WEIGHTS])
}

fn model() -> ModelConfig {
    ModelConfig::from_dir(&fixture()).unwrap()
}

fn load(dir: &TempDir, model: &ModelConfig) -> Result<Adapter, String> {
    Adapter::load(dir.path(), model, &Device::cpu()).map_err(|error| error.to_string())
}

fn spoiled(names: &[&str], spoil: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let dir = adapter();
    let path = dir.path().join(WEIGHTS);
    std::fs::write(&path, spoil(std::fs::read(&path).unwrap())).unwrap();
    refused(load(&dir, &model()), &[&[WEIGHTS], names].concat());
}

#[test]
fn a_pickle_or_nothing() {
    let dir = adapter();
    std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    refused(load(&dir, &model()), &[WEIGHTS, "it is missing"]);
    std::fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    let pickle = ["holds adapter_model.bin", "a pickle", "Firn never opens any", "PEFT", "save_pretrained"];
    refused(load(&dir, &model()), &[&[WEIGHTS, "it is missing"], &pickle[..]].concat());
    std::fs::remove_file(dir.path().join(CONFIG)).unwrap();
    refused(load(&dir, &model()), &[&[CONFIG, "it is missing"], &pickle[..]].concat());
    spoiled(&["a pickle", "save_pretrained"], |bytes| [b"PK\x03\x04", bytes.as_slice()].concat());
}

#[test]
fn a_file_that_is_not_whole_or_lies() {
    spoiled(&["cut short", "fetch it again"], |bytes| bytes[..bytes.len() - 1].to_vec());
    spoiled(&["has 3 bytes"], |bytes| bytes[..3].to_vec());
    let header = format!(r#"{{"{FACTOR}":{{"dtype":"F32","shape":[8,64],"data_offsets":[0,64]}}}}"#);
    spoiled(&[FACTOR, "shape [8, 64] can't take bytes 0 to 64"], |_| raw(&header, 64));
}

#[test]
fn a_value_that_is_no_number() {
    let dir = adapter();
    rewrite(&dir.path().join(WEIGHTS), |tensors| {
        tensors.get_mut(FACTOR).unwrap().bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused(load(&dir, &model()), &[WEIGHTS, FACTOR, "NaN at value 0"]);
}

#[test]
fn an_adapter_of_another_base() {
    let other = ["the adapter was trained on another base"];
    let wide = ModelConfig { hidden: 128, ..model() };
    refused(load(&adapter(), &wide), &[&[WEIGHTS, "of shape [8, 64], expected [8, 128]"], &other[..]].concat());
    let deep = ModelConfig { attention: [model().attention, model().attention].concat(), ..model() };
    refused(load(&adapter(), &deep), &[&["has no tensor", ".layers.3.", WEIGHTS], &other[..]].concat());
    let shallow = ModelConfig { attention: model().attention[..2].to_vec(), ..model() };
    refused(load(&adapter(), &shallow), &[&["has a tensor", ".layers.2.", WEIGHTS], &other[..]].concat());
}

#[test]
fn a_configuration_of_something_else() {
    let with = |field: &str, value: Value| {
        let dir = adapter();
        super::support::edit(&dir.path().join(CONFIG), |config| config[field] = value);
        load(&dir, &model())
    };
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("use_dora", json!("yes")),
        ("use_qalora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("rank_pattern", json!({ "q_proj": 4 })),
        ("alpha_pattern", json!({ "q_proj": 4 })),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0])),
        ("layers_to_transform", json!(0)),
        ("layer_replication", json!([[0, 1]])),
        ("exclude_modules", json!("q_proj")),
        ("target_parameters", json!(["mlp.experts"])),
        ("trainable_token_indices", json!([1])),
        ("alora_invocation_tokens", json!([1])),
    ] {
        let said = value.to_string();
        refused(with(field, value), &[CONFIG, &format!("{field} = {said}"), "not supported", "plain LoRA"]);
    }
    for (field, value, said) in [
        ("r", json!(0), "no rank r"),
        ("r", json!(-8), "no rank r"),
        ("r", json!(8.5), "no rank r"),
        ("r", json!(null), "no rank r"),
        ("lora_alpha", json!(null), "no lora_alpha"),
        ("lora_alpha", json!(1e300), "lora_alpha is 1e+300"),
        ("lora_dropout", json!(1.0), "lora_dropout is 1.0"),
        ("lora_dropout", json!(-0.1), "lora_dropout is -0.1"),
        ("target_modules", json!([]), "no names as target_modules"),
        ("target_modules", json!([1]), "no names as target_modules"),
        ("target_modules", json!(null), "no names as target_modules"),
        ("target_modules", json!(["embed_tokens"]), "unknown target module \"embed_tokens\""),
        ("target_modules", json!(".*_proj"), "unknown target module \".*_proj\""),
    ] {
        refused(with(field, value), &[CONFIG, said]);
    }
    // A rank that is none of the file's: nothing of that size is allocated.
    refused(with("r", json!(1u64 << 40)), &["of shape [8, 64], expected [1099511627776, 64]", "another base"]);
    // Layers that are adapted but not named.
    refused(with("target_modules", json!(["q_proj"])), &["has a tensor", "no place for"]);
    for text in ["", "[]", "{\"r\": "] {
        let dir = adapter();
        std::fs::write(dir.path().join(CONFIG), text).unwrap();
        refused(load(&dir, &model()), &[CONFIG]);
    }
}
