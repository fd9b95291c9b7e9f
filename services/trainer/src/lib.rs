//! Training jobs: queue, state machine, loop, checkpoints, evaluation.
