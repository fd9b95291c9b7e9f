//! The secret that the services of a stack share: with it, nobody else who reaches their ports can call them.
//!
//! Servers and channels take it from the same variables, so that no service has the one without the other.

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq as _;
use tonic::{Code, Status};

use crate::status;

/// Variable with the secret itself.
const TOKEN: &str = "FIRN_MESH_TOKEN";
/// Variable with the path of a file that holds it.
const TOKEN_FILE: &str = "FIRN_MESH_TOKEN_FILE";
/// Shortest secret in bytes: what is shorter can be guessed.
const LEAST: usize = 16;
/// Longest secret in bytes.
const MOST: usize = 4096;
/// What comes before it in the header; callers may write it in any case.
const SCHEME: &str = "Bearer ";

/// A secret that calls carry as `authorization: Bearer …`. It is never shown.
#[derive(Clone)]
pub struct MeshToken(HeaderValue);

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeshTokenError {
    /// Two secrets are named.
    #[error("{TOKEN} and {TOKEN_FILE} are both set: keep one of them")]
    Both,
    /// The file can't be read.
    #[error("cannot read {path}, which {TOKEN_FILE} names: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The secret is too short, too long or can't be sent.
    #[error(
        "the secret in {TOKEN} or {TOKEN_FILE} must have {LEAST} to {MOST} ASCII characters without spaces; \
         `openssl rand -hex 32` makes one"
    )]
    Unfit,
}

impl MeshToken {
    /// Takes a secret of 16 to 4096 visible ASCII characters. Space around it, such as a file's last line end, does not
    /// count.
    ///
    /// # Errors
    /// Fails if it is none.
    pub fn new(secret: &str) -> Result<Self, MeshTokenError> {
        let secret = secret.trim();
        if !(LEAST..=MOST).contains(&secret.len()) || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(MeshTokenError::Unfit);
        }
        let mut value = HeaderValue::try_from(format!("{SCHEME}{secret}")).map_err(|_| MeshTokenError::Unfit)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// Takes the secret from `FIRN_MESH_TOKEN`, or from the file that `FIRN_MESH_TOKEN_FILE` names; `None` where neither
    /// is set to something.
    ///
    /// # Errors
    /// Fails if both are set, the file can't be read, or the secret is none.
    pub fn from_env() -> Result<Option<Self>, MeshTokenError> {
        let set = |variable| std::env::var_os(variable).filter(|value| !value.is_empty());
        match (set(TOKEN), set(TOKEN_FILE)) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(MeshTokenError::Both),
            (Some(secret), None) => Self::new(secret.to_str().ok_or(MeshTokenError::Unfit)?).map(Some),
            (None, Some(path)) => Self::read(path.into()).map(Some),
        }
    }

    fn read(path: PathBuf) -> Result<Self, MeshTokenError> {
        let mut secret = Vec::new();
        // Room for a line end; what is longer is refused and not taken for its beginning.
        let read = std::fs::File::open(&path).and_then(|file| file.take(2 * MOST as u64).read_to_end(&mut secret));
        read.map_err(|source| MeshTokenError::Read { path, source })?;
        Self::new(std::str::from_utf8(&secret).map_err(|_| MeshTokenError::Unfit)?)
    }

    /// Puts the secret into a call's headers.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        headers.insert(AUTHORIZATION, self.0.clone());
    }

    /// Refuses a call whose headers do not hold the secret.
    pub(crate) fn check(&self, domain: &str, headers: &HeaderMap) -> Result<(), Status> {
        if let (Some((scheme, ours)), Some((other, given))) =
            (parts(&self.0), headers.get(AUTHORIZATION).and_then(parts))
            && scheme.eq_ignore_ascii_case(other)
            && bool::from(ours.ct_eq(given))
        {
            return Ok(());
        }
        let message = format!(
            "the services of this stack share a secret that the call does not carry: set {TOKEN} or {TOKEN_FILE} as \
             they have it"
        );
        Err(status::status(Code::Unauthenticated, domain, "WRONG_MESH_TOKEN", message))
    }
}

/// The scheme with its space, and the secret.
fn parts(value: &HeaderValue) -> Option<(&[u8], &[u8])> {
    value.as_bytes().split_at_checked(SCHEME.len())
}

impl fmt::Debug for MeshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_can_be_guessed_or_not_be_sent_is_none() {
        let longest = "x".repeat(MOST);
        for good in ["0123456789abcdef", " 0123456789abcdef\r\n", longest.as_str()] {
            MeshToken::new(good).unwrap();
        }
        let (long, spaced) = ("x".repeat(MOST + 1), "0123456789 abcdef");
        for bad in ["", "short", long.as_str(), spaced, "0123456789abcdé"] {
            let error = MeshToken::new(bad).unwrap_err().to_string();
            assert!(error.contains("openssl rand") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
    }

    #[test]
    fn only_the_same_secret_passes_and_nothing_shows_it() {
        let token = MeshToken::new("0123456789abcdef").unwrap();
        let check = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            value.map(|value| headers.insert(AUTHORIZATION, value.parse().unwrap()));
            token.check("trainer.firn.dev", &headers)
        };
        for good in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef"] {
            check(Some(good)).unwrap();
        }
        for bad in [
            None,
            Some(""),
            Some("Bearer "),
            Some("Bearer 0123456789abcdeX"),
            Some("Bearer X123456789abcdef"),
            Some("Bearer 0123456789abcde"),
            Some("Bearer 0123456789abcdefg"),
            Some("Basic  0123456789abcdef"),
            Some("0123456789abcdef"),
        ] {
            let status = check(bad).unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{bad:?}");
            assert!(!format!("{status:?}").contains("0123456789"));
        }
        let mut headers = HeaderMap::new();
        token.sign(&mut headers);
        assert!(!format!("{token:?} {headers:?}").contains("0123456789"));
        token.check("trainer.firn.dev", &headers).unwrap();
    }

    #[test]
    fn a_file_holds_it_with_a_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let error = MeshToken::read(path.clone()).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains(TOKEN_FILE), "{error}");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(MeshToken::read(path.clone()).unwrap().0, "Bearer 0123456789abcdef");
        std::fs::write(&path, "x".repeat(3 * MOST)).unwrap();
        assert!(matches!(MeshToken::read(path), Err(MeshTokenError::Unfit)));
    }
}
