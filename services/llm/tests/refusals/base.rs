//! A base's weights in one file.

use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::support::{EMBEDDING, base, edit, load, raw, refused, rewrite};

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

/// Spoils `model.safetensors` of a fresh folder.
fn spoiled(names: &[&str], spoil: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let dir = base();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, spoil(std::fs::read(&path).unwrap())).unwrap();
    refused(load(dir.path()), &[&["model.safetensors"], names].concat());
}

#[test]
fn a_value_that_is_no_number() {
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let dir = base();
        rewrite(&dir.path().join("model.safetensors"), |tensors| {
            tensors.get_mut(WEIGHT).unwrap().bytes[5 * 4..6 * 4].copy_from_slice(&value.to_le_bytes());
        });
        refused(load(dir.path()), &[WEIGHT, &format!("is {said} at value 5"), "damaged"]);
    }
}

#[test]
fn a_file_that_is_cut_short_or_too_long() {
    spoiled(&["has 0 bytes", "fetch it again"], |_| Vec::new());
    spoiled(&["has 7 bytes"], |bytes| bytes[..7].to_vec());
    spoiled(&["its header takes", "but 92 follow", "cut short"], |bytes| bytes[..100].to_vec());
    spoiled(&["the tensors take", "cut short, fetch it again"], |bytes| bytes[..bytes.len() - 1].to_vec());
    spoiled(&["something is appended"], |bytes| [bytes.as_slice(), b"x"].concat());
}

#[test]
fn a_header_that_lies() {
    let entry = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let cases = [
        // A shape and a type that do not take so many bytes.
        (
            format!(r#"{{"a":{}}}"#, entry("F32", "[3]", 0, 8)),
            "tensor a of type F32 and shape [3] can't take bytes 0 to 8",
        ),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 8, 0)), "tensor a"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[18446744073709551615]", 0, u64::MAX)), "tensor a"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[4294967296,4294967296,4294967296]", 0, 8)), "tensor a"),
        (format!(r#"{{"a":{}}}"#, entry("F4", "[1]", 0, 0)), "tensor a"),
        // Tensors that overlap, or leave a gap.
        (format!(r#"{{"a":{0},"b":{0}}}"#, entry("F32", "[2]", 0, 8)), "invalid offset for tensor `b`"),
        (format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[1]", 0, 4), entry("F32", "[1]", 8, 12)), "tensor `b`"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 0, 8)), "the tensors take 8 bytes, but 12 follow"),
        // More than the file has; sizes whose sum does not fit into 64 bits.
        (format!(r#"{{"a":{}}}"#, entry("F32", "[5]", 0, 20)), "the tensors take 20 bytes, but 12 follow"),
        (
            format!(
                r#"{{"a":{},"b":{}}}"#,
                entry("U8", "[1152921504606846976]", 0, 1 << 60),
                entry("U8", "[1152921504606846976]", 1 << 60, 1 << 61)
            ),
            "the tensors take",
        ),
        (format!(r#"{{"a":{0},"a":{0}}}"#, entry("F32", "[3]", 0, 12)), "tensor a is named twice"),
        (r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#.to_owned(), "F31"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.to_owned(), "-1"),
        (r#"{"a":1}"#.to_owned(), "header"),
        ("[]".to_owned(), "header"),
        ("{".to_owned(), "header"),
        ("\u{0}".to_owned(), "header"),
    ];
    for (header, said) in cases {
        spoiled(&[said], |_| raw(&header, 12));
    }
    let size = |size: u64| [&size.to_le_bytes()[..], b"{}"].concat();
    spoiled(&["its header takes 18446744073709551615 bytes", "no safetensors file"], |_| size(u64::MAX));
    spoiled(&["its header takes 3 bytes, but 2 follow"], |_| size(3));
}

#[test]
fn another_file_under_the_name() {
    let pickle = ["a pickle", "Firn never opens any", "save_pretrained"];
    spoiled(&pickle, |bytes| [b"PK\x03\x04", bytes.as_slice()].concat());
    spoiled(&pickle, |bytes| [b"\x80\x02}q\x00", bytes.as_slice()].concat());
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 783112\n";
    spoiled(&["Git LFS pointer", "git lfs pull"], |_| pointer.to_vec());
    let dir = base();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    std::fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    refused(load(dir.path()), &["model.safetensors", "not a regular file"]);
}

#[test]
fn other_files_instead() {
    let pickle = "a pickle: one can run code as it is opened, so Firn never opens any";
    for (file, said) in [
        ("pytorch_model.bin", pickle),
        ("pytorch_model-00001-of-00002.bin", pickle),
        ("model.pt", pickle),
        ("consolidated.00.pth", pickle),
        ("last.ckpt", pickle),
        ("model-q4.gguf", "use the safetensors checkpoint that it was made from"),
        ("tf_model.h5", "not safetensors"),
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json, is not there"),
    ] {
        let dir = base();
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        // What Trainer leaves behind is a pickle, but no weights.
        std::fs::write(dir.path().join("training_args.bin"), "").unwrap();
        refused(load(dir.path()), &["model.safetensors: it is missing"]);
        std::fs::write(dir.path().join(file), "").unwrap();
        refused(load(dir.path()), &["model.safetensors: it is missing", &format!("the folder holds {file}"), said]);
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        refused(load(dir.path()), &["config.json: it is missing", &format!("the folder holds {file}"), said]);
    }
}

#[test]
fn a_vocabulary_and_embeddings_that_disagree() {
    for vocab in [511, 513] {
        let dir = base();
        edit(&dir.path().join("config.json"), |config| config["vocab_size"] = json!(vocab));
        refused(load(dir.path()), &[EMBEDDING, "has 512 rows", &format!("vocab_size in config.json is {vocab}")]);
    }
    let dir = base();
    rewrite(&dir.path().join("model.safetensors"), |tensors| {
        let head = tensors.get_mut("lm_head.weight").unwrap();
        head.shape[0] = 511;
        head.bytes.truncate(511 * 64 * 4);
    });
    refused(load(dir.path()), &["lm_head.weight", "has 511 rows"]);
}

#[test]
fn tensors_that_the_configuration_does_not_have() {
    let with = |change: fn(&mut serde_json::Value)| {
        let dir = base();
        edit(&dir.path().join("config.json"), change);
        load(dir.path())
    };
    refused(with(|config| config["num_hidden_layers"] = json!(4)), &["has no tensor model.layers.3."]);
    refused(with(|config| config["num_hidden_layers"] = json!(2)), &["has a tensor model.layers.2.", "no place for"]);
    refused(with(|config| config["intermediate_size"] = json!(96)), &["gate_proj", "[160, 64], expected [96, 64]"]);
    let dir = base();
    rewrite(&dir.path().join("model.safetensors"), |tensors| {
        let bias = tensors["model.norm.weight"].clone();
        tensors.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), bias);
    });
    refused(load(dir.path()), &["has a tensor model.layers.0.self_attn.q_proj.bias"]);
}

#[test]
fn buffers_of_older_checkpoints_are_no_weights() {
    let dir = base();
    rewrite(&dir.path().join("model.safetensors"), |tensors| {
        let buffer = tensors["model.norm.weight"].clone();
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), buffer);
    });
    load(dir.path()).unwrap();
}

#[test]
fn a_type_that_is_no_float() {
    let dir = base();
    rewrite(&dir.path().join("model.safetensors"), |tensors| tensors.get_mut(WEIGHT).unwrap().dtype = Dtype::I32);
    refused(load(dir.path()), &[WEIGHT, "of type I32", "f32, f16 or bf16"]);
}

#[test]
fn halves_are_read_as_what_they_stand_for() {
    let ids = [3, 1, 4, 1, 5];
    let logits = |narrow: fn(f32) -> (Dtype, [u8; 2], f32), widened: bool| {
        let dir = base();
        rewrite(&dir.path().join("model.safetensors"), |tensors| {
            for tensor in tensors.values_mut() {
                let values = tensor.bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes);
                let narrowed: Vec<_> = values.map(narrow).collect();
                tensor.bytes = match widened {
                    true => narrowed.iter().flat_map(|(_, _, value)| value.to_le_bytes()).collect(),
                    false => narrowed.iter().flat_map(|(_, bytes, _)| *bytes).collect(),
                };
                tensor.dtype = if widened { Dtype::F32 } else { narrowed[0].0 };
            }
        });
        load(dir.path()).unwrap().logits(&ids, None).unwrap()
    };
    for narrow in
        [(|v| (Dtype::BF16, bf16::from_f32(v).to_le_bytes(), bf16::from_f32(v).to_f32())) as fn(f32) -> _, |v| {
            (Dtype::F16, f16::from_f32(v).to_le_bytes(), f16::from_f32(v).to_f32())
        }]
    {
        assert_eq!(logits(narrow, false), logits(narrow, true));
    }
}
