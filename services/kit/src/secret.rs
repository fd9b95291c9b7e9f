//! Secrets that the environment holds, or files that are renewed while the process runs.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::renewed::{self, Renewed};

/// Largest file of a secret in bytes.
const LARGEST: u64 = 64 << 10;
/// Most lines with a secret: each is one more that lets callers in, and a renewal needs two.
const MOST: usize = 4;

/// A secret as its user needs it, `T`. It is never shown.
///
/// It may have several lines, each a secret of its own: the first is what is sent, and all of them are accepted. So one can
/// be renewed while callers still have the one before, or have the next one already. Empty lines do not count.
///
/// One that is a file is read again when the file changes: once a second at most, whoever uses it looks. If the file then
/// holds none, the last good one goes on to count, and a warning says so. Clones share it.
#[derive(Clone)]
pub struct Secret<T>(Origin<T>);

#[derive(Clone)]
enum Origin<T> {
    Given(Lines<T>),
    Mounted(Arc<Renewed<Mounted<T>>>),
}

/// What counts at once.
#[derive(Clone)]
struct Lines<T> {
    first: T,
    others: Arc<[T]>,
}

/// Makes a secret of a line without the space around it, or says what is wrong, as in `the secret in X …`; what it says
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
        Self(Origin::Given(Lines { first: value, others: Arc::default() }))
    }

    /// Makes the secret of what `variable` holds, such as `FIRN_MESH_TOKEN`.
    ///
    /// # Errors
    /// Fails if it is none.
    pub fn parse(variable: &'static str, text: &str, make: Make<T>) -> Result<Self, SecretError> {
        Lines::parse(text, variable, make).map(|lines| Self(Origin::Given(lines)))
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

    /// The secret to send now. May read the file.
    pub fn current(&self) -> T {
        self.lines().first
    }

    /// Whether one of the secrets that are accepted now is the `same`. Asks for every one of them, so that the time it
    /// takes does not say which. May read the file.
    pub fn accepts(&self, same: impl Fn(&T) -> bool) -> bool {
        let Lines { first, others } = self.lines();
        others.iter().fold(same(&first), |accepted, other| accepted | same(other))
    }

    fn lines(&self) -> Lines<T> {
        match &self.0 {
            Origin::Given(lines) => lines.clone(),
            Origin::Mounted(file) => file.get(),
        }
    }
}

impl<T> Lines<T> {
    /// Takes every line that is not empty for a secret. Errors say that they are in `origin`.
    fn parse(text: &str, origin: &str, make: Make<T>) -> Result<Self, SecretError> {
        let full: Vec<(usize, &str)> =
            text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()).collect();
        let one = |&(at, line): &(usize, &str)| {
            let place = if full.len() > 1 { format!("line {} of {origin}", at + 1) } else { origin.to_owned() };
            make(line).map_err(|reason| SecretError::Unfit { origin: place, reason })
        };
        if full.len() > MOST {
            let reason = format!("has {} lines: keep at most {MOST}, of which the first is sent", full.len());
            return Err(SecretError::Unfit { origin: origin.to_owned(), reason });
        }
        // Without a line, who makes it says what must be there.
        let first = one(full.first().unwrap_or(&(0, "")))?;
        let others = full.iter().skip(1).map(one).collect::<Result<_, _>>()?;
        Ok(Self { first, others })
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
    type Value = Lines<T>;
    type Error = SecretError;

    fn read(&self) -> Result<Vec<u8>, SecretError> {
        renewed::read(&self.path, LARGEST).map_err(|source| SecretError::Read {
            variable: self.variable,
            path: self.path.clone(),
            source,
        })
    }

    fn make(&self, content: &Vec<u8>) -> Result<Lines<T>, SecretError> {
        let origin = format!("{}, which {}_FILE names,", self.path.display(), self.variable);
        match std::str::from_utf8(content) {
            Ok(text) => Lines::parse(text, &origin, self.make),
            Err(_) => Err(SecretError::Unfit { origin, reason: "is no text in UTF-8".to_owned() }),
        }
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
        match text {
            "" => Err("is empty".to_owned()),
            "unfit" => Err("is no word".to_owned()),
            _ => Ok(text.to_owned()),
        }
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

    #[test]
    fn the_first_line_is_sent_and_every_line_is_accepted() {
        let parse = |text| Secret::parse("FIRN_X", text, word);
        let secret = parse("\n new \r\n\nold\n").unwrap();
        assert_eq!(secret.current(), "new");
        let accepts = |given: &str| secret.accepts(|word| word == given);
        assert!(accepts("new") && accepts("old"));
        assert!(!accepts("") && !accepts("older") && !accepts("new\nold"));
        let asked = std::cell::Cell::new(0);
        secret.accepts(|word| {
            asked.set(asked.get() + 1);
            word == "new"
        });
        assert_eq!(asked.get(), 2, "none is left out where one before it is the same");

        assert!(parse("a\nb\nc\nd").unwrap().accepts(|word| word == "d"));
        let error = parse("a\nb\nc\nd\ne").map(drop).unwrap_err().to_string();
        assert_eq!(error, "the secret in FIRN_X has 5 lines: keep at most 4, of which the first is sent");
        for (text, line) in [("unfit\nb", 1), ("a\n\nunfit", 3)] {
            let error = parse(text).map(drop).unwrap_err().to_string();
            assert_eq!(error, format!("the secret in line {line} of FIRN_X is no word"));
        }
    }
}
