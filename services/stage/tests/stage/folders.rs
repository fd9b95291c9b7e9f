use std::{fs, time::Duration};

use bytes::Bytes;
use firn_stage::{MANIFEST, Stage, StageError, sha256_hex};

use crate::on_disk;

async fn write_model(stage: &Stage, path: &str) {
    let mut folder = stage.folder(path);
    folder.put("weights.bin", Bytes::from_static(b"weights")).await.unwrap();
    folder.put_json("sub/report.json", &serde_json::json!({"loss": 1.5})).await.unwrap();
    folder.finish().await.unwrap();
}

#[tokio::test]
async fn a_folder_counts_once_its_manifest_is_there() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        let mut folder = stage.folder("models/a");
        folder.put("w", Bytes::from_static(b"w")).await.unwrap();
        assert!(stage.manifest("models/a").await.unwrap_err().is_not_found());
        assert!(!stage.is_finished("models/a").await.unwrap());
        let manifest = folder.finish().await.unwrap();
        assert_eq!(stage.manifest("models/a").await.unwrap(), manifest);
        assert_eq!(manifest.file("w").unwrap().sha256, sha256_hex(b"w"));
        assert!(stage.folder("models/a").put(MANIFEST, Bytes::new()).await.is_err());
    }
}

#[tokio::test]
async fn a_torn_manifest_does_not_count_and_the_writer_starts_afresh() {
    let Some((folder, stage)) = on_disk() else { return };
    write_model(&stage, "d/x").await;
    let torn = folder.path().join("d/x").join(MANIFEST);
    let whole = fs::read(&torn).unwrap();
    for len in [0, 1, whole.len() / 2] {
        fs::write(&torn, &whole[..len]).unwrap();
        let error = stage.manifest("d/x").await.unwrap_err();
        assert!(error.is_damaged() && error.to_string().contains("d/x/manifest.json"), "{error}");
        assert_eq!(stage.finished_folder("d/x").await.unwrap(), None);
    }

    let mut fresh = stage.fresh_folder("d/x").await.unwrap();
    assert_eq!(fresh.path(), "d/x.2");
    fresh.put("w", Bytes::from_static(b"w")).await.unwrap();
    assert_eq!(stage.fresh_folder("d/x").await.unwrap().path(), "d/x.3");
    fresh.finish().await.unwrap();
    assert_eq!(stage.finished_folder("d/x").await.unwrap().as_deref(), Some("d/x.2"));
    assert!(matches!(stage.fresh_folder("d/x").await.unwrap_err(), StageError::AlreadyExists { .. }));
}

#[tokio::test]
async fn a_manifest_cannot_name_files_outside_its_folder() {
    let Some((_folder, stage)) = on_disk() else { return };
    for path in ["../secret", "/etc/passwd", MANIFEST] {
        let text = format!(r#"{{"files":[{{"path":"{path}","size":1,"sha256":"{}"}}]}}"#, "0".repeat(64));
        let folder = format!("bad{}", path.len());
        stage.put(&format!("{folder}/{MANIFEST}"), text.into()).await.unwrap();
        assert!(stage.manifest(&folder).await.unwrap_err().is_damaged());
    }
}

#[tokio::test]
async fn fetching_checks_hashes_and_keeps_what_is_right() {
    let Some((folder, stage)) = on_disk() else { return };
    write_model(&stage, "models/a").await;
    let local = tempfile::tempdir().unwrap();
    let into = local.path().join("cache");
    assert_eq!(stage.fetch_dir("models/a", &into).await.unwrap(), into);
    assert_eq!(fs::read(into.join("weights.bin")).unwrap(), b"weights");
    assert!(into.join("sub/report.json").exists() && into.join(MANIFEST).exists());
    let written = fs::metadata(into.join("weights.bin")).unwrap().modified().unwrap();

    stage.fetch_dir("models/a", &into).await.unwrap();
    assert_eq!(fs::metadata(into.join("weights.bin")).unwrap().modified().unwrap(), written, "it was kept");

    fs::write(into.join("weights.bin"), b"w3ights").unwrap();
    stage.fetch_dir("models/a", &into).await.unwrap();
    assert_eq!(fs::read(into.join("weights.bin")).unwrap(), b"weights", "it was repaired");

    for bytes in [&b"w3ights"[..], b"weight"] {
        fs::write(folder.path().join("models/a/weights.bin"), bytes).unwrap();
        let other = local.path().join(format!("other{}", bytes.len()));
        let error = stage.fetch_dir("models/a", &other).await.unwrap_err();
        assert!(error.is_damaged() && error.to_string().contains("models/a/weights.bin"), "{error}");
        assert!(fs::read_dir(&other).unwrap().next().is_none(), "nothing wrong stays");
    }
}

#[tokio::test]
async fn a_copy_with_a_wrong_hash_leaves_nothing() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        for (name, size) in [("small", 10), ("large", firn_stage::WRITE_CHUNK + 10)] {
            stage.put(&format!("from/{name}"), vec![1; size].into()).await.unwrap();
            let mut expected =
                firn_stage::FileEntry { path: name.to_owned(), size: size as u64, sha256: sha256_hex(&vec![2; size]) };
            let mut folder = stage.folder("to");
            let error = folder.copy(name, &format!("from/{name}"), &expected).await.unwrap_err();
            assert!(error.is_damaged() && error.to_string().contains(&format!("from/{name}")), "{error}");
            assert!(!stage.exists(&format!("to/{name}")).await.unwrap());
            expected.sha256 = sha256_hex(&vec![1; size]);
            assert_eq!(folder.copy(name, &format!("from/{name}"), &expected).await.unwrap(), expected);
        }
    }
}

#[tokio::test]
async fn a_name_that_looks_like_a_later_attempt_is_its_own() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        let finish = async |mut folder: firn_stage::FolderWriter| {
            folder.put("w", Bytes::from_static(b"w")).await.unwrap();
            folder.finish().await.unwrap();
        };
        // `b/m` was torn, and `b/m.2` is another model.
        stage.put("b/m/torn", Bytes::new()).await.unwrap();
        finish(stage.fresh_folder("b/m.2").await.unwrap()).await;
        assert_eq!(stage.finished_folder("b/m").await.unwrap(), None);
        finish(stage.fresh_folder("b/m").await.unwrap()).await;
        assert_eq!(stage.finished_folder("b/m").await.unwrap().as_deref(), Some("b/m.3"));
        assert_eq!(stage.finished_folder("b/m.2").await.unwrap().as_deref(), Some("b/m.2"));
        // The other way round: `c/m` went to `c/m.2` first.
        stage.put("c/m/torn", Bytes::new()).await.unwrap();
        finish(stage.fresh_folder("c/m").await.unwrap()).await;
        assert_eq!(stage.finished_folder("c/m.2").await.unwrap(), None);
        finish(stage.fresh_folder("c/m.2").await.unwrap()).await;
        assert_eq!(stage.finished_folder("c/m.2").await.unwrap().as_deref(), Some("c/m.2.2"));
        assert_eq!(stage.finished_folder("c/m").await.unwrap().as_deref(), Some("c/m.2"));
        // What was torn may be gone since.
        assert_eq!(stage.remove_debris("c/m").await.unwrap(), 1);
        assert_eq!(stage.finished_folder("c/m").await.unwrap().as_deref(), Some("c/m.2"));
        assert!(stage.finished_folder("c").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn old_debris_is_removed_and_nothing_else() {
    let Some((_folder, stage)) = on_disk() else { return };
    write_model(&stage, "datasets/whole").await;
    stage.folder("datasets/torn").put("w", Bytes::from_static(b"w")).await.unwrap();
    let removed = async |path: &str, age| stage.remove_old_debris(path, age).await;
    assert_eq!(removed("datasets/torn", Duration::from_secs(3600)).await.unwrap(), 0, "it is young");
    assert_eq!(removed("datasets/torn", Duration::ZERO).await.unwrap(), 1);
    assert_eq!(removed("datasets/none", Duration::ZERO).await.unwrap(), 0);
    assert!(removed("datasets/whole", Duration::ZERO).await.is_err());
    assert!(stage.is_finished("datasets/whole").await.unwrap());
}

#[tokio::test]
async fn files_are_written_side_by_side_and_added_in_any_order() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        let mut folder = stage.folder("d");
        let bytes = |byte| futures_util::stream::iter([Ok::<_, StageError>(Bytes::from(vec![byte; 9]))]);
        let (one, two) = (folder.file("one").unwrap(), folder.file("sub/two").unwrap());
        let (one, two) = tokio::join!(one.write(bytes(1)), two.write(bytes(2)));
        let (one, two) = (one.unwrap(), two.unwrap());
        folder.add(two.clone());
        folder.add(one.clone());
        assert_eq!((one.path.as_str(), two.path.as_str()), ("one", "sub/two"));
        assert_eq!(one.sha256, sha256_hex(&[1; 9]));
        assert_eq!(folder.finish().await.unwrap().files, [two, one]);
        assert!(stage.folder("d").file(MANIFEST).is_err());
    }
}

#[tokio::test]
async fn a_stream_is_written_whole_or_not_at_all() {
    let Some((_folder, disk)) = on_disk() else { return };
    // Small enough to be written at once, and not.
    for (stage, chunks) in [(disk.clone(), 2), (disk, 20), (Stage::memory(), 20)] {
        let chunk = || Ok::<_, StageError>(Bytes::from(vec![7; firn_stage::READ_CHUNK]));
        let path = format!("d/{chunks}");
        let mut folder = stage.folder(&path);
        let cut = || StageError::NotFound { path: "the source".to_owned() };
        let broken = (0..chunks).map(|_| chunk()).chain([Err(cut())]);
        let error = folder.put_stream("w", futures_util::stream::iter(broken)).await.unwrap_err();
        assert_eq!(error.to_string(), cut().to_string());
        assert!(stage.list(&path).await.unwrap().is_empty(), "{chunks}");
        let whole = (0..chunks).map(|_| chunk());
        let entry = folder.put_stream("w", futures_util::stream::iter(whole)).await.unwrap();
        assert_eq!(entry.size, (chunks * firn_stage::READ_CHUNK) as u64);
        // A stream that must not be asked again after its end.
        let once = futures_util::stream::unfold(chunks, |left| async move { (left > 0).then(|| (chunk(), left - 1)) });
        let again = folder.put_stream("x", once).await.unwrap();
        assert_eq!((again.size, &again.sha256), (entry.size, &entry.sha256));
        assert_eq!(folder.finish().await.unwrap().files, [entry, again]);
    }
}

#[tokio::test]
async fn a_removed_folder_counts_no_more() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        write_model(&stage, "files/a").await;
        write_model(&stage, "files/ab").await;
        stage.remove_folder("files/a").await.unwrap();
        assert!(!stage.is_finished("files/a").await.unwrap());
        assert!(stage.list("files/a").await.unwrap().is_empty());
        assert!(stage.is_finished("files/ab").await.unwrap(), "only its own files");
        stage.remove_folder("files/a").await.unwrap();
    }
}
