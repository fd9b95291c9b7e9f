//! Secrets that the environment holds, or files that are renewed while the process runs.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::renewed::{self, Renewed};

/// Largest file of a secret in bytes.
const LARGEST: u64 = 64 << 10;

/// A secret as its user needs it, `T`. It is never shown.
///
/// One that is a file is read again when the file changes: once a second at most, whoever uses it looks. If the file then
/// holds none, the last good one goes on to count, and a warning says so. Clones share it.
#[derive(Clone)]
pub struct Secret<T>(Origin<T>);

#[derive(Clone)]
enum Origin<T> {
    Given(T),
    Mounted(Arc<Renewed<Mounted<T>>>),
}

/// Makes a secret of its text without the space around it, or says what is wrong, as in `the secret in X …`; what it says
/// must not show the text.
pub type Make<T> = fn(&str) -> Result<T, String>;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Two secrets are named.
    #[error("{variable} and {variable}_FILE are both set: keep one of them")]
    Both {
        /// The first variable.
        variable: &'static str,
    },
    /// The file can't be read.
    #[error("cannot read {path}, which {variable}_FILE names: {source}", path = path.display())]
    Read {
        /// The variable without its ending.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What is there can't be the secret.
    #[error("the secret in {origin} {reason}")]
    Unfit {
        /// Where it is.
        origin: String,
        /// Why.
        reason: String,
    },
}

impl<T: Clone> Secret<T> {
    /// One that stays as it is.
    pub fn given(value: T) -> Self {
        Self(Origin::Given(value))
    }

    /// Makes the secret of what `variable` holds, such as `FIRN_MESH_TOKEN`.
    ///
    /// # Errors
    /// Fails if it is none.
    pub fn parse(variable: &'static str, text: &str, make: Make<T>) -> Result<Self, SecretError> {
        let unfit = |reason| SecretError::Unfit { origin: variable.to_owned(), reason };
        make(text.trim()).map(Self::given).map_err(unfit)
    }

    /// Reads the secret from a file of at most 64 KiB, and again whenever that changes. Errors say that `variable` with
    /// `_FILE` behind it names the file.
    ///
    /// # Errors
    /// Fails if the file can't be read, or holds none.
    pub fn read(variable: &'static str, path: &Path, make: Make<T>) -> Result<Self, SecretError> {
        let mounted = Mounted { variable, path: path.to_owned(), make };
        Ok(Self(Origin::Mounted(Arc::new(Renewed::new(mounted)?))))
    }

    /// Takes the secret from `variable`, or from the file that `variable` with `_FILE` behind it names; `None` where neither
    /// is set to something.
    ///
    /// # Errors
    /// Fails if both are set, the file can't be read, or the secret is none.
    pub fn from_env(variable: &'static str, make: Make<T>) -> Result<Option<Self>, SecretError> {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        match (set(variable), set(&format!("{variable}_FILE"))) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(SecretError::Both { variable }),
            (Some(text), None) => Self::parse(variable, &text.to_string_lossy(), make).map(Some),
            (None, Some(path)) => Self::read(variable, Path::new(&path), make).map(Some),
        }
    }

    /// The secret as it is now. May read the file.
    pub fn current(&self) -> T {
        match &self.0 {
            Origin::Given(value) => value.clone(),
            Origin::Mounted(file) => file.get(),
        }
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A file that holds a secret.
struct Mounted<T> {
    variable: &'static str,
    path: PathBuf,
    make: Make<T>,
}

impl<T> renewed::Source for Mounted<T> {
    type Content = Vec<u8>;
    type Value = T;
    type Error = SecretError;

    fn read(&self) -> Result<Vec<u8>, SecretError> {
        renewed::read(&self.path, LARGEST).map_err(|source| SecretError::Read {
            variable: self.variable,
            path: self.path.clone(),
            source,
        })
    }

    fn make(&self, content: &Vec<u8>) -> Result<T, SecretError> {
        let origin = || format!("{}, which {}_FILE names,", self.path.display(), self.variable);
        let unfit = |reason| SecretError::Unfit { origin: origin(), reason };
        let text = std::str::from_utf8(content).map_err(|_| unfit("is no text in UTF-8".to_owned()))?;
        (self.make)(text.trim()).map_err(unfit)
    }
}

impl<T> fmt::Debug for Mounted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Result<String, String> {
        if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
    }

    #[test]
    fn a_file_holds_it_with_space_around_and_is_not_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let read = || Secret::read("FIRN_X", &path, word);
        let error = read().unwrap_err().to_string();
        assert!(error.contains("secret, which FIRN_X_FILE names"), "{error}");
        std::fs::write(&path, " hush\r\n").unwrap();
        let secret = read().unwrap();
        assert_eq!((secret.current().as_str(), format!("{secret:?}").as_str()), ("hush", "Secret(…)"));
        for (content, word) in [(&b"\n"[..], "is empty"), (b"\xff", "UTF-8"), (&[b'x'; (64 << 10) + 1], "65536 bytes")]
        {
            std::fs::write(&path, content).unwrap();
            let error = read().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("FIRN_X_FILE"), "{error}");
        }
    }

    #[test]
    fn a_variable_holds_it_too() {
        assert_eq!(Secret::parse("FIRN_X", " hush ", word).unwrap().current(), "hush");
        let error = Secret::parse("FIRN_X", " ", word).unwrap_err().to_string();
        assert_eq!(error, "the secret in FIRN_X is empty");
    }
}
