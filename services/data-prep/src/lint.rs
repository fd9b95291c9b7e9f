//! What is wrong with rows, and what one may not expect of them, before a step is trained on them.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use firn_proto::dataprep::v1::CreateSnapshotRequest;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    encode::Encoded,
    error::CreateError,
    plan::Plan,
    rows::Place,
    snapshot::{self, PrepareError},
};

/// Examples that are told of a finding.
const EXAMPLES: usize = 5;
/// Longest example in characters.
const LONGEST_DETAIL: usize = 200;

/// What a look at all rows found.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LintReport {
    /// Rows that were read.
    pub rows: u64,
    /// Rows to train on.
    pub train_rows: u64,
    /// Rows held out.
    pub held_out_rows: u64,
    /// Tokens of the training rows.
    pub train_tokens: u64,
    /// Of these, tokens that carry loss.
    pub completion_tokens: u64,
    /// Tokens of a row: lowest, middle, 95 of 100, highest.
    pub tokens: Spread,
    /// What stands out, errors first.
    pub findings: Vec<Finding>,
}

/// How large rows are, in tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Spread {
    /// The shortest row.
    pub min: u64,
    /// Half of the rows are no longer.
    pub median: u64,
    /// 95 of 100 rows are no longer.
    pub p95: u64,
    /// The longest row.
    pub max: u64,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// These rows can't be trained on: a job would fail.
    Error,
    /// A job would run, and learn what one may not want.
    Warning,
    /// Good to know.
    Note,
}

/// Something about some of the rows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, for programs.
    pub code: String,
    /// Rows that have it.
    pub count: u64,
    /// Share of all rows, 0 to 1.
    pub share: f64,
    /// The first of them.
    pub examples: Vec<Example>,
    /// What it means, and the way out.
    pub advice: String,
}

/// A row.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Example {
    /// The file's name.
    pub file: String,
    /// From 1, in its file.
    pub row: u64,
    /// What is to be seen there.
    pub detail: String,
}

/// Kinds of findings.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Code {
    Refused,
    UnknownId,
    NothingLearnt,
    EmptyCompletion,
    Truncated,
    Duplicate,
    Leakage,
    DoubledSpecial,
    SpecialInside,
    RolesRepeat,
    TemplateUnmarked,
}

impl Code {
    fn describe(self) -> (Severity, &'static str, &'static str) {
        use Severity::{Error, Note, Warning};
        match self {
            Self::Refused => (Error, "row-refused", "these rows can't be turned into tokens: mend or remove them"),
            Self::UnknownId => (
                Error,
                "unknown-token-id",
                "these ids are not in the base's vocabulary: tokenise with its own tokenizer",
            ),
            Self::NothingLearnt => (
                Warning,
                "nothing-learnt",
                "no token of these rows carries loss within max_tokens: they are left out; raise --model-max-length",
            ),
            Self::EmptyCompletion => {
                (Warning, "empty-completion", "the answers of these rows are empty: the model learns to say nothing")
            }
            Self::Truncated => {
                (Warning, "truncated", "these rows are cut, so their ends are not learnt: raise --model-max-length")
            }
            Self::Duplicate => (
                Warning,
                "duplicate",
                "these rows occur more than once and count more: remove them unless that is meant",
            ),
            Self::Leakage => (
                Warning,
                "leakage",
                "these rows stand in the validation file, too: they are not trained on, or the measurement would be worthless",
            ),
            Self::DoubledSpecial => (
                Note,
                "doubled-special-token",
                "these texts hold the first or last token already, which other trainers would double: Firn sets each once",
            ),
            Self::SpecialInside => (
                Warning,
                "special-token-inside",
                "these contents spell special tokens, which end a turn where none ends: remove them",
            ),
            Self::RolesRepeat => (
                Warning,
                "roles-repeat",
                "these chats have two turns of one role in a row, which many templates refuse",
            ),
            Self::TemplateUnmarked => (
                Note,
                "template-unmarked",
                "the chat template has no {% generation %}: what the assistant said is found by comparing chats, which is \
                 slower",
            ),
        }
    }
}

/// Collects what rows show.
#[derive(Debug, Default)]
pub(crate) struct Lint {
    found: BTreeMap<Code, (u64, Vec<Example>)>,
    /// Rows by their number of tokens.
    lengths: BTreeMap<u64, u64>,
}

impl Lint {
    pub(crate) fn note(&mut self, code: Code, place: Place<'_>, detail: impl FnOnce() -> String) {
        let (count, examples) = self.found.entry(code).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            let detail = detail().chars().take(LONGEST_DETAIL).collect();
            examples.push(Example { file: place.file.to_owned(), row: place.row as u64, detail });
        }
    }

    /// Counts a row, and what its encoder saw in it.
    pub(crate) fn encoded(&mut self, place: Place<'_>, row: &Encoded) {
        let tokens = row.tokens.ids.len();
        *self.lengths.entry(tokens as u64).or_default() += 1;
        let silent = |mask: &[u8]| !mask.iter().skip(1).any(|bit| *bit == 1);
        if silent(&row.tokens.mask) || row.rejected.as_ref().is_some_and(|rejected| silent(&rejected.mask)) {
            self.note(Code::NothingLearnt, place, || format!("{tokens} tokens"));
        }
        if row.truncated {
            self.note(Code::Truncated, place, || format!("cut at {tokens} tokens"));
        }
        for (code, detail) in &row.seen {
            self.note(*code, place, || detail.clone());
        }
    }

    pub(crate) fn report(self, rows: u64) -> LintReport {
        let mut findings: Vec<Finding> = self
            .found
            .into_iter()
            .map(|(code, (count, examples))| {
                let (severity, name, advice) = code.describe();
                let share = (count as f64 / rows.max(1) as f64).min(1.0);
                Finding { severity, code: name.to_owned(), count, share, examples, advice: advice.to_owned() }
            })
            .collect();
        findings.sort_by_key(|finding| finding.severity);
        LintReport { rows, tokens: spread(&self.lengths), findings, ..LintReport::default() }
    }
}

fn spread(lengths: &BTreeMap<u64, u64>) -> Spread {
    let all: u64 = lengths.values().sum();
    let at = |share: f64| {
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = lengths.iter().find(|(_, count)| {
            seen += **count;
            seen >= wanted
        });
        reached.map_or(0, |(length, _)| *length)
    };
    Spread { min: at(0.0), median: at(0.5), p95: at(0.95), max: at(1.0) }
}

/// Why rows could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LintError(String);

impl From<CreateError> for LintError {
    fn from(error: CreateError) -> Self {
        Self(error.to_string())
    }
}

impl From<PrepareError> for LintError {
    fn from(error: PrepareError) -> Self {
        Self(error.to_string())
    }
}

/// Looks at all rows as a snapshot of this request would take them, and goes on past those that it would refuse. Relative
/// paths are below `root`. Writes nothing. Blocks; `stop` is looked at now and then.
///
/// # Errors
/// The rows can't be read at all, or the request is wrong.
pub fn lint(request: CreateSnapshotRequest, root: Option<&Path>, stop: &AtomicBool) -> Result<LintReport, LintError> {
    let limits = Limits::default();
    let plan = Plan::open(crate::rpc::checked(request)?, root, &limits).map_err(CreateError::from)?;
    let token = CancellationToken::new();
    let watch = |_| {
        if stop.load(Ordering::Relaxed) {
            token.cancel();
        }
    };
    Ok(snapshot::look(&plan, &limits, watch, &token)?)
}

/// What a row shows beside its tokens.
pub(crate) type Seen = Vec<(Code, String)>;

#[cfg(test)]
#[path = "lint_tests.rs"]
mod tests;
