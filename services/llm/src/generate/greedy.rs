//! Greedy answers to many prompts, for evaluation.

use super::{Part, Sampling, Sequence, Stepped, step};
use crate::cache::{KvCache, PAGE_TOKENS};
use crate::model::{Adapter, Decoder, ModelError};
use crate::workers::Workers;

/// Sequences of one worker's batch: enough to fill a matrix product, few enough to share the work evenly.
const BATCH: usize = 25;

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
    let batches: Vec<&[Vec<u32>]> = prompts.chunks(BATCH).collect();
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
    let context = model.config().context;
    let longest = |prompt: &Vec<u32>| (prompt.len() + max_tokens).min(context).next_multiple_of(PAGE_TOKENS);
    let mut cache = KvCache::new(model, prompts.iter().map(longest).sum());
    let begin = |prompt: &Vec<u32>| Sequence::new(model, prompt.clone(), Sampling::greedy());
    let mut open =
        prompts.iter().map(begin).collect::<Result<Vec<_>, _>>()?.into_iter().enumerate().collect::<Vec<_>>();
    for (_, sequence) in &mut open {
        sequence.attach(&mut cache, adapter);
    }
    let mut answers = vec![Vec::new(); prompts.len()];
    while !open.is_empty() {
        let mut parts: Vec<_> =
            open.iter_mut().map(|(_, sequence)| Part { sequence, adapter, tokens: usize::MAX }).collect();
        let mut stepped = step(model, &mut cache, &mut parts)?.into_iter();
        open.retain_mut(|(index, sequence)| {
            let Some(Stepped::Chose(token)) = stepped.next() else { return false };
            let answer = &mut answers[*index];
            let ended = eos.contains(&token.id);
            if !ended {
                answer.push(token.id);
            }
            let on = !ended && answer.len() < max_tokens && sequence.context() <= context;
            if !on {
                sequence.release(&mut cache);
                done();
            }
            on
        });
    }
    Ok(answers)
}
