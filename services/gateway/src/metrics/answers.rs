//! How long answers take, a model at a time, under the names that vLLM has for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use firn_proto::inference::v1::{GenerateResponse, generate_response::Event};
use tokio::time::Instant;

use super::{Metrics, histogram::Histogram, text::Page};

/// Most models that are told apart; what comes after them is counted as `other`.
const MOST_MODELS: usize = 64;
/// Stands for the models that came too late to be told apart.
const OTHER: &str = "other";

const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0,
];
const NEXT_TOKEN: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];
const WHOLE: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100000.0,
];

/// A family: its name, what it says, its bounds.
type Family = (&'static str, &'static str, &'static [f64]);

const FAMILIES: [Family; 5] = [
    ("vllm:time_to_first_token_seconds", "Seconds from a call to its first token.", FIRST_TOKEN),
    ("vllm:inter_token_latency_seconds", "Seconds between tokens of an answer.", NEXT_TOKEN),
    ("vllm:e2e_request_latency_seconds", "Seconds from a call to its end.", WHOLE),
    ("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS),
    ("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS),
];
const FIRST: usize = 0;
const NEXT: usize = 1;
const END: usize = 2;
const PROMPT: usize = 3;
const ANSWER: usize = 4;

/// One model's histograms, in the families' order.
type Model = [Histogram; FAMILIES.len()];

/// What is known of all answers.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<BTreeMap<String, Model>>);

impl Answers {
    fn observe(&self, model: &str, values: &[(usize, f64, u64)]) {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = models.len() < MOST_MODELS || models.contains_key(model);
        let name = if known { model } else { OTHER };
        if !models.contains_key(name) {
            models.insert(name.to_owned(), FAMILIES.map(|(_, _, bounds)| Histogram::new(bounds)));
        }
        if let Some(histograms) = models.get_mut(name) {
            for (family, value, times) in values {
                histograms[*family].observe(*value, *times);
            }
        }
    }

    pub(crate) fn render(&self, page: &mut Page) {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (index, (name, help, _)) in FAMILIES.into_iter().enumerate() {
            page.family(name, "histogram", help);
            for (model, histograms) in &models {
                histograms[index].render(name, &[("model_name", model)], page);
            }
        }
    }
}

/// Watches one answer.
#[derive(Debug)]
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    model: String,
    started: Instant,
    last: Option<Instant>,
}

impl Meter {
    pub(crate) fn new(metrics: Arc<Metrics>, model: &str) -> Self {
        let model = if model.is_empty() { "base" } else { model }.to_owned();
        Self { metrics, model, started: Instant::now(), last: None }
    }

    /// Counts a piece that has just come. Only a model that answers gets here, so its name is one.
    pub(crate) fn see(&mut self, piece: &GenerateResponse) {
        let now = Instant::now();
        match &piece.event {
            Some(Event::Delta(delta)) if !delta.ids.is_empty() => {
                let tokens = delta.ids.len() as u64;
                let value = match self.last.replace(now) {
                    None => (FIRST, (now - self.started).as_secs_f64(), 1),
                    Some(last) => (NEXT, (now - last).as_secs_f64() / tokens as f64, tokens),
                };
                self.metrics.answers.observe(&self.model, &[value]);
            }
            Some(Event::Finish(finish)) => {
                let seconds = (now - self.started).as_secs_f64();
                let (prompt, answer) = (finish.prompt_tokens.into(), finish.completion_tokens.into());
                let values = [(END, seconds, 1), (PROMPT, prompt, 1), (ANSWER, answer, 1)];
                self.metrics.answers.observe(&self.model, &values);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let answers = Answers::default();
        for index in 0..200 {
            answers.observe(&format!("model-{index}"), &[(END, 1.0, 1)]);
        }
        answers.observe("model-3", &[(END, 1.0, 1)]);
        let mut page = Page::default();
        answers.render(&mut page);
        let text = page.into_text();
        let counts: Vec<&str> =
            text.lines().filter(|line| line.starts_with("vllm:e2e_request_latency_seconds_count")).collect();
        assert_eq!(counts.len(), MOST_MODELS + 1);
        assert!(counts.contains(&"vllm:e2e_request_latency_seconds_count{model_name=\"other\"} 136"), "{counts:?}");
        assert!(counts.contains(&"vllm:e2e_request_latency_seconds_count{model_name=\"model-3\"} 2"));
    }
}
