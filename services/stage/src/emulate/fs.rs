//! The kernel's side: hands requests to the emulator, and refuses what a stage mount refuses.

use std::{cell::RefCell, ffi::OsStr, fs::File, io, mem, os::unix::fs::FileExt as _, path::Path, time::Duration};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::emulator::Emulator;

/// The kernel must ask again each time: a stage mount caches nothing, and others change what is there.
const NO_CACHE: Duration = Duration::ZERO;
/// The largest request, in bytes: the kernel cuts a larger read or write. A MiB, less two pages: the pipe that answers a
/// read has room for a MiB's pages, of which the header takes one, and bytes that begin within a page take one more.
pub(super) const MAX_REQUEST: u32 = (1 << 20) - 2 * 4096;
/// From so many bytes on a read is worth a pipe.
const LARGE: usize = 128 << 10;
/// The unit of what a stage is said to have free.
const BLOCK: u32 = 1 << 20;
/// What a list of names says instead of a number that nobody looked up.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);
/// Past the page cache: a write arrives as it is made, and a read fetches.
const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

thread_local! {
    /// Each thread of the mount reads into its own.
    static BUFFER: RefCell<Vec<u8>> = RefCell::default();
}

impl Filesystem for Emulator {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without the first two the kernel would keep locks by itself, without the third it would cut files to nothing.
        let mut needed = InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS | InitFlags::FUSE_ATOMIC_O_TRUNC;
        if self.map_reads {
            needed |= InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        }
        let lacks = |what| io::Error::new(io::ErrorKind::Unsupported, format!("this kernel's FUSE lacks {what:?}"));
        config.add_capabilities(needed).map_err(lacks)?;
        config.set_max_write(MAX_REQUEST).map_err(|most| io::Error::other(format!("at most {most} bytes a write")))?;
        // Only faster: names of one folder are looked up at once.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn destroy(&mut self) {
        self.forget_empty_folders();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.lookup(parent, name) {
            Ok(attr) => reply.entry(&NO_CACHE, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.forget(ino, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.getattr(ino) {
            Ok(attr) => reply.attr(&NO_CACHE, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        match self.mkdir(parent, name) {
            Ok(attr) => reply.entry(&NO_CACHE, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.unlink(parent, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.rmdir(parent, name), reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, flags: i32, reply: ReplyCreate) {
        match self.create(parent, name, OpenFlags(flags)) {
            Ok((attr, handle)) => reply.created(&NO_CACHE, &attr, Generation(0), handle, DIRECT),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open(ino, flags) {
            Ok(handle) => reply.opened(handle, DIRECT),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (file, len) = match self.read(handle, offset, size) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        if len >= LARGE && self.device.answer(request.unique(), &file, offset, len).is_ok() {
            // It has its answer, and a reply that is dropped would give another. What this leaks is a count of those who
            // use the device: the mount ends as ever, and the device's descriptor with the process.
            return mem::forget(reply);
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(len.max(buffer.len()), 0);
            match read_at(&file, buffer.get_mut(..len).unwrap_or_default(), offset) {
                Ok(len) => reply.data(buffer.get(..len).unwrap_or_default()),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Ok(len) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        match self.write(handle, offset, len, flags, owner) {
            Ok(write) => {
                // First, so that another thread gets the next bytes meanwhile.
                reply.written(len);
                write.run(data);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.fsync(handle), reply);
    }

    /// One comes for each `close`, and for each descriptor of a process that ends, even by SIGKILL.
    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        done(self.flush(handle, owner), reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.release(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.opendir(ino) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.readdir(handle) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let dots = [(ino, FileType::Directory, OsStr::new(".")), (UNKNOWN, FileType::Directory, OsStr::new(".."))];
        let entries = entries.iter().map(|entry| (UNKNOWN, entry.kind, entry.name.as_os_str()));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((ino, kind, name), next) in dots.into_iter().chain(entries).zip(1..).skip(from) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.release(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    /// A stage has no end: a petabyte is free.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 30;
        reply.statfs(blocks, blocks, blocks, 0, 0, BLOCK, 255, BLOCK);
    }

    // What follows is refused. The kernel turns ENOSYS, which these have by default, into EOPNOTSUPP and does not ask
    // again: setxattr, getxattr, listxattr, removexattr, fallocate.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}

/// Fills a buffer from `offset`, less at the end of the file, and returns how many bytes it has.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
