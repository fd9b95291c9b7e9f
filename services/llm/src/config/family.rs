//! `config.json` of each family, read into one description.

use std::path::Path;

use serde_json::Value;

use super::raw::Raw;
use super::refusal::{
    CONTEXT, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, LAYERS, Refusal, VOCAB, positive, refuse, within,
};
use super::rope;
use super::{Activation, ConfigError, LayerAttention, ModelConfig, NormPlacement, Rope};
use crate::files;

const FAMILIES: &str = "llama, mistral, qwen2, qwen3 and gemma3_text are";
const NO_CODE: &str = "code that comes with a checkpoint (auto_map, trust_remote_code) is never run";

/// What the families do differently.
struct Family {
    /// Its class in transformers.
    class: &'static str,
    bias: bool,
    qk_norm: bool,
    gemma: bool,
    /// Which layers slide where `layer_types` does not say.
    window: Windows,
}

#[derive(Clone, Copy)]
enum Windows {
    Never,
    Always,
    /// Layers from `max_window_layers` on, if `use_sliding_window`.
    Late,
    /// All but every `sliding_window_pattern`th.
    Pattern,
}

fn family(model_type: &str) -> Option<Family> {
    let plain = Family { class: "LlamaForCausalLM", bias: false, qk_norm: false, gemma: false, window: Windows::Never };
    Some(match model_type {
        "llama" => plain,
        "mistral" => Family { class: "MistralForCausalLM", window: Windows::Always, ..plain },
        "qwen2" => Family { class: "Qwen2ForCausalLM", bias: true, window: Windows::Late, ..plain },
        "qwen3" => Family { class: "Qwen3ForCausalLM", qk_norm: true, window: Windows::Late, ..plain },
        "gemma3_text" => {
            Family { class: "Gemma3ForCausalLM", qk_norm: true, gemma: true, window: Windows::Pattern, ..plain }
        }
        _ => return None,
    })
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// It is missing, can't be parsed, or names a family or an option that is not supported, or a number outside of what
    /// any model of the families has.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let unreadable = |reason: String| ConfigError::Unreadable { path: path.clone(), reason };
        let text = files::read_text(&path).map_err(unreadable)?;
        let raw: Raw = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(&text))
            .map_err(|error| unreadable(error.to_string()))?;
        raw.describe().map_err(|Refusal { field, value, supported }| ConfigError::Unsupported {
            path,
            field,
            value,
            supported,
        })
    }
}

impl Raw {
    fn describe(&self) -> Result<ModelConfig, Refusal> {
        let family = self.family()?;
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        within("num_attention_heads", self.num_attention_heads, HEADS)?;
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return refuse(
                "hidden_size",
                self.hidden_size,
                "a multiple of num_attention_heads is, or a head_dim beside it",
            );
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads);
        self.check_sizes(kv_heads, head_dim)?;
        self.check_options(&family)?;
        let activation = match self.hidden_act.as_deref() {
            None if family.gemma => Activation::GeluTanh,
            None | Some("silu") => Activation::Silu,
            Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            Some(other) => return refuse("hidden_act", other, "silu and gelu_pytorch_tanh are"),
        };
        let score = self.query_pre_attn_scalar.filter(|_| family.gemma).unwrap_or(head_dim as f64);
        let placement = if family.gemma { NormPlacement::BeforeAndAfter } else { NormPlacement::Before };
        Ok(ModelConfig {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads,
            head_dim,
            attention: self.attention(&family)?,
            score_scale: positive("query_pre_attn_scalar", score)?.sqrt().recip() as f32,
            qkv_bias: family.bias,
            qk_norm: family.qk_norm,
            activation,
            norms: placement,
            norm_offset: if family.gemma { 1.0 } else { 0.0 },
            rms_eps: positive("rms_norm_eps", self.rms_norm_eps)? as f32,
            embedding_scale: if family.gemma { (self.hidden_size as f32).sqrt() } else { 1.0 },
            tied: self.tie_word_embeddings.unwrap_or(family.gemma),
            context: self.max_position_embeddings,
        })
    }

    /// The family, which both `model_type` and `architectures` must name: a class of another name may compute
    /// something else.
    fn family(&self) -> Result<Family, Refusal> {
        let Some(family) = family(&self.model_type) else {
            return refuse("model_type", &self.model_type, format!("{FAMILIES}, and {NO_CODE}"));
        };
        match self.architectures.as_deref() {
            None | Some([]) => Ok(family),
            Some(names) if names.iter().any(|name| name == family.class) => Ok(family),
            Some(names) => refuse("architectures", names.join(", "), format!("{} is, and {NO_CODE}", family.class)),
        }
    }

    fn check_sizes(&self, kv_heads: usize, head_dim: usize) -> Result<(), Refusal> {
        within("vocab_size", self.vocab_size, VOCAB)?;
        within("hidden_size", self.hidden_size, HIDDEN)?;
        within("intermediate_size", self.intermediate_size, INTERMEDIATE)?;
        within("num_hidden_layers", self.num_hidden_layers, LAYERS)?;
        within("max_position_embeddings", self.max_position_embeddings, CONTEXT)?;
        if kv_heads == 0 || !self.num_attention_heads.is_multiple_of(kv_heads) {
            return refuse("num_key_value_heads", kv_heads, "a divisor of num_attention_heads is");
        }
        within("head_dim", head_dim, HEAD_DIM)?;
        if !head_dim.is_multiple_of(2) {
            return refuse("head_dim", head_dim, "an even number is");
        }
        Ok(())
    }

    fn check_options(&self, family: &Family) -> Result<(), Refusal> {
        if self.quantization_config.is_some() {
            let instead = "use the checkpoint that it was quantised from, and quantise it while it is loaded";
            return refuse("quantization_config", "an object", instead);
        }
        if self.attention_bias == Some(true) || self.mlp_bias == Some(true) {
            let field = if self.mlp_bias == Some(true) { "mlp_bias" } else { "attention_bias" };
            return refuse(field, true, "only false is");
        }
        if self.use_bidirectional_attention == Some(true) {
            return refuse("use_bidirectional_attention", true, "only causal attention is");
        }
        if let Some(factor) = self.partial_rotary_factor.filter(|factor| *factor != 1.0) {
            return refuse("partial_rotary_factor", factor, "only 1 is");
        }
        if family.gemma {
            for (field, value) in [
                ("attn_logit_softcapping", self.attn_logit_softcapping),
                ("final_logit_softcapping", self.final_logit_softcapping),
            ] {
                if let Some(value) = value {
                    return refuse(field, value, "only null is");
                }
            }
        }
        Ok(())
    }

    fn attention(&self, family: &Family) -> Result<Vec<LayerAttention>, Refusal> {
        for (field, value) in [("rope_parameters", &self.rope_parameters), ("rope_scaling", &self.rope_scaling)] {
            if !value.is_null() && !value.is_object() {
                return refuse(field, value, "an object is");
            }
        }
        let parse = |value: &Value, theta| rope::parse(value, theta, self.max_position_embeddings);
        let nested = |kind: &str| self.rope_parameters.get(kind).filter(|value| value.is_object());
        let theta = |field, theta: Option<f64>| theta.map(|theta| positive(field, theta)).transpose();
        let local = theta("rope_local_base_freq", self.rope_local_base_freq)?;
        let theta = theta("rope_theta", self.rope_theta)?.or(family.gemma.then_some(1e6));
        let full = match nested("full_attention") {
            Some(value) => parse(value, theta)?,
            None if self.rope_parameters.is_object() => parse(&self.rope_parameters, theta)?,
            None => parse(&self.rope_scaling, theta)?,
        };
        let sliding: Rope = match nested("sliding_attention") {
            Some(value) => parse(value, local)?,
            None if family.gemma => parse(&Value::Null, local)?,
            None => full.clone(),
        };
        if let Some(types) = self.layer_types.as_deref().filter(|types| types.len() != self.num_hidden_layers) {
            return refuse("layer_types", format!("{} layers", types.len()), "one for each of num_hidden_layers is");
        }
        let slides = (0..self.num_hidden_layers).map(|layer| self.slides(layer, family.window));
        slides
            .map(|slides| {
                Ok(match (slides?, self.sliding_window) {
                    (true, Some(0)) => return refuse("sliding_window", 0, "a positive number is"),
                    (true, None) if family.gemma => LayerAttention { window: Some(4096), rope: sliding.clone() },
                    (true, window) => LayerAttention { window, rope: sliding.clone() },
                    (false, _) => LayerAttention { window: None, rope: full.clone() },
                })
            })
            .collect()
    }

    fn slides(&self, layer: usize, windows: Windows) -> Result<bool, Refusal> {
        match self.layer_types.as_ref().and_then(|types| types.get(layer)).map(String::as_str) {
            Some("full_attention") => return Ok(false),
            Some("sliding_attention") => return Ok(true),
            Some(other) => return refuse("layer_types", other, "full_attention and sliding_attention are"),
            None => {}
        }
        Ok(match windows {
            Windows::Never => false,
            Windows::Always => self.sliding_window.is_some(),
            Windows::Late => {
                self.use_sliding_window == Some(true) && self.max_window_layers.is_none_or(|first| layer >= first)
            }
            Windows::Pattern => match self.sliding_window_pattern.or(self.saved_window_pattern).unwrap_or(6) {
                0 => return refuse("sliding_window_pattern", 0, "a positive number is"),
                pattern => !(layer + 1).is_multiple_of(pattern),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::{ConfigError, ModelConfig};

    type Change = fn(&mut Value);

    fn read(change: Change) -> Result<ModelConfig, ConfigError> {
        let mut config = json!({
            "model_type": "gemma3_text", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 6, "num_attention_heads": 2, "head_dim": 8, "sliding_window": 4,
        });
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        ModelConfig::from_dir(dir.path())
    }

    #[test]
    fn gemma_has_its_own_defaults_in_every_shape_of_the_file() {
        let shapes: [Change; 4] = [
            |_| {},
            |config| config["rope_parameters"] = json!({ "full_attention": {}, "sliding_attention": {} }),
            |config| config["rope_parameters"] = json!({ "rope_type": "default" }),
            |config| (config["sliding_window_pattern"], config["_sliding_window_pattern"]) = (json!(6), json!(6)),
        ];
        for shape in shapes {
            let config = read(shape).unwrap();
            let thetas: Vec<f64> = config.attention.iter().map(|layer| layer.rope.theta).collect();
            assert_eq!(thetas, [1e4, 1e4, 1e4, 1e4, 1e4, 1e6]);
            let windows: Vec<_> = config.attention.iter().map(|layer| layer.window).collect();
            assert_eq!((windows[0], windows[5]), (Some(4), None));
            assert!(config.tied);
        }
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused() {
        let cases: [(&str, Change); 5] = [
            ("use_bidirectional_attention", |config| config["use_bidirectional_attention"] = json!(true)),
            ("final_logit_softcapping", |config| config["final_logit_softcapping"] = json!(30.0)),
            ("rope_type", |config| config["rope_scaling"] = json!({ "rope_type": "longrope" })),
            ("num_key_value_heads", |config| config["num_key_value_heads"] = json!(3)),
            ("model_type", |config| config["model_type"] = json!("gpt2")),
        ];
        for (field, change) in cases {
            let error = read(change).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
