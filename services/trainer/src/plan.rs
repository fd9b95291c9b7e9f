//! Which blocks each step trains on: a function of the rows, the seed and the hyper-parameters alone.

use firn_llm::train::{Block, Document, pack};
use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::spec::Hyperparameters;

/// Nothing can be trained.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("no row of the snapshot has a token to learn")]
    NothingToLearn,
}

/// The order of a run.
#[derive(Debug)]
pub(crate) struct Plan {
    documents: Vec<Document>,
    block_size: usize,
    batch_size: usize,
    seed: u64,
    shuffle: bool,
    /// Steps of each epoch; the last one may be a part.
    epochs: Vec<u64>,
}

impl Plan {
    /// Packs every epoch once, to count its steps. Blocks.
    pub(crate) fn new(documents: Vec<Document>, hyper: &Hyperparameters) -> Result<Self, PlanError> {
        let asked = hyper.block_size as usize;
        let longest = documents.iter().map(|document| document.ids.len()).max().unwrap_or(0);
        if longest > asked {
            tracing::info!(block_size = asked, longest_row = longest, "block size raised to the longest row");
        }
        let mut plan = Self {
            documents,
            block_size: asked.max(longest),
            batch_size: hyper.batch_size as usize,
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
        let mut order: Vec<&Document> = self.documents.iter().collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            order.shuffle(&mut rng);
        }
        pack(order, self.block_size)
    }

    /// Blocks of a step.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size
    }
}

#[cfg(test)]
mod tests {
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
        Plan::new(rows(count), &hyper(change)).unwrap()
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
        assert_eq!(Plan::new(documents, &hyper(|_| {})).unwrap().block_size, 9);
        let silent = vec![Document { ids: vec![1, 2], loss_mask: vec![0, 0] }];
        assert_eq!(Plan::new(silent, &hyper(|_| {})).unwrap_err(), PlanError::NothingToLearn);
    }
}
