//! Serves the base and every adapter from one copy of the weights.
