//! A base in shards.

use firn_llm::weights::Weights;
use serde_json::{Value, json};

use super::support::{EMBEDDING, edit, fixture, load, refused, rewrite, sharded, tensors, write};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const OF_SECOND: &str = "model.layers.1.input_layernorm.weight";

/// Changes the index of a fresh folder.
fn spoiled(names: &[&str], change: impl FnOnce(&mut Value)) {
    let dir = sharded();
    edit(&dir.path().join(INDEX), change);
    refused(load(dir.path()), names);
}

#[test]
fn shards_are_read_like_one_file() {
    let (dir, one) = (sharded(), Weights::open_dir(&fixture()).unwrap());
    let several = Weights::open_dir(dir.path()).unwrap();
    assert_eq!(several.names(), one.names());
    for name in one.names() {
        assert_eq!(several.read(name).unwrap(), one.read(name).unwrap(), "{name}");
    }
    load(dir.path()).unwrap();
}

#[test]
fn a_shard_that_is_missing_or_broken() {
    let dir = sharded();
    let second = dir.path().join(SECOND);
    let bytes = std::fs::read(&second).unwrap();
    std::fs::write(&second, &bytes[..bytes.len() - 4]).unwrap();
    refused(load(dir.path()), &[SECOND, "cut short"]);
    std::fs::remove_file(&second).unwrap();
    refused(load(dir.path()), &[SECOND, "it is missing", INDEX, "fetch the checkpoint again, whole"]);
}

#[test]
fn an_index_that_is_none() {
    spoiled(&[INDEX, "weight_map"], |index| *index = json!({ "metadata": {} }));
    spoiled(&[INDEX, "weight_map"], |index| *index = json!([]));
    spoiled(&[INDEX, "an object with an entry a tensor"], |index| index["weight_map"] = json!([FIRST]));
    spoiled(&[INDEX, "weight_map names 0 files"], |index| index["weight_map"] = json!({}));
    spoiled(&[INDEX, "integer `1`"], |index| index["weight_map"][EMBEDDING] = json!(1));
    let dir = sharded();
    std::fs::write(dir.path().join(INDEX), "{\"weight_map\": ").unwrap();
    refused(load(dir.path()), &[INDEX, "EOF"]);
    let twice = format!(r#"{{"weight_map":{{"{EMBEDDING}":"{FIRST}","{EMBEDDING}":"{SECOND}"}}}}"#);
    std::fs::write(dir.path().join(INDEX), twice).unwrap();
    refused(load(dir.path()), &[INDEX, EMBEDDING, "named twice"]);
}

#[test]
fn an_index_that_lies() {
    spoiled(&[INDEX, SECOND, EMBEDDING, &format!("{FIRST} does")], |index| {
        index["weight_map"][EMBEDDING] = json!(SECOND);
    });
    spoiled(&[INDEX, FIRST, "tensor other", "no file holds it"], |index| index["weight_map"]["other"] = json!(FIRST));
}

#[test]
fn an_index_that_leads_elsewhere() {
    for name in ["../model.safetensors", "/etc/passwd", "a/model.safetensors", "..\\model.safetensors"] {
        spoiled(&[INDEX, "leads out of the folder", &format!("{name:?}")], |index| {
            index["weight_map"][EMBEDDING] = json!(name);
        });
    }
    for name in ["", "..", "config.json"] {
        spoiled(&[INDEX, "which is no safetensors file"], |index| index["weight_map"][EMBEDDING] = json!(name));
    }
    spoiled(&[INDEX, "pytorch_model-00001-of-00002.bin", "a pickle", "save_pretrained"], |index| {
        index["weight_map"][EMBEDDING] = json!("pytorch_model-00001-of-00002.bin");
    });
}

#[test]
fn a_tensor_in_two_shards() {
    let dir = sharded();
    let first = tensors(&dir.path().join(FIRST));
    rewrite(&dir.path().join(SECOND), |tensors| {
        tensors.insert(EMBEDDING.to_owned(), first[EMBEDDING].clone());
    });
    refused(load(dir.path()), &[SECOND, EMBEDDING, FIRST, "too"]);
}

#[test]
fn the_one_file_comes_first_as_in_transformers() {
    let dir = sharded();
    let mut whole = tensors(&fixture().join("model.safetensors"));
    whole.remove(OF_SECOND);
    write(&dir.path().join("model.safetensors"), &whole);
    refused(load(dir.path()), &["has no tensor", OF_SECOND, "which the configuration asks for"]);
}
