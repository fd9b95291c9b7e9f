//! Which blocks each step trains on: a function of the rows, the seed and the hyper-parameters alone.

use std::ops::Range;

use firn_llm::train::{Block, Document};
use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    dataset::{DatasetError, Rows},
    spec::{Hyperparameters, Packing},
};

/// Nothing can be trained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("no row of the snapshot has a token to learn")]
    NothingToLearn,
    #[error("blocks of {block_size} tokens do not fit into the base's context of {context}: lower block_size")]
    BlockTooLong { block_size: usize, context: usize },
    #[error("the snapshot has {rows} rows, more than a run can take: split it")]
    TooManyRows { rows: usize },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// The order of a run.
#[derive(Debug)]
pub(crate) struct Plan {
    rows: Rows,
    packing: Packing,
    block_size: usize,
    /// Blocks of an update.
    batch_size: usize,
    seed: u64,
    shuffle: bool,
    /// Steps of each epoch; the last one may be a part.
    epochs: Vec<u64>,
    packed: Packed,
}

/// What packing makes of one pass over the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Packed {
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    /// Share of the blocks' room that tokens take.
    pub(crate) share: f64,
}

/// An epoch's blocks in order; what is in them is read when it is needed.
#[derive(Debug)]
pub(crate) struct Epoch<'a> {
    rows: &'a Rows,
    blocks: Blocks,
}

#[derive(Debug, PartialEq)]
enum Blocks {
    /// Rows of each block.
    Rows(Vec<Vec<u32>>),
    /// Rows one after the other, where each begins, and the pieces of the whole that are trained on.
    Joined { order: Vec<u32>, begins: Vec<u64>, pieces: Vec<Range<u64>> },
}

impl Plan {
    /// Packs every epoch once, to count its steps. Blocks.
    pub(crate) fn new(rows: Rows, hyper: &Hyperparameters, context: usize) -> Result<Self, PlanError> {
        let (asked, longest) = (hyper.block_size as usize, rows.longest());
        // Joined rows are one document a block; whole rows were checked when they were read.
        if hyper.packing == Packing::Wrapped && asked > context {
            return Err(PlanError::BlockTooLong { block_size: asked, context });
        }
        u32::try_from(rows.len()).map_err(|_| PlanError::TooManyRows { rows: rows.len() })?;
        let block_size = match hyper.packing {
            Packing::Bfd => asked.max(longest),
            Packing::None => 1,
            Packing::Wrapped => asked,
        };
        if hyper.packing == Packing::Bfd && longest > asked {
            tracing::info!(block_size = asked, longest_row = longest, "block size raised to the longest row");
        }
        let mut plan = Self {
            rows,
            packing: hyper.packing,
            block_size,
            batch_size: hyper.batch_size as usize * hyper.gradient_accumulation as usize,
            seed: hyper.seed,
            shuffle: !hyper.no_shuffle,
            epochs: vec![],
            packed: Packed::default(),
        };
        let whole = hyper.epochs.ceil() as u64;
        let part = hyper.epochs - hyper.epochs.floor();
        let mut steps = 0;
        for epoch in 0..whole {
            // In file order all epochs are the same.
            if epoch == 0 || plan.shuffle {
                let blocks = plan.blocks(epoch)?;
                steps = blocks.len().div_ceil(plan.batch_size) as u64;
                if epoch == 0 {
                    let (tokens, room) = (blocks.tokens(), blocks.len() * block_size);
                    let share = (tokens as f64 / room.max(1) as f64).min(1.0);
                    plan.packed = Packed { steps, tokens, share };
                }
            }
            let cut = epoch + 1 == whole && part > 0.0;
            plan.epochs.push(if cut { (steps as f64 * part).ceil() as u64 } else { steps });
        }
        if plan.steps() == 0 { Err(PlanError::NothingToLearn) } else { Ok(plan) }
    }

    /// Steps of all epochs.
    pub(crate) fn steps(&self) -> u64 {
        self.epochs.iter().sum()
    }

    /// The epochs with the number of steps before each.
    pub(crate) fn epochs(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let mut before = 0;
        (0..).zip(&self.epochs).map(move |(epoch, steps)| {
            before += steps;
            (epoch, before - steps, *steps)
        })
    }

    /// Blocks of a step.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Tokens of the largest block.
    pub(crate) fn block_tokens(&self) -> usize {
        if self.packing == Packing::None { self.rows.longest() } else { self.block_size }
    }

    /// Tokens that attention spans at most.
    pub(crate) fn longest(&self) -> usize {
        if self.packing == Packing::Wrapped { self.block_size } else { self.rows.longest_document() }
    }

    /// What packing makes of the first pass.
    pub(crate) fn packed(&self) -> Packed {
        self.packed
    }

    /// An epoch's blocks in order.
    pub(crate) fn blocks(&self, epoch: u64) -> Result<Epoch<'_>, DatasetError> {
        let order = self.order(epoch);
        let blocks = if self.packing == Packing::Wrapped && !self.rows.are_pairs() {
            join(&self.rows, order, self.block_size as u64)?
        } else {
            Blocks::Rows(self.rows.pack(&order, self.block_size))
        };
        Ok(Epoch { rows: &self.rows, blocks })
    }

    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..).take(self.rows.len()).collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            order.shuffle(&mut rng);
        }
        order
    }
}

impl Epoch<'_> {
    /// Blocks.
    pub(crate) fn len(&self) -> usize {
        match &self.blocks {
            Blocks::Rows(blocks) => blocks.len(),
            Blocks::Joined { pieces, .. } => pieces.len(),
        }
    }

    fn tokens(&self) -> u64 {
        match &self.blocks {
            Blocks::Rows(blocks) => blocks.iter().flatten().map(|row| self.rows.tokens(*row as usize) as u64).sum(),
            Blocks::Joined { pieces, .. } => pieces.iter().map(|piece| piece.end - piece.start).sum(),
        }
    }

    /// Reads one.
    pub(crate) fn block(&self, index: usize) -> Result<Block, DatasetError> {
        match &self.blocks {
            Blocks::Rows(blocks) => self.rows.block(blocks.get(index).map(Vec::as_slice).unwrap_or_default()),
            Blocks::Joined { order, begins, pieces } => {
                let mut whole = Document { ids: Vec::new(), loss_mask: Vec::new() };
                let Range { start, end } = pieces.get(index).cloned().unwrap_or_default();
                let first = begins.partition_point(|begin| *begin <= start).saturating_sub(1);
                for (row, begin) in order.iter().zip(begins).skip(first).take_while(|(_, begin)| **begin < end) {
                    let Document { ids, loss_mask } = self.rows.document(*row)?;
                    let within = |at: u64| usize::try_from(at.saturating_sub(*begin)).unwrap_or(usize::MAX);
                    let range = within(start).min(ids.len())..within(end).min(ids.len());
                    whole.ids.extend_from_slice(&ids[range.clone()]);
                    whole.loss_mask.extend_from_slice(&loss_mask[range]);
                }
                let mut block = Block::default();
                block.push(&whole);
                Ok(block)
            }
        }
    }
}

/// Joins all rows and cuts the whole at the block size, as AutoTrain does: a block is one document, whatever began or
/// ended in it. A rest that is shorter than a block is left out, unless it is all there is, and so is a piece without
/// anything to learn.
fn join(rows: &Rows, order: Vec<u32>, size: u64) -> Result<Blocks, DatasetError> {
    let (mut begins, mut at, mut learning) = (Vec::with_capacity(order.len()), 0u64, Vec::new());
    for row in &order {
        begins.push(at);
        for bit in rows.document(*row)?.loss_mask {
            // The first token of a piece is predicted by nothing.
            if bit == 1 && at % size != 0 && learning.last() != Some(&(at / size)) {
                learning.push(at / size);
            }
            at += 1;
        }
    }
    let whole = at / size;
    let piece = |number: u64| number * size..((number + 1) * size).min(at);
    let pieces = learning.into_iter().filter(|number| *number < whole || whole == 0).map(piece).collect();
    Ok(Blocks::Joined { order, begins, pieces })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
