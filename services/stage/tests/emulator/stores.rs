//! What works on a plain folder and not on a stage mount, so that the emulator is worth its while.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
};

use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, local::LocalFileSystem, path::Path};
use rustix::io::Errno;

use crate::{errno, names, plain};

/// The store that a naive service would take.
async fn naive(root: &std::path::Path, mode: PutMode) -> object_store::Result<()> {
    let store = LocalFileSystem::new_with_prefix(root)?;
    store.put_opts(&Path::from("models/w"), "weights".into(), mode.into()).await.map(drop)
}

#[tokio::test]
async fn the_local_file_system_of_object_store_fails() {
    let Some(emulated) = plain() else { return };
    for mode in [PutMode::Overwrite, PutMode::Create] {
        naive(tempfile::tempdir().unwrap().path(), mode.clone()).await.unwrap();
        let error = naive(emulated.path(), mode).await.unwrap_err().to_string();
        println!("LocalFileSystem: {error}");
        // It would rename or link next; already its temporary file is open for reading and writing at once.
        assert!(error.contains("models/w#1: Operation not supported"), "{error}");
        assert!(names(&emulated.at("models")).is_empty());
    }
}

#[tokio::test]
async fn its_multipart_upload_fails_too() {
    let Some(emulated) = plain() else { return };
    let store = LocalFileSystem::new_with_prefix(emulated.path()).unwrap();
    let written = async {
        let mut upload = store.put_multipart(&Path::from("w")).await?;
        upload.put_part("weights".into()).await?;
        upload.complete().await.map(drop)
    };
    let error = written.await.unwrap_err().to_string();
    assert!(error.contains("Operation not supported"), "{error}");
    assert!(!emulated.at("w").exists());
}

#[test]
fn a_temporary_file_and_a_rename_fail() {
    let naive = |root: &std::path::Path| {
        fs::write(root.join("w.tmp"), "weights")?;
        fs::rename(root.join("w.tmp"), root.join("w"))
    };
    let Some(emulated) = plain() else { return };
    naive(tempfile::tempdir().unwrap().path()).unwrap();
    assert_eq!(errno(naive(emulated.path())), Errno::OPNOTSUPP);
    assert_eq!(names(emulated.path()), ["w.tmp"]);
}

#[test]
fn a_log_that_appends_fails() {
    let naive = |root: &std::path::Path| {
        for line in ["one\n", "two\n"] {
            OpenOptions::new().create(true).append(true).open(root.join("log"))?.write_all(line.as_bytes())?;
        }
        Ok(())
    };
    let Some(emulated) = plain() else { return };
    naive(tempfile::tempdir().unwrap().path()).unwrap();
    assert_eq!(errno(naive(emulated.path())), Errno::OPNOTSUPP);
}

#[test]
fn a_copy_of_the_standard_library_fails_because_it_sets_rights() {
    let Some(emulated) = plain() else { return };
    let local = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(errno(fs::copy(local.path(), emulated.at("w"))), Errno::OPNOTSUPP);
}
