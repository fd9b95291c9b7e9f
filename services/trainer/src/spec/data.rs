//! Which rows a job trains on, and how they become tokens.

use firn_llm::template::KnownTemplate;
use firn_proto::dataprep::v1::{self as data, row_format::Format};
use serde::{Deserialize, Serialize};

use super::{FieldError, id, short, text};

/// Rows, as data-prep is asked for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Data {
    pub(crate) dataset: String,
    pub(crate) source: String,
    pub(crate) format: RowFormat,
    pub(crate) held_out_rows: u32,
    /// File or folder whose rows are all held out; empty: none.
    #[serde(default)]
    pub(crate) held_out_source: String,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
    /// Name of a chat template that comes along; empty: the base's own.
    #[serde(default)]
    pub(crate) chat_template: String,
}

/// How a row becomes text; data-prep checks it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RowFormat {
    Text { column: String },
    Prompt { prompt_template: String, completion_template: String, system: String },
    Messages { column: String },
    Tokens { pairs: bool },
    Preference { prompt: String, chosen: String, rejected: String },
}

impl RowFormat {
    pub(super) fn is_preference(&self) -> bool {
        matches!(self, Self::Preference { .. } | Self::Tokens { pairs: true })
    }
}

impl Data {
    pub(super) fn check(data: data::CreateSnapshotRequest) -> Result<Self, FieldError> {
        id("spec.data.dataset", &data.dataset)?;
        text("spec.data.source", &data.source)?;
        let format = match data.format.and_then(|format| format.format) {
            Some(Format::Text(data::TextFormat { column })) => {
                text("spec.data.format.text.column", &column)?;
                RowFormat::Text { column }
            }
            Some(Format::Messages(data::MessagesFormat { column })) => {
                text("spec.data.format.messages.column", &column)?;
                RowFormat::Messages { column }
            }
            Some(Format::Prompt(data::PromptFormat { prompt_template, completion_template, system })) => {
                text("spec.data.format.prompt.prompt_template", &prompt_template)?;
                text("spec.data.format.prompt.completion_template", &completion_template)?;
                short("spec.data.format.prompt.system", &system)?;
                RowFormat::Prompt { prompt_template, completion_template, system }
            }
            Some(Format::Tokens(data::TokensFormat { pairs })) => RowFormat::Tokens { pairs },
            Some(Format::Preference(data::PreferenceFormat { prompt, chosen, rejected })) => {
                text("spec.data.format.preference.prompt", &prompt)?;
                text("spec.data.format.preference.chosen", &chosen)?;
                text("spec.data.format.preference.rejected", &rejected)?;
                RowFormat::Preference { prompt, chosen, rejected }
            }
            None => {
                let reason = "must be text, prompt, messages, tokens or preference";
                return Err(FieldError::new("spec.data.format", reason));
            }
        };
        short("spec.data.held_out_source", &data.held_out_source)?;
        if !data.chat_template.is_empty() && KnownTemplate::named(&data.chat_template).is_none() {
            let names = KnownTemplate::ALL.map(KnownTemplate::name).join(" or ");
            let reason = format!("must be {names}, or empty for the base's own");
            return Err(FieldError::new("spec.data.chat_template", reason));
        }
        Ok(Self {
            dataset: data.dataset,
            source: data.source,
            format,
            held_out_rows: data.held_out_rows,
            held_out_source: data.held_out_source,
            seed: data.seed,
            max_tokens: data.max_tokens,
            chat_template: data.chat_template,
        })
    }

    /// The chat template that takes the place of the base's own: rows of text or tokens see none.
    pub(crate) fn known_template(&self) -> Option<KnownTemplate> {
        let has_chats = !matches!(self.format, RowFormat::Text { .. } | RowFormat::Tokens { .. });
        has_chats.then(|| KnownTemplate::named(&self.chat_template)).flatten()
    }

    /// The request for the snapshot; rows are tokenised for `base`.
    pub(crate) fn to_proto(&self, base: &str) -> data::CreateSnapshotRequest {
        let Data { dataset, source, format, held_out_rows, held_out_source, seed, max_tokens, chat_template } =
            self.clone();
        let format = match format {
            RowFormat::Text { column } => Format::Text(data::TextFormat { column }),
            RowFormat::Messages { column } => Format::Messages(data::MessagesFormat { column }),
            RowFormat::Tokens { pairs } => Format::Tokens(data::TokensFormat { pairs }),
            RowFormat::Preference { prompt, chosen, rejected } => {
                Format::Preference(data::PreferenceFormat { prompt, chosen, rejected })
            }
            RowFormat::Prompt { prompt_template, completion_template, system } => {
                Format::Prompt(data::PromptFormat { prompt_template, completion_template, system })
            }
        };
        let format = Some(data::RowFormat { format: Some(format) });
        data::CreateSnapshotRequest {
            dataset,
            source,
            base: base.to_owned(),
            format,
            held_out_rows,
            held_out_source,
            seed,
            max_tokens,
            chat_template,
        }
    }
}
