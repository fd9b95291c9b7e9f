//! What a mount does, request by request.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, UNIX_EPOCH},
};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, LockOwner, OpenAccMode, OpenFlags};
use nix::libc;

use super::{Options, device::Device, faults::Counters, nodes::Nodes, part::Write, spool::Spool, writer::Writer};

/// What a descriptor is open on.
#[derive(Clone, Debug)]
enum Handle {
    Read(Arc<File>),
    Write(Arc<Mutex<Writer>>),
    /// As it was when it was opened.
    Folder(Arc<[Entry]>),
}

/// A name in a folder.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) kind: FileType,
}

/// A folder with the rules of a stage mount.
#[derive(Debug)]
pub(super) struct Emulator {
    root: PathBuf,
    pub(super) device: Device,
    pub(super) map_reads: bool,
    latency: Duration,
    faults: Counters,
    nodes: Mutex<Nodes>,
    handles: Mutex<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
    /// Who writes a path: the one that opened it last.
    writers: Mutex<HashMap<PathBuf, Arc<Mutex<Writer>>>>,
    /// The folders that this mount made, in order.
    made: Mutex<Vec<PathBuf>>,
    /// After the writers, whose files it holds.
    spool: Spool,
}

/// A panic elsewhere leaves the tables usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Emulator {
    pub(super) fn new(root: &Path, spool: Spool, device: Device, options: &Options) -> Self {
        Self {
            root: root.to_owned(),
            device,
            map_reads: options.map_reads,
            latency: options.latency,
            faults: Counters::new(&options.faults),
            nodes: Mutex::new(Nodes::new()),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            writers: Mutex::default(),
            made: Mutex::default(),
            spool,
        }
    }

    fn pause(&self) {
        if !self.latency.is_zero() {
            thread::sleep(self.latency);
        }
    }

    fn path(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        lock(&self.nodes).path(ino)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    /// What others see at a path: a file or a folder, or `ENOENT`. A stage has nothing else.
    fn visible(&self, path: &Path) -> Result<Metadata, Errno> {
        let meta = fs::symlink_metadata(self.root.join(path))?;
        if kind(meta.file_type()).is_some() { Ok(meta) } else { Err(Errno::ENOENT) }
    }

    fn enter(&self, path: &Path, meta: &Metadata) -> FileAttr {
        attributes(lock(&self.nodes).enter(path), meta)
    }

    fn open_handle(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.handles).insert(number, handle);
        FileHandle(number)
    }

    fn handle(&self, handle: FileHandle) -> Result<Handle, Errno> {
        lock(&self.handles).get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        self.pause();
        let path = self.child(parent, name)?;
        let meta = self.visible(&path)?;
        Ok(self.enter(&path, &meta))
    }

    pub(super) fn forget(&self, ino: INodeNo, lookups: u64) {
        lock(&self.nodes).forget(ino, lookups);
    }

    /// What is visible, or else what its writer wrote so far: only that one holds the number.
    pub(super) fn getattr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        self.pause();
        let path = self.path(ino)?;
        let meta = match self.visible(&path) {
            Err(hidden) => match lock(&self.writers).get(&path) {
                Some(writer) => lock(writer).metadata()?,
                None => return Err(hidden),
            },
            visible => visible?,
        };
        Ok(attributes(ino, &meta))
    }

    pub(super) fn mkdir(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        self.pause();
        let path = self.child(parent, name)?;
        fs::create_dir(self.root.join(&path))?;
        lock(&self.made).push(path.clone());
        let meta = self.visible(&path)?;
        Ok(self.enter(&path, &meta))
    }

    pub(super) fn unlink(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.remove(parent, name, |path| fs::remove_file(path))
    }

    pub(super) fn rmdir(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.remove(parent, name, |path| fs::remove_dir(path))
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, from: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Errno> {
        self.pause();
        let path = self.child(parent, name)?;
        self.visible(&path)?;
        from(&self.root.join(&path))?;
        lock(&self.nodes).remove(&path);
        Ok(())
    }

    pub(super) fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        flags: OpenFlags,
    ) -> Result<(FileAttr, FileHandle), Errno> {
        self.pause();
        let path = self.child(parent, name)?;
        if !self.visible(parent_of(&path))?.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        // Made by another since the kernel looked.
        let exists = self.visible(&path).is_ok();
        if exists && flags.0 & libc::O_EXCL != 0 {
            return Err(Errno::EEXIST);
        }
        let writer = self.begin(&path, flags, exists)?;
        let meta = lock(&writer).metadata()?;
        Ok((self.enter(&path, &meta), self.open_handle(Handle::Write(writer))))
    }

    pub(super) fn open(&self, ino: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        self.pause();
        let path = self.path(ino)?;
        if flags.acc_mode() == OpenAccMode::O_RDONLY && flags.0 & libc::O_TRUNC == 0 {
            self.visible(&path)?;
            let file = File::open(self.root.join(&path))?;
            return Ok(self.open_handle(Handle::Read(Arc::new(file))));
        }
        let writer = self.begin(&path, flags, true)?;
        Ok(self.open_handle(Handle::Write(writer)))
    }

    /// A file is written from its first byte: it is new, or it is replaced as a whole.
    fn begin(&self, path: &Path, flags: OpenFlags, exists: bool) -> Result<Arc<Mutex<Writer>>, Errno> {
        let whole = !exists || flags.0 & libc::O_TRUNC != 0;
        if flags.acc_mode() != OpenAccMode::O_WRONLY || flags.0 & libc::O_APPEND != 0 || !whole {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut writers = lock(&self.writers);
        if let Some(other) = writers.get(path) {
            let mut other = lock(other);
            if other.is_open() {
                return Err(Errno::EBUSY);
            }
            // It closed the file, and its descriptor lives on: it must not write again.
            other.fail();
        }
        let writer = Arc::new(Mutex::new(Writer::new(&self.spool, &self.root, path)?));
        writers.insert(path.to_owned(), Arc::clone(&writer));
        Ok(writer)
    }

    /// Accepts a write, which the caller makes: a mount uploads asynchronously, and tells later what went wrong.
    pub(super) fn write(
        &self,
        handle: FileHandle,
        offset: u64,
        len: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
    ) -> Result<Write, Errno> {
        self.pause();
        let Handle::Write(writer) = self.handle(handle)? else { return Err(Errno::EBADF) };
        // It may be set after the file was opened.
        if flags.0 & libc::O_APPEND != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut writer = lock(&writer);
        if self.faults.fail_write.hit() {
            return Err(writer.fail());
        }
        writer.append(&self.spool, offset, len, owner)
    }

    pub(super) fn fsync(&self, handle: FileHandle) -> Result<(), Errno> {
        self.pause();
        match self.handle(handle)? {
            Handle::Write(writer) => lock(&writer).sync(),
            Handle::Read(_) | Handle::Folder(_) => Ok(()),
        }
    }

    pub(super) fn flush(&self, handle: FileHandle, owner: LockOwner) -> Result<(), Errno> {
        self.pause();
        let Handle::Write(writer) = self.handle(handle)? else { return Ok(()) };
        let mut writer = lock(&writer);
        if !writer.closes(owner) {
            return Ok(());
        }
        if self.faults.fail_close.hit() {
            return Err(writer.fail());
        }
        if self.faults.tear_close.hit() {
            return Err(writer.tear());
        }
        writer.close()
    }

    /// The last descriptor is gone. What was not closed by its writer is lost.
    pub(super) fn release(&self, handle: FileHandle) {
        let Some(Handle::Write(writer)) = lock(&self.handles).remove(&handle.0) else { return };
        let mut writers = lock(&self.writers);
        let path = lock(&writer).path().to_owned();
        if writers.get(&path).is_some_and(|current| Arc::ptr_eq(current, &writer)) {
            writers.remove(&path);
        }
    }

    /// What a read gets: how many bytes of which file, fewer than `size` at its end.
    pub(super) fn read(&self, handle: FileHandle, offset: u64, size: u32) -> Result<(Arc<File>, usize), Errno> {
        self.pause();
        let Handle::Read(file) = self.handle(handle)? else { return Err(Errno::EBADF) };
        if self.faults.late_read.hit() {
            thread::sleep(self.faults.late_by);
        }
        if self.faults.fail_read.hit() {
            return Err(Errno::EIO);
        }
        let meta = file.metadata()?;
        // A read fetches what is at the path now, and this file was replaced or removed.
        if meta.nlink() == 0 {
            return Err(Errno::ESTALE);
        }
        let wanted = if self.faults.short_read.hit() { size.div_ceil(2) } else { size };
        let left = usize::try_from(meta.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        Ok((file, left.min(wanted as usize)))
    }

    pub(super) fn opendir(&self, ino: INodeNo) -> Result<FileHandle, Errno> {
        self.pause();
        let path = self.path(ino)?;
        self.visible(&path)?;
        let mut entries = vec![];
        for entry in fs::read_dir(self.root.join(path))? {
            let entry = entry?;
            if let Some(kind) = kind(entry.file_type()?) {
                entries.push(Entry { name: entry.file_name(), kind });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(self.open_handle(Handle::Folder(entries.into())))
    }

    pub(super) fn readdir(&self, handle: FileHandle) -> Result<Arc<[Entry]>, Errno> {
        match self.handle(handle)? {
            Handle::Folder(entries) => Ok(entries),
            Handle::Read(_) | Handle::Write(_) => Err(Errno::ENOTDIR),
        }
    }

    /// An object store has no folders, only paths with slashes: one without a file does not last.
    pub(super) fn forget_empty_folders(&self) {
        for path in lock(&self.made).drain(..).rev() {
            // Fails where it has files, which is right.
            let _ = fs::remove_dir(self.root.join(path));
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn kind(kind: fs::FileType) -> Option<FileType> {
    FileType::from_std(kind).filter(|kind| matches!(kind, FileType::RegularFile | FileType::Directory))
}

/// Rights do not exist on a stage: every file has the same.
fn attributes(ino: INodeNo, meta: &Metadata) -> FileAttr {
    let (kind, perm) = if meta.is_dir() { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o644) };
    let modified = meta.modified().unwrap_or(UNIX_EPOCH);
    FileAttr {
        ino,
        size: meta.len(),
        blocks: meta.blocks(),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind,
        perm,
        nlink: 1,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 1 << 20,
        flags: 0,
    }
}
