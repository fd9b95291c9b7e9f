//! The rules that a field alone does not show.

mod containers;
mod endpoints;
mod resources;
mod volumes;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::Account;
use super::document::Cursor;
use super::finding::Findings;

pub(crate) use resources::Needs;

/// Most of each, a service.
const MOST: [(&str, usize); 3] = [("containers", 20), ("endpoints", 100), ("volumes", 20)];
const LONGEST_NAME: usize = 63;

/// Holds the document against all rules.
pub(super) fn check(root: &Cursor<'_>, account: &Account, text: &str, findings: &mut Findings) -> Option<Needs> {
    let spec = root.get("spec")?;
    for (list, most) in MOST {
        let items = spec.items(list);
        if let Some(extra) = items.get(most) {
            let message = format!("there are {} {list}, and {most} are the most", items.len());
            findings.error(extra, "too-many", message, "split the service");
        }
        names(&items, findings);
    }
    if let Some(list) = spec.get("containers").filter(|list| list.elements().is_empty()) {
        findings.error(&list, "too-few", "there is no container".to_owned(), "name at least one");
    }
    if let Some(policies) = spec.get("resourceManagement").filter(|_| account.job) {
        let message = "a job does not scale: its instances are REPLICAS".to_owned();
        findings.error(&policies, "job", message, "leave it out");
    }
    containers::check(&spec, account, findings);
    endpoints::check(root, &spec, account, findings);
    volumes::check(&spec, account, text, findings);
    resources::check(&spec, account, findings)
}

/// Names of containers, endpoints and volumes are DNS labels, each once.
fn names(items: &[Cursor<'_>], findings: &mut Findings) {
    let mut seen = BTreeMap::new();
    for item in items {
        let Some(at) = item.get("name") else { continue };
        let Some(name) = at.text() else { continue };
        if !is_label(name) {
            let message = format!(
                "`{name}` is no name: it must have 1 to {LONGEST_NAME} lower-case letters, digits and hyphens, begin \
                 with a letter and end with a letter or digit"
            );
            findings.error(&at, "name", message, format!("try `{}`", as_label(name)));
        }
        if let Some(first) = seen.insert(name, at.line()) {
            let message = format!("`{name}` is a name already, in line {first}");
            findings.error(&at, "duplicate-name", message, "choose another");
        }
    }
}

fn is_label(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= LONGEST_NAME
        && name.chars().all(allowed)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
}

fn as_label(name: &str) -> String {
    let lower: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(LONGEST_NAME)
        .collect();
    let label = lower.trim_matches('-');
    if label.starts_with(|c: char| c.is_ascii_lowercase()) { label.to_owned() } else { format!("x{label}") }
}

fn is_port(port: i64) -> bool {
    (1..=65535).contains(&port)
}

/// A port of the range that the system gives to outgoing connections: it may be taken when a container starts.
fn is_ephemeral(port: i64) -> bool {
    (32768..=60999).contains(&port)
}
