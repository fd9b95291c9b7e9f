use std::{fs, sync::Arc};

use bytes::Bytes;
use firn_stage::{READ_CHUNK, Stage, StageError, StageVolume, WRITE_CHUNK, sha256_hex};
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, UpdateVersion, path::Path};

use crate::on_disk;

async fn collect(stage: &Stage, path: &str, offset: u64) -> Vec<Bytes> {
    stage.read_stream(path, offset).await.unwrap().try_collect().await.unwrap()
}

#[tokio::test]
async fn a_path_is_written_once() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        stage.put("a/b.txt", Bytes::from_static(b"one")).await.unwrap();
        let again = stage.put("a/b.txt", Bytes::from_static(b"two")).await.unwrap_err();
        assert!(matches!(&again, StageError::AlreadyExists { path } if path == "a/b.txt"), "{again}");
        assert_eq!(stage.get("a/b.txt").await.unwrap(), "one");

        let local = tempfile::NamedTempFile::new().unwrap();
        fs::write(local.path(), vec![7; WRITE_CHUNK + 1]).unwrap();
        let again = stage.put_file("a/b.txt", local.path()).await.unwrap_err();
        assert!(matches!(again, StageError::AlreadyExists { .. }), "{again}");
        assert_eq!(stage.get("a/b.txt").await.unwrap(), "one");
    }
}

#[tokio::test]
async fn an_overwrite_and_an_update_are_refused_by_the_volume_itself() {
    let Some((folder, _)) = on_disk() else { return };
    let volume = StageVolume::new(folder.path());
    let path = Path::from("x");
    volume.put(&path, "one".into()).await.unwrap();
    let overwrite = volume.put_opts(&path, "two".into(), PutMode::Overwrite.into()).await.unwrap_err();
    assert!(matches!(overwrite, object_store::Error::AlreadyExists { .. }));
    let version = UpdateVersion { e_tag: None, version: None };
    let update = volume.put_opts(&path, "two".into(), PutMode::Update(version).into()).await.unwrap_err();
    assert!(matches!(update, object_store::Error::NotSupported { .. }));
    volume.copy(&path, &Path::from("y")).await.unwrap();
    assert_eq!(volume.get(&Path::from("y")).await.unwrap().bytes().await.unwrap(), "one");
    assert!(volume.copy(&path, &Path::from("y")).await.is_err());
}

#[tokio::test]
async fn parts_reach_the_file_in_order_and_an_abort_leaves_nothing() {
    let Some((folder, _)) = on_disk() else { return };
    let volume: Arc<dyn ObjectStore> = Arc::new(StageVolume::new(folder.path()));
    let mut upload = volume.put_multipart(&Path::from("big")).await.unwrap();
    let (first, second) = (upload.put_part("aaa".into()), upload.put_part("bbb".into()));
    let second = tokio::spawn(second);
    tokio::task::yield_now().await;
    first.await.unwrap();
    second.await.unwrap().unwrap();
    upload.complete().await.unwrap();
    assert_eq!(fs::read(folder.path().join("big")).unwrap(), b"aaabbb");

    let mut upload = volume.put_multipart(&Path::from("half")).await.unwrap();
    upload.put_part("aaa".into()).await.unwrap();
    drop(upload);
    assert!(!folder.path().join("half").exists());
}

#[tokio::test]
async fn a_large_file_comes_back_whole_and_from_any_offset() {
    let Some((_folder, disk)) = on_disk() else { return };
    let bytes: Vec<u8> = (0..2 * WRITE_CHUNK + 12_345).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let local = tempfile::NamedTempFile::new().unwrap();
    fs::write(local.path(), &bytes).unwrap();
    for stage in [disk, Stage::memory()] {
        let entry = stage.put_file("w/model.bin", local.path()).await.unwrap();
        assert_eq!((entry.size, entry.sha256), (bytes.len() as u64, sha256_hex(&bytes)));
        let chunks = collect(&stage, "w/model.bin", 0).await;
        assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= READ_CHUNK));
        assert!(chunks.concat() == bytes);
        assert!(collect(&stage, "w/model.bin", 9_999_999).await.concat() == bytes[9_999_999..]);
        assert!(collect(&stage, "w/model.bin", entry.size).await.is_empty());
        let past = stage.read_stream("w/model.bin", entry.size + 1).await.err().unwrap();
        assert!(matches!(past, StageError::OutOfRange { .. }), "{past}");
        assert_eq!(stage.get_range("w/model.bin", 3, 4).await.unwrap(), bytes[3..7]);
        let copied = stage.copy("w/model.bin", "w/copy.bin", None).await.unwrap();
        assert_eq!(copied.sha256, sha256_hex(&bytes));
    }
}

#[tokio::test]
async fn listing_is_sorted_and_relative_to_the_root() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        for path in ["m/b/2", "m/a/1", "m/top", "other"] {
            stage.put(path, Bytes::from_static(b"x")).await.unwrap();
        }
        let paths = |entries: Vec<firn_stage::Entry>| entries.into_iter().map(|e| e.path).collect::<Vec<_>>();
        assert_eq!(paths(stage.list("m").await.unwrap()), ["m/a/1", "m/b/2", "m/top"]);
        assert_eq!(paths(stage.list_files("m").await.unwrap()), ["m/top"]);
        assert_eq!(stage.list_dirs("m").await.unwrap(), ["a", "b"]);
        assert_eq!(stage.list_dirs("").await.unwrap(), ["m"]);
        assert!(stage.list("absent").await.unwrap().is_empty());
        assert!(stage.exists("other").await.unwrap());
        assert!(!stage.exists("m").await.unwrap(), "a folder is no file");
        assert!(!stage.exists("other/below").await.unwrap());
        stage.delete("other").await.unwrap();
        assert!(!stage.exists("other").await.unwrap());
        stage.delete("other").await.unwrap();
    }
}

#[tokio::test]
async fn paths_cannot_leave_the_stage() {
    let Some((_folder, stage)) = on_disk() else { return };
    for path in ["../x", "a/../../x", "/etc/passwd", "", "a/", "a//b", "a\\..\\b", "./a", "a\0b"] {
        let error = stage.put(path, Bytes::from_static(b"x")).await.unwrap_err();
        assert!(matches!(error, StageError::InvalidPath { .. }), "{path:?}: {error}");
        assert!(stage.get(path).await.is_err());
    }
}

#[test]
fn a_stage_that_cannot_be_opened_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let error = Stage::open(path).unwrap_err().to_string();
    assert_eq!(error, format!("cannot use stage {path}: it is not a folder; name another"));
    assert!(Stage::open("s3://bucket").unwrap_err().to_string().contains("s3://bucket"));
    assert!(Stage::open("").is_err());
    assert!(Stage::open("memory:").unwrap().local_root().is_none());
    let below = file.path().join("below");
    assert!(Stage::open(below.to_str().unwrap()).unwrap_err().to_string().contains("below"));
}
