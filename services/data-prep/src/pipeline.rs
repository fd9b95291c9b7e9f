//! Rows through many threads, in and out in the order of their files.
//!
//! One thread reads rows as they lie in the files, workers take them apart and do the work, and the caller's thread gets
//! the results in order. What is under way is bounded, so memory depends on neither the files nor their number.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
};

use crate::{
    config::Limits,
    raw::{Head, Raw, Sink},
    rows::{Columns, Files, Place, Row, RowsError, Scan},
    snapshot::PrepareError,
};

/// Rows of a batch, and bytes after which it ends earlier.
const BATCH_ROWS: usize = 128;
const BATCH_BYTES: usize = 256 << 10;
/// Batches under way for each worker.
const AHEAD: usize = 2;

/// What workers do with a row.
pub(crate) type Work<'a, T> = dyn Fn(Place<'_>, Row) -> T + Sync + 'a;
/// Gets what the work gave, in the rows' order.
pub(crate) type Take<'a, T> = dyn FnMut(Place<'_>, T) -> Result<(), PrepareError> + 'a;

/// Rows that one worker takes at once.
struct Batch {
    head: Arc<Head>,
    rows: Vec<Raw>,
}

/// What became of a batch.
struct Done<T> {
    head: Arc<Head>,
    /// Numbers of the rows in their file, with what the work gave.
    rows: Vec<(usize, T)>,
    columns: Vec<String>,
    /// Why the next row could not be taken apart.
    error: Option<RowsError>,
}

type Job<T> = (Batch, Sender<Done<T>>);

/// Reads all rows of these files. The hash is left empty unless it is asked for.
pub(crate) fn run<T: Send>(
    files: &Files,
    limits: &Limits,
    hashed: bool,
    work: &Work<'_, T>,
    take: &mut Take<'_, T>,
) -> Result<Scan, PrepareError> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let by_row = files.names_columns_by_row();
    let (jobs, queue) = mpsc::channel::<Job<T>>();
    let queue = Mutex::new(queue);
    // The order of the results, and the bound on what is under way.
    let (order, results) = mpsc::sync_channel::<Receiver<Done<T>>>(AHEAD * workers);
    thread::scope(|scope| {
        let work_on = || {
            while let Some((batch, done)) = next(&queue) {
                // Nobody waits for it any more after an error.
                let _ = done.send(work_through(batch, limits, by_row, work));
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work_on)).collect();
        let reader = scope.spawn(move || {
            let mut batches = Batches { head: None, rows: Vec::new(), bytes: 0, jobs, order };
            let scan = files.read(limits, hashed, &mut batches);
            // Rows before an error come first.
            let _ = batches.flush();
            scan
        });
        let mut columns = Columns::default();
        let taken = take_all(results, &mut columns, take);
        // A panic of a thread is an error here, not a panic.
        let read = reader.join();
        let failed = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        taken?;
        let scan = read.map_err(|_| PrepareError::Worker)??;
        if failed > 0 {
            return Err(PrepareError::Worker);
        }
        Ok(if by_row { Scan { columns: columns.list, ..scan } } else { scan })
    })
}

fn next<T>(queue: &Mutex<Receiver<Job<T>>>) -> Option<Job<T>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn take_all<T>(
    results: Receiver<Receiver<Done<T>>>,
    columns: &mut Columns,
    take: &mut Take<'_, T>,
) -> Result<(), PrepareError> {
    for done in results {
        let Done { head, rows, columns: found, error } = done.recv().map_err(|_| PrepareError::Worker)?;
        columns.add(&found);
        for (row, result) in rows {
            take(Place { file: &head.file, row }, result)?;
        }
        if let Some(error) = error {
            return Err(error.into());
        }
    }
    Ok(())
}

fn work_through<T>(batch: Batch, limits: &Limits, by_row: bool, work: &Work<'_, T>) -> Done<T> {
    let Batch { head, rows } = batch;
    let (mut columns, mut results, mut error) = (Columns::default(), Vec::with_capacity(rows.len()), None);
    for raw in rows {
        let number = raw.row;
        match raw.decode(&head, limits) {
            Ok(row) => {
                if by_row {
                    columns.add(row.keys());
                }
                results.push((number, work(Place { file: &head.file, row: number }, row)));
            }
            Err(found) => {
                error = Some(found);
                break;
            }
        }
    }
    Done { head, rows: results, columns: columns.list, error }
}

/// Gathers rows to batches.
struct Batches<T> {
    head: Option<Arc<Head>>,
    rows: Vec<Raw>,
    bytes: usize,
    jobs: Sender<Job<T>>,
    order: SyncSender<Receiver<Done<T>>>,
}

impl<T> Batches<T> {
    fn flush(&mut self) -> Result<(), RowsError> {
        let Some(head) = self.head.as_ref().filter(|_| !self.rows.is_empty()) else { return Ok(()) };
        let batch = Batch { head: Arc::clone(head), rows: std::mem::take(&mut self.rows) };
        self.bytes = 0;
        let (done, result) = mpsc::channel();
        // The taker is gone after an error of its own, which is the one that counts.
        let gone = || RowsError::Stopped { file: head.file.clone() };
        self.order.send(result).map_err(|_| gone())?;
        self.jobs.send((batch, done)).map_err(|_| gone())
    }
}

impl<T> Sink for Batches<T> {
    fn file(&mut self, head: Arc<Head>) {
        // The rows of the file before are under way, or the taker is gone, which the next row tells.
        let _ = self.flush();
        self.head = Some(head);
    }

    fn row(&mut self, raw: Raw) -> Result<(), RowsError> {
        self.bytes += raw.size();
        self.rows.push(raw);
        if self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }
}
