//! How many files a process may have open: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than a service needs.
const ENOUGH: u64 = 65_536;

/// Lets this process have as many files open as the system allows, up to what is enough. Shells and service managers begin
/// with a limit that a crowd of connections passes, and expect a server to raise it.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_raised_and_a_high_one_left() {
        let before = getrlimit(Resource::Nofile);
        let low = before.maximum.unwrap_or(ENOUGH).min(1_000);
        setrlimit(Resource::Nofile, Rlimit { current: Some(low), ..before }).unwrap();
        raise_file_limit();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, Some(before.maximum.unwrap_or(ENOUGH).min(ENOUGH)));
        assert_eq!(raised.maximum, before.maximum);
        raise_file_limit();
        assert_eq!(getrlimit(Resource::Nofile), raised);
    }
}
