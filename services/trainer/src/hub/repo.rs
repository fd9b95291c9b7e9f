//! Names of repositories.

use std::{fmt, str::FromStr};

/// Longest owner, name or revision in bytes; the hub's own limit for a name.
const LONGEST: usize = 96;
/// Folder of a stage's bases.
const BASES: &str = "bases";
/// The revision that counts if none is named.
const MAIN: &str = "main";

/// Why a text names no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no model on the hub: {reason}")]
pub struct RepoError {
    given: String,
    reason: &'static str,
}

/// A model repository on the hub: `org/name`, optionally `@revision`, a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repo {
    org: String,
    name: String,
    revision: String,
}

impl Repo {
    pub(super) fn org(&self) -> &str {
        &self.org
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn revision(&self) -> &str {
        &self.revision
    }

    /// Name, and the revision if it is not the main one: the last part of a path.
    pub(super) fn leaf(&self) -> String {
        if self.revision == MAIN { self.name.clone() } else { format!("{}@{}", self.name, self.revision) }
    }

    /// Its folder on a stage, `bases/<org>/<name>` or `bases/<org>/<name>@<revision>`.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{BASES}/{self}")
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.leaf())
    }
}

impl FromStr for Repo {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self, RepoError> {
        let refuse = |reason| RepoError { given: text.chars().take(2 * LONGEST).collect(), reason };
        let (path, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = path.split_once('/').ok_or_else(|| refuse("write it as org/name"))?;
        if org == BASES {
            return Err(refuse("bases/… is a path on the stage"));
        }
        if ![org, name, revision].into_iter().all(is_part) {
            return Err(refuse(
                "org, name and revision are 1 to 96 letters, digits, -, _ and . each, and start with a letter, a digit \
                 or _; for a branch with / name its commit",
            ));
        }
        Ok(Self { org: org.to_owned(), name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// Safe as a part of a path and of a URL.
fn is_part(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= LONGEST
        && text.bytes().all(plain)
        && text.bytes().next().is_some_and(|first| first != b'.' && first != b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_an_owner_a_name_and_a_revision() {
        let repo: Repo = "Qwen/Qwen2.5-0.5B".parse().unwrap();
        assert_eq!((repo.org(), repo.name(), repo.revision()), ("Qwen", "Qwen2.5-0.5B", "main"));
        assert_eq!(
            (repo.to_string().as_str(), repo.folder().as_str()),
            ("Qwen/Qwen2.5-0.5B", "bases/Qwen/Qwen2.5-0.5B")
        );
        let repo: Repo = "a/b@v1.0".parse().unwrap();
        assert_eq!((repo.revision(), repo.folder().as_str()), ("v1.0", "bases/a/b@v1.0"));
        assert_eq!("a/b@main".parse::<Repo>().unwrap(), "a/b".parse().unwrap());
    }

    #[test]
    fn what_is_none_is_refused() {
        let long = format!("a/{}", "b".repeat(97));
        for bad in [
            "",
            "gpt2",
            "bases/x",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@refs/pr/1",
            "a/b c",
            "a/ä",
            "-a/b",
            &long,
        ] {
            let error = bad.parse::<Repo>().unwrap_err().to_string();
            assert!(error.contains("is no model on the hub"), "{error}");
        }
    }
}
