//! Whose request it is.

use std::sync::Arc;

use axum::http::HeaderMap;

/// Header that the ingress of Snowpark Container Services sets, and that a service function sends which was created with
/// `CONTEXT_HEADERS = (CURRENT_USER)`.
const INGRESS_USER: &str = "sf-context-current-user";
/// Longest name of a user in bytes: Snowflake's have 255 characters.
const LONGEST_USER: usize = 1020;

/// Whose request it is: what waits for its turn, and what is counted against a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tenant(Arc<str>);

impl Tenant {
    /// Everyone who has the gateway's token. Nothing of the token is in it.
    pub(crate) fn token() -> Self {
        Self("token".into())
    }

    /// Everyone, where nobody is asked who it is.
    pub(crate) fn local() -> Self {
        Self("local".into())
    }

    /// The user whom the ingress names, if it does.
    pub(crate) fn ingress(headers: &HeaderMap) -> Option<Self> {
        let mut named = headers.get_all(INGRESS_USER).into_iter();
        // With two names, one of them is not the ingress's.
        let (Some(name), None) = (named.next(), named.next()) else { return None };
        let name = name.as_bytes().trim_ascii();
        let fits = !name.is_empty() && name.len() <= LONGEST_USER;
        fits.then(|| Self(String::from_utf8_lossy(name).into()))
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Option<Tenant> {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(INGRESS_USER, name.parse().unwrap());
        }
        Tenant::ingress(&headers)
    }

    #[test]
    fn one_name_is_a_user() {
        assert_eq!(named(&["ADA"]), Some(Tenant("ADA".into())));
        for wrong in [vec![], vec![""], vec![" "], vec!["ADA", "BOB"], vec![&*"x".repeat(LONGEST_USER + 1)]] {
            assert_eq!(named(&wrong), None, "{wrong:?}");
        }
    }
}
