//! One test an operation: it fails, with which error, and what is on the stage stays.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use firn_stage::emulate::Options;
use memmap2::{Mmap, MmapOptions};
use rustix::{
    fs::{
        CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, XattrFlags, fallocate, fcntl_lock, fcntl_setfl,
        getxattr, listxattr, mknodat, removexattr, setxattr,
    },
    io::Errno,
};

use crate::{Emulated, create, errno, names, on_emulator, plain};

/// A mount with a file that holds `whole`.
fn with_file() -> Option<(Emulated, PathBuf)> {
    let emulated = plain()?;
    let path = emulated.at("file");
    fs::write(&path, "whole").unwrap();
    Some((emulated, path))
}

fn is_whole(path: &Path) {
    assert_eq!(fs::read_to_string(path).unwrap(), "whole");
}

#[test]
fn an_append_is_refused() {
    let Some((emulated, path)) = with_file() else { return };
    assert_eq!(errno(OpenOptions::new().append(true).open(&path)), Errno::OPNOTSUPP);
    assert_eq!(errno(OpenOptions::new().append(true).create(true).open(emulated.at("new"))), Errno::OPNOTSUPP);
    is_whole(&path);
    assert_eq!(names(emulated.path()), ["file"]);
}

#[test]
fn an_append_that_is_asked_for_later_is_refused() {
    let Some(emulated) = plain() else { return };
    let mut file = create(&emulated.at("new"));
    file.write_all(b"12").unwrap();
    fcntl_setfl(&file, OFlags::APPEND).unwrap();
    assert_eq!(errno(file.write(b"3")), Errno::OPNOTSUPP);
}

#[test]
fn a_write_that_is_not_at_the_end_is_refused_and_the_file_goes_on() {
    let Some(emulated) = plain() else { return };
    let mut file = create(&emulated.at("new"));
    file.write_all(b"1234").unwrap();
    assert_eq!(errno(file.write_at(b"x", 0)), Errno::OPNOTSUPP);
    assert_eq!(errno(file.write_at(b"x", 3)), Errno::OPNOTSUPP);
    assert_eq!(errno(file.write_at(b"x", 5)), Errno::OPNOTSUPP, "a hole");
    file.seek(SeekFrom::Start(1)).unwrap();
    assert_eq!(errno(file.write(b"x")), Errno::OPNOTSUPP);
    file.seek(SeekFrom::Start(4)).unwrap();
    file.write_all(b"56").unwrap();
    drop(file);
    assert_eq!(fs::read(emulated.at("new")).unwrap(), b"123456");
}

#[test]
fn reading_and_writing_at_once_is_refused() {
    let Some((emulated, path)) = with_file() else { return };
    let both = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    assert_eq!(errno(both(&path)), Errno::OPNOTSUPP);
    assert_eq!(errno(both(&emulated.at("new"))), Errno::OPNOTSUPP);
    is_whole(&path);
}

#[test]
fn opening_a_file_to_change_it_is_refused() {
    let Some((_emulated, path)) = with_file() else { return };
    assert_eq!(errno(OpenOptions::new().write(true).open(&path)), Errno::OPNOTSUPP);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&path)), Errno::EXIST);
    is_whole(&path);
}

#[test]
fn a_truncation_is_refused() {
    let Some((emulated, path)) = with_file() else { return };
    let read_only = rustix::fs::open(&path, OFlags::RDONLY | OFlags::TRUNC, Mode::empty());
    assert_eq!(read_only.unwrap_err(), Errno::OPNOTSUPP);
    is_whole(&path);
    let mut file = create(&emulated.at("new"));
    file.write_all(b"1234").unwrap();
    for len in [0, 2, 4, 8] {
        assert_eq!(errno(file.set_len(len)), Errno::OPNOTSUPP);
    }
}

#[test]
fn a_rename_is_refused() {
    let Some((emulated, path)) = with_file() else { return };
    fs::create_dir(emulated.at("folder")).unwrap();
    assert_eq!(errno(fs::rename(&path, emulated.at("other"))), Errno::OPNOTSUPP);
    assert_eq!(errno(fs::rename(emulated.at("folder"), emulated.at("other"))), Errno::OPNOTSUPP);
    is_whole(&path);
}

#[test]
fn a_hard_link_is_refused() {
    let Some((emulated, path)) = with_file() else { return };
    assert_eq!(errno(fs::hard_link(&path, emulated.at("other"))), Errno::PERM);
}

#[test]
fn a_symbolic_link_is_refused_and_one_behind_the_mount_is_not_there() {
    let Some((emulated, path)) = with_file() else { return };
    assert_eq!(errno(std::os::unix::fs::symlink(&path, emulated.at("other"))), Errno::PERM);
    std::os::unix::fs::symlink("file", emulated.behind("link")).unwrap();
    assert_eq!(errno(fs::read(emulated.at("link"))), Errno::NOENT);
    assert_eq!(names(emulated.path()), ["file"]);
}

#[test]
fn a_pipe_and_a_device_are_refused() {
    let Some(emulated) = plain() else { return };
    for kind in [FileType::Fifo, FileType::Socket, FileType::RegularFile] {
        let made = mknodat(CWD, emulated.at("node"), kind, Mode::RWXU, 0);
        assert_eq!(made.unwrap_err(), Errno::PERM, "{kind:?}");
    }
}

#[test]
fn flock_is_refused() {
    let Some((_emulated, path)) = with_file() else { return };
    let file = File::open(&path).unwrap();
    assert_eq!(errno(file.lock()), Errno::OPNOTSUPP);
    assert_eq!(errno(file.lock_shared()), Errno::OPNOTSUPP);
}

#[test]
fn an_fcntl_lock_is_refused() {
    let Some((_emulated, path)) = with_file() else { return };
    let file = File::open(&path).unwrap();
    assert_eq!(fcntl_lock(&file, FlockOperation::NonBlockingLockShared).unwrap_err(), Errno::OPNOTSUPP);
    assert_eq!(fcntl_lock(&file, FlockOperation::LockShared).unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn rights_owners_and_times_cannot_be_set() {
    let Some((emulated, path)) = with_file() else { return };
    assert_eq!(errno(fs::set_permissions(&path, Permissions::from_mode(0o600))), Errno::OPNOTSUPP);
    assert_eq!(errno(std::os::unix::fs::chown(&path, Some(0), Some(0))), Errno::OPNOTSUPP);
    assert_eq!(errno(File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH)), Errno::OPNOTSUPP);
    let new = create(&emulated.at("new"));
    assert_eq!(errno(new.set_permissions(Permissions::from_mode(0o600))), Errno::OPNOTSUPP);
}

#[test]
fn extended_attributes_are_refused() {
    let Some((_emulated, path)) = with_file() else { return };
    let mut value = [0; 16];
    assert_eq!(setxattr(&path, "user.a", b"1", XattrFlags::empty()).unwrap_err(), Errno::OPNOTSUPP);
    assert_eq!(getxattr(&path, "user.a", &mut value).unwrap_err(), Errno::OPNOTSUPP);
    assert_eq!(listxattr(&path, &mut value).unwrap_err(), Errno::OPNOTSUPP);
    assert_eq!(removexattr(&path, "user.a").unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn reserving_space_is_refused() {
    let Some(emulated) = plain() else { return };
    let file = create(&emulated.at("new"));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 4096).unwrap_err(), Errno::OPNOTSUPP);
    assert_eq!(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4096).unwrap_err(), Errno::OPNOTSUPP);
}

#[expect(unsafe_code, reason = "mapping is what is refused; nobody changes the file")]
fn map(path: &Path) -> std::io::Result<Mmap> {
    unsafe { Mmap::map(&File::open(path)?) }
}

#[test]
fn a_shared_map_is_refused() {
    let Some((_emulated, path)) = with_file() else { return };
    assert_eq!(errno(map(&path)), Errno::NODEV);
}

#[test]
fn a_map_for_reading_works_where_it_is_allowed() {
    let Some(emulated) = on_emulator(&Options { map_reads: true, ..Options::default() }) else { return };
    fs::write(emulated.at("file"), "whole").unwrap();
    assert_eq!(&*map(&emulated.at("file")).unwrap(), b"whole");
}

#[test]
#[expect(unsafe_code, reason = "mapping is what is refused; nothing is mapped")]
fn a_shared_map_for_writing_is_refused_even_there() {
    for map_reads in [false, true] {
        let Some(emulated) = on_emulator(&Options { map_reads, ..Options::default() }) else { return };
        let written = create(&emulated.at("new"));
        assert_eq!(errno(unsafe { MmapOptions::new().len(4096).map_mut(&written) }), Errno::ACCESS);
        drop(written);
        let read = File::open(emulated.at("new")).unwrap();
        assert_eq!(errno(unsafe { MmapOptions::new().len(4096).map_mut(&read) }), Errno::ACCESS);
    }
}

#[test]
fn a_second_writer_of_a_path_is_refused() {
    let Some((emulated, path)) = with_file() else { return };
    for path in [path, emulated.at("new")] {
        let mut first = File::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        assert_eq!(errno(File::create(&path)), Errno::BUSY);
        drop(first);
        fs::write(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    }
}

#[test]
fn a_closed_file_does_not_overwrite_its_successor() {
    let Some(emulated) = plain() else { return };
    let path = emulated.at("new");
    let mut first = File::create(&path).unwrap();
    first.write_all(b"first").unwrap();
    drop(first.try_clone().unwrap());
    fs::write(&path, "second").unwrap();
    assert_eq!(errno(first.write(b"more")), Errno::IO);
    drop(first);
    assert_eq!(fs::read_to_string(&path).unwrap(), "second");
}

#[test]
fn reading_on_in_a_file_that_was_replaced_or_removed_is_refused() {
    let Some((_emulated, path)) = with_file() else { return };
    let mut text = String::new();
    let mut replaced = File::open(&path).unwrap();
    fs::write(&path, "other").unwrap();
    assert_eq!(errno(replaced.read_to_string(&mut text)), Errno::STALE);
    let mut removed = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(errno(removed.read_to_string(&mut text)), Errno::STALE);
}

#[test]
fn a_descriptor_does_one_thing() {
    let Some((emulated, path)) = with_file() else { return };
    let mut written = create(&emulated.at("new"));
    assert_eq!(errno(written.read(&mut [0; 4])), Errno::BADF);
    let mut read = File::open(path).unwrap();
    assert_eq!(errno(read.write(b"x")), Errno::BADF);
}

#[test]
fn a_stage_that_may_only_be_read_is_not_written() {
    let Some(emulated) = on_emulator(&Options { read_only: true, ..Options::default() }) else { return };
    fs::write(emulated.behind("file"), "whole").unwrap();
    is_whole(&emulated.at("file"));
    assert_eq!(errno(fs::write(emulated.at("new"), "x")), Errno::ROFS);
    assert_eq!(errno(fs::remove_file(emulated.at("file"))), Errno::ROFS);
    assert_eq!(errno(fs::create_dir(emulated.at("folder"))), Errno::ROFS);
}
