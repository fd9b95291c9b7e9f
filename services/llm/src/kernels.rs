//! A folder of compiled kernels, so that a process need not compile what another one did: a model's first step takes twenty
//! to forty kernels, and a compiler ten to twenty seconds for them.
//!
//! A file is named by the SHA-256 of all that its bytes were made from, and begins with the SHA-256 of its bytes, so that one that
//! is damaged, or not yet written to its end, is none. It is written once, from its first byte to its last, and never
//! renamed: the folder may lie on a stage, and several processes may share it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::tokenizer::hex;

/// The folder, by its path; none are kept if it is empty.
pub(crate) const FOLDER_VARIABLE: &str = "FIRN_KERNEL_CACHE";
/// Files in the folder, at most. A kernel is 10 to 500 KB; each model's shape and each version of Firn has some of its own.
const MOST_FILES: usize = 2_048;

/// Kernels in a folder.
#[derive(Debug)]
pub(crate) struct KernelFolder {
    path: PathBuf,
    most: usize,
}

impl KernelFolder {
    /// The folder that the environment names, or `firn/kernels` in the user's folder for what can be made again.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<Self> {
        let path = match variable(FOLDER_VARIABLE) {
            Some(path) => PathBuf::from(path),
            None => {
                let set = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
                let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
                caches.join("firn").join("kernels")
            }
        };
        (!path.as_os_str().is_empty()).then(|| Self::new(path))
    }

    fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), most: MOST_FILES }
    }

    fn file(&self, text: &str) -> PathBuf {
        self.path.join(hex(&Sha256::digest(text)))
    }

    /// What was kept of `text`. A file that does not hold what it should goes.
    pub(crate) fn get(&self, text: &str) -> Option<Vec<u8>> {
        let file = self.file(text);
        let bytes = fs::read(&file).ok()?;
        match bytes.split_at_checked(Sha256::output_size()) {
            Some((sum, kept)) if sum == Sha256::digest(kept).as_slice() => Some(kept.to_vec()),
            _ => {
                let _ = fs::remove_file(file);
                None
            }
        }
    }

    /// Keeps the bytes of `text`.
    ///
    /// # Errors
    /// The folder can't be made, or the file not written.
    pub(crate) fn put(&self, text: &str, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.make_room()?;
        let mut file = match File::create_new(self.file(text)) {
            // Another process was first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            file => file?,
        };
        file.write_all(&[Sha256::digest(bytes).as_slice(), bytes].concat())
    }

    /// Removes the oldest fourth of a full folder's files.
    fn make_room(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.path)?
            .filter_map(Result::ok)
            .filter(|entry| is_kernel(&entry.path()))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        if files.len() < self.most {
            return Ok(());
        }
        files.sort_unstable();
        // Another process may remove the same ones.
        files.iter().take(self.most.div_ceil(4)).for_each(|(_, file)| drop(fs::remove_file(file)));
        Ok(())
    }
}

/// Whether a file has a kernel's name: others in the folder stay.
fn is_kernel(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == 2 * Sha256::output_size() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(feature = "cuda")]
impl cubecl_cuda::Keep for KernelFolder {
    fn get(&self, text: &str) -> Option<Vec<u8>> {
        Self::get(self, text)
    }

    fn put(&self, text: &str, bytes: &[u8]) -> io::Result<()> {
        Self::put(self, text, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_in_another_process_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("kernels");
        KernelFolder::new(&path).put("sm_90\nkernel", b"code").unwrap();
        let again = KernelFolder::new(&path);
        assert_eq!(again.get("sm_90\nkernel").as_deref(), Some(b"code".as_slice()));
        assert_eq!(again.get("sm_80\nkernel"), None);
        again.put("sm_90\nkernel", b"another").unwrap();
        assert_eq!(again.get("sm_90\nkernel").as_deref(), Some(b"code".as_slice()), "a file is written once");
    }

    #[test]
    fn a_file_cut_at_any_byte_or_with_a_byte_changed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let kernels = KernelFolder::new(folder.path());
        let file = kernels.file("kernel");
        kernels.put("kernel", b"code").unwrap();
        let whole = fs::read(&file).unwrap();
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        let changed = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
        for bytes in cut.chain(changed) {
            fs::write(&file, &bytes).unwrap();
            assert_eq!(kernels.get("kernel"), None, "{bytes:?}");
            kernels.put("kernel", b"code").unwrap();
            assert_eq!(kernels.get("kernel").as_deref(), Some(b"code".as_slice()));
        }
    }

    #[test]
    fn a_full_folder_loses_its_oldest_kernels_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let kernels = KernelFolder { path: folder.path().to_owned(), most: 8 };
        fs::write(folder.path().join("README"), "not a kernel").unwrap();
        for name in 0..8_u64 {
            let text = name.to_string();
            kernels.put(&text, b"code").unwrap();
            let file = File::options().write(true).open(kernels.file(&text)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(name)).unwrap();
        }
        kernels.put("8", b"code").unwrap();
        let kept: Vec<bool> = (0..9).map(|name| kernels.get(&name.to_string()).is_some()).collect();
        assert_eq!(kept, [false, false, true, true, true, true, true, true, true]);
        assert!(folder.path().join("README").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_and_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let kernels = KernelFolder::new(file.join("kernels"));
        assert!(kernels.put("kernel", b"code").is_err());
        assert_eq!(kernels.get("kernel"), None);
    }

    #[test]
    fn the_environment_says_where_or_that_none_are_kept() {
        let path = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).into());
            KernelFolder::from_environment(find).map(|folder| folder.path)
        };
        assert_eq!(path(&[("HOME", "/h")]), Some("/h/.cache/firn/kernels".into()));
        assert_eq!(path(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Some("/c/firn/kernels".into()));
        assert_eq!(path(&[("HOME", "/h"), (FOLDER_VARIABLE, "/stage/kernels")]), Some("/stage/kernels".into()));
        assert_eq!(path(&[("HOME", "/h"), (FOLDER_VARIABLE, "")]), None);
        assert_eq!(path(&[]), None);
    }
}
