//! A stage, a work folder and a hub.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use firn_stage::Stage;
use firn_trainer::hub::{HubError, HubLimits, HubOptions, Progress, pull};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

use crate::fake::FakeHub;

pub(crate) const BASE: &str = "bases/acme/tiny";

pub(crate) struct House {
    pub(crate) hub: FakeHub,
    pub(crate) options: HubOptions,
    pub(crate) stage: Stage,
    pub(crate) root: TempDir,
    pub(crate) work: TempDir,
    pub(crate) told: Mutex<Vec<Progress>>,
}

impl House {
    /// A hub with the fixture `llama` and what else lies in such repositories.
    pub(crate) async fn new() -> Self {
        logs();
        let mut files = BTreeMap::new();
        for name in
            ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "model.safetensors"]
        {
            files.insert(name.to_owned(), fixture(name));
        }
        for name in ["modeling_tiny.py", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "a.gguf"] {
            files.insert(name.to_owned(), b"never fetched".to_vec());
        }
        files.insert("LICENSE".to_owned(), vec![]);
        files.insert("README.md".to_owned(), b"# Tiny\n".to_vec());
        let hub = FakeHub::start(files).await;
        let (root, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let limits = HubLimits {
            stall: Duration::from_secs(10),
            deadline: Duration::from_secs(60),
            tries: 1,
            pause: Duration::from_millis(1),
            ..HubLimits::default()
        };
        let options = HubOptions {
            hub_endpoint: hub.endpoint.clone(),
            hub_online: true,
            work_dir: Some(work.path().to_owned()),
            limits,
            ..HubOptions::default()
        };
        let stage = Stage::open(root.path().to_str().unwrap()).unwrap();
        Self { hub, options, stage, root, work, told: Mutex::default() }
    }

    /// Pulls `acme/tiny` or a revision of it.
    pub(crate) async fn pull_named(&self, repo: &str) -> Result<String, HubError> {
        let tell = |progress| self.told.lock().unwrap().push(progress);
        pull(&self.stage, &repo.parse().unwrap(), &self.options, tell, &CancellationToken::new()).await
    }

    pub(crate) async fn pull(&self) -> Result<String, HubError> {
        self.pull_named("acme/tiny").await
    }

    /// A pull that must fail, as a sentence; nothing on the stage counts after it.
    pub(crate) async fn refused(&self) -> String {
        let error = self.pull().await.unwrap_err();
        assert!(!self.stage.is_finished(BASE).await.unwrap(), "{error}");
        error.to_string()
    }

    /// A local file of the pull.
    pub(crate) fn spooled(&self, file: &str) -> PathBuf {
        self.work.path().join("acme/tiny").join(crate::fake::COMMIT).join(file)
    }

    /// Bytes of a file on the stage.
    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.path().join(path)).unwrap()
    }
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama").join(name)).unwrap()
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// What the whole process has logged since its first test, at the finest level.
pub(crate) fn logs() -> Logs {
    static LOGS: OnceLock<Logs> = OnceLock::new();
    let start = || {
        let logs = Logs::default();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(logs.clone()).with_max_level(tracing::Level::TRACE);
        subscriber.try_init().unwrap();
        logs
    };
    LOGS.get_or_init(start).clone()
}

#[derive(Clone, Default)]
pub(crate) struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
