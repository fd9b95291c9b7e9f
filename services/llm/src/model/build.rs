//! A decoder from values: one tensor at a time, so that no more than one is held twice.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, mpsc};

use burn::tensor::Tensor;
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Decoder, Layer, Linear, ModelError, Weight};
use crate::config::{ModelConfig, Module, Norm, Rope};
use crate::device::Device;
use crate::ops::rope::RopeTable;
use crate::ops::tensor;
use crate::quant::Quantization;
use crate::random::normal;
use crate::weights::{Values, Weights};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";
const BLOCKS: &str = "model.layers.";
/// Rotary frequencies, which older checkpoints hold and the configuration gives.
const UNUSED: &str = ".rotary_emb.inv_freq";

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Matrix,
    Bias,
    Norm,
}

impl Decoder {
    /// Loads a checkpoint folder.
    ///
    /// # Errors
    /// A file is missing or does not fit its configuration.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::load_quantized(dir, device, Quantization::None)
    }

    /// Loads a checkpoint folder and quantises the blocks' linear layers. They can't be trained then.
    ///
    /// # Errors
    /// A file is missing or does not fit its configuration.
    pub fn load_quantized(dir: &Path, device: &Device, quantization: Quantization) -> Result<Self, ModelError> {
        let config = ModelConfig::from_dir(dir)?;
        let weights = Weights::open_dir(dir)?;
        for table in [EMBEDDING, HEAD] {
            weights.check_rows(table, config.vocab)?;
        }
        let parameters = parameters(&config);
        let expected: HashSet<&str> = parameters.iter().map(|(name, ..)| name.as_str()).collect();
        weights.refuse_others(BLOCKS, |name| expected.contains(name) || name.ends_with(UNUSED))?;
        std::thread::scope(|scope| {
            // One is read while the one before is on its way to the device.
            let (sender, receiver) = mpsc::sync_channel(0);
            let (weights, parameters) = (&weights, &parameters);
            let read = move || {
                for (name, shape, kind) in parameters {
                    let values = match kind {
                        Kind::Matrix => weights.read_stored(name, shape),
                        Kind::Bias | Kind::Norm => weights.read_finite(name, shape).map(Values::F32),
                    };
                    // Nobody listens any more: the one before could not be used.
                    let Ok(()) = sender.send(values) else { return };
                }
            };
            scope.spawn(read);
            let mut values = receiver.into_iter();
            let source = |name: &str, _: &[usize], _: Kind| match values.next() {
                Some(values) => Ok(values?),
                None => unreachable!("{name} is one of the parameters"),
            };
            Builder { source, offset: config.norm_offset, quantization, device }.decoder(config)
        })
    }

    /// Random weights: normal with deviation 0.02, scaled down by depth where a layer writes to the residual stream
    /// (Radford et al. 2019), biases 0, norms 1.
    pub fn random(config: ModelConfig, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let depth = ((2 * config.layers()) as f32).sqrt();
        let source = |name: &str, shape: &[usize], kind: Kind| {
            let count = shape.iter().product();
            let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let deviation = if residual { 0.02 / depth } else { 0.02 };
            Ok::<_, Infallible>(Values::F32(match kind {
                Kind::Matrix => (0..count).map(|_| normal(&mut rng) * deviation).collect(),
                Kind::Bias => vec![0.0; count],
                Kind::Norm => vec![1.0; count],
            }))
        };
        match (Builder { source, offset: 0.0, quantization: Quantization::None, device }).decoder(config) {
            Ok(decoder) => decoder,
            Err(never) => match never {},
        }
    }
}

impl Decoder {
    /// Weights for measuring speed: the same million normal numbers again and again, which takes seconds for billions.
    pub fn synthetic(config: ModelConfig, quantization: Quantization, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        // A prime, so that rows of no matrix repeat; of bf16, as checkpoints are.
        let pool: Vec<bf16> = (0..1_048_573).map(|_| bf16::from_f32(normal(&mut rng) * 0.02)).collect();
        let mut at = 0;
        let source = |_: &str, shape: &[usize], kind: Kind| {
            let mut rest: usize = shape.iter().product();
            if kind != Kind::Matrix {
                return Ok::<_, Infallible>(Values::F32(vec![if kind == Kind::Norm { 1.0 } else { 0.0 }; rest]));
            }
            let mut values = Vec::with_capacity(rest);
            while rest > 0 {
                let piece = &pool[at..pool.len().min(at + rest)];
                values.extend_from_slice(piece);
                rest -= piece.len();
                at = (at + piece.len()) % pool.len();
            }
            Ok(Values::Bf16(values))
        };
        match (Builder { source, offset: 0.0, quantization, device }).decoder(config) {
            Ok(decoder) => decoder,
            Err(never) => match never {},
        }
    }
}

/// Asks `source` for the values of each parameter, by name and shape, in checkpoint order.
struct Builder<'a, S> {
    source: S,
    /// Added to the norms' values.
    offset: f32,
    quantization: Quantization,
    device: &'a Device,
}

impl<S, E> Builder<'_, S>
where
    S: FnMut(&str, &[usize], Kind) -> Result<Values, E>,
{
    fn decoder(mut self, config: ModelConfig) -> Result<Decoder, E> {
        let table = [config.vocab, config.hidden];
        let embedding = self.matrix(EMBEDDING, table)?;
        let layers = (0..config.layers()).map(|index| self.layer(index, &config)).collect::<Result<_, E>>()?;
        let norm = self.vector(NORM, config.hidden, Kind::Norm)?;
        let head = if config.tied { None } else { Some(self.matrix(HEAD, table)?) };
        let ropes = rope_tables(&config);
        Ok(Decoder { embedding, layers, norm, head, ropes, config, device: self.device.clone() })
    }

    fn layer(&mut self, index: usize, config: &ModelConfig) -> Result<Layer, E> {
        let name = |part: &str, kind: &str| format!("{BLOCKS}{index}.{part}.{kind}");
        let mut norms: [Option<Tensor<1>>; 6] = Default::default();
        for norm in Norm::ALL {
            if let Some(width) = config.norm_width(norm) {
                let name = name(norm.path(config.norms), "weight");
                norms[norm.index()] = Some(self.vector(&name, width, Kind::Norm)?);
            }
        }
        let mut linears = Vec::with_capacity(Module::ALL.len());
        for module in Module::ALL {
            let (path, shape) = (module.path(), config.linear_shape(module));
            let values = (self.source)(&name(&path, "weight"), &shape, Kind::Matrix)?;
            let weight = Weight::new(values, shape, self.quantization, self.device);
            let bias = match config.has_bias(module) {
                true => Some(self.vector(&name(&path, "bias"), shape[0], Kind::Bias)?),
                false => None,
            };
            linears.push(Linear { weight, bias });
        }
        Ok(Layer { norms, linears })
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, E> {
        Ok(self.device.stored((self.source)(name, &shape, Kind::Matrix)?, shape))
    }

    fn vector(&mut self, name: &str, width: usize, kind: Kind) -> Result<Tensor<1>, E> {
        let mut values = (self.source)(name, &[width], kind)?.into_f32();
        if kind == Kind::Norm {
            values.iter_mut().for_each(|value| *value += self.offset);
        }
        Ok(tensor(values, [width], &self.device.burn))
    }
}

/// All parameters with their shapes, in the order in which [`Builder`] asks for them.
fn parameters(config: &ModelConfig) -> Vec<(String, Vec<usize>, Kind)> {
    let table = |name: &str| (name.to_owned(), vec![config.vocab, config.hidden], Kind::Matrix);
    let mut all = vec![table(EMBEDDING)];
    for index in 0..config.layers() {
        let name = |part: &str, kind: &str| format!("{BLOCKS}{index}.{part}.{kind}");
        for norm in Norm::ALL {
            if let Some(width) = config.norm_width(norm) {
                all.push((name(norm.path(config.norms), "weight"), vec![width], Kind::Norm));
            }
        }
        for module in Module::ALL {
            let (path, shape) = (module.path(), config.linear_shape(module));
            all.push((name(&path, "weight"), shape.to_vec(), Kind::Matrix));
            if config.has_bias(module) {
                all.push((name(&path, "bias"), vec![shape[0]], Kind::Bias));
            }
        }
    }
    all.push((NORM.to_owned(), vec![config.hidden], Kind::Norm));
    all.extend((!config.tied).then(|| table(HEAD)));
    all
}

/// Rotary tables, one a block; blocks with the same parameters share one.
pub(super) fn rope_tables(config: &ModelConfig) -> Vec<Arc<RopeTable>> {
    let mut made: Vec<(&Rope, Arc<RopeTable>)> = Vec::new();
    let mut tables = Vec::with_capacity(config.layers());
    for rope in config.attention.iter().map(|layer| &layer.rope) {
        let table = match made.iter().find(|(of, _)| *of == rope) {
            Some((_, table)) => Arc::clone(table),
            None => {
                let table = Arc::new(RopeTable::new(rope, config.head_dim, config.context));
                made.push((rope, Arc::clone(&table)));
                table
            }
        };
        tables.push(table);
    }
    tables
}
