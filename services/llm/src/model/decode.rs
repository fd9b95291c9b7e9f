//! Decoding steps on a GPU, recorded once for each size.
//!
//! The host takes longer to launch a step's kernels than the GPU to run them. A recorded step is one launch. Its size is that of
//! the batch and of the longest sequence, both rounded up: rows that only fill the batch up see nothing and store nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;

use burn::tensor::{DType, Int, Tensor};

use super::ahead::Ahead;
use super::step::Weights;
use super::{Adapter, Decoder};
use crate::cache::PageTable;
use crate::device::BurnDevice;
use crate::generate::Next;
use crate::ops::attention::Heads;
use crate::ops::cuda::Array;
use crate::ops::cuda::adapters::{Adapted, Factors, Placed, Pool, State};
use crate::ops::cuda::decode::Inputs;
use crate::ops::cuda::few::MOST_ROWS;
use crate::ops::cuda::graph::{Output, Recorded};
use crate::ops::cuda::paged;
use crate::ops::step_words::StepWords;
use crate::ops::to_vec;

/// Sizes that are kept recorded. Each holds its own memory for what lies between its kernels.
const MOST_RECORDED: usize = 48;
/// Parts of the shortest sequence that a step is recorded for.
const FEWEST_SPLITS: usize = 4;

/// A row: the next token of a sequence, for which its last page has room.
pub(crate) struct Speaking<'a> {
    pub(crate) id: u32,
    pub(crate) table: &'a PageTable,
    pub(crate) adapter: Option<&'a Adapter>,
    /// The most probable token is enough.
    pub(crate) plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Size {
    words: StepWords,
    /// Parts of the longest sequence.
    splits: usize,
    /// Which pool its adapters lie in; 0 if it has none.
    pool: u64,
}

/// The recorded steps of one model and its cache.
#[derive(Debug)]
pub(crate) struct Steps {
    /// `None`: a step of this model can't be recorded.
    weights: Option<Arc<Weights>>,
    adapters: Pool,
    recorded: HashMap<Size, Recorded>,
    /// Of the last step, never 0.
    number: i32,
    ahead: Ahead<(Size, State)>,
    /// Whose stream they were recorded on.
    thread: ThreadId,
    /// Why the launches of the last size are given one by one, if they are, or how the device failed.
    failure: Option<String>,
}

impl Steps {
    /// For a model whose keys and values lie in these pools.
    pub(crate) fn new(model: &Decoder, pools: &[[Tensor<2>; 2]]) -> Self {
        Self {
            weights: Weights::new(model, pools).map(Arc::new),
            adapters: Pool::default(),
            recorded: HashMap::new(),
            number: 0,
            ahead: Ahead::default(),
            thread: std::thread::current().id(),
            failure: None,
        }
    }

    /// Why steps are not recorded, if they are not.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// True if the next step may be begun before it is asked for: the last one was recorded, and the same sequences have gone on for
    /// a while.
    pub(crate) fn begins_ahead(&self) -> bool {
        self.failure.is_none() && self.ahead.is_steady()
    }

    /// Something else than a step is launched.
    pub(crate) fn interrupt(&mut self) {
        self.ahead.forget();
        if self.thread != std::thread::current().id() {
            // Of a stream that this thread's does not wait for.
            self.recorded.clear();
        }
    }

    /// What comes next in each row; `None` if the step can't be recorded.
    pub(crate) fn run(&mut self, model: &Decoder, rows: &[Speaking<'_>]) -> Option<Vec<Next>> {
        let mut all = Vec::with_capacity(rows.len());
        for rows in rows.chunks(MOST_ROWS) {
            all.extend(self.run_few(model, rows)?);
        }
        Some(all)
    }

    /// The size of a step, and its adapters, which are in the pool then; `None` if it can't be recorded.
    fn measure(&mut self, model: &Decoder, heads: Heads, rows: &[Speaking<'_>]) -> Option<(Size, Chosen)> {
        let longest = rows.iter().map(|row| row.table.len() + 1).max()?;
        let splits = longest.div_ceil(paged::split(heads.dim)).next_power_of_two().max(FEWEST_SPLITS);
        let count = rows.len().next_power_of_two();
        if !paged::fits_at_once(count, splits, heads) {
            return None;
        }
        let wanted: Vec<&Adapter> = rows.iter().filter_map(|row| row.adapter).collect();
        let placed = match wanted.is_empty() {
            true => Vec::new(),
            false => self.adapters.place(&wanted, model.config(), model.device())?,
        };
        let adapters = Chosen::new(rows, placed);
        let pages = splits * paged::split(heads.dim) / crate::cache::PAGE_TOKENS;
        let words = StepWords { rows: count, pages, adapters: adapters.room() };
        let pool = if words.adapters > 0 { self.adapters.state().pool } else { 0 };
        Some((Size { words, splits, pool }, adapters))
    }

    fn run_few(&mut self, model: &Decoder, rows: &[Speaking<'_>]) -> Option<Vec<Next>> {
        let weights = Arc::clone(self.weights.as_ref()?);
        let heads = weights.heads()?;
        let (size, adapters) = self.measure(model, heads, rows)?;
        let state = self.adapters.state();
        // What was recorded with a pool that is no more.
        self.recorded.retain(|size, _| size.pool == 0 || size.pool == state.pool);
        let thread = std::thread::current().id();
        if self.thread != thread || (self.recorded.len() >= MOST_RECORDED && !self.recorded.contains_key(&size)) {
            self.ahead.forget();
            self.recorded.clear();
            self.thread = thread;
        }
        let mut inputs = packed(rows, &adapters, size.words);
        let read = size.words.read(&inputs[size.words.rows..2 * size.words.rows]);
        let begun = self.ahead.meet(&(size, state), &inputs, size.words.tables_at(), read);
        let mut number = |inputs: &mut [i32]| {
            self.number = self.number.checked_add(1).unwrap_or(1);
            inputs[size.words.number_at()] = self.number;
        };
        let recorded = match self.recorded.entry(size) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                number(&mut inputs);
                let array = Array::whole(inputs.clone(), &model.device().burn)?;
                let factors = self.adapters.factors().filter(|_| size.words.adapters > 0).cloned();
                let recorded = record(weights, factors, array, size, &model.device().burn)?;
                self.failure = recorded.failure();
                entry.insert(recorded)
            }
        };
        let plain = rows.iter().all(|row| row.plain);
        let more = begun.unwrap_or_else(|| {
            // Launches that are given one by one overlap, and the last writes what the first of the next read.
            let goes_on = plain && self.ahead.is_steady() && recorded.failure().is_none();
            let more = if goes_on { room(rows, size, heads, model.config().context) } else { 0 };
            number(&mut inputs);
            inputs[size.words.ahead_at()] = i32::from(more > 0);
            recorded.run(inputs.clone());
            more
        });
        let mut note = |error| self.failure = Some(error);
        if !plain {
            return next(recorded.output(), rows, model.config().vocab).map_err(note).ok();
        }
        let best = recorded.output().best.clone();
        let chosen = best.whole_numbers(|| {
            if more > 0 {
                number(&mut inputs);
                recorded.again();
            }
        });
        let chosen = chosen.map_err(&mut note).ok()?;
        // The pages are those that the host knows of. The device's are fewer, but none that `more` steps read is missing there.
        self.ahead.expect((size, state), inputs, &chosen, more.checked_sub(1));
        Some(chosen.into_iter().take(rows.len()).map(|id| Next::Id(id as u32)).collect())
    }
}

/// The adapters of a step, each once, and which of them each row has.
#[derive(Debug, Default)]
struct Chosen {
    distinct: Vec<Placed>,
    of_rows: Vec<Option<usize>>,
}

impl Chosen {
    /// Of rows whose adapters were placed, in the rows' order.
    fn new(rows: &[Speaking<'_>], placed: Vec<Placed>) -> Self {
        let mut chosen = Self::default();
        let mut placed = placed.into_iter();
        for row in rows {
            let place = row.adapter.and_then(|_| placed.next());
            chosen.of_rows.push(place.map(|place| {
                let known = chosen.distinct.iter().position(|other| other.slot == place.slot);
                known.unwrap_or_else(|| {
                    chosen.distinct.push(place);
                    chosen.distinct.len() - 1
                })
            }));
        }
        chosen
    }

    /// How many a step is recorded for: few numbers, so that few steps are. One that is missing costs little.
    fn room(&self) -> usize {
        match self.distinct.len() {
            0 => 0,
            count => count.next_power_of_two(),
        }
    }
}

/// A step's inputs.
fn packed(rows: &[Speaking<'_>], adapters: &Chosen, step: StepWords) -> Vec<i32> {
    // Ids, lengths, pages and slots are far below 2³¹.
    let count = step.rows;
    let mut words = vec![0; step.words()];
    words[2 * count..3 * count].fill(-1);
    for (at, (row, adapter)) in rows.iter().zip(&adapters.of_rows).enumerate() {
        words[at] = row.id as i32;
        words[count + at] = row.table.len() as i32 + 1;
        if let Some(adapter) = adapter {
            words[2 * count + at] = *adapter as i32;
            words[3 * count + at] = adapters.distinct[*adapter].scale.to_bits() as i32;
        }
        let table = &mut words[step.tables_at() + at * step.pages..][..step.pages];
        for (word, page) in table.iter_mut().zip(row.table.pages()) {
            *word = *page as i32;
        }
    }
    words[step.count_at()] = adapters.distinct.len() as i32;
    let (slots, ranks) = words[step.adapters_at()..].split_at_mut(step.adapters);
    for ((slot, rank), placed) in slots.iter_mut().zip(ranks).zip(&adapters.distinct) {
        (*slot, *rank) = (placed.slot as i32, placed.rank as i32);
    }
    words
}

fn record(
    weights: Arc<Weights>,
    factors: Option<Factors>,
    packed: Array,
    size: Size,
    device: &BurnDevice,
) -> Option<Recorded> {
    let adapted = match factors {
        Some(factors) => Some(Adapted::new(factors, size.words.rows, weights.products())?),
        None => None,
    };
    let inputs = Inputs { words: size.words, packed: packed.clone() };
    // Once by itself: a step that can't be made is not recorded.
    weights.step(&inputs, adapted.as_ref(), size.splits)?;
    let step = move || match weights.step(&inputs, adapted.as_ref(), size.splits) {
        Some(output) => output,
        None => unreachable!("the same step was made before"),
    };
    Some(Recorded::new(packed, device, Box::new(step)))
}

/// How many steps more there is room for behind one with these rows, in their pages and in what was recorded.
fn room(rows: &[Speaking<'_>], size: Size, heads: Heads, context: usize) -> usize {
    let most = context.min(size.splits * paged::split(heads.dim));
    let of = |row: &Speaking<'_>| {
        (row.table.pages().len() * crate::cache::PAGE_TOKENS).min(most).saturating_sub(row.table.len() + 1)
    };
    rows.iter().map(of).min().unwrap_or(0)
}

/// Brings to the host what the rows ask for.
fn next(output: &Output, rows: &[Speaking<'_>], vocab: usize) -> Result<Vec<Next>, String> {
    let ids = if rows.iter().any(|row| row.plain) { output.best.whole_numbers(|| ())? } else { Vec::new() };
    let wanted: Vec<i64> = (0i64..).zip(rows).filter(|(_, row)| !row.plain).map(|(at, _)| at).collect();
    let logits = output.logits.clone().tensor::<2>();
    let chosen = Tensor::<1, Int>::from_data(wanted.as_slice(), &logits.device());
    let logits = to_vec(logits.select(0, chosen).cast(DType::F32));
    let mut logits = logits.chunks_exact(vocab);
    let of = |(at, row): (usize, &Speaking<'_>)| match row.plain {
        true => ids.get(at).map(|id| Next::Id(*id as u32)),
        false => logits.next().map(|logits| Next::Logits(logits.to_vec())),
    };
    Ok(rows.iter().enumerate().filter_map(of).collect())
}
