//! Faults of the mount become sentences that name the file, and no torn file is taken for data.

use std::{fs, num::NonZeroU64, time::Duration};

use bytes::Bytes;
use firn_stage::{
    MANIFEST, Stage, StageError, WRITE_CHUNK,
    emulate::{Faults, Options},
};
use serde_json::{Value, json};

use crate::{Emulated, names, on_emulator};

fn with_faults(faults: Faults) -> Option<(Emulated, Stage)> {
    let emulated = on_emulator(&Options { faults, ..Options::default() })?;
    let stage = emulated.stage();
    Some((emulated, stage))
}

fn every(n: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(n)
}

/// The error names the file and what the system said.
fn is_named(error: &StageError, action: &str, path: &str) {
    let text = error.to_string();
    assert!(matches!(error, StageError::Failed { .. }), "{text}");
    for part in [&format!("failed to {action} "), path, "Input/output error"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

/// A local file of a few chunks.
fn large() -> (tempfile::NamedTempFile, Vec<u8>) {
    let bytes: Vec<u8> = (0..2 * WRITE_CHUNK + 999).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let local = tempfile::NamedTempFile::new().unwrap();
    fs::write(local.path(), &bytes).unwrap();
    (local, bytes)
}

#[tokio::test]
async fn a_failed_write_is_an_error_and_leaves_nothing() {
    let Some((emulated, stage)) = with_faults(Faults { fail_writes: every(3), ..Faults::default() }) else { return };
    let (local, _) = large();
    is_named(&stage.put_file("models/w", local.path()).await.unwrap_err(), "write", "models/w");
    assert!(names(&emulated.at("models")).is_empty());
}

#[tokio::test]
async fn a_failed_close_is_an_error_and_leaves_nothing() {
    // Every close but the first: the standard library would report none of them.
    let faults = Faults { fail_closes: every(2), seed: 0, ..Faults::default() };
    let Some((emulated, stage)) = with_faults(faults) else { return };
    let (local, bytes) = large();
    stage.put("first", Bytes::from_static(b"1")).await.unwrap();
    is_named(&stage.put("small", Bytes::from_static(b"2")).await.unwrap_err(), "write", "small");
    stage.put_file("third", local.path()).await.unwrap();
    is_named(&stage.put_file("large", local.path()).await.unwrap_err(), "write", "large");
    assert_eq!(names(emulated.path()), ["first", "third"]);
    assert_eq!(fs::read(emulated.at("third")).unwrap(), bytes);
}

#[tokio::test]
async fn a_torn_close_is_an_error_and_the_torn_file_goes() {
    let Some((emulated, stage)) = with_faults(Faults { tear_closes: every(1), ..Faults::default() }) else { return };
    let (local, _) = large();
    is_named(&stage.put("small", Bytes::from_static(b"1234")).await.unwrap_err(), "write", "small");
    is_named(&stage.put_file("large", local.path()).await.unwrap_err(), "write", "large");
    let mut folder = stage.folder("models/a");
    assert!(folder.put("w", Bytes::from_static(b"1234")).await.is_err());
    assert!(folder.finish().await.is_err());
    assert!(!stage.is_finished("models/a").await.unwrap());
    assert_eq!(names(emulated.path()), ["models"]);
    assert!(names(&emulated.at("models/a")).is_empty());
}

#[tokio::test]
async fn a_torn_file_that_stays_is_not_taken_for_data() {
    let Some((emulated, stage)) = with_faults(Faults { tear_closes: every(2), ..Faults::default() }) else { return };
    let log = stage.log("log").await.unwrap();
    log.append(&json!({"n": 1})).await.unwrap();
    // Its writer is gone before it can remove it: the standard library does not look at what the close says.
    fs::write(emulated.at("log/000002.json"), "{\"n\": 2}\n").unwrap();
    assert_eq!(fs::read_to_string(emulated.at("log/000002.json")).unwrap(), "{\"n\"");
    let log = stage.log("log").await.unwrap();
    assert_eq!(log.last::<Value>().await.unwrap(), Some(json!({"n": 1})));
    assert_eq!(log.append(&json!({"n": 3})).await.unwrap(), 3);

    let manifest = format!("models/a/{MANIFEST}");
    fs::create_dir_all(emulated.at("models/a")).unwrap();
    fs::write(emulated.at(&manifest), "{\"files\": []}\n").unwrap();
    assert_eq!(fs::read_to_string(emulated.at(&manifest)).unwrap(), "{\"files", "a torn one");
    assert!(!stage.is_finished("models/a").await.unwrap());
    assert!(stage.manifest("models/a").await.unwrap_err().is_damaged());
    assert_eq!(stage.fresh_folder("models/a").await.unwrap().path(), "models/a.2");
}

#[tokio::test]
async fn a_torn_weight_file_fails_its_hash() {
    let Some((emulated, stage)) = with_faults(Faults::default()) else { return };
    let (local, bytes) = large();
    let mut folder = stage.folder("models/a");
    folder.put_file("w", local.path()).await.unwrap();
    folder.finish().await.unwrap();
    fs::write(emulated.behind("models/a/w"), &bytes[..bytes.len() / 2]).unwrap();
    let into = tempfile::tempdir().unwrap();
    let error = stage.fetch_dir("models/a", into.path()).await.unwrap_err();
    assert!(error.is_damaged() && error.to_string().contains("models/a/w"), "{error}");
    assert!(names(into.path()).is_empty());
}

#[tokio::test]
async fn a_failed_read_is_an_error() {
    let Some((_emulated, stage)) = with_faults(Faults { fail_reads: every(2), ..Faults::default() }) else { return };
    let (local, _) = large();
    stage.put_file("models/w", local.path()).await.unwrap();
    let into = tempfile::tempdir().unwrap();
    is_named(&stage.copy("models/w", "models/copy", None).await.unwrap_err(), "read", "models/w");
    assert!(!stage.exists("models/copy").await.unwrap());
    stage.put("m/manifest.json", Bytes::from_static(b"{\"files\":[]}\n")).await.unwrap();
    let mut outcomes = vec![];
    for _ in 0..4 {
        outcomes.push(stage.fetch_dir("m", into.path()).await.is_ok());
    }
    assert!(outcomes.contains(&false), "{outcomes:?}");
}

#[tokio::test]
async fn short_and_late_reads_change_nothing() {
    let faults =
        Faults { short_reads: every(2), late_reads: every(5), late_by: Duration::from_millis(20), ..Faults::default() };
    let Some((_emulated, stage)) = with_faults(faults) else { return };
    let (local, bytes) = large();
    let written = stage.put_file("w", local.path()).await.unwrap();
    assert_eq!(stage.get("w").await.unwrap(), bytes);
    assert_eq!(stage.copy("w", "copy", Some(&written)).await.unwrap().sha256, written.sha256);
}

#[tokio::test]
async fn the_same_requests_meet_the_same_faults() {
    let mut runs = vec![];
    for seed in [4, 4, 5] {
        let Some((_emulated, stage)) = with_faults(Faults { seed, fail_writes: every(3), ..Faults::default() }) else {
            return;
        };
        let mut run = vec![];
        for n in 0..9 {
            run.push(stage.put(&n.to_string(), Bytes::from_static(b"x")).await.is_ok());
        }
        runs.push(run);
    }
    assert_eq!(runs[0], [true, false, true, true, false, true, true, false, true]);
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}
