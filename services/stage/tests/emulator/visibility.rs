//! What others see of a file, and when.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    process::Command,
};

use firn_stage::WRITE_CHUNK;
use rustix::io::Errno;

use crate::{create, errno, names, plain};

#[test]
fn a_file_is_there_whole_once_it_is_closed_and_not_before() {
    let Some(emulated) = plain() else { return };
    let path = emulated.at("file");
    let mut file = create(&path);
    file.write_all(b"one").unwrap();
    file.sync_all().unwrap();
    assert_eq!(errno(File::open(&path)), Errno::NOENT, "fsync makes nothing visible");
    assert!(!path.exists() && names(emulated.path()).is_empty() && !emulated.behind("file").exists());
    assert_eq!(file.metadata().unwrap().len(), 3, "its writer knows it");
    file.write_all(b"two").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "onetwo");
    assert_eq!(names(emulated.path()), ["file"]);
    assert_eq!(fs::read_to_string(emulated.behind("file")).unwrap(), "onetwo");
}

#[test]
fn a_file_that_is_replaced_is_the_old_one_until_the_close() {
    let Some(emulated) = plain() else { return };
    let path = emulated.at("file");
    fs::write(&path, "old").unwrap();
    let mut file = File::create(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    file.write_all(b"newer").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
}

#[test]
fn each_close_shows_what_was_written_until_then() {
    let Some(emulated) = plain() else { return };
    let path = emulated.at("file");
    let mut file = create(&path);
    file.write_all(b"one").unwrap();
    drop(file.try_clone().unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    file.write_all(b"two").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "onetwo");
}

#[test]
fn an_empty_file_is_a_file() {
    let Some(emulated) = plain() else { return };
    drop(create(&emulated.at("empty")));
    assert_eq!(fs::metadata(emulated.at("empty")).unwrap().len(), 0);
}

#[test]
fn a_process_that_inherits_a_descriptor_and_ends_closes_nothing() {
    let Some(emulated) = plain() else { return };
    let mut file = create(&emulated.at("file"));
    file.write_all(b"half").unwrap();
    assert!(Command::new("true").status().unwrap().success());
    assert!(!emulated.at("file").exists());
}

#[test]
fn a_killed_writer_leaves_a_torn_file() {
    let Some(emulated) = plain() else { return };
    let path = emulated.at("file");
    let script = r#"exec 3>"$1"; printf half >&3; kill -9 $$"#;
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(&path).status().unwrap();
    assert!(!status.success());
    assert_eq!(fs::read_to_string(&path).unwrap(), "half", "the kernel closes what a dead process had open");
}

#[test]
fn what_changes_behind_the_mount_is_seen_at_once() {
    let Some(emulated) = plain() else { return };
    assert!(!emulated.at("file").exists());
    fs::write(emulated.behind("file"), "one").unwrap();
    assert_eq!(fs::read_to_string(emulated.at("file")).unwrap(), "one");
    fs::write(emulated.behind("file"), "longer").unwrap();
    assert_eq!(fs::read_to_string(emulated.at("file")).unwrap(), "longer");
    fs::remove_file(emulated.behind("file")).unwrap();
    assert!(!emulated.at("file").exists() && names(emulated.path()).is_empty());
    fs::create_dir(emulated.behind("file")).unwrap();
    assert!(emulated.at("file").is_dir());
}

#[test]
fn folders_are_made_listed_and_removed() {
    let Some(emulated) = plain() else { return };
    fs::create_dir_all(emulated.at("a/b")).unwrap();
    assert_eq!(errno(fs::create_dir(emulated.at("a"))), Errno::EXIST);
    assert_eq!(errno(fs::remove_dir(emulated.at("a"))), Errno::NOTEMPTY);
    assert_eq!(errno(File::create_new(emulated.at("missing/file"))), Errno::NOENT);
    for n in 0..3000 {
        fs::write(emulated.at(&format!("a/b/{n}")), n.to_string()).unwrap();
    }
    assert_eq!(names(&emulated.at("a/b")).len(), 3000);
    fs::remove_dir_all(emulated.at("a")).unwrap();
    assert!(names(emulated.path()).is_empty());
}

#[test]
fn a_folder_that_went_while_a_file_in_it_was_written_comes_back() {
    let Some(emulated) = plain() else { return };
    fs::create_dir(emulated.at("a")).unwrap();
    let mut file = create(&emulated.at("a/file"));
    file.write_all(b"whole").unwrap();
    fs::remove_dir(emulated.at("a")).unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(emulated.at("a/file")).unwrap(), "whole");
}

#[test]
fn a_large_file_is_what_is_at_its_path_whatever_is_read_at_once() {
    let Some(emulated) = plain() else { return };
    let bytes: Vec<u8> = (0..2 * WRITE_CHUNK + 4321).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fs::write(emulated.behind("file"), &bytes).unwrap();
    // The memory of some begins in the middle of a page, as do the bytes of others.
    for (size, from) in [(WRITE_CHUNK, 0), (WRITE_CHUNK, 33), (1 << 20, 0), (777_777, 1)] {
        let (mut file, mut buffer, mut read) = (File::open(emulated.at("file")).unwrap(), vec![0; from + size], vec![]);
        while let Some(len) = Some(file.read(&mut buffer[from..]).unwrap()).filter(|len| *len > 0) {
            read.extend_from_slice(&buffer[from..from + len]);
        }
        assert!(read == bytes, "{size} bytes at once");
    }
    let mut file = File::open(emulated.at("file")).unwrap();
    let mut buffer = vec![0; WRITE_CHUNK];
    file.read_exact(&mut buffer).unwrap();
    fs::remove_file(emulated.behind("file")).unwrap();
    assert_eq!(errno(file.read(&mut buffer)), Errno::STALE, "it is not there any more");
}
