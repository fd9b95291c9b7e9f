//! The numbers by which the kernel knows files and folders.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use fuser::{Errno, INodeNo};

/// A number that the kernel holds. Paths never change: there is no rename.
#[derive(Debug)]
struct Node {
    /// None once the path was removed: it may be another file's now.
    path: Option<PathBuf>,
    /// How often the kernel was told the number; it forgets it as often.
    lookups: u64,
}

/// All numbers that the kernel holds.
#[derive(Debug)]
pub(super) struct Nodes {
    by_number: HashMap<u64, Node>,
    by_path: HashMap<PathBuf, u64>,
    next: u64,
}

impl Nodes {
    /// The root, whose path is empty.
    pub(super) fn new() -> Self {
        let root = Node { path: Some(PathBuf::new()), lookups: 1 };
        let ino = INodeNo::ROOT.0;
        Self { by_number: HashMap::from([(ino, root)]), by_path: HashMap::from([(PathBuf::new(), ino)]), next: ino + 1 }
    }

    /// The path of a number, relative to the root; `ESTALE` if it was removed.
    pub(super) fn path(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        self.by_number.get(&ino.0).and_then(|node| node.path.clone()).ok_or(Errno::ESTALE)
    }

    /// The number of a path, which the kernel is told now.
    pub(super) fn enter(&mut self, path: &Path) -> INodeNo {
        let ino = *self.by_path.entry(path.to_owned()).or_insert_with(|| {
            self.next += 1;
            self.next - 1
        });
        let node = self.by_number.entry(ino).or_insert_with(|| Node { path: Some(path.to_owned()), lookups: 0 });
        node.lookups += 1;
        INodeNo(ino)
    }

    /// The path was removed: what comes there next is another file.
    pub(super) fn remove(&mut self, path: &Path) {
        if let Some(node) = self.by_path.remove(path).and_then(|ino| self.by_number.get_mut(&ino)) {
            node.path = None;
        }
    }

    /// The kernel forgets a number, as often as it was told it.
    pub(super) fn forget(&mut self, ino: INodeNo, lookups: u64) {
        if ino == INodeNo::ROOT {
            return;
        }
        let Some(node) = self.by_number.get_mut(&ino.0) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0
            && let Some(Node { path: Some(path), .. }) = self.by_number.remove(&ino.0)
        {
            self.by_path.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_lives_as_long_as_the_kernel_knows_it() {
        let mut nodes = Nodes::new();
        let first = nodes.enter(Path::new("a"));
        assert_eq!(nodes.enter(Path::new("a")), first);
        nodes.forget(first, 1);
        assert_eq!(nodes.path(first).ok().as_deref(), Some(Path::new("a")));
        nodes.forget(first, 1);
        assert!(nodes.path(first).is_err());
        assert_ne!(nodes.enter(Path::new("a")), first);
    }

    #[test]
    fn a_removed_path_gets_a_new_number_and_the_old_one_stays_stale() {
        let mut nodes = Nodes::new();
        let old = nodes.enter(Path::new("a"));
        nodes.remove(Path::new("a"));
        let new = nodes.enter(Path::new("a"));
        assert_ne!(new, old);
        assert_eq!(nodes.path(old).err().map(Errno::code), Some(Errno::ESTALE.code()));
        nodes.forget(old, 1);
        assert_eq!(nodes.path(new).ok().as_deref(), Some(Path::new("a")));
    }
}
