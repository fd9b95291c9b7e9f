//! Rotary parameters in the two shapes that `config.json` has had.

use serde_json::Value;

use super::refusal::{Refusal, number, positive, refuse};
use super::{Rope, RopeScaling};

const KINDS: &str = "default, linear, llama3 and yarn are";

/// Reads one object: transformers 5's `rope_parameters`, or the older `rope_scaling` beside a `rope_theta`.
pub(super) fn parse(value: &Value, theta: Option<f64>, context: usize) -> Result<Rope, Refusal> {
    let given = |field| number(value, field)?.map(|number| positive(field, number)).transpose();
    let required = |field| match given(field)? {
        Some(number) => Ok(number),
        None => refuse(field, "null", "a positive number is"),
    };
    // Less than 1 would shorten the context, and far less overflow.
    let factor = || match required("factor")? {
        factor if factor < 1.0 => refuse("factor", factor, "1 or more is"),
        factor => Ok(factor),
    };
    let theta = given("rope_theta")?.or(theta).unwrap_or(1e4);
    if theta <= 1.0 {
        return refuse("rope_theta", theta, "more than 1 is");
    }
    if number(value, "partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return refuse("partial_rotary_factor", &value["partial_rotary_factor"], "only 1 is");
    }
    let kind = [&value["rope_type"], &value["type"]].into_iter().find(|kind| !kind.is_null());
    let scaling = match kind.map(|kind| kind.as_str().ok_or(kind)) {
        None | Some(Ok("default")) => RopeScaling::None,
        Some(Ok("linear")) => RopeScaling::Linear { factor: factor()? },
        Some(Ok("llama3")) => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low >= high {
                return refuse("high_freq_factor", high, "more than low_freq_factor is");
            }
            let original = required("original_max_position_embeddings")?;
            RopeScaling::Llama3 { factor: factor()?, low, high, original }
        }
        Some(Ok("yarn")) => {
            let factor = factor()?;
            RopeScaling::Yarn {
                factor,
                beta_fast: given("beta_fast")?.unwrap_or(32.0),
                beta_slow: given("beta_slow")?.unwrap_or(1.0),
                original: given("original_max_position_embeddings")?.unwrap_or(context as f64),
                attention_factor: match given("attention_factor")? {
                    Some(factor) => factor,
                    None => sharpening(factor, number(value, "mscale")?, number(value, "mscale_all_dim")?)?,
                },
                truncate: value["truncate"].as_bool().unwrap_or(true),
            }
        }
        Some(Ok(other)) => return refuse("rope_type", other, KINDS),
        Some(Err(other)) => return refuse("rope_type", other, KINDS),
    };
    Ok(Rope { theta, scaling })
}

/// YaRN's `0.1·ln(factor) + 1`, or DeepSeek's quotient of two such.
fn sharpening(factor: f64, one: Option<f64>, all: Option<f64>) -> Result<f64, Refusal> {
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (one, all) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => positive("mscale", scale(one) / scale(all)),
        _ => Ok(scale(1.0)),
    }
}
