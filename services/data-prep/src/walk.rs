//! All rows of a request, twice: first to choose which are held out, then to turn them into tokens. Neither pass holds
//! more than some batches of them.

use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    encode::{EncodeError, Encoded},
    lint::{Code, Lint},
    pipeline,
    plan::Plan,
    rows::{Files, Place, Row, RowsError, Scan},
    snapshot::PrepareError,
    split::{Chosen, Known, Order, Split, row_hash},
};

/// Rows between two words on how far it is.
const TELL: u64 = 1_000;

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
    pub(crate) row: Row,
    pub(crate) hash: [u8; 32],
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
    let mut held_out_order = Order::default();
    if let Some(files) = &plan.held_out_source {
        pass.first(files, &plan.held_out_sha256, &|_, row| row_hash(&row), &mut |hash| {
            held_out_order.add(&hash);
            foreign.add(&hash);
            Ok(())
        })?;
    }
    let (mut split, mut order) = (Split::default(), Order::default());
    let (mut leaked, mut own) = (0u64, 0u64);
    let entry = |_: Place<'_>, row: Row| {
        let hash = row_hash(&row);
        (hash, Split::entry(plan.request.seed, &hash))
    };
    let scan = pass.first(&plan.source, &plan.source_sha256, &entry, &mut |(hash, entry)| {
        order.add(&hash);
        if foreign.has(&hash) {
            leaked += 1;
            return Ok(());
        }
        own += 1;
        Ok(split.add(entry)?)
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
    let chosen = split.choose(u64::from(wanted))?;
    let mut noted = Lint::default();
    let strict = tolerant.is_none();
    let mut second = Second { strict, lint: tolerant.unwrap_or(&mut noted), each };
    if plan.encoder.marks_are_compared() {
        second.lint.note(Code::TemplateUnmarked, Place { file: "chat template", row: 0 }, String::new);
    }
    let work = |_: Place<'_>, row: Row| source_row(plan, row, &foreign, &chosen);
    pass.second(&plan.source, order, &work, &mut |place, read| second.take(place, read))?;
    let mut rows = scan.rows as u64;
    if let Some(files) = &plan.held_out_source {
        let work = |_: Place<'_>, row: Row| {
            let hash = row_hash(&row);
            encoded(plan, Taken { row, hash }, Side::HeldOut, false)
        };
        let scan = pass.second(files, held_out_order, &work, &mut |place, read| second.take(place, read))?;
        rows += scan.rows as u64;
    }
    Ok(Walked { scan, rows, leaked, duplicates: chosen.duplicates, lint: noted })
}

/// What all passes share.
struct Pass<'a> {
    limits: &'a Limits,
    progress: &'a dyn Fn(u64),
    stop: &'a CancellationToken,
}

impl Pass<'_> {
    /// Reads files whose hash must be the one that the plan was made for.
    fn first<T: Send>(
        &self,
        files: &Files,
        sha256: &str,
        work: &pipeline::Work<'_, T>,
        take: &mut dyn FnMut(T) -> Result<(), PrepareError>,
    ) -> Result<Scan, PrepareError> {
        let scan = self.rows(files, true, work, &mut |_, result| take(result))?;
        if scan.sha256 == sha256 { Ok(scan) } else { Err(PrepareError::Changed { file: files.name() }) }
    }

    /// Reads files again. Their rows must be those of the first pass, in the same order, which says all that matters of
    /// the files' bytes.
    fn second(
        &self,
        files: &Files,
        expected: Order,
        work: &pipeline::Work<'_, Read>,
        take: &mut pipeline::Take<'_, Read>,
    ) -> Result<Scan, PrepareError> {
        let mut order = Order::default();
        let scan = self.rows(files, false, work, &mut |place, read| {
            order.add(&read.hash);
            take(place, read)
        })?;
        if order == expected { Ok(scan) } else { Err(PrepareError::Changed { file: files.name() }) }
    }

    fn rows<T: Send>(
        &self,
        files: &Files,
        hashed: bool,
        work: &pipeline::Work<'_, T>,
        take: &mut pipeline::Take<'_, T>,
    ) -> Result<Scan, PrepareError> {
        let mut count = 0u64;
        let scan = pipeline::run(files, self.limits, hashed, work, &mut |place, result| {
            count += 1;
            if count.is_multiple_of(TELL) {
                (self.progress)(count);
            }
            if self.stop.is_cancelled() {
                return Err(PrepareError::Stopped);
            }
            take(place, result)
        });
        scan.map_err(|error| match error {
            PrepareError::Rows(RowsError::Stopped { .. }) => PrepareError::Stopped,
            error => error,
        })
    }
}

/// What a worker of the second pass makes of a row.
struct Read {
    hash: [u8; 32],
    /// None if the row stands in the validation file, too.
    own: Option<Box<Own>>,
}

/// A row that goes to a side.
struct Own {
    taken: Taken,
    side: Side,
    repeated: bool,
    encoded: Result<Encoded, EncodeError>,
}

fn source_row(plan: &Plan, row: Row, foreign: &Known, chosen: &Chosen) -> Read {
    let hash = row_hash(&row);
    if foreign.has(&hash) {
        return Read { hash, own: None };
    }
    let side = if chosen.holds_out(&hash) { Side::HeldOut } else { Side::Train };
    encoded(plan, Taken { row, hash }, side, chosen.is_repeated(&hash))
}

fn encoded(plan: &Plan, taken: Taken, side: Side, repeated: bool) -> Read {
    let encoded = plan.encoder.encode(&taken.row, side == Side::HeldOut);
    Read { hash: taken.hash, own: Some(Box::new(Own { taken, side, repeated, encoded })) }
}

/// Notes and hands on what the workers of the second pass made.
struct Second<'a, 'b> {
    strict: bool,
    lint: &'a mut Lint,
    each: &'a mut Each<'b>,
}

impl Second<'_, '_> {
    fn take(&mut self, place: Place<'_>, read: Read) -> Result<(), PrepareError> {
        let Some(own) = read.own else {
            self.lint.note(Code::Leakage, place, || "stands in the validation file".to_owned());
            return Ok(());
        };
        let Own { taken, side, repeated, encoded } = *own;
        if repeated {
            self.lint.note(Code::Duplicate, place, || serde_json::Value::Object(taken.row.clone()).to_string());
        }
        match encoded {
            Ok(encoded) => {
                self.lint.encoded(place, &encoded);
                (self.each)(&taken, side, &encoded)
            }
            Err(source) if self.strict => {
                Err(PrepareError::Row { file: place.file.to_owned(), row: place.row, source })
            }
            Err(error) => {
                self.lint.note(Code::Refused, place, || error.to_string());
                Ok(())
            }
        }
    }
}
