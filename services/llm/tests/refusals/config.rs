//! `config.json`, and the tokenizer beside it.

use firn_llm::config::{ModelConfig, RopeScaling};
use firn_llm::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::support::{base, edit, load, refused};

const NO_CODE: &str = "code that comes with a checkpoint (auto_map, trust_remote_code) is never run";

/// Sets fields of `config.json` of a fresh folder.
fn with(fields: Value) -> Result<ModelConfig, String> {
    let dir = base();
    edit(&dir.path().join("config.json"), |config| {
        let Value::Object(fields) = fields else { panic!("fields are an object") };
        for (name, value) in fields {
            config[name] = value;
        }
    });
    ModelConfig::from_dir(dir.path()).map_err(|error| error.to_string())
}

#[test]
fn an_architecture_outside_the_families() {
    let families = ["config.json", "llama, mistral, qwen2, qwen3 and gemma3_text are", NO_CODE];
    refused(with(json!({ "model_type": "gpt2" })), &[&["model_type = gpt2"], &families[..]].concat());
    let code = json!({ "AutoModelForCausalLM": "modeling_other.OtherForCausalLM" });
    refused(
        with(json!({ "model_type": "other", "auto_map": code })),
        &[&["model_type = other"], &families[..]].concat(),
    );
    for class in ["OtherForCausalLM", "LlamaForSequenceClassification"] {
        let said = [&format!("architectures = {class}"), "LlamaForCausalLM is", NO_CODE];
        refused(with(json!({ "architectures": [class], "auto_map": code })), &said);
    }
}

#[test]
fn code_beside_a_known_architecture_is_left_alone() {
    let dir = base();
    edit(&dir.path().join("config.json"), |config| {
        config["auto_map"] = json!({ "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM" });
    });
    std::fs::write(dir.path().join("modeling_llama.py"), "raise SystemExit(1)\n").unwrap();
    load(dir.path()).unwrap();
}

#[test]
fn numbers_that_no_model_has() {
    let huge = 1u64 << 60;
    let cases = [
        ("vocab_size", json!(0), "1 to 4194304 is"),
        ("vocab_size", json!(huge), "1 to 4194304 is"),
        ("hidden_size", json!(0), "1 to 131072 is"),
        ("hidden_size", json!(huge), "1 to 131072 is"),
        ("intermediate_size", json!(0), "1 to 524288 is"),
        ("intermediate_size", json!(huge), "1 to 524288 is"),
        ("num_hidden_layers", json!(0), "1 to 1024 is"),
        ("num_hidden_layers", json!(huge), "1 to 1024 is"),
        ("num_attention_heads", json!(0), "1 to 1024 is"),
        ("num_attention_heads", json!(huge), "1 to 1024 is"),
        ("num_key_value_heads", json!(0), "a divisor of num_attention_heads is"),
        ("num_key_value_heads", json!(3), "a divisor of num_attention_heads is"),
        ("num_key_value_heads", json!(8), "a divisor of num_attention_heads is"),
        ("head_dim", json!(0), "2 to 512 is"),
        ("head_dim", json!(15), "an even number is"),
        ("head_dim", json!(huge), "2 to 512 is"),
        ("max_position_embeddings", json!(0), "1 to 2097152 is"),
        ("max_position_embeddings", json!(huge), "1 to 2097152 is"),
        ("rms_norm_eps", json!(0.0), "a positive number is"),
        ("rms_norm_eps", json!(-1e-6), "a positive number is"),
        ("rms_norm_eps", json!(1e-60), "a positive number is"),
        ("layer_types", json!(["full_attention"]), "one for each of num_hidden_layers is"),
        ("layer_types", json!(["linear_attention", "a", "b"]), "full_attention and sliding_attention are"),
        ("quantization_config", json!({ "quant_method": "gptq" }), "quantised from"),
        ("attention_bias", json!(true), "only false is"),
        ("partial_rotary_factor", json!(0.5), "only 1 is"),
        ("hidden_act", json!("relu"), "silu"),
    ];
    for (field, value, said) in cases {
        refused(with(json!({ field: value })), &["config.json has", &format!("{field} = "), said]);
    }
    let uneven = json!({ "head_dim": null, "hidden_size": 66 });
    refused(with(uneven), &["hidden_size = 66", "a multiple of num_attention_heads"]);
}

#[test]
fn numbers_of_another_type() {
    for (field, value, said) in [
        ("num_hidden_layers", json!(-1), "`-1`"),
        ("num_hidden_layers", json!(2.5), "`2.5`"),
        ("vocab_size", json!("512"), "string \"512\""),
        ("hidden_size", json!(1e30), "floating point"),
        ("tie_word_embeddings", json!(1), "a boolean"),
        ("architectures", json!("LlamaForCausalLM"), "a sequence"),
        ("rope_theta", json!("10000"), "f64"),
    ] {
        refused(with(json!({ field: value })), &["config.json", &format!("{field}: "), said]);
    }
    for (text, said) in [
        (r#"{"model_type":"llama","rms_norm_eps":NaN}"#, "rms_norm_eps"),
        (r#"{"model_type":"llama","vocab_size":1,"vocab_size":2}"#, "duplicate field `vocab_size`"),
        (r#"{"model_type":"llama"}"#, "missing field `vocab_size`"),
        ("", "EOF"),
        ("[]", "expected an object with the fields of a model"),
    ] {
        let dir = base();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        refused(load(dir.path()), &["config.json", said]);
    }
    let dir = base();
    std::fs::write(dir.path().join("config.json"), vec![b' '; (16 << 20) + 1]).unwrap();
    refused(load(dir.path()), &["config.json", "longer than 16777216 bytes"]);
}

#[test]
fn rotary_parameters_that_make_no_angles() {
    let rope = |parameters: Value| with(json!({ "rope_parameters": parameters }));
    let llama3 = |field: &str, value: Value| {
        let mut parameters = json!({
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        parameters[field] = value;
        rope(parameters)
    };
    assert!(llama3("factor", json!(2.0)).is_ok());
    for (field, value, said) in [
        ("rope_theta", json!(0), "a positive number is"),
        ("rope_theta", json!(-1e4), "a positive number is"),
        ("rope_theta", json!(1), "more than 1 is"),
        ("rope_theta", json!(1e300), "a positive number is"),
        ("rope_theta", json!("10000"), "a number is"),
        ("factor", json!(0), "a positive number is"),
        ("factor", json!(0.5), "1 or more is"),
        ("factor", json!(null), "a positive number is"),
        ("high_freq_factor", json!(1.0), "more than low_freq_factor is"),
        ("low_freq_factor", json!([]), "a number is"),
        ("rope_type", json!("longrope"), "default, linear, llama3 and yarn are"),
        ("rope_type", json!(7), "default, linear, llama3 and yarn are"),
        ("partial_rotary_factor", json!(0.25), "only 1 is"),
    ] {
        refused(llama3(field, value), &["config.json has", &format!("{field} = "), said]);
    }
    refused(rope(json!("default")), &["rope_parameters = \"default\"", "an object is"]);
    refused(with(json!({ "rope_parameters": null, "rope_theta": -1.0 })), &["rope_theta = -1"]);
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "mscale": -9.0, "mscale_all_dim": 1.0 });
    refused(rope(yarn), &["mscale = "]);
    let plain = with(json!({ "rope_parameters": null, "rope_theta": 2e4 })).unwrap();
    assert_eq!(plain.attention[0].rope.scaling, RopeScaling::None);
}

#[test]
fn a_tokenizer_of_another_model() {
    let dir = base();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let config = |vocab| ModelConfig { vocab, ..ModelConfig::from_dir(dir.path()).unwrap() };
    let largest = tokenizer.largest_id().unwrap();
    config(largest as usize + 1).check_tokenizer(&tokenizer).unwrap();
    // A padded table of embeddings is common.
    config(largest as usize + 100).check_tokenizer(&tokenizer).unwrap();
    let said = [&format!("ids up to {largest}"), &format!("vocab_size in config.json is {largest}")[..]];
    refused(config(largest as usize).check_tokenizer(&tokenizer), &said);
    edit(&dir.path().join("tokenizer.json"), |tokenizer| {
        let added = json!({ "id": 9_000, "content": "<|late|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        tokenizer["model"]["vocab"]["<|late|>"] = json!(9_000);
    });
    let late = Tokenizer::from_dir(dir.path()).unwrap();
    assert!(late.vocab_size() <= 9_000, "ids are left out");
    refused(config(9_000).check_tokenizer(&late), &["ids up to 9000", "is 9000"]);
}

#[test]
fn files_beside_the_configuration() {
    let dir = base();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let generation = dir.path().join("generation_config.json");
    std::fs::write(&generation, "{\"eos_token_id\": [2, 128009]}").unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let said = ["eos_token_id 128009", "512 ids", "generation_config.json"];
    refused(config.check_tokenizer(&tokenizer), &said);
    for file in ["generation_config.json", "tokenizer_config.json", "tokenizer.json"] {
        let dir = base();
        std::fs::write(dir.path().join(file), "{\"eos_token_id\": ").unwrap();
        refused(Tokenizer::from_dir(dir.path()), &[file]);
    }
}
