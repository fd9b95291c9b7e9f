//! Resource names: `models/{model}/versions/{n}` and the ids in them.

/// Longest id in bytes: that of a DNS label, so that an id can become one.
const MAX_ID: usize = 63;

/// Why a name or an id is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not an id.
    #[error("`{id}` is not an id: use 1 to 63 of a-z, 0-9 and -, starting with a letter and not ending with -")]
    Id {
        /// What was given, cut if it was long.
        id: String,
    },
    /// Not a name of that kind of resource.
    #[error("`{name}` is not a name like `{pattern}`")]
    Name {
        /// What was given, cut if it was long.
        name: String,
        /// The form of such a name.
        pattern: String,
    },
}

/// Checks that `id` matches `^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`.
///
/// # Errors
/// Fails with [`NameError::Id`] if it does not.
pub fn check_id(id: &str) -> Result<(), NameError> {
    let bytes = id.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let fits = bytes.len() <= MAX_ID
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(inner)
        && bytes.last() != Some(&b'-');
    if fits { Ok(()) } else { Err(NameError::Id { id: shown(id) }) }
}

/// Takes a resource's name apart: `models/x/versions/3` against `["models", "versions"]` is `["x", "3"]`.
///
/// Segments are not empty, not `.` or `..`, and of letters, digits, `-`, `_` and `.` alone, which makes them safe as
/// parts of a path; whether one is an id is [`check_id`]'s question.
///
/// # Errors
/// Fails with [`NameError::Name`] if the collections or the number of segments differ, or a segment is none.
pub fn child<'a>(name: &'a str, collections: &[&str]) -> Result<Vec<&'a str>, NameError> {
    let error = || NameError::Name {
        name: shown(name),
        pattern: collections.iter().map(|collection| format!("{collection}/{{id}}")).collect::<Vec<_>>().join("/"),
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() != 2 * collections.len() {
        return Err(error());
    }
    let mut segments = Vec::with_capacity(collections.len());
    for (pair, collection) in parts.chunks_exact(2).zip(collections) {
        match pair {
            [kind, segment] if kind == collection && is_segment(segment) => segments.push(*segment),
            _ => return Err(error()),
        }
    }
    Ok(segments)
}

fn is_segment(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= MAX_ID && text != "." && text != ".." && text.bytes().all(plain)
}

/// Keeps a stranger's megabyte out of error messages and logs.
fn shown(text: &str) -> String {
    const MAX_SHOWN: usize = 80;
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let long = "a".repeat(63);
        for good in ["a", "support", "a-1", "x9", long.as_str()] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        let longer = "a".repeat(64);
        for bad in ["", "-a", "a-", "9a", "A", "a_b", "a/b", "ä", "a b", longer.as_str()] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_come_apart() {
        assert_eq!(child("models/x/versions/3", &["models", "versions"]), Ok(vec!["x", "3"]));
        assert_eq!(child("jobs/j-1", &["jobs"]), Ok(vec!["j-1"]));
        for bad in ["", "models", "models/", "models/x/", "jobs/x", "models/x/versions/3", "models/..", "models/a b"] {
            let error = child(bad, &["models"]).unwrap_err();
            assert!(error.to_string().ends_with("is not a name like `models/{id}`"), "{error}");
        }
    }

    #[test]
    fn a_long_name_is_cut_in_the_message() {
        let error = check_id(&"é".repeat(10_000)).unwrap_err();
        assert!(error.to_string().len() < 400);
    }
}
