//! Low-rank adapters in PEFT's names, shapes and files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::config::{ModelConfig, Module};
use crate::device::Device;
use crate::files;
#[cfg(feature = "cuda")]
use crate::ops::cuda::{Array, linear};
use crate::ops::product::product;
use crate::ops::{tensor, to_vec};
use crate::random::normal;
use crate::weights::{self, NamedTensor, StoredType, Weights, WeightsError};

const FILE: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// Files of an adapter's folder: its configuration, which a full model's folder has not, and its tensors.
pub const ADAPTER_FILES: [&str; 2] = [CONFIG, FILE];
const BLOCKS: &str = "base_model.model.model.layers.";
/// PEFT's task of a reward model, and the tensor that such an adapter has besides.
const REWARD_TASK: &str = "SEQ_CLS";
const SCORE: &str = "base_model.model.score.weight";
/// Random numbers of the score: others than those of the factors.
const SCORE_STREAM: u64 = 1;

/// Why an adapter could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A file is missing, or can't be read, parsed or written.
    #[error("failed to use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configuration asks for something that Firn does not compute.
    #[error("{} has {field} = {value}, which is not supported: plain LoRA on linear layers is", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// A file of tensors can't be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor is missing, is too many or has the wrong shape.
    #[error("{0}: the adapter was trained on another base, or its configuration is not its own")]
    OtherBase(WeightsError),
    /// A name is no linear layer.
    #[error(
        "unknown target module {0:?}: use q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or all-linear"
    )]
    UnknownTarget(String),
}

/// Rank, scale and targets.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The delta is scaled by `alpha / r`, or by `alpha / √r` with `rslora`.
    pub alpha: f32,
    /// Rank-stabilised scale (Kalajdzievski 2023).
    pub rslora: bool,
    /// Share of a layer's inputs that the adapter does not see in a training step.
    pub dropout: f32,
    /// Adapted layers.
    pub targets: Vec<Module>,
}

impl LoraConfig {
    /// Every linear layer, alpha = 2 r.
    pub fn all_linear(r: usize) -> Self {
        Self { r, alpha: 2.0 * r as f32, rslora: false, dropout: 0.0, targets: Module::ALL.to_vec() }
    }

    /// Parses module names; none, or `all-linear`, means all.
    ///
    /// # Errors
    /// A name is no linear layer.
    pub fn parse_targets<S: AsRef<str>>(names: &[S]) -> Result<Vec<Module>, AdapterError> {
        if names.is_empty() || names.iter().any(|name| name.as_ref() == "all-linear") {
            return Ok(Module::ALL.to_vec());
        }
        let find = |name: &S| Module::ALL.into_iter().find(|module| module.name() == name.as_ref());
        names
            .iter()
            .map(|name| find(name).ok_or_else(|| AdapterError::UnknownTarget(name.as_ref().to_owned())))
            .collect()
    }

    /// Number of parameters of an adapter of a model.
    pub fn parameters(&self, model: &ModelConfig) -> usize {
        let widths = self.targets.iter().flat_map(|module| model.linear_shape(*module));
        model.layers() * self.r * widths.sum::<usize>()
    }

    /// Factor of the delta.
    pub(crate) fn scale(&self) -> f32 {
        let r = self.r as f32;
        self.alpha / if self.rslora { r.sqrt() } else { r }
    }
}

/// The factors of one layer: `a` `[r, in]` and `b` `[out, r]`, as PEFT stores them.
#[derive(Clone, Debug)]
pub(crate) struct LoraPair {
    pub(crate) a: Tensor<2>,
    pub(crate) b: Tensor<2>,
    pub(crate) scale: f32,
    /// Both in bf16, as a GPU's kernels read them, once they were asked for.
    #[cfg(feature = "cuda")]
    halves: [std::sync::OnceLock<Option<Array>>; 2],
}

impl LoraPair {
    pub(crate) fn new(a: Tensor<2>, b: Tensor<2>, scale: f32) -> Self {
        Self {
            a,
            b,
            scale,
            #[cfg(feature = "cuda")]
            halves: Default::default(),
        }
    }

    /// `a` in bf16; `None` elsewhere than on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn half_a(&self) -> Option<&Array> {
        self.halves[0].get_or_init(|| linear::stacked(&[&self.a])).as_ref()
    }

    /// `b` in bf16; `None` elsewhere than on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn half_b(&self) -> Option<&Array> {
        self.halves[1].get_or_init(|| linear::stacked(&[&self.b])).as_ref()
    }

    /// `(s·x·Aᵀ)·Bᵀ` and `s·x·Aᵀ`.
    pub(crate) fn delta(&self, x: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let [a, b] = [&self.a, &self.b].map(|factor| factor.clone().cast(x.dtype()).transpose());
        let inner = x.clone().matmul(a) * self.scale;
        (inner.clone().matmul(b), inner)
    }

    /// `s·(x·Aᵀ)·Bᵀ`, with the same bits for a row whatever rows come with it: for serving.
    pub(crate) fn serve(&self, x: &Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "cuda")]
        if let (Some(a), Some(b)) = (self.half_a(), self.half_b())
            && let Some(delta) = linear::delta(x, [a, b], self.scale)
        {
            return delta;
        }
        product(&product(x, &self.a), &self.b) * self.scale
    }
}

/// An adapter of a decoder.
#[derive(Clone, Debug)]
pub struct Adapter {
    config: LoraConfig,
    layers: Vec<[Option<LoraPair>; 7]>,
    /// `[1, hidden]`: makes a reward of the last token's normed hidden row.
    score: Option<Tensor<2>>,
    /// Tells it from others in this process: states that it computed are its own. Clones compute the same.
    id: u64,
}

/// A number that no adapter had before; 0 is the base's.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Adapter {
    /// A new adapter as PEFT initialises it: `a` Kaiming-uniform, `b` zero, so that it changes nothing yet.
    pub fn new(model: &ModelConfig, config: LoraConfig, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let scale = config.scale();
        let layers = (0..model.layers())
            .map(|_| {
                Module::ALL.map(|module| {
                    config.targets.contains(&module).then(|| {
                        let [output, input] = model.linear_shape(module);
                        // kaiming_uniform(a = √5) is uniform in ±1/√fan_in.
                        let bound = (input as f32).sqrt().recip();
                        let a = (0..config.r * input).map(|_| rng.random_range(-bound..bound)).collect();
                        let b = Tensor::zeros([output, config.r], &device.burn);
                        LoraPair::new(tensor(a, [config.r, input], &device.burn), b, scale)
                    })
                })
            })
            .collect();
        Self { config, layers, score: None, id: next_id() }
    }

    /// A new adapter with a new score, normal with transformers' deviation 0.02: a reward model.
    pub fn new_reward(model: &ModelConfig, config: LoraConfig, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(SCORE_STREAM);
        let score = (0..model.hidden).map(|_| normal(&mut rng) * 0.02).collect();
        let score = Some(tensor(score, [1, model.hidden], &device.burn));
        Self { score, ..Self::new(model, config, seed, device) }
    }

    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// A file is missing or unreadable, or asks for something other than plain LoRA on linear layers.
    pub fn load(dir: &Path, model: &ModelConfig, device: &Device) -> Result<Self, AdapterError> {
        let path = dir.join(CONFIG);
        let fail = |reason: String| AdapterError::File { path: path.clone(), reason };
        let value: Value =
            serde_json::from_str(&files::read_text(&path).map_err(fail)?).map_err(|error| fail(error.to_string()))?;
        for (field, plain) in [
            ("peft_type", json!("LORA")),
            ("bias", json!("none")),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("fan_in_fan_out", json!(false)),
            ("lora_bias", json!(false)),
        ] {
            if !value[field].is_null() && value[field] != plain {
                return Err(AdapterError::Unsupported { path, field, value: value[field].to_string() });
            }
        }
        let reward = value["task_type"] == REWARD_TASK;
        for field in [
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "layers_to_transform",
            "layer_replication",
            "exclude_modules",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
        ] {
            if reward && field == "modules_to_save" {
                continue;
            }
            let empty = match &value[field] {
                Value::Null => true,
                Value::Object(map) => map.is_empty(),
                Value::Array(items) => items.is_empty(),
                _ => false,
            };
            if !empty {
                return Err(AdapterError::Unsupported { path, field, value: value[field].to_string() });
            }
        }
        let r = value["r"].as_u64().filter(|r| *r > 0).ok_or_else(|| fail("it has no rank r".to_owned()))? as usize;
        let alpha = value["lora_alpha"].as_f64().ok_or_else(|| fail("it has no lora_alpha".to_owned()))? as f32;
        if !alpha.is_finite() {
            return Err(fail(format!("its lora_alpha is {}, more than an f32 holds", value["lora_alpha"])));
        }
        let targets = match &value["target_modules"] {
            Value::String(name) => Some(vec![name.as_str()]),
            Value::Array(names) if !names.is_empty() => names.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let targets = targets.ok_or_else(|| fail("it has no names as target_modules".to_owned()))?;
        let targets = LoraConfig::parse_targets(&targets).map_err(|error| fail(error.to_string()))?;
        let rslora = value["use_rslora"].as_bool().unwrap_or(false);
        let dropout = value["lora_dropout"].as_f64().unwrap_or(0.0) as f32;
        if !(0.0..1.0).contains(&dropout) {
            return Err(fail(format!("its lora_dropout is {}: it must be from 0, less than 1", value["lora_dropout"])));
        }
        let config = LoraConfig { r, alpha, rslora, dropout, targets };
        let weights = Weights::open_file(&dir.join(FILE))?;
        let expected: HashSet<String> = (0..model.layers())
            .flat_map(|layer| config.targets.iter().map(move |module| (layer, *module)))
            .flat_map(|(layer, module)| ["A", "B"].map(|factor| tensor_name(layer, module, factor)))
            .collect();
        weights.refuse_others(BLOCKS, |name| expected.contains(name)).map_err(AdapterError::OtherBase)?;
        let scale = config.scale();
        let mut layers = Vec::with_capacity(model.layers());
        for layer in 0..model.layers() {
            let mut pairs: [Option<LoraPair>; 7] = Default::default();
            for &module in &config.targets {
                let [output, input] = model.linear_shape(module);
                let read = |factor: &str, shape: [usize; 2]| {
                    let name = tensor_name(layer, module, factor);
                    weights.check_shape(&name, &shape).map_err(AdapterError::OtherBase)?;
                    Ok::<_, AdapterError>(tensor(weights.read_finite(&name, &shape)?, shape, &device.burn))
                };
                pairs[module.index()] = Some(LoraPair::new(read("A", [r, input])?, read("B", [output, r])?, scale));
            }
            layers.push(pairs);
        }
        let shape = [1, model.hidden];
        let score = match reward {
            true => {
                weights.check_shape(SCORE, &shape).map_err(AdapterError::OtherBase)?;
                Some(tensor(weights.read_finite(SCORE, &shape)?, shape, &device.burn))
            }
            false => None,
        };
        Ok(Self { config, layers, score, id: next_id() })
    }

    /// Writes a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`, f32.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save(&self, dir: &Path, base: &str) -> Result<(), AdapterError> {
        let mut tensors = Vec::new();
        for (layer, pairs) in self.layers.iter().enumerate() {
            for module in Module::ALL {
                let Some(pair) = &pairs[module.index()] else { continue };
                for (factor, value) in [("A", &pair.a), ("B", &pair.b)] {
                    let (name, shape) = (tensor_name(layer, module, factor), value.dims().to_vec());
                    tensors.push(NamedTensor { name, shape, values: to_vec(value.clone()) });
                }
            }
        }
        if let Some(score) = &self.score {
            let (name, shape) = (SCORE.to_owned(), score.dims().to_vec());
            tensors.push(NamedTensor { name, shape, values: to_vec(score.clone()) });
        }
        weights::write(&dir.join(FILE), &tensors, StoredType::F32)?;
        let (task, saved) = match self.score {
            // PEFT's own names for what a sequence classifier keeps whole.
            Some(_) => (REWARD_TASK, json!(["classifier", "score"])),
            None => ("CAUSAL_LM", Value::Null),
        };
        let targets: Vec<_> = self.config.targets.iter().map(|module| module.name()).collect();
        let value = json!({
            "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "revision": null,
            "r": self.config.r, "lora_alpha": self.config.alpha, "lora_dropout": self.config.dropout, "target_modules": targets,
            "bias": "none", "use_dora": false, "use_rslora": self.config.rslora, "rank_pattern": {},
            "alpha_pattern": {}, "modules_to_save": saved, "layers_to_transform": null, "fan_in_fan_out": false,
            "inference_mode": true, "init_lora_weights": true,
        });
        let path = dir.join(CONFIG);
        std::fs::write(&path, format!("{value:#}\n"))
            .map_err(|error| AdapterError::File { path, reason: error.to_string() })
    }

    /// A copy on another device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        let mut copy = self.clone();
        for factor in copy.tensors_mut() {
            *factor = factor.clone().to_device(&device.burn);
        }
        copy
    }

    /// Rank, scale and targets.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Sets the dropout of further training.
    pub fn set_dropout(&mut self, rate: f32) {
        self.config.dropout = rate;
    }

    /// True if it gives rewards rather than text.
    pub fn is_reward(&self) -> bool {
        self.score.is_some()
    }

    /// What it computes is its own: no other adapter of this process has this number, and the base has 0.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn score(&self) -> Option<&Tensor<2>> {
        self.score.as_ref()
    }

    /// Number of trained parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().map(|tensor| tensor.shape().num_elements()).sum()
    }

    pub(crate) fn pair(&self, layer: usize, module: Module) -> Option<&LoraPair> {
        self.layers[layer][module.index()].as_ref()
    }

    /// All factors, layer by layer, `a` before `b`; then the score.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor<2>> {
        self.layers.iter().flatten().flatten().flat_map(|pair| [&pair.a, &pair.b]).chain(&self.score)
    }

    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor<2>> {
        self.id = next_id();
        #[cfg(feature = "cuda")]
        self.layers.iter_mut().flatten().flatten().for_each(|pair| pair.halves = Default::default());
        self.layers.iter_mut().flatten().flatten().flat_map(|pair| [&mut pair.a, &mut pair.b]).chain(&mut self.score)
    }
}

fn tensor_name(layer: usize, module: Module, factor: &str) -> String {
    format!("{BLOCKS}{layer}.{}.lora_{factor}.weight", module.path())
}
