//! A folder to spoil, and weights written byte by byte.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use firn_llm::device::Device;
use firn_llm::model::Decoder;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

pub(crate) fn fixture() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"))
}

/// Copies of these files of the fixture.
pub(crate) fn folder(from: &Path, files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// A checkpoint's folder.
pub(crate) fn base() -> TempDir {
    folder(&fixture(), &["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
}

/// Changes a JSON file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// An error's sentence, which must hold all of these.
pub(crate) fn refused<T, E: Display>(result: Result<T, E>, names: &[&str]) {
    let Err(error) = result else { panic!("not refused: {names:?}") };
    let sentence = error.to_string();
    for name in names {
        assert!(sentence.contains(name), "{name:?} is not in {sentence:?}");
    }
    assert!(!sentence.contains('\n') && !sentence.ends_with('.'), "{sentence:?} is not one sentence");
}

pub(crate) fn load(dir: &Path) -> Result<Decoder, String> {
    Decoder::load(dir, &Device::cpu()).map_err(|error| error.to_string())
}

/// A tensor as it lies in a file.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) type Tensors = BTreeMap<String, Stored>;

pub(crate) fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |view: TensorView<'_>| Stored {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(|(name, view)| (name, stored(view))).collect()
}

pub(crate) fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes the tensors of a file.
pub(crate) fn rewrite(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut found = tensors(path);
    change(&mut found);
    write(path, &found);
}

/// A file of one header and as many bytes after it.
pub(crate) fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The fixture in two shards and an index: the tensors of the second begin with `model.layers.1`.
pub(crate) fn sharded() -> TempDir {
    let dir = folder(&fixture(), &["config.json"]);
    let (second, first): (Tensors, Tensors) = tensors(&fixture().join("model.safetensors"))
        .into_iter()
        .partition(|(name, _)| name.starts_with("model.layers.1."));
    let mut map = serde_json::Map::new();
    for (shard, tensors) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)]
    {
        write(&dir.path().join(shard), &tensors);
        map.extend(tensors.into_keys().map(|name| (name, json!(shard))));
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    dir
}
