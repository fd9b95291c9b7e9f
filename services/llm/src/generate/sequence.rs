//! Sequences and the step that advances a batch of them.

use super::sampling::{Sampling, log_probability};
use crate::model::{Adapter, Decoder, KvCache, ModelError, Run};
use crate::ops::to_vec;
use crate::workers::Workers;
use burn::tensor::{Int, Tensor, TensorData};

/// One answer in the making.
#[derive(Debug)]
pub struct Sequence {
    cache: KvCache,
    /// Tokens that the model has not seen yet: the prompt at first, then the last answer token.
    pending: Vec<u32>,
    answered: usize,
    sampling: Sampling,
    logprobs: bool,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Id.
    pub id: u32,
    /// Log-probability before temperature, if the sequence asks for it.
    pub logprob: Option<f32>,
}

impl Sequence {
    /// Begins an answer to a prompt, which must not be empty.
    ///
    /// # Errors
    /// An id is unknown, or the prompt does not fit the context.
    pub fn new(model: &Decoder, prompt: Vec<u32>, sampling: Sampling, logprobs: bool) -> Result<Self, ModelError> {
        model.check(&prompt, 0)?;
        let cache = KvCache::new(model.config(), model.device());
        Ok(Self { cache, pending: prompt, answered: 0, sampling, logprobs })
    }

    /// Tokens in the context, those of the next step included.
    pub fn context(&self) -> usize {
        self.cache.len() + self.pending.len()
    }
}

/// Advances every sequence by one token, in one batch: prompts are read whole, answers go on by their last token.
/// Each sequence has its own adapter, or none.
///
/// # Errors
/// A sequence has outgrown the context: check [`Sequence::context`] against the model's before each step.
pub fn step(model: &Decoder, batch: &mut [(&mut Sequence, Option<&Adapter>)]) -> Result<Vec<Token>, ModelError> {
    let pending: Vec<Vec<u32>> = batch.iter_mut().map(|(sequence, _)| std::mem::take(&mut sequence.pending)).collect();
    let mut last = Vec::with_capacity(batch.len());
    let mut runs = Vec::with_capacity(batch.len());
    let mut rows = 0;
    for ((sequence, adapter), ids) in batch.iter_mut().zip(&pending) {
        rows += ids.len() as i64;
        last.push(rows - 1);
        runs.push(Run { ids, cache: &mut sequence.cache, adapter: *adapter });
    }
    let hidden = model.hidden(&mut runs)?;
    let count = last.len();
    let last = Tensor::<1, Int>::from_data(TensorData::new(last, [count]), &model.device.burn);
    let logits = to_vec(hidden.select(0, last).matmul(model.head_weight().clone().transpose()));
    let vocab = model.config().vocab;
    let choose = |((sequence, _), logits): (&mut (&mut Sequence, Option<&Adapter>), &[f32])| {
        let id = sequence.sampling.choose(logits, sequence.answered);
        sequence.answered += 1;
        sequence.pending.push(id);
        Token { id, logprob: sequence.logprobs.then(|| log_probability(logits, id)) }
    };
    Ok(batch.iter_mut().zip(logits.chunks_exact(vocab)).map(choose).collect())
}

/// Sequences of one worker's batch: enough to fill a matrix product, few enough to share the work evenly.
const GREEDY_BATCH: usize = 25;

/// Answers prompts greedily, each until one of `eos` or `max_tokens`; the ends are not part of the answers. `done` is
/// told of each finished answer.
///
/// # Errors
/// A prompt has an unknown id or does not fit the context.
pub fn answer_greedily(
    model: &Decoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    eos: &[u32],
    max_tokens: usize,
    done: &(dyn Fn() + Sync),
) -> Result<Vec<Vec<u32>>, ModelError> {
    let batches: Vec<&[Vec<u32>]> = prompts.chunks(GREEDY_BATCH).collect();
    let results = Workers::new(model.device().workers())
        .map(&batches, |prompts| answer_batch(model, adapter, prompts, eos, max_tokens, done));
    Ok(results.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn answer_batch(
    model: &Decoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    eos: &[u32],
    max_tokens: usize,
    done: &(dyn Fn() + Sync),
) -> Result<Vec<Vec<u32>>, ModelError> {
    let begin = |prompt: &Vec<u32>| Sequence::new(model, prompt.clone(), Sampling::greedy(), false);
    let mut open =
        prompts.iter().map(begin).collect::<Result<Vec<_>, _>>()?.into_iter().enumerate().collect::<Vec<_>>();
    let mut answers = vec![Vec::new(); prompts.len()];
    while !open.is_empty() {
        let mut batch: Vec<_> = open.iter_mut().map(|(_, sequence)| (sequence, adapter)).collect();
        let tokens = step(model, &mut batch)?;
        let mut tokens = tokens.into_iter();
        open.retain(|(index, sequence)| {
            let Some(token) = tokens.next() else { return false };
            let answer = &mut answers[*index];
            let ended = eos.contains(&token.id);
            if !ended {
                answer.push(token.id);
            }
            let on = !ended && answer.len() < max_tokens && sequence.context() <= model.config().context;
            if !on {
                done();
            }
            on
        });
    }
    Ok(answers)
}
