//! The secret that the services of a stack share: with it, nobody else who reaches their ports can call them.
//!
//! Servers and channels take it from the same variables, so that no service has the one without the other.

use std::path::Path;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq as _;
use tonic::{Code, Status};

use crate::secret::{Secret, SecretError};
use crate::status;

/// Variable with the secret itself; with `_FILE` behind it, with the path of a file that holds it.
const TOKEN: &str = "FIRN_MESH_TOKEN";
/// Shortest secret in bytes: what is shorter can be guessed.
const LEAST: usize = 16;
/// Longest secret in bytes.
const MOST: usize = 4096;
/// What comes before it in the header; callers may write it in any case.
const SCHEME: &str = "Bearer ";

/// A secret that calls carry as `authorization: Bearer …`. It is never shown.
#[derive(Clone, Debug)]
pub struct MeshToken(Secret<HeaderValue>);

impl MeshToken {
    /// Takes a secret of 16 to 4096 visible ASCII characters, or up to four, a line each: calls carry the first, and are
    /// accepted with any. Space around them does not count.
    ///
    /// # Errors
    /// Fails if one of them is none.
    pub fn new(secret: &str) -> Result<Self, SecretError> {
        Secret::parse(TOKEN, secret, header).map(Self)
    }

    /// Takes the secret from the file, which may be renewed while the process runs.
    ///
    /// # Errors
    /// Fails if the file can't be read, or holds none.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        Secret::read(TOKEN, path, header).map(Self)
    }

    /// Takes the secret from `FIRN_MESH_TOKEN`, or from the file that `FIRN_MESH_TOKEN_FILE` names; `None` where neither
    /// is set to something.
    ///
    /// # Errors
    /// Fails if both are set, the file can't be read, or the secret is none.
    pub fn from_env() -> Result<Option<Self>, SecretError> {
        Ok(Secret::from_env(TOKEN, header)?.map(Self))
    }

    /// Puts the secret into a call's headers.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        headers.insert(AUTHORIZATION, self.0.current());
    }

    /// Refuses a call whose headers hold none of the secrets that are accepted.
    pub(crate) fn check(&self, domain: &str, headers: &HeaderMap) -> Result<(), Status> {
        let given = headers.get(AUTHORIZATION).and_then(parts);
        let accepted = given.is_some_and(|(scheme, given)| {
            let same = |wanted: &HeaderValue| parts(wanted).is_some_and(|(_, ours)| ours.ct_eq(given).into());
            scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && self.0.accepts(same)
        });
        if accepted {
            return Ok(());
        }
        let message = format!(
            "the services of this stack share a secret that the call does not carry: set {TOKEN} or {TOKEN}_FILE as \
             they have it"
        );
        Err(status::status(Code::Unauthenticated, domain, "WRONG_MESH_TOKEN", message))
    }
}

/// The header of a secret.
fn header(secret: &str) -> Result<HeaderValue, String> {
    let unfit =
        || format!("must have {LEAST} to {MOST} ASCII characters without spaces; `openssl rand -hex 32` makes one");
    if !(LEAST..=MOST).contains(&secret.len()) || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unfit());
    }
    let mut value = HeaderValue::try_from(format!("{SCHEME}{secret}")).map_err(|_| unfit())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The scheme with its space, and the secret.
fn parts(value: &HeaderValue) -> Option<(&[u8], &[u8])> {
    value.as_bytes().split_at_checked(SCHEME.len())
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
        for bad in ["", "short", long.as_str(), spaced, "0123456789abcdé", "0123456789abcdef\nshort"] {
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
    fn in_every_step_of_a_renewal_each_accepts_what_the_other_sends() {
        let [old, new] = ["0123456789abcdef", "fedcba9876543210"];
        let steps = [old.to_owned(), format!("{old}\n{new}"), format!("{new}\n{old}"), new.to_owned()]
            .map(|text| MeshToken::new(&text).unwrap());
        let passes = |from: &MeshToken, to: &MeshToken| {
            let mut headers = HeaderMap::new();
            from.sign(&mut headers);
            to.check("trainer.firn.dev", &headers).is_ok()
        };
        for pair in steps.windows(2) {
            assert!(passes(&pair[0], &pair[1]) && passes(&pair[1], &pair[0]));
        }
        let [before, _, _, after] = &steps;
        assert!(!passes(before, after) && !passes(after, before), "one that is gone lets nobody in");
    }
}
