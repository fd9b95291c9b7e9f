//! A little invented world: companies, products, people and places that exist nowhere.
//!
//! [`offers`] writes rows to fine-tune on; [`corpus`] writes the text that the bundled base model is pre-trained on. The
//! two share a vocabulary, not a task: the corpus teaches a model to copy values exactly and never shows it an offer put
//! into words, so what fine-tuning adds can be measured. Everything depends on the seed alone.

mod chat;
mod corpus;
mod dice;
mod offers;
mod prose;
mod record;
mod story;
mod templates;
mod values;
mod vocabulary;

#[cfg(test)]
mod tests;

pub(crate) use corpus::{Document, corpus};
pub(crate) use offers::{offers, to_csv};
