//! The folder in which a test works, with a stage in it: a plain folder, or one with the rules of a stage mount.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::binary;

/// The variable that says what a test's stage is: `plain`, which is the default, or `emulated`.
const KIND: &str = "FIRN_TEST_STAGE";
/// Longest wait for the emulator to mount a folder.
const MOUNTED: Duration = Duration::from_secs(30);
/// Longest wait for it to unmount one. It gives files that are still open a second.
const UNMOUNTED: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

static EMULATED: LazyLock<Result<bool, String>> = LazyLock::new(|| match std::env::var(KIND).as_deref() {
    Err(std::env::VarError::NotPresent) | Ok("plain") => Ok(false),
    Ok("emulated") => Ok(true),
    _ => Err(format!("{KIND} must be plain or emulated")),
});

/// A temporary folder to run `firn` in, whose `stage` is where `firn` looks for one by itself.
///
/// With `FIRN_TEST_STAGE=emulated` that is the mount point of a `firn stage emulate`, which ends with this.
pub struct Work {
    emulator: Option<Child>,
    folder: TempDir,
}

impl Work {
    /// Makes an empty folder and, where it is to be emulated, mounts its stage.
    ///
    /// # Errors
    /// The variable has another value, or the emulator does not mount the stage: what it said.
    pub fn new() -> Result<Self> {
        let mut work = Self { emulator: None, folder: tempfile::tempdir()? };
        if EMULATED.as_ref().copied().map_err(anyhow::Error::msg)? {
            work.mount().with_context(|| format!("{KIND} is emulated, and the stage can't be mounted"))?;
        }
        Ok(work)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The stage, as all services see it.
    pub fn stage(&self) -> PathBuf {
        self.path().join("stage")
    }

    /// The folder that holds the stage's bytes: what a test does there no stage refuses.
    pub fn behind(&self) -> PathBuf {
        self.path().join(if self.emulator.is_some() { "behind" } else { "stage" })
    }

    fn mount(&mut self) -> Result<()> {
        let log = self.path().join("emulator.log");
        let output = File::create(&log)?;
        let mut command = Command::new(binary("firn")?);
        command.args(["stage", "emulate", "behind", "stage"]).current_dir(self.path()).stdin(Stdio::null());
        let emulator = self.emulator.insert(command.stdout(output.try_clone()?).stderr(output).spawn()?);
        let begin = Instant::now();
        loop {
            let said = fs::read_to_string(&log)?;
            if said.contains(" is mounted at ") {
                return Ok(());
            }
            if let Some(status) = emulator.try_wait()? {
                bail!("the emulator ended with {status}: {}", fs::read_to_string(&log)?);
            }
            if begin.elapsed() > MOUNTED {
                bail!("it is not mounted after {MOUNTED:?}: {said}");
            }
            sleep(LOOK);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let stage = self.stage();
        let Some(emulator) = &mut self.emulator else { return };
        // Nobody is left to report an error to; a mount that stays is said.
        let _ = Command::new("kill").args(["-TERM", &emulator.id().to_string()]).status();
        let begin = Instant::now();
        while matches!(emulator.try_wait(), Ok(None)) {
            if begin.elapsed() > UNMOUNTED {
                eprintln!("the emulator did not unmount {} in {UNMOUNTED:?}: it is killed", stage.display());
                let _ = emulator.kill();
                let _ = emulator.wait();
                detach(&stage);
                return;
            }
            sleep(LOOK);
        }
    }
}

/// Takes a mount out of sight whose process is gone.
fn detach(stage: &Path) {
    for [program, flags] in [["umount", "-l"], ["fusermount3", "-uz"]] {
        if Command::new(program)
            .arg(flags)
            .arg(stage)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
        {
            return;
        }
    }
    eprintln!("{} is still mounted", stage.display());
}
