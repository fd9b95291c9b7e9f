//! Steps that a GPU begins before the host has seen what the one before chose, so that it does not wait for the host.
//!
//! A recorded step can leave its inputs as the next step has them if all its sequences go on: with the tokens that it chose, and
//! lengths one larger. Then the next is begun by launching the recording again. If it is asked for, it is on its way already; if
//! something else is, nothing of it was seen by anyone: its keys and values lie behind the sequences' ends, in pages that they hold
//! until then, and whatever is written there later is launched later. A sequence has a page more than it needs where there are
//! enough, and those that it got since are not the recording's until they are needed: then a step is launched with all of them.

use std::ops::Range;

/// Steps in a row that only went on, from which on the next is begun before it is asked for. What is gained by it is a thirtieth of
/// a step of one row, and a seventh of one of 32; what is lost when a sequence comes or goes is a step.
const STEADY: u32 = 16;

/// What the next step is if all sequences go on, for steps of sizes `S`. A step's inputs begin with an id and a length for each row.
#[derive(Debug)]
pub(super) struct Ahead<S> {
    expected: Option<Expected<S>>,
    /// Steps in a row that only went on.
    steady: u32,
}

#[derive(Debug)]
struct Expected<S> {
    size: S,
    inputs: Vec<i32>,
    /// Steps that may be begun beyond this one, which is on its way; `None` if it is not.
    begun: Option<usize>,
}

impl<S> Default for Ahead<S> {
    fn default() -> Self {
        Self { expected: None, steady: 0 }
    }
}

impl<S: PartialEq> Ahead<S> {
    /// For a step that is asked for: how many more may be begun behind it, if it is on its way. The first `own` of its inputs say
    /// what each row is, and `read` what it reads of the others.
    pub(super) fn meet(
        &mut self,
        size: &S,
        inputs: &[i32],
        own: usize,
        mut read: impl Iterator<Item = Range<usize>>,
    ) -> Option<usize> {
        let expected = self.expected.take().filter(|expected| expected.size == *size);
        let same =
            |of: Range<usize>| expected.as_ref().is_some_and(|expected| expected.inputs[of.clone()] == inputs[of]);
        let goes_on = same(0..own);
        self.steady = if goes_on { self.steady.saturating_add(1) } else { 0 };
        let whole = goes_on && read.all(same);
        expected.filter(|_| whole)?.begun
    }

    /// Nobody has come or gone for a while.
    pub(super) fn is_steady(&self) -> bool {
        self.steady >= STEADY
    }

    /// After a step with these inputs that chose these tokens, one for each row.
    pub(super) fn expect(&mut self, size: S, mut inputs: Vec<i32>, chosen: &[i32], begun: Option<usize>) {
        let (ids, lengths) = inputs.split_at_mut(chosen.len());
        for ((id, length), chosen) in ids.iter_mut().zip(lengths).zip(chosen) {
            // Rows that only fill the batch up stay as they are.
            if *length > 0 {
                (*id, *length) = (*chosen, *length + 1);
            }
        }
        self.expected = Some(Expected { size, inputs, begun });
    }

    /// Something else was launched, or is going to be.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{Ahead, STEADY};

    /// One sequence and a row that only fills the batch up: ids, lengths and two pages, of which a step reads the first.
    fn inputs(id: i32, length: i32, page: i32) -> Vec<i32> {
        vec![id, 0, length, 0, page, 0]
    }

    fn meet(ahead: &mut Ahead<u8>, size: u8, inputs: &[i32]) -> Option<usize> {
        ahead.meet(&size, inputs, 4, std::iter::once(4..5))
    }

    #[test]
    fn a_step_is_met_if_all_goes_on_and_nothing_else_is() {
        let met = |begun, size, asked: &[i32]| {
            let mut ahead = Ahead::default();
            ahead.expect(1, inputs(7, 3, 5), &[9, 1], begun);
            meet(&mut ahead, size, asked)
        };
        assert_eq!(met(Some(2), 1, &inputs(9, 4, 5)), Some(2));
        assert_eq!(met(Some(2), 1, &[9, 0, 4, 0, 5, 8]), Some(2), "a page that it does not read yet");
        assert_eq!(met(None, 1, &inputs(9, 4, 5)), None);
        assert_eq!(met(Some(2), 2, &inputs(9, 4, 5)), None);
        for other in [inputs(8, 4, 5), inputs(9, 5, 5), inputs(9, 4, 6)] {
            assert_eq!(met(Some(2), 1, &other), None, "{other:?}");
        }
        let mut ahead = Ahead::default();
        ahead.expect(1, inputs(7, 3, 5), &[9, 1], Some(2));
        ahead.forget();
        assert_eq!(meet(&mut ahead, 1, &inputs(9, 4, 5)), None);
    }

    #[test]
    fn sequences_are_steady_until_one_comes_or_goes() {
        let mut ahead = Ahead::default();
        for step in 0..=STEADY as i32 {
            assert!(!ahead.is_steady(), "{step}");
            // Now and then there is a page more.
            let inputs = inputs(step, 3 + step, step / 8);
            meet(&mut ahead, 1, &inputs);
            ahead.expect(1, inputs, &[step + 1, 0], None);
        }
        assert!(ahead.is_steady());
        meet(&mut ahead, 1, &inputs(1, 3, 5));
        assert!(!ahead.is_steady());
    }
}
