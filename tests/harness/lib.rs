//! Starts and stops Firn for the end-to-end tests.
