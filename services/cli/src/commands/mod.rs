//! The commands, one a module.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod datasets;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod jobs;
pub(crate) mod lint;
pub(crate) mod llm;
pub(crate) mod models;
pub(crate) mod pretrain;
pub(crate) mod quickstart;
pub(crate) mod score;
pub(crate) mod spcs;
pub(crate) mod stage;
pub(crate) mod template;
pub(crate) mod tools;
pub(crate) mod up;
