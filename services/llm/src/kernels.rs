//! A folder of compiled kernels, so that a process need not compile what another one did: a model's first step takes twenty
//! to forty kernels, and a compiler ten to twenty seconds for them.
//!
//! A file is named by the SHA-256 of all that its bytes were made from, and begins with the SHA-256 of its bytes, so that one that
//! is damaged, or not yet written to its end, is none. It is written once, from its first byte to its last, and never
//! renamed: the folder may lie on a stage, and several processes may share it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::tokenizer::hex;

/// The folder, by its path; none are kept if it is empty.
const FOLDER_VARIABLE: &str = "FIRN_KERNEL_CACHE";
const EXTENSION: &str = "kernel";
/// Files that a process leaves in the folder, at most, before it adds its own. A kernel is 10 to 500 KB; each model's shape and
/// each version of Firn has some of its own.
const MOST_FILES: usize = 2_048;

/// Kernels in a folder.
#[derive(Debug)]
pub(crate) struct KernelFolder {
    path: PathBuf,
    most: usize,
    room: Once,
}

impl KernelFolder {
    /// The folder that the environment names, or `firn/kernels` in the user's folder for what can be made again.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
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
        Self { path: path.into(), most: MOST_FILES, room: Once::new() }
    }

    fn file(&self, text: &str) -> PathBuf {
        self.path.join(hex(&Sha256::digest(text))).with_extension(EXTENSION)
    }

    /// What was kept of `text`. A file that does not hold what it should goes.
    pub(crate) fn get(&self, text: &str) -> Option<[Vec<u8>; 2]> {
        let file = self.file(text);
        let found = read(&fs::read(&file).ok()?);
        if found.is_none() {
            let _ = fs::remove_file(file);
        }
        found
    }

    /// Keeps two parts of what was made of `text`.
    ///
    /// # Errors
    /// The folder can't be made, or the file not written.
    pub(crate) fn put(&self, text: &str, parts: [&[u8]; 2]) -> io::Result<()> {
        let file = self.file(text);
        let written = fs::create_dir_all(&self.path).and_then(|()| {
            self.room.call_once(|| self.make_room());
            File::create_new(&file)?.write_all(&bytes_of(parts))
        });
        match written {
            // Another process was first, or is at it.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::ResourceBusy) => Ok(()),
            written => written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
        }
    }

    /// Removes the oldest fourth of a full folder's files.
    fn make_room(&self) {
        let files = fs::read_dir(&self.path).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
        let files: Vec<PathBuf> = files.filter(|file| is_kernel(file)).collect();
        if files.len() < self.most {
            return;
        }
        let changed =
            |file: &PathBuf| file.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut files: Vec<_> = files.into_iter().map(|file| (changed(&file), file)).collect();
        files.sort_unstable();
        // Another process may remove the same ones.
        files.iter().take(self.most.div_ceil(4)).for_each(|(_, file)| drop(fs::remove_file(file)));
    }
}

/// A file's bytes: the sum of what follows; the first part's length, eight bytes; and the parts.
fn bytes_of(parts: [&[u8]; 2]) -> Vec<u8> {
    let rest = [&(parts[0].len() as u64).to_le_bytes(), parts[0], parts[1]].concat();
    [Sha256::digest(&rest).as_slice(), &rest].concat()
}

fn read(bytes: &[u8]) -> Option<[Vec<u8>; 2]> {
    let (sum, rest) = bytes.split_at_checked(Sha256::output_size())?;
    if sum != Sha256::digest(rest).as_slice() {
        return None;
    }
    let (length, parts) = rest.split_first_chunk()?;
    let (first, second) = parts.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some([first.to_vec(), second.to_vec()])
}

/// Whether a file has a kernel's name: others in the folder stay.
fn is_kernel(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == EXTENSION)
}

#[cfg(feature = "cuda")]
impl cubecl_cuda::Keep for KernelFolder {
    fn get(&self, text: &str) -> Option<[Vec<u8>; 2]> {
        Self::get(self, text)
    }

    fn put(&self, text: &str, compiled: [&[u8]; 2]) -> io::Result<()> {
        Self::put(self, text, compiled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PARTS: [&[u8]; 2] = [b"assembly\0", b"code"];

    fn found(folder: &KernelFolder, text: &str) -> bool {
        folder.get(text).inspect(|parts| assert_eq!(parts.each_ref().map(Vec::as_slice), PARTS)).is_some()
    }

    #[test]
    fn what_was_kept_is_there_in_another_process_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("kernels");
        KernelFolder::new(&path).put("sm_90\nkernel", PARTS).unwrap();
        let again = KernelFolder::new(&path);
        assert!(found(&again, "sm_90\nkernel"));
        assert!(!found(&again, "sm_80\nkernel"));
        again.put("sm_90\nkernel", [b"another", b""]).unwrap();
        assert!(found(&again, "sm_90\nkernel"), "a file is written once");
        again.put("one part", [b"", b"code"]).unwrap();
        assert_eq!(again.get("one part"), Some([vec![], b"code".to_vec()]));
    }

    #[test]
    fn a_file_cut_at_any_byte_or_with_a_byte_changed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let kernels = KernelFolder::new(folder.path());
        let file = kernels.file("kernel");
        kernels.put("kernel", PARTS).unwrap();
        let whole = fs::read(&file).unwrap();
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        let changed = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
        for bytes in cut.chain(changed) {
            fs::write(&file, &bytes).unwrap();
            assert!(!found(&kernels, "kernel"), "{bytes:?}");
            kernels.put("kernel", PARTS).unwrap();
            assert!(found(&kernels, "kernel"));
        }
    }

    #[test]
    fn a_full_folder_loses_its_oldest_kernels_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let process = || KernelFolder { most: 8, ..KernelFolder::new(folder.path()) };
        let (first, second) = (process(), process());
        fs::write(folder.path().join("README"), "not a kernel").unwrap();
        for name in 0..8_u64 {
            let text = name.to_string();
            first.put(&text, PARTS).unwrap();
            let file = File::options().write(true).open(first.file(&text)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(name)).unwrap();
        }
        second.put("8", PARTS).unwrap();
        let kept: Vec<bool> = (0..9).map(|name| found(&second, &name.to_string())).collect();
        assert_eq!(kept, [false, false, true, true, true, true, true, true, true]);
        assert!(folder.path().join("README").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it_and_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let kernels = KernelFolder::new(file.join("kernels"));
        let error = kernels.put("kernel", PARTS).unwrap_err().to_string();
        assert!(error.contains("file/kernels"), "{error}");
        assert!(!found(&kernels, "kernel"));
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
