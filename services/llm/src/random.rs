//! Random numbers of initialisation.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// A standard normal variate by Box and Muller's transform.
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (rng.random_range(f32::EPSILON..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
