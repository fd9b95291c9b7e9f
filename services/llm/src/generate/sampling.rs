//! Choosing a token from logits. State is plain data: a request's tokens depend on its own seed alone.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Smallest set of tokens whose probability reaches this; 1: all.
    pub top_p: f32,
    /// The most probable tokens; 0: all.
    pub top_k: usize,
    /// Seed.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }

    /// Chooses the token at `position` of its answer; the same inputs give the same token.
    pub(crate) fn choose(&self, logits: &[f32], position: usize) -> u32 {
        if self.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        order.sort_unstable_by(by_logit);
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let top = logits[order[0] as usize];
        let mut weights: Vec<f64> =
            order.iter().map(|id| f64::from((logits[*id as usize] - top) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let enough = weights.iter().position(|weight| {
            kept += weight / total;
            kept >= f64::from(self.top_p)
        });
        weights.truncate(enough.map_or(weights.len(), |at| at + 1));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(position as u64);
        let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
        for (id, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left <= 0.0 {
                return *id;
            }
        }
        order[weights.len() - 1]
    }
}

/// First index of the largest value.
fn argmax(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (index, value)| if *value > best.1 { (index, *value) } else { best });
    best.0 as u32
}

/// Log-probability of one token, nats.
pub(crate) fn log_probability(logits: &[f32], id: u32) -> f32 {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
    let sum: f64 = logits.iter().map(|v| f64::from(v - top).exp()).sum();
    (f64::from(logits[id as usize] - top) - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::Sampling;

    #[test]
    fn the_seed_and_the_position_decide() {
        let logits = [0.1, 0.2, 0.3, 0.0];
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 7 };
        let draw = |s: &Sampling| (0..64).map(|position| s.choose(&logits, position)).collect::<Vec<_>>();
        assert_eq!(draw(&sampling), draw(&sampling));
        assert_ne!(draw(&sampling), draw(&Sampling { seed: 8, ..sampling }));
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [5.0, 4.0, 0.0, -1.0];
        for sampling in [
            Sampling { temperature: 1.0, top_p: 1.0, top_k: 2, seed: 1 },
            Sampling { temperature: 1.0, top_p: 0.9, top_k: 0, seed: 1 },
        ] {
            assert!((0..200).all(|position| sampling.choose(&logits, position) < 2));
        }
    }
}
