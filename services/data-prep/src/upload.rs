//! An upload as it comes in: a head, then chunks, each in its time.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use firn_proto::dataprep::v1::{FileHead, UploadFileRequest, upload_file_request::Part};
use firn_stage::READ_CHUNK;
use futures_util::{Stream, StreamExt as _, stream};
use tonic::Status;

use crate::{file_error::UploadError, rows::Kind};

/// Longest wait for a chunk.
pub(crate) const CHUNK_TIME: Duration = Duration::from_secs(60);
/// Longest filename in bytes.
const LONGEST_FILENAME: usize = 200;
/// Longest purpose in bytes.
const LONGEST_PURPOSE: usize = 64;

/// Waits for the head, and checks it.
pub(crate) async fn head(
    parts: &mut (impl Stream<Item = Result<UploadFileRequest, Status>> + Send + Unpin),
) -> Result<FileHead, UploadError> {
    match next(parts, CHUNK_TIME).await? {
        Some(Part::Head(head)) => checked(head),
        _ => Err(refused("head", "must come first")),
    }
}

/// The bytes after the head, at least one and at most `limit`; no chunk may take longer than `wait`.
pub(crate) fn bytes(
    parts: impl Stream<Item = Result<UploadFileRequest, Status>> + Send + Unpin,
    limit: u64,
    wait: Duration,
) -> impl Stream<Item = Result<Bytes, UploadError>> + Send {
    stream::try_unfold((parts, 0u64), move |(mut parts, size)| async move {
        let data = match next(&mut parts, wait).await? {
            Some(Part::Data(data)) => data,
            Some(Part::Head(_)) => return Err(refused("head", "must be sent once")),
            None if size == 0 => return Err(refused("data", "the file is empty")),
            None => {
                // A call that its caller gave up ends here like one that was completed. But the server drops it once it
                // waits, so what comes after a wait was completed.
                tokio::task::yield_now().await;
                return Ok(None);
            }
        };
        if data.is_empty() || data.len() > READ_CHUNK {
            return Err(refused("data", &format!("a chunk must have from 1 to {READ_CHUNK} bytes")));
        }
        let size = size + data.len() as u64;
        if size > limit { Err(UploadError::TooLarge { limit }) } else { Ok(Some((Bytes::from(data), (parts, size)))) }
    })
}

async fn next(
    parts: &mut (impl Stream<Item = Result<UploadFileRequest, Status>> + Unpin),
    wait: Duration,
) -> Result<Option<Part>, UploadError> {
    match tokio::time::timeout(wait, parts.next()).await {
        Ok(Some(Ok(UploadFileRequest { part: Some(part) }))) => Ok(Some(part)),
        Ok(Some(Ok(UploadFileRequest { part: None }))) => Err(refused("part", "must be a head or data")),
        Ok(Some(Err(status))) => Err(UploadError::Cut(Box::new(status))),
        Ok(None) => Ok(None),
        Err(_) => Err(UploadError::Late { seconds: wait.as_secs() }),
    }
}

/// A filename becomes the last part of a path on the stage, and its ending says how it is read.
fn checked(head: FileHead) -> Result<FileHead, UploadError> {
    let FileHead { filename, purpose } = &head;
    if filename.len() > LONGEST_FILENAME {
        return Err(refused("head.filename", &format!("has more than {LONGEST_FILENAME} bytes")));
    }
    if filename.contains(['/', '\\']) || filename.starts_with('.') || filename.contains(char::is_control) {
        return Err(refused("head.filename", "must be a plain name, without a folder"));
    }
    let ends = !Path::new(filename).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("ndjson"));
    if !ends || Kind::of(Path::new(filename)).is_err() {
        return Err(refused("head.filename", "must end in .jsonl, .csv or .parquet"));
    }
    if purpose.len() > LONGEST_PURPOSE || purpose.contains(char::is_control) {
        return Err(refused("head.purpose", &format!("must be plain text of at most {LONGEST_PURPOSE} bytes")));
    }
    Ok(head)
}

fn refused(field: &'static str, reason: &str) -> UploadError {
    UploadError::Field { field, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    fn head_of(filename: &str, purpose: &str) -> Result<FileHead, UploadError> {
        checked(FileHead { filename: filename.to_owned(), purpose: purpose.to_owned() })
    }

    #[test]
    fn a_filename_is_plain_and_says_what_it_holds() {
        for good in ["a.jsonl", "Überblick 1.CSV", "a.b.parquet"] {
            assert!(head_of(good, "fine-tune").is_ok(), "{good}");
        }
        let long = format!("{}.csv", "x".repeat(200));
        for bad in ["", "a", "a.json", "a.ndjson", ".csv", "../a.csv", "x/a.csv", "x\\a.csv", "a\n.csv", &long] {
            assert!(matches!(head_of(bad, ""), Err(UploadError::Field { field: "head.filename", .. })), "{bad}");
        }
        assert!(matches!(head_of("a.csv", &"x".repeat(65)), Err(UploadError::Field { field: "head.purpose", .. })));
    }

    #[tokio::test]
    async fn a_chunk_that_does_not_come_ends_the_upload() {
        let chunk = UploadFileRequest { part: Some(Part::Data(vec![1])) };
        let parts = stream::iter([Ok(chunk)]).chain(stream::pending());
        let outcome = bytes(Box::pin(parts), 10, Duration::from_millis(20)).try_collect::<Vec<_>>().await;
        assert!(matches!(outcome, Err(UploadError::Late { .. })), "{outcome:?}");
    }
}
