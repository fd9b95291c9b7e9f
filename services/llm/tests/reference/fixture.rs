//! A family's tiny checkpoint and what the Python stack computes from it.

use std::path::PathBuf;

use firn_llm::device::Device;
use firn_llm::model::{Adapter, Decoder};
use firn_llm::weights::Weights;
use serde_json::Value;

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3"];

/// A family's tiny checkpoint and what the Python stack computes from it.
pub(crate) struct Reference {
    pub(crate) family: &'static str,
    pub(crate) folder: PathBuf,
    pub(crate) golden: Weights,
    pub(crate) json: Value,
    pub(crate) model: Decoder,
}

impl Reference {
    pub(crate) fn new(family: &'static str) -> Self {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(family);
        let text = std::fs::read_to_string(folder.join("golden.json")).expect("golden.json");
        Self {
            family,
            golden: Weights::open_file(&folder.join("golden.safetensors")).expect("golden"),
            json: serde_json::from_str(&text).expect("json"),
            model: Decoder::load(&folder, &Device::cpu()).expect("the checkpoint loads"),
            folder,
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        FAMILIES.into_iter().map(Self::new)
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.golden.read(name).expect(name).0
    }

    pub(crate) fn adapter(&self, name: &str) -> Adapter {
        Adapter::load(&self.folder.join(name), self.model.config(), &Device::cpu()).expect("the adapter loads")
    }

    /// Integer tensors are small here: they are read through the safetensors crate.
    pub(crate) fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let bytes = std::fs::read(self.folder.join("golden.safetensors")).expect("golden");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("golden");
        let view = file.tensor(name).expect("tensor");
        let id = |bytes: &[u8; 4]| u32::try_from(i32::from_le_bytes(*bytes)).expect("id");
        let values: Vec<u32> = view.data().as_chunks::<4>().0.iter().map(id).collect();
        values.chunks(*view.shape().last().expect("shape")).map(<[u32]>::to_vec).collect()
    }

    pub(crate) fn logits(&self, model: &Decoder, adapter: Option<&Adapter>) -> Vec<f32> {
        self.ids("input_ids").iter().flat_map(|ids| model.logits(ids, adapter).expect("logits")).collect()
    }

    pub(crate) fn assert_close(&self, name: &str, found: &[f32], tolerance: f32) {
        let expected = self.values(name);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < tolerance, "{} {name}: {worst}", self.family);
    }
}
