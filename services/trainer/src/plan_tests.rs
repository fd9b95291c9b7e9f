use super::*;
use crate::{dataset::tests::rows as stored, spec::tests::spec};

fn hyper(change: impl Fn(&mut Hyperparameters)) -> Hyperparameters {
    let mut hyper = spec().hyperparameters;
    (hyper.batch_size, hyper.block_size) = (2, 4);
    change(&mut hyper);
    hyper
}

/// Rows of three tokens: one block each.
fn documents(count: u32) -> Vec<Document> {
    (0..count).map(|row| Document { ids: vec![row; 3], loss_mask: vec![0, 1, 1] }).collect()
}

/// A plan, and the folder of its rows.
fn plan(count: u32, change: impl Fn(&mut Hyperparameters)) -> (tempfile::TempDir, Plan) {
    let (dir, rows) = stored(&documents(count), false);
    (dir, Plan::new(rows, &hyper(change), 64).unwrap())
}

fn blocks(plan: &Plan, epoch: u64) -> Vec<Block> {
    let epoch = plan.blocks(epoch).unwrap();
    (0..epoch.len()).map(|index| epoch.block(index).unwrap()).collect()
}

#[test]
fn steps_are_counted_from_real_blocks() {
    let steps = |epochs: f64| plan(5, |hyper| hyper.epochs = epochs).1.epochs;
    assert_eq!(steps(2.0), [3, 3]);
    assert_eq!(steps(1.5), [3, 2]);
    assert_eq!(steps(0.1), [1]);
    let (_dir, epochs) = plan(5, |hyper| hyper.epochs = 2.0);
    assert_eq!(epochs.epochs().collect::<Vec<_>>(), [(0, 0, 3), (1, 3, 3)]);
    assert_eq!((epochs.steps(), epochs.block_tokens(), epochs.longest()), (6, 4, 3));
    assert_eq!(epochs.packed(), Packed { steps: 3, tokens: 15, share: 0.75 });
}

#[test]
fn the_seed_and_the_epoch_decide_the_order() {
    let (_one, one) = plan(40, |_| {});
    assert_eq!(blocks(&one, 0), blocks(&plan(40, |_| {}).1, 0));
    assert_ne!(blocks(&one, 0), blocks(&one, 1));
    assert_ne!(blocks(&one, 0), blocks(&plan(40, |hyper| hyper.seed = 7).1, 0));
    let (_straight, straight) = plan(40, |hyper| hyper.no_shuffle = true);
    assert_eq!(blocks(&straight, 0), blocks(&straight, 1));
    assert_eq!(blocks(&straight, 0), firn_llm::train::pack(&documents(40), 4));
}

#[test]
fn blocks_grow_to_the_longest_row_and_nothing_to_learn_is_an_error() {
    let mut all = documents(2);
    all.push(Document { ids: vec![1; 9], loss_mask: vec![1; 9] });
    assert_eq!(Plan::new(stored(&all, false).1, &hyper(|_| {}), 64).unwrap().block_size, 9);
    let silent = [Document { ids: vec![1, 2], loss_mask: vec![0, 0] }];
    let error = Plan::new(stored(&silent, false).1, &hyper(|_| {}), 64).unwrap_err();
    assert!(matches!(error, PlanError::NothingToLearn));
}

#[test]
fn rows_lie_alone_or_are_joined_as_asked() {
    let (_alone, alone) = plan(5, |hyper| hyper.packing = Packing::None);
    assert_eq!((blocks(&alone, 0).len(), alone.steps(), alone.block_tokens()), (5, 9, 3));
    // 15 tokens in blocks of 4: three whole blocks, and the rest is left out.
    let (_joined, joined) = plan(5, |hyper| {
        hyper.packing = Packing::Wrapped;
        hyper.no_shuffle = true;
    });
    let pieces = blocks(&joined, 0);
    assert_eq!(pieces.iter().map(Block::tokens).collect::<Vec<_>>(), [4, 4, 4]);
    let mut second = Block::default();
    // Rows 1 and 2 from the second token of row 1 on; the mask goes with the tokens.
    second.push(&Document { ids: vec![1, 1, 2, 2], loss_mask: vec![1, 1, 0, 1] });
    assert_eq!(pieces[1], second);
    let short = hyper(|hyper| (hyper.packing, hyper.block_size) = (Packing::Wrapped, 64));
    let (_short, rows) = stored(&documents(5), false);
    assert_eq!(blocks(&Plan::new(rows, &short, 64).unwrap(), 0)[0].tokens(), 15, "a rest that is all there is");
    let long = hyper(|hyper| (hyper.packing, hyper.block_size) = (Packing::Wrapped, 65));
    let error = Plan::new(stored(&documents(30), false).1, &long, 64).unwrap_err();
    assert!(matches!(error, PlanError::BlockTooLong { block_size: 65, context: 64 }));
    let (_summed, summed) = plan(5, |hyper| (hyper.gradient_accumulation, hyper.epochs) = (2, 1.0));
    assert_eq!(summed.steps(), 2, "five blocks, four an update");
}
