//! The folder at which another is mounted.

use std::{
    fs, io, mem,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use fuser::BackgroundSession;
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::EmulateError;

/// How often a mount that is in use is tried again, and how long after.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Makes the folder if it is missing, frees it of a mount whose process is gone, and checks that it hides nothing.
/// Returns it absolute and without links.
pub(super) fn prepare(path: &Path, dir: &Path) -> Result<PathBuf, EmulateError> {
    let refuse = |reason: String| EmulateError::Mountpoint { path: path.to_owned(), reason };
    let failed = |error: io::Error| refuse(error.to_string());
    if fs::metadata(path).is_err_and(|error| error.raw_os_error() == Some(Errno::ENOTCONN as i32)) {
        detach(path).map_err(|error| {
            refuse(format!("the process that had mounted it is gone, and it cannot be unmounted: {error}"))
        })?;
    }
    fs::create_dir_all(path).map_err(failed)?;
    let path = path.canonicalize().map_err(failed)?;
    if path.starts_with(dir) || dir.starts_with(&path) {
        return Err(refuse(format!("{} and the mount point must not contain each other", dir.display())));
    }
    if fs::read_dir(&path).map_err(failed)?.next().is_some() {
        return Err(refuse("it is not empty, and the mount would hide what it holds".to_owned()));
    }
    Ok(path)
}

/// Unmounts and ends the session. Returns false if files on it are still open after some tries: then it is only out of
/// sight, and the session ends with the last of them.
///
/// Each path unmounts once. A second time, with the session's own attempt as one, would take what lies beneath.
pub(super) fn release(path: &Path, session: BackgroundSession) -> io::Result<bool> {
    if session.guard.is_finished() {
        // Somebody else has unmounted it. fuser (0.18) takes that for a mount that is still there, and unmounts again
        // when it is dropped; what this leaks is a descriptor.
        mem::forget(session);
        return Ok(true);
    }
    for _ in 0..TRIES {
        // Asks whether it is in use: the first time it only marks a mount that is not, and says EAGAIN.
        match umount2(path, MntFlags::MNT_EXPIRE) {
            Err(Errno::EBUSY) => thread::sleep(PAUSE),
            Err(Errno::EPERM) => return release_by_helper(path, session),
            _ => break,
        }
    }
    match session.umount_and_join() {
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            umount2(path, MntFlags::MNT_DETACH)?;
            Ok(false)
        }
        ended => ended.map(|()| true),
    }
}

/// As [`release`], for a user who is not root.
fn release_by_helper(path: &Path, session: BackgroundSession) -> io::Result<bool> {
    for _ in 0..TRIES {
        if helper(path, &[])? {
            return session.join().map(|()| true);
        }
        thread::sleep(PAUSE);
    }
    helper(path, &["-z"])?;
    Ok(false)
}

/// Takes a mount out of sight whose process is gone.
fn detach(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) if helper(path, &["-z"])? => Ok(()),
        detached => Ok(detached?),
    }
}

/// Unmounts by the program that may. Returns false if it did not, which it does not explain.
fn helper(path: &Path, options: &[&str]) -> io::Result<bool> {
    let mut helper = Command::new("fusermount3");
    helper.args(["-u", "-q"]).args(options).arg("--").arg(path);
    helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(helper.status()?.success())
}
