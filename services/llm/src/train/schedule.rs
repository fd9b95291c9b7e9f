//! Learning-rate schedules as transformers defines them.

use std::f64::consts::PI;
use std::str::FromStr;

/// Shape after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulerKind {
    /// Straight down to zero.
    #[default]
    Linear,
    /// Half a cosine down to zero.
    Cosine,
    /// Flat.
    Constant,
}

impl FromStr for SchedulerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "constant" | "constant_with_warmup" => Ok(Self::Constant),
            other => Err(format!("unknown scheduler {other:?}: use linear, cosine or constant")),
        }
    }
}

/// A schedule over a run whose length is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Shape.
    pub kind: SchedulerKind,
    /// Share of the run with rising rate.
    pub warmup_ratio: f64,
}

impl Schedule {
    /// Rate of the step that begins after `done` (0 to 1) of the run; `step` is one step's share.
    pub fn rate(&self, done: f64, step: f64) -> f64 {
        if done < self.warmup_ratio {
            // The first step has a rate above zero: it would be wasted otherwise.
            return self.peak * ((done + step) / self.warmup_ratio).min(1.0);
        }
        let rest = ((done - self.warmup_ratio) / (1.0 - self.warmup_ratio).max(f64::EPSILON)).clamp(0.0, 1.0);
        match self.kind {
            SchedulerKind::Constant => self.peak,
            SchedulerKind::Linear => self.peak * (1.0 - rest),
            SchedulerKind::Cosine => self.peak * 0.5 * (1.0 + (PI * rest).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Schedule, SchedulerKind};

    #[test]
    fn rises_to_the_peak_and_falls_to_zero() {
        let schedule = Schedule { peak: 1.0, kind: SchedulerKind::Linear, warmup_ratio: 0.1 };
        let rates: Vec<f64> = (0..100).map(|step| schedule.rate(f64::from(step) / 100.0, 0.01)).collect();
        assert!((rates[0] - 0.1).abs() < 1e-12 && (rates[9] - 1.0).abs() < 1e-12);
        assert!(rates[10..].windows(2).all(|pair| pair[1] <= pair[0]));
        assert!(rates[99] > 0.0 && rates[99] < 0.02);
    }
}
