//! Sequences and the step that advances a batch of them.

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

use super::constraint::Constraint;
use super::sampling::{Chooser, Sampling, log_probabilities};
use crate::cache::{KvCache, PageTable};
use crate::model::{Adapter, Decoder, ModelError, Run};
use crate::ops::product::product;
use crate::ops::to_vec;

/// One answer in the making.
#[derive(Debug)]
pub struct Sequence {
    pub(super) table: PageTable,
    /// Prompt and answer so far.
    pub(super) ids: Vec<u32>,
    pub(super) chooser: Chooser,
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
    #[cfg(feature = "cuda")]
    let spoken = super::speaking::speak(model, cache, parts)?;
    #[cfg(not(feature = "cuda"))]
    let spoken: Vec<Option<Next>> = parts.iter().map(|_| None).collect();
    let mut runs = Vec::with_capacity(parts.len());
    // Rows whose tokens come next, by part that is not done with yet.
    let mut last = Vec::with_capacity(parts.len());
    let mut rows = 0;
    for part in parts.iter_mut().zip(&spoken).filter_map(|(part, spoken)| spoken.is_none().then_some(part)) {
        let Sequence { table, ids, .. } = &mut *part.sequence;
        let unread = &ids[table.len()..];
        let read = &unread[..part.tokens.min(unread.len())];
        cache.require(table, read.len())?;
        rows += read.len() as i64;
        last.push((read.len() == unread.len()).then_some(rows - 1));
        runs.push(Run { ids: read, table, adapter: part.adapter });
    }
    let chosen: Vec<i64> = last.iter().copied().flatten().collect();
    let mut logits = Vec::new();
    if !runs.is_empty() {
        let hidden = model.hidden(cache, &mut runs)?;
        let count = chosen.len();
        if count > 0 {
            let chosen = Tensor::<1, Int>::from_data(TensorData::new(chosen, [count]), &model.device.burn);
            logits = to_vec(product(&hidden.select(0, chosen), model.head_weight()));
        }
    }
    let (mut logits, mut last) = (logits.chunks_exact(model.config().vocab), last.into_iter());
    let next = spoken.into_iter().map(|spoken| match spoken {
        Some(next) => Some(next),
        None => last.next().flatten().and_then(|_| logits.next()).map(|logits| Next::Logits(logits.to_vec())),
    });
    let next: Vec<_> = next.collect();
    let choose = |(part, next): (&mut Part<'_>, Option<Next>)| match next {
        #[cfg(feature = "cuda")]
        Some(Next::Id(id)) => part.sequence.take_likeliest(id),
        Some(Next::Logits(logits)) => part.sequence.choose(&logits),
        None => Stepped::Read,
    };
    // Each row's choice is its own: with a large vocabulary they take longer than the step.
    Ok(parts.par_iter_mut().zip(next).map(choose).collect())
}

/// What comes next in a row.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// The most probable token.
    #[cfg(feature = "cuda")]
    Id(u32),
    /// Logits of all tokens.
    Logits(Vec<f32>),
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
        self.take(id, Some(logits))
    }

    /// Nothing but the most probable token matters.
    #[cfg(feature = "cuda")]
    pub(super) fn wants_no_logits(&self) -> bool {
        self.constraint.is_none() && self.logprobs.is_none() && self.chooser.is_greedy()
    }

    /// Takes the most probable token, which was found where the logits are.
    #[cfg(feature = "cuda")]
    fn take_likeliest(&mut self, id: u32) -> Stepped {
        self.chooser.chose(id);
        self.take(id, None)
    }

    /// Takes a token that was chosen from these logits.
    fn take(&mut self, id: u32, logits: Option<&[f32]>) -> Stepped {
        let complete = match self.constraint.as_mut().map(|constraint| constraint.take(id)) {
            None => false,
            Some(Ok(complete)) => complete,
            Some(Err(reason)) => return Stepped::Stuck(reason),
        };
        self.ids.push(id);
        let (logprob, top) = match self.logprobs.zip(logits) {
            None => (None, Vec::new()),
            Some((count, logits)) => {
                let (logprob, top) = log_probabilities(logits, id, count);
                (Some(logprob), top)
            }
        };
        Stepped::Chose(Token { id, logprob, top, complete })
    }
}
