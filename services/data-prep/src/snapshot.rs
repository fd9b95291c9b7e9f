//! Builds a snapshot's files and puts them on the stage.

use std::ops::Range;

use bytes::Bytes;
use firn_llm::tokenizer::Message;
use firn_stage::{Stage, StageError};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    encode::{EncodeError, Encoded},
    plan::{FormatSpec, Plan},
    rows::{self, Row, RowsError, Table},
    shard::{Shard, ShardError},
    split::{self, Split, hex},
};

/// The report's file in the snapshot's folder.
pub(crate) const REPORT: &str = "report.json";
/// Rows that one thread encodes before the progress is told.
const STRIDE: usize = 128;

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

/// A snapshot that is ready to be written.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) report: Report,
    files: Vec<(&'static str, Bytes)>,
}

/// Reads, checks, encodes and splits the rows. Blocks. `progress` gets the number of rows read so far.
pub(crate) fn build(
    plan: &Plan,
    create_time: String,
    limits: &Limits,
    progress: impl Fn(u64),
    stop: &CancellationToken,
) -> Result<Built, PrepareError> {
    let table = rows::read(&plan.source, limits, |rows| {
        if rows.is_multiple_of(1_000) {
            progress(rows as u64);
        }
        !stop.is_cancelled()
    })
    .map_err(|error| if matches!(error, RowsError::Stopped { .. }) { PrepareError::Stopped } else { error.into() })?;
    if table.sha256 != plan.source_sha256 {
        return Err(PrepareError::Changed { file: table.file });
    }
    progress(table.rows.len() as u64);
    let wanted = plan.request.held_out_rows;
    if wanted as usize >= table.rows.len() {
        return Err(PrepareError::NothingToTrain { file: table.file, rows: table.rows.len(), wanted });
    }
    plan.encoder.check_columns(&table.file, &table.columns).map_err(PrepareError::Columns)?;
    let split = split::split(&table.rows, wanted as usize, plan.request.seed);
    let mut parts = Parts::default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    for start in (0..table.rows.len()).step_by(workers * STRIDE) {
        if stop.is_cancelled() {
            return Err(PrepareError::Stopped);
        }
        let end = table.rows.len().min(start + workers * STRIDE);
        for (index, encoded) in (start..end).zip(encode(plan, &table, &split, start..end)?) {
            parts.add(plan, &table.rows[index], index, &split, &encoded)?;
        }
        if parts.tokens() > limits.max_snapshot_tokens {
            return Err(PrepareError::TooManyTokens { file: table.file, limit: limits.max_snapshot_tokens });
        }
    }
    if parts.train.learnt() == 0 {
        return Err(PrepareError::NothingToLearn { file: table.file, max_tokens: plan.request.max_tokens });
    }
    let report = Report {
        name: plan.name(),
        create_time,
        source: table.file,
        source_sha256: table.sha256,
        columns: table.columns,
        format: plan.request.format.clone(),
        tokenizer_sha256: plan.tokenizer_sha256.clone(),
        template_sha256: plan.template_sha256.clone(),
        seed: plan.request.seed,
        max_tokens: plan.request.max_tokens,
        rows: table.rows.len() as u64,
        train_rows: parts.train.rows(),
        held_out_rows: parts.held_out.rows(),
        train_tokens: parts.train.tokens(),
        completion_tokens: parts.train.learnt(),
        held_out_tokens: parts.held_out.tokens(),
        longest_row_tokens: parts.longest,
        truncated_rows: parts.truncated,
        duplicate_rows: split.duplicates as u64,
    };
    let files = vec![
        ("train-00001.safetensors", parts.train.to_bytes()?),
        ("held_out-00001.safetensors", parts.held_out.to_bytes()?),
        ("held_out.jsonl", Bytes::from(parts.held_out_lines)),
        ("rows.sha256", Bytes::from(parts.hash_lines)),
    ];
    Ok(Built { report, files })
}

/// Encodes a range of rows on all cores, in row order.
fn encode(plan: &Plan, table: &Table, split: &Split, range: Range<usize>) -> Result<Vec<Encoded>, PrepareError> {
    let one = |index: usize| {
        plan.encoder.encode(&table.rows[index], split.held_out[index]).map_err(|source| PrepareError::Row {
            file: table.file.clone(),
            row: index + 1,
            source,
        })
    };
    let indices: Vec<usize> = range.collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = indices
            .chunks(STRIDE)
            .map(|chunk| scope.spawn(|| chunk.iter().map(|&index| one(index)).collect::<Result<Vec<_>, _>>()))
            .collect();
        let mut all = Vec::with_capacity(indices.len());
        for worker in workers {
            all.extend(worker.join().map_err(|_| PrepareError::Worker)??);
        }
        Ok(all)
    })
}

/// What the rows add up to.
#[derive(Default)]
struct Parts {
    train: Shard,
    held_out: Shard,
    held_out_lines: Vec<u8>,
    hash_lines: String,
    longest: u64,
    truncated: u64,
}

impl Parts {
    fn add(
        &mut self,
        plan: &Plan,
        row: &Row,
        index: usize,
        split: &Split,
        encoded: &Encoded,
    ) -> Result<(), PrepareError> {
        let sha256 = hex(&split.hashes[index]);
        let held_out = split.held_out[index];
        self.hash_lines.push_str(&format!("{sha256} {}\n", if held_out { "held_out" } else { "train" }));
        self.truncated += u64::from(encoded.truncated);
        let longest = encoded.tokens.ids.len().max(encoded.rejected.as_ref().map_or(0, |tokens| tokens.ids.len()));
        self.longest = self.longest.max(longest as u64);
        if !held_out {
            self.train.push(encoded);
            return Ok(());
        }
        self.held_out.push(encoded);
        let question = encoded.question.as_ref();
        let line = HeldOut {
            row: index,
            sha256,
            messages: question.map_or(&[], |question| &question.messages),
            prompt_ids: question.map_or(&[], |question| &question.prompt_ids),
            completion: question.map_or("", |question| &question.completion),
            fields: plan.encoder.fields(row),
        };
        serde_json::to_writer(&mut self.held_out_lines, &line)
            .map_err(|source| PrepareError::Json { file: "held_out.jsonl", source })?;
        self.held_out_lines.push(b'\n');
        Ok(())
    }

    fn tokens(&self) -> u64 {
        self.train.tokens() + self.held_out.tokens()
    }
}

/// Puts the files on the stage, the manifest last, and returns the folder's path.
pub(crate) async fn write(stage: &Stage, plan: &Plan, built: Built) -> Result<String, PrepareError> {
    let mut folder = stage.fresh_folder(&format!("datasets/{}/{}", plan.request.dataset, plan.id)).await?;
    let path = folder.path().to_owned();
    for (name, bytes) in built.files {
        folder.put(name, bytes).await?;
    }
    folder.put_json(REPORT, &built.report).await?;
    folder.finish().await?;
    Ok(path)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
