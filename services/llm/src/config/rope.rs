//! Rotary parameters in the two shapes that `config.json` has had.

use serde_json::Value;

use super::{Rope, RopeScaling};

/// Why rotary parameters can't be used: the field and its value.
pub(super) struct Unsupported(pub(super) &'static str, pub(super) String);

/// Reads one object: transformers 5's `rope_parameters`, or the older `rope_scaling` beside a `rope_theta`.
pub(super) fn parse(value: &Value, theta: Option<f64>, context: usize) -> Result<Rope, Unsupported> {
    let number = |field: &str| value[field].as_f64();
    let theta = number("rope_theta").or(theta).unwrap_or(1e4);
    let factor = number("factor");
    let original = number("original_max_position_embeddings");
    let scaling = match value["rope_type"].as_str().or(value["type"].as_str()) {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: required("factor", factor)? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: required("factor", factor)?,
            low: required("low_freq_factor", number("low_freq_factor"))?,
            high: required("high_freq_factor", number("high_freq_factor"))?,
            original: required("original_max_position_embeddings", original)?,
        },
        Some("yarn") => {
            let factor = required("factor", factor)?;
            RopeScaling::Yarn {
                factor,
                beta_fast: number("beta_fast").unwrap_or(32.0),
                beta_slow: number("beta_slow").unwrap_or(1.0),
                original: original.unwrap_or(context as f64),
                attention_factor: number("attention_factor").unwrap_or_else(|| sharpening(factor, value)),
                truncate: value["truncate"].as_bool().unwrap_or(true),
            }
        }
        Some(other) => return Err(Unsupported("rope_type", other.to_owned())),
    };
    Ok(Rope { theta, scaling })
}

/// YaRN's `0.1·ln(factor) + 1`, or DeepSeek's quotient of two such.
fn sharpening(factor: f64, value: &Value) -> f64 {
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (value["mscale"].as_f64(), value["mscale_all_dim"].as_f64()) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => scale(one) / scale(all),
        _ => scale(1.0),
    }
}

fn required(field: &'static str, value: Option<f64>) -> Result<f64, Unsupported> {
    value
        .filter(|value| value.is_finite() && *value > 0.0)
        .ok_or(Unsupported(field, "missing or not positive".to_owned()))
}
