//! Choosing a token from logits. State is plain data: a request's tokens depend on its own seed alone.

use std::collections::HashMap;

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
    /// Least probability, as a share of the most probable token's; 0: all.
    pub min_p: f32,
    /// Seed.
    pub seed: u64,
    /// Taken from the logit of each token that the answer has.
    pub presence_penalty: f32,
    /// Taken from it once for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens that prompt or answer have (Keskar et al. 2019); 1: none.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    /// As the model's probabilities are, with seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// The most probable token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Logits are chosen from as they are.
    fn is_plain(&self) -> bool {
        self.bias.is_empty() && !self.counts_answer() && !self.counts_prompt()
    }

    fn counts_answer(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.counts_prompt()
    }

    fn counts_prompt(&self) -> bool {
        self.repetition_penalty != 1.0
    }
}

/// What an answer's tokens are chosen by: the wishes, and what they need to know of the tokens so far.
#[derive(Clone, Debug)]
pub(crate) struct Chooser {
    sampling: Sampling,
    /// How often the answer has a token; tokens of the prompt alone are there with 0.
    seen: HashMap<u32, u32>,
    answered: usize,
}

impl Chooser {
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let known = if sampling.counts_prompt() { prompt } else { &[] };
        Self { seen: known.iter().map(|id| (*id, 0)).collect(), sampling, answered: 0 }
    }

    /// Chooses the next token of the answer, among those that `allowed` leaves; the same inputs give the same token.
    pub(crate) fn choose(&mut self, logits: &[f32], allowed: Option<&dyn Fn(u32) -> bool>) -> u32 {
        let id = if self.sampling.is_plain() && allowed.is_none() {
            self.draw(logits)
        } else {
            let mut logits = logits.to_vec();
            self.adjust(&mut logits);
            if let Some(allowed) = allowed {
                for (id, logit) in (0u32..).zip(&mut logits) {
                    if !allowed(id) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            self.draw(&logits)
        };
        self.chose(id);
        id
    }

    /// The answer has this token more.
    pub(crate) fn chose(&mut self, id: u32) {
        self.answered += 1;
        if self.sampling.counts_answer() {
            *self.seen.entry(id).or_default() += 1;
        }
    }

    /// It always takes the largest logit as it is.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampling.temperature <= 0.0 && self.sampling.is_plain()
    }

    /// The answer has begun.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_answered(&self) -> bool {
        self.answered > 0
    }

    fn adjust(&self, logits: &mut [f32]) {
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, bias, .. } = &self.sampling;
        for (id, times) in &self.seen {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if *times > 0 {
                *logit -= presence_penalty + frequency_penalty * *times as f32;
            }
        }
        for (id, bias) in bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
    }

    fn draw(&self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, seed, .. } = self.sampling;
        if temperature <= 0.0 {
            return argmax(logits);
        }
        let top = logits.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
        let weight = |logit: f32| f64::from((logit - top) / temperature).exp();
        // Without a cut the order of the tokens does not matter, so none is made.
        let mut kept: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|logit| weight(*logit))).collect();
        if min_p > 0.0 {
            kept.retain(|(_, weight)| *weight >= f64::from(min_p));
        }
        let likeliest_first = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < kept.len() {
            kept.select_nth_unstable_by(top_k - 1, likeliest_first);
            kept.truncate(top_k);
        }
        if top_k > 0 || top_p < 1.0 {
            kept.sort_unstable_by(likeliest_first);
        }
        if top_p < 1.0 {
            let enough = f64::from(top_p) * kept.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let at = kept.iter().position(|(_, weight)| {
                sum += weight;
                sum >= enough
            });
            kept.truncate(at.map_or(kept.len(), |at| at + 1));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.answered as u64);
        let mut left = rng.random::<f64>() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in &kept {
            left -= weight;
            if left <= 0.0 && *weight > 0.0 {
                return *id;
            }
        }
        // Rounding left a rest: the last one that can be.
        kept.iter().rev().find(|(_, weight)| *weight > 0.0).map_or_else(|| argmax(logits), |(id, _)| *id)
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

/// Log-probability of one token, and those of the `count` most probable ones, best first; nats.
pub(crate) fn log_probabilities(logits: &[f32], id: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
    let sum: f64 = logits.iter().map(|v| f64::from(v - top).exp()).sum();
    let of = |logit: f32| (f64::from(logit - top) - sum.ln()) as f32;
    let mut order: Vec<u32> = if count > 0 { (0..logits.len() as u32).collect() } else { Vec::new() };
    let likeliest_first = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count < order.len() && count > 0 {
        order.select_nth_unstable_by(count - 1, likeliest_first);
        order.truncate(count);
    }
    order.sort_unstable_by(likeliest_first);
    (of(logits[id as usize]), order.into_iter().map(|id| (id, of(logits[id as usize]))).collect())
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
