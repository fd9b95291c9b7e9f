//! All rows of a request, twice: first to choose which are held out, then to turn them into tokens. Neither pass holds
//! more than a batch of them.

use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    encode::{EncodeError, Encoded},
    lint::{Code, Lint},
    plan::Plan,
    rows::{Files, Place, Row, RowsError, Scan},
    snapshot::PrepareError,
    split::{Chosen, Known, Split, row_hash},
};

/// Rows that one thread encodes at once.
const STRIDE: usize = 128;
/// Bytes of text that a batch may hold, and how much is reckoned for a value that is no text.
const BATCH_BYTES: usize = 32 << 20;
const PLAIN_VALUE: usize = 32;
/// Rows between two looks at whether to stop.
const LOOK: u64 = 1_000;

/// Where a row goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Train,
    HeldOut,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// A row that was read.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) file: String,
    /// From 1, in its file.
    pub(crate) number: usize,
    pub(crate) row: Row,
    pub(crate) hash: [u8; 32],
}

impl Taken {
    fn place(&self) -> Place<'_> {
        Place { file: &self.file, row: self.number }
    }
}

/// What a walk found.
#[derive(Debug)]
pub(crate) struct Walked {
    pub(crate) scan: Scan,
    /// Rows of all sources.
    pub(crate) rows: u64,
    /// Rows that were left out, for they stand in the validation file, too.
    pub(crate) leaked: u64,
    pub(crate) duplicates: u64,
    /// What was noted, unless the caller has a lint of its own.
    pub(crate) lint: Lint,
}

/// Gets each row in order, with its side and its tokens.
type Each<'a> = dyn FnMut(&Taken, Side, &Encoded) -> Result<(), PrepareError> + 'a;

/// Walks over all rows. With `tolerant`, rows that can't be encoded are noted there and passed over; without, the first
/// of them is the error.
pub(crate) fn walk(
    plan: &Plan,
    limits: &Limits,
    progress: &dyn Fn(u64),
    stop: &CancellationToken,
    tolerant: Option<&mut Lint>,
    each: &mut Each<'_>,
) -> Result<Walked, PrepareError> {
    let pass = Pass { limits, progress, stop };
    let mut foreign = Known::default();
    if let Some(files) = &plan.held_out_source {
        pass.rows(files, &plan.held_out_sha256, &mut |_, row| {
            foreign.add(&row_hash(&row));
            Ok(())
        })?;
    }
    let mut split = Split::new(plan.request.seed);
    let (mut leaked, mut own) = (0u64, 0u64);
    let scan = pass.rows(&plan.source, &plan.source_sha256, &mut |_, row| {
        let hash = row_hash(&row);
        if foreign.has(&hash) {
            leaked += 1;
        } else {
            own += 1;
            split.add(&hash);
        }
        Ok(())
    })?;
    progress(scan.rows as u64);
    let file = plan.source.name();
    plan.encoder.check_columns(&file, &scan.columns).map_err(PrepareError::Columns)?;
    if own == 0 {
        return Err(PrepareError::AllLeaked { file });
    }
    let wanted = plan.request.held_out_rows;
    if u64::from(wanted) >= own {
        return Err(PrepareError::NothingToTrain { file, rows: scan.rows, wanted });
    }
    let chosen = split.choose(u64::from(wanted));
    let mut noted = Lint::default();
    let strict = tolerant.is_none();
    let mut second = Second { plan, strict, lint: tolerant.unwrap_or(&mut noted), batch: Batch::default(), each };
    if plan.encoder.marks_are_compared() {
        second.lint.note(Code::TemplateUnmarked, Place { file: "chat template", row: 0 }, String::new);
    }
    pass.rows(&plan.source, &plan.source_sha256, &mut |place, row| {
        second.source_row(place, row, &foreign, &chosen).map_err(RowsError::from)
    })?;
    let mut rows = scan.rows as u64;
    if let Some(files) = &plan.held_out_source {
        let scan = pass.rows(files, &plan.held_out_sha256, &mut |place, row| {
            second
                .push(
                    Taken { file: place.file.to_owned(), number: place.row, hash: row_hash(&row), row },
                    Side::HeldOut,
                )
                .map_err(RowsError::from)
        })?;
        rows += scan.rows as u64;
    }
    second.flush()?;
    Ok(Walked { scan, rows, leaked, duplicates: chosen.duplicates, lint: noted })
}

/// What both passes share.
struct Pass<'a> {
    limits: &'a Limits,
    progress: &'a dyn Fn(u64),
    stop: &'a CancellationToken,
}

impl Pass<'_> {
    /// Reads files whose hash must be the one that the plan was made for.
    fn rows(
        &self,
        files: &Files,
        sha256: &str,
        take: &mut dyn FnMut(Place<'_>, Row) -> Result<(), RowsError>,
    ) -> Result<Scan, PrepareError> {
        let mut count = 0u64;
        let scan = files.visit(self.limits, &mut |place, row| {
            count += 1;
            if count.is_multiple_of(LOOK) {
                (self.progress)(count);
            }
            if self.stop.is_cancelled() {
                return Err(RowsError::Stopped { file: place.file.to_owned() });
            }
            take(place, row)
        });
        let scan = scan.map_err(|error| match error {
            RowsError::Stopped { .. } => PrepareError::Stopped,
            RowsError::Taken(error) => *error,
            error => error.into(),
        })?;
        if scan.sha256 != sha256 {
            return Err(PrepareError::Changed { file: files.name() });
        }
        Ok(scan)
    }
}

/// Rows that are encoded together.
#[derive(Default)]
struct Batch {
    rows: Vec<(Taken, Side)>,
    bytes: usize,
}

struct Second<'a, 'b> {
    plan: &'a Plan,
    strict: bool,
    lint: &'a mut Lint,
    batch: Batch,
    each: &'a mut Each<'b>,
}

impl Second<'_, '_> {
    fn source_row(&mut self, place: Place<'_>, row: Row, foreign: &Known, chosen: &Chosen) -> Result<(), PrepareError> {
        let hash = row_hash(&row);
        if foreign.has(&hash) {
            self.lint.note(Code::Leakage, place, || "stands in the validation file".to_owned());
            return Ok(());
        }
        if chosen.is_repeated(&hash) {
            self.lint.note(Code::Duplicate, place, || serde_json::Value::Object(row.clone()).to_string());
        }
        let side = if chosen.holds_out(&hash) { Side::HeldOut } else { Side::Train };
        self.push(Taken { file: place.file.to_owned(), number: place.row, row, hash }, side)
    }

    fn push(&mut self, row: Taken, side: Side) -> Result<(), PrepareError> {
        let size = |value: &serde_json::Value| value.as_str().map_or(PLAIN_VALUE, str::len);
        self.batch.bytes += row.row.values().map(size).sum::<usize>();
        self.batch.rows.push((row, side));
        let full = workers() * STRIDE;
        if self.batch.rows.len() >= full || self.batch.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Encodes the batch on all cores and hands it on in order.
    fn flush(&mut self) -> Result<(), PrepareError> {
        let Batch { rows, .. } = std::mem::take(&mut self.batch);
        let encoded = encode(self.plan, &rows)?;
        for ((row, side), encoded) in rows.iter().zip(encoded) {
            match encoded {
                Ok(encoded) => {
                    self.lint.encoded(row.place(), &encoded);
                    (self.each)(row, *side, &encoded)?;
                }
                Err(source) if self.strict => {
                    return Err(PrepareError::Row { file: row.file.clone(), row: row.number, source });
                }
                Err(error) => self.lint.note(Code::Refused, row.place(), || error.to_string()),
            }
        }
        Ok(())
    }
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn encode(plan: &Plan, rows: &[(Taken, Side)]) -> Result<Vec<Result<Encoded, EncodeError>>, PrepareError> {
    let one = |(row, side): &(Taken, Side)| plan.encoder.encode(&row.row, *side == Side::HeldOut);
    let share = rows.len().div_ceil(workers()).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            rows.chunks(share).map(|rows| scope.spawn(move || rows.iter().map(one).collect::<Vec<_>>())).collect();
        let mut all = Vec::with_capacity(rows.len());
        for worker in workers {
            all.extend(worker.join().map_err(|_| PrepareError::Worker)?);
        }
        Ok(all)
    })
}
