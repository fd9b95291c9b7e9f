use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use firn_stage::{Stage, StageError};
use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

/// Lets some writes through, then fails every one in the same way.
#[derive(Debug)]
struct FaultStore {
    inner: InMemory,
    writes_left: AtomicUsize,
    kind: io::ErrorKind,
}

impl FaultStore {
    fn stage(writes: usize, kind: io::ErrorKind) -> Stage {
        let store = Self { inner: InMemory::new(), writes_left: AtomicUsize::new(writes), kind };
        Stage::from_store(Arc::new(store), "/stage")
    }

    fn write(&self) -> Result<()> {
        let take = |left: usize| left.checked_sub(1);
        match self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Generic { store: "FaultStore", source: Box::new(io::Error::from(self.kind)) }),
        }
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.write()?;
        self.inner.put_opts(path, payload, opts).await
    }

    async fn put_multipart_opts(&self, path: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.write()?;
        self.inner.put_multipart_opts(path, opts).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_full_stage_is_named_and_the_folder_does_not_count() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        let stage = FaultStore::stage(1, kind);
        let mut folder = stage.folder("models/a");
        folder.put("w", Bytes::from_static(b"w")).await.unwrap();
        let error = folder.finish().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "stage /stage has no space left for models/a/manifest.json; free some and start again"
        );
        assert!(!stage.is_finished("models/a").await.unwrap());
    }
}

#[tokio::test]
async fn a_large_file_on_a_full_stage_is_an_error_too() {
    let stage = FaultStore::stage(0, io::ErrorKind::StorageFull);
    let local = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(local.path(), vec![0; firn_stage::WRITE_CHUNK + 1]).unwrap();
    let error = stage.put_file("w", local.path()).await.unwrap_err();
    assert!(matches!(error, StageError::NoSpace { .. }), "{error}");
    assert!(!stage.exists("w").await.unwrap());
}

#[tokio::test]
async fn a_missing_right_is_named() {
    for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
        let stage = FaultStore::stage(0, kind);
        let error = stage.put("x/y", Bytes::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "no right to write /stage/x/y; give this process that right on the stage");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_without_rights_is_named() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some((folder, stage)) = crate::on_disk() else { return };
    let locked = folder.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
    if std::fs::write(locked.join("probe"), b"").is_ok() {
        return; // Root may do anything.
    }
    let error = stage.put("locked/x", Bytes::new()).await.unwrap_err();
    assert!(matches!(&error, StageError::NoRight { action: "write", .. }), "{error}");
    assert!(error.to_string().contains("locked/x"));
}

#[tokio::test]
async fn a_failed_append_leaves_the_log_usable() {
    let stage = FaultStore::stage(1, io::ErrorKind::StorageFull);
    let log = stage.log("log").await.unwrap();
    log.append(&1).await.unwrap();
    assert!(matches!(log.append(&2).await.unwrap_err(), StageError::NoSpace { .. }));
    assert_eq!(log.last::<i32>().await.unwrap(), Some(1));
}
