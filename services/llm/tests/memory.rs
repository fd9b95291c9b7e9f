//! Memory while a checkpoint in shards is loaded: the weights, and little more.
//!
//! Writes gigabytes, so it runs when asked: `cargo test -p firn-llm --features engine --test memory -- --ignored
//! --nocapture`. `FIRN_MEMORY_SHAPE=8b` takes an 8B model (16 GB of file, 9 GB of memory), quantised only; its shards are
//! holes, which take no disk and read as zeros.
#![cfg(all(feature = "engine", target_os = "linux"))]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test stops at the first wrong thing, and reports")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use firn_llm::config::{ModelConfig, Module};
use firn_llm::device::Device;
use firn_llm::model::Decoder;
use firn_llm::quant::Quantization;
use serde_json::{Map, Value, json};

const GIB: usize = 1 << 30;
/// Bytes of a shard, about.
const SHARD: usize = GIB / 2;

fn config(eight_billion: bool) -> Value {
    let [vocab, hidden, intermediate, layers] =
        if eight_billion { [128_256, 4096, 14_336, 32] } else { [32_000, 2048, 5632, 16] };
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "tie_word_embeddings": !eight_billion,
    })
}

/// Names and shapes of all tensors, in the order of the shards.
fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let table = |name: &str| (name.to_owned(), vec![config.vocab, config.hidden]);
    let mut tensors = vec![table("model.embed_tokens.weight")];
    for layer in 0..config.layers() {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|n| (name(n), vec![config.hidden])));
        tensors.extend(Module::ALL.map(|module| (name(&module.path()), config.linear_shape(module).to_vec())));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![config.hidden]));
    if !config.tied {
        tensors.push(table("lm_head.weight"));
    }
    tensors
}

/// Writes shards with an index, of bf16 numbers of about 0.01 or of holes, and tells the tensors' bytes.
fn write(dir: &Path, config: &ModelConfig, holes: bool) -> usize {
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    let block: Vec<u8> = (0..1 << 19)
        .flat_map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            // Sign and fraction are noise, the exponent one of two.
            (0x3c00u16 | (noise as u16 & 0x80ff)).to_le_bytes()
        })
        .collect();
    let (mut shards, mut bytes) = (vec![Vec::new()], 0);
    for (name, shape) in tensors(config) {
        let size = 2 * shape.iter().product::<usize>();
        if bytes > 0 && bytes + size > SHARD {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        shards.last_mut().unwrap().push((name, shape, size));
    }
    let (mut map, mut total) = (Map::new(), 0);
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        let (mut header, mut at) = (Map::new(), 0);
        for (name, shape, size) in shard {
            header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, at + size] }));
            map.insert(name.clone(), json!(file));
            at += size;
        }
        let header = Value::Object(header).to_string();
        let mut out = BufWriter::new(File::create(dir.join(file)).unwrap());
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(header.as_bytes()).unwrap();
        total += at;
        if holes {
            out.flush().unwrap();
            out.get_ref().set_len((8 + header.len() + at) as u64).unwrap();
            continue;
        }
        while at > 0 {
            let part = at.min(block.len());
            out.write_all(&block[..part]).unwrap();
            at -= part;
        }
        out.flush().unwrap();
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    total
}

/// A line of this process's status, bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Bytes that the weights take once they are loaded.
fn held(config: &ModelConfig, quantization: Quantization) -> usize {
    let linears = Module::ALL.map(|module| config.linear_shape(module).iter().product::<usize>());
    let linears = config.layers() * linears.iter().sum::<usize>();
    match quantization {
        Quantization::None => 4 * config.parameters(),
        // Half a byte a weight, and a scale of four for 64.
        _ => 4 * (config.parameters() - linears) + linears / 2 + linears / 16,
    }
}

#[test]
#[ignore = "writes 1.6 GB and takes 4 GB of memory"]
fn loading_takes_the_weights_and_a_tensor() {
    let eight_billion = std::env::var("FIRN_MEMORY_SHAPE").is_ok_and(|shape| shape == "8b");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config(eight_billion).to_string()).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let start = Instant::now();
    let disk = write(dir.path(), &config, eight_billion);
    println!("{} parameters, {disk} bytes of tensors, written in {:.1?}", config.parameters(), start.elapsed());
    let largest = tensors(&config).iter().map(|(_, shape)| 2 * shape.iter().product::<usize>()).max().unwrap();
    let ways = [Quantization::None, Quantization::Int4];
    for quantization in ways.into_iter().skip(usize::from(eight_billion)) {
        // Starts the high-water mark anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, start) = (status("VmRSS:"), Instant::now());
        let decoder = Decoder::load_quantized(dir.path(), &Device::cpu(), quantization).unwrap();
        let (seconds, peak) = (start.elapsed(), status("VmHWM:") - before);
        let weights = held(&config, quantization);
        println!(
            "{quantization:?}: weights {weights}, largest tensor {largest}, peak {peak}: {} over the weights, {seconds:.1?}",
            peak.saturating_sub(weights)
        );
        assert!(peak <= weights + largest + GIB, "{peak} bytes for weights of {weights}");
        assert!(peak > weights / 2, "{peak} bytes can't hold weights of {weights}: nothing was measured");
        drop(decoder);
    }
}
