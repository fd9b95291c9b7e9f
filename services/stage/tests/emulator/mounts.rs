//! Mounting, unmounting, and a mount whose process dies.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    num::NonZeroU64,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use firn_stage::emulate::{self, EmulateError, Faults, Mounted, Options};
use rustix::io::Errno;

use crate::{Emulated, create, errno, names, on_emulator, plain};

/// Tells [`serve`] what to mount, and where.
const DIR: &str = "FIRN_TEST_DIR";
const MOUNTPOINT: &str = "FIRN_TEST_MOUNTPOINT";

fn again(emulated: &Emulated) -> Result<Mounted, EmulateError> {
    emulate::mount(&emulated.behind(""), emulated.path(), &Options::default())
}

#[test]
fn files_outlast_the_mount_and_folders_without_files_do_not() {
    let Some(emulated) = plain() else { return };
    fs::create_dir_all(emulated.at("a/b")).unwrap();
    fs::create_dir_all(emulated.at("c/d")).unwrap();
    fs::write(emulated.at("a/file"), "whole").unwrap();
    let Emulated { mounted, folder } = emulated;
    let (dir, mountpoint) = (folder.path().join("stage"), mounted.mountpoint().to_owned());
    mounted.unmount().unwrap();
    assert!(names(&mountpoint).is_empty());
    assert_eq!(names(&dir), ["a"]);
    assert_eq!(names(&dir.join("a")), ["file"]);
    assert_eq!(names(folder.path()).len(), 2, "no spool is left");

    let mounted = emulate::mount(&dir, &mountpoint, &Options::default()).unwrap();
    assert!(mounted.is_mounted());
    assert_eq!(fs::read_to_string(mountpoint.join("a/file")).unwrap(), "whole");
}

#[test]
fn what_cannot_be_mounted_is_named() {
    let Some(emulated) = plain() else { return };
    let said = |result: Result<Mounted, EmulateError>| result.unwrap_err().to_string();
    let options = Options::default();
    let root = emulated.folder.path();

    fs::write(root.join("file"), "").unwrap();
    assert!(said(emulate::mount(&root.join("file/x"), &root.join("m"), &options)).contains("file/x"));
    assert!(said(emulate::mount(&root.join("other"), &root.join("other/m"), &options)).contains("contain each other"));
    fs::create_dir_all(root.join("full/x")).unwrap();
    assert!(said(emulate::mount(&root.join("other"), &root.join("full"), &options)).contains("not empty"));
    let second = said(emulate::mount(&emulated.behind(""), &root.join("m"), &options));
    assert!(second.contains("another emulator") && second.contains(".stage.spool"), "{second}");
    let inside = Options { spool: Some(root.join("other/spool")), ..Options::default() };
    assert!(said(emulate::mount(&root.join("other"), &root.join("m"), &inside)).contains("visible"));
    let elsewhere = Options { spool: Some("/proc".into()), ..Options::default() };
    assert!(said(emulate::mount(&root.join("other"), &root.join("m"), &elsewhere)).contains("file system"));
    let faults = Faults { short_reads: NonZeroU64::new(1), ..Faults::default() };
    let both = Options { map_reads: true, faults, ..Options::default() };
    assert!(said(emulate::mount(&root.join("other"), &root.join("m"), &both)).contains("map_reads"));
}

#[test]
fn a_given_spool_keeps_what_is_not_the_emulators() {
    let Some(emulated) = plain() else { return };
    let root = emulated.folder.path();
    let spool = root.join("spool");
    fs::create_dir(&spool).unwrap();
    fs::write(spool.join("mine.part"), "").unwrap();
    fs::write(spool.join("7.part"), "left by a crash").unwrap();
    let options = Options { spool: Some(spool.clone()), ..Options::default() };
    let mounted = emulate::mount(&root.join("other"), &root.join("m"), &options).unwrap();
    let file = create(&mounted.mountpoint().join("file"));
    assert_eq!(names(&spool).len(), 2, "its own and mine");
    drop(file);
    mounted.unmount().unwrap();
    assert_eq!(names(&spool), ["mine.part"]);
}

#[test]
fn a_mount_in_use_is_detached_and_says_so() {
    let Some(emulated) = plain() else { return };
    let path = emulated.at("file");
    let mut file = create(&path);
    let Emulated { mounted, folder } = emulated;
    let error = mounted.unmount().unwrap_err();
    assert!(matches!(error, EmulateError::Busy { .. }), "{error}");
    assert!(names(&folder.path().join("mount")).is_empty());
    file.write_all(b"late").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(folder.path().join("stage/file")).unwrap(), "late");
}

#[test]
fn each_request_waits_for_the_latency() {
    let latency = Duration::from_millis(30);
    let Some(emulated) = on_emulator(&Options { latency, ..Options::default() }) else { return };
    let begin = Instant::now();
    fs::write(emulated.at("file"), "x").unwrap();
    assert!(begin.elapsed() >= 4 * latency, "it is looked up, created, written and closed");
}

/// Not a test: the process that `a_killed_emulator_...` kills.
#[test]
#[ignore = "runs as a child of another test"]
fn serve() {
    let (Some(dir), Some(mountpoint)) = (env::var_os(DIR), env::var_os(MOUNTPOINT)) else { return };
    let mounted = emulate::mount(Path::new(&dir), Path::new(&mountpoint), &Options::default()).unwrap();
    println!("mounted");
    // Until it is killed, or its parent is gone.
    std::io::stdin().read_to_end(&mut vec![]).unwrap();
    drop(mounted);
}

fn serve_in_child(dir: &Path, mountpoint: &Path) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "mounts::serve", "--ignored", "--nocapture"])
        .envs([(DIR, dir), (MOUNTPOINT, mountpoint)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("mounted")), "it did not mount");
    child
}

#[test]
fn a_killed_emulator_takes_unclosed_files_with_it_and_the_next_one_takes_over() {
    // Only to know whether a mount works here.
    let Some(emulated) = plain() else { return };
    let root = emulated.folder.path();
    let (dir, mountpoint) = (root.join("other"), root.join("m"));
    let mut child = serve_in_child(&dir, &mountpoint);
    fs::write(mountpoint.join("closed"), "whole").unwrap();
    let mut open = create(&mountpoint.join("open"));
    open.write_all(b"half").unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(errno(open.write(b"x")), Errno::NOTCONN);
    assert_eq!(errno(fs::read_dir(&mountpoint)), Errno::NOTCONN);
    drop(open);
    assert_eq!(names(&root.join(".other.spool")).len(), 1, "the part that nobody closed");

    let mounted = emulate::mount(&dir, &mountpoint, &Options::default()).unwrap();
    assert_eq!(names(&mountpoint), ["closed"]);
    assert!(names(&root.join(".other.spool")).is_empty());
    mounted.unmount().unwrap();
}

#[test]
fn one_emulator_serves_a_folder_after_another() {
    let Some(mut emulated) = plain() else { return };
    for n in 0..5 {
        fs::write(emulated.at(&n.to_string()), "x").unwrap();
        let Emulated { mounted, folder } = emulated;
        let mountpoint = mounted.mountpoint().to_owned();
        drop(mounted);
        let mounted = emulate::mount(&folder.path().join("stage"), &mountpoint, &Options::default()).unwrap();
        emulated = Emulated { mounted, folder };
        assert_eq!(names(emulated.path()).len(), n + 1);
    }
    assert!(again(&emulated).is_err());
}
