//! Launches that are recorded once and given to the GPU again as one.

use std::fmt;

use burn::tensor::{Graph, capture};

use super::Array;
use crate::device::BurnDevice;

/// What a step gives: logits bf16 `[rows, vocabulary]`, and the first index of each row's largest i32 `[rows]`.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) logits: Array,
    pub(crate) best: Array,
}

type Step = Box<dyn FnMut() -> Output + Send>;

/// A step for a fixed number of rows, whose inputs lie in one array.
pub(crate) struct Recorded {
    inputs: Array,
    graph: Graph<Output, Step>,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

impl Recorded {
    /// Records what `step` launches. It runs a few times first, and once while it is recorded, so it must do the same each time
    /// and own all that it reads and writes; its inputs are those that `inputs` holds now.
    pub(crate) fn new(inputs: Array, device: &BurnDevice, step: Step) -> Self {
        Self { inputs, graph: capture(device, step) }
    }

    /// Why the launches are given one by one instead, if they are.
    pub(crate) fn failure(&self) -> Option<String> {
        self.graph.capture_error().map(ToString::to_string)
    }

    /// Runs it on new inputs, on the thread that recorded it.
    pub(crate) fn run(&mut self, inputs: Vec<i32>) {
        self.inputs.write(inputs);
        self.again();
    }

    /// Runs it on the inputs that lie there, on the thread that recorded it.
    #[expect(unsafe_code, reason = "a graph's replay writes to where it was recorded, whatever lies there")]
    pub(crate) fn again(&mut self) {
        // SAFETY: the step owns the arrays that it reads and writes (weights, pools of keys, values and adapters, the
        // output), so they live as long as the graph, and the runtime keeps the memory of what it allocated in between for the
        // graph alone. Nothing else writes to the output; pools are read and written by launches of this thread only, as are the
        // inputs, and a thread has one stream, so that they follow each other.
        unsafe { self.graph.replay() };
    }

    /// What it gives, of the last run.
    pub(crate) fn output(&self) -> &Output {
        self.graph.output()
    }
}
