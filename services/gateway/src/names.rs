//! The protocol's fields by the names that callers know: each group of routes has its own.

use tonic::Status;

use crate::error::ApiError;

/// Where the protocol keeps fields that callers know without a folder.
const KEPT_IN: [&str; 3] = ["sampling.", "head.", "spec."];

/// What callers call the protocol's fields. Of two that fit, the first is taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Vec<(&'static str, String)>);

impl Names {
    /// Another name for a field. It stands for what is in the field as well; a field with a dot at its end is a folder,
    /// in which fields keep their own names.
    #[must_use]
    pub(crate) fn with(mut self, field: &'static str, name: impl Into<String>) -> Self {
        self.0.push((field, name.into()));
        self
    }

    /// What the caller calls a field.
    pub(crate) fn of(&self, field: &str) -> String {
        let named = self.0.iter().find_map(|(known, name)| match (known.ends_with('.'), field.strip_prefix(known)?) {
            (true, rest) => Some(format!("{name}{rest}")),
            (false, rest) => (rest.is_empty() || rest.starts_with('.')).then(|| name.clone()),
        });
        let own = || KEPT_IN.iter().find_map(|folder| field.strip_prefix(folder)).unwrap_or(field).to_owned();
        named.unwrap_or_else(own)
    }

    /// A service's refusal, told in the caller's words.
    pub(crate) fn told(&self, status: Status) -> ApiError {
        ApiError::named(status, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_caller_s_names() {
        let names = Names::default().with("spec.base", "model").with("spec.data.", "firn.").with("spec.data", "rows");
        for (field, name) in [
            ("spec.base", "model"),
            ("spec.based", "based"),
            ("spec.base.x", "model"),
            ("spec.data.dataset", "firn.dataset"),
            ("spec.data", "rows"),
            ("sampling.top_p", "top_p"),
            ("head.filename", "filename"),
            ("ids", "ids"),
        ] {
            assert_eq!(names.of(field), name);
        }
    }
}
