//! Sequences and the step that advances a batch of them.

use burn::tensor::{Int, Tensor, TensorData};

use super::constraint::Constraint;
use super::sampling::{Chooser, Sampling, log_probabilities};
use crate::cache::{KvCache, PageTable};
use crate::model::{Adapter, Decoder, ModelError, Run};
use crate::ops::product::product;
use crate::ops::to_vec;

/// One answer in the making.
#[derive(Debug)]
pub struct Sequence {
    table: PageTable,
    /// Prompt and answer so far.
    ids: Vec<u32>,
    chooser: Chooser,
    /// In a box: it is far larger than all the rest, and seldom there.
    constraint: Option<Box<Constraint>>,
    /// Most probable tokens that are told beside each chosen one; `None`: no log-probabilities at all.
    logprobs: Option<usize>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Id.
    pub id: u32,
    /// Log-probability before temperature and penalties, nats, if the sequence asks for it.
    pub logprob: Option<f32>,
    /// The most probable tokens in its place, best first, if the sequence asks for them.
    pub top: Vec<(u32, f32)>,
    /// The constraint lets nothing follow.
    pub complete: bool,
}

/// What a step did to a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Stepped {
    /// Part of its prompt was read.
    Read,
    /// A token was chosen.
    Chose(Token),
    /// No token may be chosen: the constraint is in trouble.
    Stuck(String),
}

/// A sequence's part in a step.
#[derive(Debug)]
pub struct Part<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Whose answer it is; none: the base's. Always the same for a sequence.
    pub adapter: Option<&'a Adapter>,
    /// Most tokens to read. A token is chosen in the step that reads the last one.
    pub tokens: usize,
}

impl Sequence {
    /// Begins an answer to a prompt, which must not be empty.
    ///
    /// # Errors
    /// An id is unknown, or the prompt does not fit the context.
    pub fn new(model: &Decoder, prompt: Vec<u32>, sampling: Sampling) -> Result<Self, ModelError> {
        model.check(&prompt, 0)?;
        let chooser = Chooser::new(sampling, &prompt);
        Ok(Self { table: PageTable::default(), ids: prompt, chooser, constraint: None, logprobs: None })
    }

    /// Tells the log-probability of each token, and those of the `top` most probable ones.
    #[must_use]
    pub fn with_logprobs(self, top: usize) -> Self {
        Self { logprobs: Some(top), ..self }
    }

    /// Keeps the answer to a constraint.
    #[must_use]
    pub fn with_constraint(self, constraint: Constraint) -> Self {
        Self { constraint: Some(Box::new(constraint)), ..self }
    }

    /// Tokens in the context, those of the next step included.
    pub fn context(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that are yet to be read.
    pub fn unread(&self) -> usize {
        self.ids.len() - self.table.len()
    }

    /// Prompt and answer so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Takes what the cache knows of the tokens of a sequence that has no pages; gives how many tokens that are.
    pub fn attach(&mut self, cache: &mut KvCache, adapter: Option<&Adapter>) -> usize {
        self.table = PageTable::new(adapter.map_or(0, Adapter::id));
        cache.pages.attach(&mut self.table, &self.ids);
        self.table.len()
    }

    /// Makes room in the cache for the next `tokens` tokens; false if there is none now.
    pub fn reserve(&mut self, cache: &mut KvCache, tokens: usize) -> bool {
        cache.reserve(&mut self.table, tokens)
    }

    /// Gives its pages back. What was said stays: the sequence may go on after [`Self::attach`], and reads it again.
    pub fn release(&mut self, cache: &mut KvCache) {
        cache.pages.release(&mut self.table);
    }
}

/// Advances the sequences of a batch together: each reads its next tokens, and whoever has read all gets one more.
///
/// # Errors
/// A sequence has outgrown the context (check [`Sequence::context`] against the model's before each step), or the cache is
/// full (see [`Sequence::reserve`]). The sequences must not be used after that.
pub fn step(model: &Decoder, cache: &mut KvCache, parts: &mut [Part<'_>]) -> Result<Vec<Stepped>, ModelError> {
    // An accelerator's work is in order on the thread that gives it.
    if !model.device.is_host() {
        return step_among_workers(model, cache, parts);
    }
    // Among the workers from the start: otherwise each product that is spread would wake one, and wait for it asleep.
    rayon::scope(|_| step_among_workers(model, cache, parts))
}

fn step_among_workers(
    model: &Decoder,
    cache: &mut KvCache,
    parts: &mut [Part<'_>],
) -> Result<Vec<Stepped>, ModelError> {
    let mut runs = Vec::with_capacity(parts.len());
    // Rows whose tokens come next, by part.
    let mut last = Vec::with_capacity(parts.len());
    let mut rows = 0;
    for part in parts.iter_mut() {
        let Sequence { table, ids, .. } = &mut *part.sequence;
        let unread = &ids[table.len()..];
        let read = &unread[..part.tokens.min(unread.len())];
        cache.require(table, read.len())?;
        rows += read.len() as i64;
        last.push((read.len() == unread.len()).then_some(rows - 1));
        runs.push(Run { ids: read, table, adapter: part.adapter });
    }
    let hidden = model.hidden(cache, &mut runs)?;
    let chosen: Vec<i64> = last.iter().copied().flatten().collect();
    let count = chosen.len();
    let logits = if count == 0 {
        Vec::new()
    } else {
        let chosen = Tensor::<1, Int>::from_data(TensorData::new(chosen, [count]), &model.device.burn);
        to_vec(product(&hidden.select(0, chosen), model.head_weight()))
    };
    let mut logits = logits.chunks_exact(model.config().vocab);
    let stepped = parts.iter_mut().zip(last).map(|(part, last)| match last.and_then(|_| logits.next()) {
        Some(logits) => part.sequence.choose(logits),
        None => Stepped::Read,
    });
    Ok(stepped.collect())
}

impl Sequence {
    fn choose(&mut self, logits: &[f32]) -> Stepped {
        let id = match &mut self.constraint {
            None => self.chooser.choose(logits, None),
            Some(constraint) => {
                if let Err(reason) = constraint.prepare() {
                    return Stepped::Stuck(reason);
                }
                self.chooser.choose(logits, Some(&|id| constraint.allows(id)))
            }
        };
        let complete = match self.constraint.as_mut().map(|constraint| constraint.take(id)) {
            None => false,
            Some(Ok(complete)) => complete,
            Some(Err(reason)) => return Stepped::Stuck(reason),
        };
        self.ids.push(id);
        let (logprob, top) = match self.logprobs {
            None => (None, Vec::new()),
            Some(count) => {
                let (logprob, top) = log_probabilities(logits, id, count);
                (Some(logprob), top)
            }
        };
        Stepped::Chose(Token { id, logprob, top, complete })
    }
}
