//! Which blocks each step trains on: a function of the rows, the seed and the hyper-parameters alone.

use firn_llm::train::{Block, pack, pack_pairs, wrap};
use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    dataset::Rows,
    spec::{Hyperparameters, Packing},
};

/// Nothing can be trained.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("no row of the snapshot has a token to learn")]
    NothingToLearn,
    #[error("blocks of {block_size} tokens do not fit into the base's context of {context}: lower block_size")]
    BlockTooLong { block_size: usize, context: usize },
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
}

impl Plan {
    /// Packs every epoch once, to count its steps. Blocks.
    pub(crate) fn new(rows: Rows, hyper: &Hyperparameters, context: usize) -> Result<Self, PlanError> {
        let (asked, longest) = (hyper.block_size as usize, rows.longest());
        // Joined rows are one document a block; whole rows were checked when they were read.
        if hyper.packing == Packing::Wrapped && asked > context {
            return Err(PlanError::BlockTooLong { block_size: asked, context });
        }
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
        };
        let whole = hyper.epochs.ceil() as u64;
        let part = hyper.epochs - hyper.epochs.floor();
        let mut steps = 0;
        for epoch in 0..whole {
            // In file order all epochs are the same.
            if epoch == 0 || plan.shuffle {
                steps = plan.blocks(epoch).len().div_ceil(plan.batch_size) as u64;
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

    /// An epoch's blocks in order.
    pub(crate) fn blocks(&self, epoch: u64) -> Vec<Block> {
        match &self.rows {
            Rows::Documents(documents) if self.packing == Packing::Wrapped => {
                wrap(self.order(documents, epoch), self.block_size)
            }
            Rows::Documents(documents) => pack(self.order(documents, epoch), self.block_size),
            Rows::Pairs(pairs) => pack_pairs(self.order(pairs, epoch), self.block_size),
        }
    }

    fn order<'a, T>(&self, rows: &'a [T], epoch: u64) -> Vec<&'a T> {
        let mut order: Vec<&T> = rows.iter().collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            order.shuffle(&mut rng);
        }
        order
    }

    /// Blocks of a step.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size
    }
}

#[cfg(test)]
mod tests {
    use firn_llm::train::Document;

    use super::*;
    use crate::spec::tests::spec;

    fn hyper(change: impl Fn(&mut Hyperparameters)) -> Hyperparameters {
        let mut hyper = spec().hyperparameters;
        (hyper.batch_size, hyper.block_size) = (2, 4);
        change(&mut hyper);
        hyper
    }

    /// Rows of three tokens: one block each.
    fn rows(count: u32) -> Vec<Document> {
        (0..count).map(|row| Document { ids: vec![row; 3], loss_mask: vec![0, 1, 1] }).collect()
    }

    fn plan(count: u32, change: impl Fn(&mut Hyperparameters)) -> Plan {
        Plan::new(Rows::Documents(rows(count)), &hyper(change), 64).unwrap()
    }

    #[test]
    fn steps_are_counted_from_real_blocks() {
        let steps = |epochs: f64| plan(5, |hyper| hyper.epochs = epochs).epochs;
        assert_eq!(steps(2.0), [3, 3]);
        assert_eq!(steps(1.5), [3, 2]);
        assert_eq!(steps(0.1), [1]);
        let epochs = plan(5, |hyper| hyper.epochs = 2.0);
        assert_eq!(epochs.epochs().collect::<Vec<_>>(), [(0, 0, 3), (1, 3, 3)]);
        assert_eq!(epochs.steps(), 6);
    }

    #[test]
    fn the_seed_and_the_epoch_decide_the_order() {
        let one = plan(40, |_| {});
        assert_eq!(one.blocks(0), plan(40, |_| {}).blocks(0));
        assert_ne!(one.blocks(0), one.blocks(1));
        assert_ne!(one.blocks(0), plan(40, |hyper| hyper.seed = 7).blocks(0));
        let straight = plan(40, |hyper| hyper.no_shuffle = true);
        assert_eq!(straight.blocks(0), straight.blocks(1));
        assert_eq!(straight.blocks(0), pack(&rows(40), 4));
    }

    #[test]
    fn blocks_grow_to_the_longest_row_and_nothing_to_learn_is_an_error() {
        let mut documents = rows(2);
        documents.push(Document { ids: vec![1; 9], loss_mask: vec![1; 9] });
        assert_eq!(Plan::new(Rows::Documents(documents), &hyper(|_| {}), 64).unwrap().block_size, 9);
        let silent = vec![Document { ids: vec![1, 2], loss_mask: vec![0, 0] }];
        assert_eq!(Plan::new(Rows::Documents(silent), &hyper(|_| {}), 64).unwrap_err(), PlanError::NothingToLearn);
    }

    #[test]
    fn rows_lie_alone_or_are_joined_as_asked() {
        let alone = plan(5, |hyper| hyper.packing = Packing::None);
        assert_eq!((alone.blocks(0).len(), alone.steps()), (5, 9));
        // 15 tokens in blocks of 4: three whole blocks, and the rest is left out.
        let joined = plan(5, |hyper| hyper.packing = Packing::Wrapped);
        assert_eq!(joined.blocks(0).iter().map(Block::tokens).collect::<Vec<_>>(), [4, 4, 4]);
        let long = hyper(|hyper| (hyper.packing, hyper.block_size) = (Packing::Wrapped, 65));
        let error = Plan::new(Rows::Documents(rows(30)), &long, 64).unwrap_err();
        assert_eq!(error, PlanError::BlockTooLong { block_size: 65, context: 64 });
        let summed = plan(5, |hyper| (hyper.gradient_accumulation, hyper.epochs) = (2, 1.0));
        assert_eq!(summed.steps(), 2, "five blocks, four an update");
    }
}
