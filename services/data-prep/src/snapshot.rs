//! Makes a snapshot of rows.

use std::{io, sync::Arc};

use firn_llm::tokenizer::Message;
use firn_stage::{Stage, StageError};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    encode::{EncodeError, Encoded},
    lint::{Lint, LintReport},
    output::{Lines, Output},
    plan::{FormatSpec, Plan},
    rows::{Row, RowsError, Scan},
    shard::{Shard, ShardError},
    split::hex,
    walk::{Side, Taken, Walked, walk},
};

/// The report's file in the snapshot's folder.
pub(crate) const REPORT: &str = "report.json";
const HELD_OUT_LINES: &str = "held_out.jsonl";
/// A line a row: its hash, and its side.
pub(crate) const HASH_LINES: &str = "rows.sha256";
/// Tokens of a shard: it is in memory while it is filled, and while it is written or read.
const SHARD_TOKENS: u64 = 16 << 20;

/// Why a snapshot could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error("{file} changed while it was read: ask again")]
    Changed { file: String },
    #[error(transparent)]
    Columns(EncodeError),
    #[error("row {row} of {file}: {source}")]
    Row { file: String, row: usize, source: EncodeError },
    #[error("held_out_rows is {wanted}, but {file} has {rows} rows: hold out fewer, so that some are left to train on")]
    NothingToTrain { file: String, rows: usize, wanted: u32 },
    #[error("all rows of {file} stand in the validation file, too: none is left to train on")]
    AllLeaked { file: String },
    #[error("no training row of {file} keeps a token to learn within max_tokens {max_tokens}: raise it")]
    NothingToLearn { file: String, max_tokens: u32 },
    #[error("{file} gives more than {limit} tokens: split it, or raise --max-snapshot-tokens")]
    TooManyTokens { file: String, limit: u64 },
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("failed to encode {file}: {source}")]
    Json { file: &'static str, source: serde_json::Error },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("failed to use the local folder for scratch files: {0}")]
    Scratch(#[from] io::Error),
    #[error("the service stopped before the snapshot was ready: ask again")]
    Stopped,
    #[error("a worker of data-prep failed: see its log")]
    Worker,
}

/// `report.json`: all that is known of a snapshot, and enough to list it again after a restart.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    /// RFC 3339.
    pub(crate) create_time: String,
    /// The source file's name, without its folder.
    pub(crate) source: String,
    pub(crate) source_sha256: String,
    pub(crate) columns: Vec<String>,
    pub(crate) format: FormatSpec,
    pub(crate) tokenizer_sha256: String,
    pub(crate) template_sha256: String,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
    pub(crate) rows: u64,
    pub(crate) train_rows: u64,
    pub(crate) held_out_rows: u64,
    pub(crate) train_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) held_out_tokens: u64,
    pub(crate) longest_row_tokens: u64,
    pub(crate) truncated_rows: u64,
    pub(crate) duplicate_rows: u64,
    /// Rows that were left out, for they stand in the validation file, too.
    #[serde(default)]
    pub(crate) leaked_rows: u64,
    #[serde(default)]
    pub(crate) train_shards: usize,
    #[serde(default)]
    pub(crate) held_out_shards: usize,
    #[serde(default)]
    pub(crate) lint: LintReport,
}

/// A line of `held_out.jsonl`. Ready-made text has no messages: it is scored, not answered.
#[derive(Serialize)]
struct HeldOut<'a> {
    row: usize,
    sha256: String,
    messages: &'a [Message],
    prompt_ids: &'a [u32],
    completion: &'a str,
    fields: Row,
}

/// A snapshot whose files are on their way to the stage.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) report: Report,
    /// Names of the files, in the manifest's order.
    pub(crate) files: Vec<String>,
}

/// Makes a snapshot on the stage, and returns what it is and its folder. `progress` gets the number of rows read so far.
pub(crate) async fn make(
    stage: &Stage,
    plan: Arc<Plan>,
    create_time: String,
    limits: Limits,
    progress: impl Fn(u64) + Send + 'static,
    stop: &CancellationToken,
) -> Result<(Report, String), PrepareError> {
    let path = format!("datasets/{}/{}", plan.request.dataset, plan.id);
    let (mut output, stop) = (Output::open(stage, &path, stop).await?, stop.clone());
    let build = move || {
        let built = build(&plan, create_time, &limits, progress, &stop, &mut output);
        (output, built)
    };
    let (output, built) = tokio::task::spawn_blocking(build).await.map_err(|error| {
        tracing::error!(%error, "worker failed");
        PrepareError::Worker
    })?;
    let (built, path) = output.end(built).await?;
    Ok((built.report, path))
}

/// Reads, checks, encodes and splits the rows. Blocks.
fn build(
    plan: &Plan,
    create_time: String,
    limits: &Limits,
    progress: impl Fn(u64),
    stop: &CancellationToken,
    output: &mut Output,
) -> Result<Built, PrepareError> {
    let mut parts = Parts::new(output);
    let walked = walk(plan, limits, &progress, stop, None, &mut |row, side, encoded| {
        parts.add(plan, row, side, encoded)?;
        if parts.tokens() > limits.max_snapshot_tokens {
            return Err(PrepareError::TooManyTokens { file: plan.source.name(), limit: limits.max_snapshot_tokens });
        }
        Ok(())
    })?;
    parts.end_shards()?;
    if parts.train.learnt == 0 {
        let max_tokens = plan.request.max_tokens;
        return Err(PrepareError::NothingToLearn { file: plan.source.name(), max_tokens });
    }
    let Walked { scan, rows, leaked, duplicates, lint, .. } = walked;
    let Scan { columns, .. } = scan;
    let mut report = Report {
        name: plan.name(),
        create_time,
        source: plan.source.name(),
        source_sha256: plan.source_sha256.clone(),
        columns,
        format: plan.request.format.clone(),
        tokenizer_sha256: plan.tokenizer_sha256.clone(),
        template_sha256: plan.template_sha256.clone(),
        seed: plan.request.seed,
        max_tokens: plan.request.max_tokens,
        rows,
        train_rows: parts.train.rows,
        held_out_rows: parts.held_out.rows,
        train_tokens: parts.train.tokens,
        completion_tokens: parts.train.learnt,
        held_out_tokens: parts.held_out.tokens,
        longest_row_tokens: parts.longest,
        truncated_rows: parts.truncated,
        duplicate_rows: duplicates,
        leaked_rows: leaked,
        train_shards: parts.train.shards,
        held_out_shards: parts.held_out.shards,
        lint: LintReport::default(),
    };
    report.lint = counted(lint, &report, rows);
    let files = parts.finish()?;
    Ok(Built { report, files })
}

/// Looks at all rows as [`build`] does, keeps nothing, and goes on past rows that it would refuse.
pub(crate) fn look(
    plan: &Plan,
    limits: &Limits,
    progress: impl Fn(u64),
    stop: &CancellationToken,
) -> Result<LintReport, PrepareError> {
    let (mut train, mut held_out) = (Part::default(), Part::default());
    let mut lint = Lint::default();
    let walked = walk(plan, limits, &progress, stop, Some(&mut lint), &mut |_, side, encoded| {
        let part = if side == Side::Train { &mut train } else { &mut held_out };
        part.shard.push(encoded);
        part.count();
        part.shard = Shard::default();
        Ok(())
    })?;
    let mut report = lint.report(walked.rows);
    (report.train_rows, report.held_out_rows) = (train.rows, held_out.rows);
    (report.train_tokens, report.completion_tokens) = (train.tokens, train.learnt);
    Ok(report)
}

fn counted(lint: Lint, report: &Report, rows: u64) -> LintReport {
    LintReport {
        train_rows: report.train_rows,
        held_out_rows: report.held_out_rows,
        train_tokens: report.train_tokens,
        completion_tokens: report.completion_tokens,
        ..lint.report(rows)
    }
}

/// One side of a snapshot: the shard that is filled now, and what the shards add up to.
#[derive(Default)]
struct Part {
    shard: Shard,
    shards: usize,
    rows: u64,
    tokens: u64,
    learnt: u64,
}

impl Part {
    /// Adds the shard that is filled to the sums.
    fn count(&mut self) {
        self.rows += self.shard.rows();
        self.tokens += self.shard.tokens();
        self.learnt += self.shard.learnt();
    }

    /// Hands the shard that is filled on, and begins another.
    fn hand_on(&mut self, output: &mut Output, side: Side) -> Result<(), PrepareError> {
        self.count();
        self.shards += 1;
        output.shard(&shard_name(side, self.shards), std::mem::take(&mut self.shard))
    }
}

fn shard_name(side: Side, number: usize) -> String {
    format!("{}-{number:05}.safetensors", side.name())
}

/// What the rows add up to.
struct Parts<'a> {
    output: &'a mut Output,
    train: Part,
    held_out: Part,
    held_out_lines: Lines,
    hash_lines: Lines,
    index: usize,
    longest: u64,
    truncated: u64,
}

impl<'a> Parts<'a> {
    fn new(output: &'a mut Output) -> Self {
        let (train, held_out) = (Part::default(), Part::default());
        let (held_out_lines, hash_lines) = (Lines::new(HELD_OUT_LINES), Lines::new(HASH_LINES));
        Self { output, train, held_out, held_out_lines, hash_lines, index: 0, longest: 0, truncated: 0 }
    }

    fn add(&mut self, plan: &Plan, row: &Taken, side: Side, encoded: &Encoded) -> Result<(), PrepareError> {
        let sha256 = hex(&row.hash);
        for part in [&sha256, " ", side.name()] {
            self.hash_lines.buffer.extend_from_slice(part.as_bytes());
        }
        self.hash_lines.end_line(self.output)?;
        self.truncated += u64::from(encoded.truncated);
        let longest = encoded.tokens.ids.len().max(encoded.rejected.as_ref().map_or(0, |tokens| tokens.ids.len()));
        self.longest = self.longest.max(longest as u64);
        let index = self.index;
        self.index += 1;
        let part = if side == Side::Train { &mut self.train } else { &mut self.held_out };
        part.shard.push(encoded);
        if part.shard.tokens() >= SHARD_TOKENS {
            part.hand_on(self.output, side)?;
        }
        if side == Side::Train {
            return Ok(());
        }
        let question = encoded.question.as_ref();
        let line = HeldOut {
            row: index,
            sha256,
            messages: question.map_or(&[], |question| &question.messages),
            prompt_ids: question.map_or(&[], |question| &question.prompt_ids),
            completion: question.map_or("", |question| &question.completion),
            fields: plan.encoder.fields(&row.row),
        };
        serde_json::to_writer(&mut self.held_out_lines.buffer, &line)
            .map_err(|source| PrepareError::Json { file: HELD_OUT_LINES, source })?;
        self.held_out_lines.end_line(self.output)
    }

    fn tokens(&self) -> u64 {
        let of = |part: &Part| part.tokens + part.shard.tokens();
        of(&self.train) + of(&self.held_out)
    }

    /// Hands on the shards that are filled; each side has one, be it an empty one.
    fn end_shards(&mut self) -> Result<(), PrepareError> {
        for (part, side) in [(&mut self.train, Side::Train), (&mut self.held_out, Side::HeldOut)] {
            if part.shards == 0 || part.shard.rows() > 0 {
                part.hand_on(self.output, side)?;
            }
        }
        Ok(())
    }

    /// Ends the files of lines, and returns the names of all files.
    fn finish(self) -> Result<Vec<String>, PrepareError> {
        let shards =
            |part: &Part, side| (1..=part.shards).map(move |number| shard_name(side, number)).collect::<Vec<_>>();
        let lines = [HELD_OUT_LINES, HASH_LINES].map(str::to_owned).to_vec();
        let files = [shards(&self.train, Side::Train), shards(&self.held_out, Side::HeldOut), lines].concat();
        self.held_out_lines.finish(self.output)?;
        self.hash_lines.finish(self.output)?;
        Ok(files)
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "unchanged_tests.rs"]
mod unchanged;
