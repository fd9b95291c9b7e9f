//! What is wrong, where, and what to write instead.

use std::fmt;

use serde::Serialize;

use super::document::Cursor;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// The account refuses it, or it cannot work.
    Error,
    /// It is accepted, and costs or breaks something later.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// The rule, in one word.
    pub(crate) rule: &'static str,
    /// Where in the document, such as `spec.volumes[0].source`; empty for the whole.
    pub(crate) path: String,
    /// Line, from 1; 0 if it is not known.
    pub(crate) line: u64,
    /// What is wrong, and why.
    pub(crate) message: String,
    /// What to do instead.
    pub(crate) way_out: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        let path = if self.path.is_empty() { "" } else { &format!("{}: ", self.path) };
        write!(f, "{}: {severity}[{}]: {path}{}; {}", self.line, self.rule, self.message, self.way_out)
    }
}

/// All that is wrong with a document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// The account refuses what stands at `at`.
    pub(super) fn error(&mut self, at: &Cursor<'_>, rule: &'static str, message: String, way_out: impl Into<String>) {
        self.add(Severity::Error, at, rule, message, way_out.into());
    }

    /// What stands at `at` is accepted, and is not wise.
    pub(super) fn warning(&mut self, at: &Cursor<'_>, rule: &'static str, message: String, way_out: impl Into<String>) {
        self.add(Severity::Warning, at, rule, message, way_out.into());
    }

    fn add(&mut self, severity: Severity, at: &Cursor<'_>, rule: &'static str, message: String, way_out: String) {
        self.push(Finding { severity, rule, path: at.path().to_owned(), line: at.line(), message, way_out });
    }

    /// In the order of the document.
    pub(super) fn sort(&mut self) {
        self.0.sort_by_key(|finding| finding.line);
    }

    /// Takes the findings of a part that begins after `lines` lines.
    pub(super) fn append(&mut self, part: Self, lines: u64) {
        self.0.extend(part.0.into_iter().map(|finding| Finding { line: finding.line + lines, ..finding }));
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }

    /// How many there are of this severity.
    pub(crate) fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|finding| finding.severity == severity).count()
    }
}
