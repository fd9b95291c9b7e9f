//! Objectives over pairs of answers, a chosen and a rejected one.

/// Distance of a mean log-probability from 0 within which odds are not told apart: f32 does not tell it either.
const NEARLY_CERTAIN: f64 = 1e-7;

/// What a step on pairs minimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Preference {
    /// Direct preference optimisation, sigmoid loss (Rafailov et al. 2023). The reference is the model without its
    /// adapter, or as it was before training.
    Dpo {
        /// Strength of the pull to the reference.
        beta: f64,
    },
    /// Odds-ratio preference optimisation (Hong et al. 2024): the chosen answers' likelihood, and the odds of chosen
    /// over rejected. It needs no reference.
    Orpo {
        /// Weight of the odds.
        beta: f64,
    },
    /// Rewards of a model with a score (Bradley & Terry 1952, Ouyang et al. 2022): that of the chosen answer is to be
    /// the larger one.
    Reward,
}

/// Log-probabilities of a pair's answers, sums over their tokens, nats; or their rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLogs {
    /// Of the chosen answer.
    pub chosen: f64,
    /// Of the rejected answer.
    pub rejected: f64,
}

/// A pair, as the objective sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairState {
    pub(crate) logs: PairLogs,
    /// The reference's, where the objective needs them.
    pub(crate) reference: PairLogs,
    /// Tokens of chosen and rejected answer.
    pub(crate) tokens: [usize; 2],
}

/// Sizes of the step that a pair is part of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSizes {
    pub(crate) pairs: usize,
    pub(crate) chosen_tokens: usize,
}

/// A pair's part of the step's loss, and the weights of its tokens' negative log-likelihoods, or of its negative rewards,
/// in the gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairLoss {
    pub(crate) loss: f64,
    pub(crate) weights: [f64; 2],
}

impl Preference {
    /// Mean loss of pairs, where no reference is needed and tokens don't count: of rewards.
    pub fn mean_reward_loss(pairs: &[PairLogs]) -> f64 {
        let sum: f64 = pairs.iter().map(|pair| -log_sigmoid(pair.chosen - pair.rejected)).sum();
        sum / pairs.len().max(1) as f64
    }

    /// It refers to the model before training.
    pub fn needs_reference(self) -> bool {
        matches!(self, Self::Dpo { .. })
    }

    pub(crate) fn loss(self, pair: PairState, step: StepSizes) -> PairLoss {
        let PairState { logs, reference, tokens } = pair;
        let share = 1.0 / step.pairs as f64;
        match self {
            Self::Dpo { beta } => {
                let margin = (logs.chosen - reference.chosen) - (logs.rejected - reference.rejected);
                let pull = beta * sigmoid(-beta * margin) * share;
                PairLoss { loss: -log_sigmoid(beta * margin) * share, weights: [pull, -pull] }
            }
            Self::Reward => {
                let margin = logs.chosen - logs.rejected;
                let pull = sigmoid(-margin) * share;
                PairLoss { loss: -log_sigmoid(margin) * share, weights: [pull, -pull] }
            }
            Self::Orpo { beta } => {
                // An answer that is certain has infinite odds: it counts as nearly certain.
                let mean = |sum: f64, tokens: usize| (sum / tokens.max(1) as f64).min(-NEARLY_CERTAIN);
                let mean = [mean(logs.chosen, tokens[0]), mean(logs.rejected, tokens[1])];
                let odds = mean.map(|p| p - (-p.exp()).ln_1p());
                let ratio = odds[0] - odds[1];
                let pull = beta * sigmoid(-ratio) * share;
                // The slope of p − ln(1 − eᵖ) is 1 / (1 − eᵖ).
                let slope = |i: usize| pull / (-mean[i].exp_m1()) / tokens[i].max(1) as f64;
                let likelihood = 1.0 / step.chosen_tokens.max(1) as f64;
                PairLoss {
                    loss: -logs.chosen * likelihood - beta * log_sigmoid(ratio) * share,
                    weights: [likelihood + slope(0), -slope(1)],
                }
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::{PairLogs, PairState, Preference, StepSizes};

    #[test]
    fn certain_answers_have_finite_gradients() {
        let step = StepSizes { pairs: 1, chosen_tokens: 2 };
        for (chosen, rejected) in [(0.0, -5.0), (-5.0, 0.0), (0.0, 0.0), (-900.0, 0.0)] {
            let pair =
                PairState { logs: PairLogs { chosen, rejected }, reference: PairLogs::default(), tokens: [2, 2] };
            for objective in [Preference::Dpo { beta: 0.3 }, Preference::Orpo { beta: 0.2 }, Preference::Reward] {
                let found = objective.loss(pair, step);
                let finite = found.loss.is_finite() && found.weights.iter().all(|weight| weight.is_finite());
                assert!(finite, "{objective:?} at {chosen}, {rejected}: {found:?}");
            }
        }
    }

    /// The weights are the loss's slopes, token by token.
    #[test]
    fn weights_are_the_slopes_of_the_loss() {
        let step = StepSizes { pairs: 3, chosen_tokens: 20 };
        let reference = PairLogs { chosen: -9.0, rejected: -7.5 };
        let at = |objective: Preference, chosen: f64, rejected: f64| {
            let logs = PairLogs { chosen, rejected };
            objective.loss(PairState { logs, reference, tokens: [7, 5] }, step)
        };
        for objective in [Preference::Dpo { beta: 0.3 }, Preference::Orpo { beta: 0.2 }, Preference::Reward] {
            let (chosen, rejected, h) = (-8.0, -8.5, 1e-5);
            let found = at(objective, chosen, rejected).weights;
            let slopes = [
                at(objective, chosen + h, rejected).loss - at(objective, chosen - h, rejected).loss,
                at(objective, chosen, rejected + h).loss - at(objective, chosen, rejected - h).loss,
            ];
            for (weight, slope) in found.into_iter().zip(slopes) {
                assert!(
                    (weight + slope / (2.0 * h)).abs() < 1e-7,
                    "{objective:?}: {weight} for {}",
                    -slope / (2.0 * h)
                );
            }
        }
    }
}
