//! Endpoints, and the roles that may reach them.

use std::collections::BTreeMap;

use super::super::Account;
use super::super::document::Cursor;
use super::super::finding::Findings;
use super::{is_ephemeral, is_port};

pub(super) fn check(root: &Cursor<'_>, spec: &Cursor<'_>, account: &Account, findings: &mut Findings) {
    let endpoints = spec.items("endpoints");
    let mut ports = BTreeMap::new();
    for endpoint in &endpoints {
        ports_of(endpoint, &mut ports, findings);
        protocol(endpoint, account, findings);
        cors(endpoint, findings);
    }
    let public = endpoints.iter().any(is_public);
    let caller = root.at(&["capabilities", "securityContext", "executeAsCaller"]);
    if let Some(at) = caller.filter(|at| at.flag() == Some(true) && !public) {
        let message = "callers' rights come through a public endpoint alone, and there is none".to_owned();
        findings.warning(&at, "caller", message, "make an endpoint public, or leave it out");
    }
    roles(root, &endpoints, findings);
}

fn is_public(endpoint: &Cursor<'_>) -> bool {
    endpoint.get("public").and_then(|at| at.flag()) == Some(true)
}

fn ports_of<'a>(endpoint: &Cursor<'a>, seen: &mut BTreeMap<i64, &'a str>, findings: &mut Findings) {
    let name = endpoint.text_of("name").unwrap_or_default();
    match (endpoint.get("port"), endpoint.get("portRange")) {
        (None, None) => {
            findings.error(endpoint, "port", "the endpoint has no port".to_owned(), "add `port`");
        }
        (Some(_), Some(at)) => {
            let message = "an endpoint has a port or a range, not both".to_owned();
            findings.error(&at, "port", message, "leave one out");
        }
        (Some(at), None) => {
            let Some(port) = at.whole() else { return };
            if !is_port(port) {
                findings.error(&at, "port", format!("{port} is no port"), "choose one from 1 to 65535");
            } else if is_ephemeral(port) {
                let message = format!("port {port} is one that outgoing connections take (32768 to 60999)");
                findings.warning(&at, "ephemeral-port", message, "listen below 32768");
            }
            if let Some(other) = seen.insert(port, name) {
                let message = format!("port {port} is that of `{other}`: all containers share one network interface");
                findings.error(&at, "port-clash", message, "give each endpoint a port of its own");
            }
        }
        (None, Some(at)) => {
            let ends = at.text().and_then(|text| text.split_once('-'));
            let ends = ends.and_then(|(from, to)| Some((from.trim().parse().ok()?, to.trim().parse().ok()?)));
            if !ends.is_some_and(|(from, to): (i64, i64)| is_port(from) && is_port(to) && from < to) {
                findings.error(&at, "port", "this is no range of ports".to_owned(), "write such as 29501-29600");
            }
            if endpoint.text_of("protocol") != Some("TCP") || is_public(endpoint) {
                let message = "a range is reached by an instance's address alone".to_owned();
                findings.error(&at, "protocol", message, "write protocol: TCP and public: false");
            }
        }
    }
}

fn protocol(endpoint: &Cursor<'_>, account: &Account, findings: &mut Findings) {
    if !is_public(endpoint) {
        return;
    }
    let at = endpoint.get("public").unwrap_or_else(|| endpoint.clone());
    if endpoint.text_of("protocol") == Some("TCP") {
        let message = "a public endpoint speaks HTTP alone; gRPC does not pass it either".to_owned();
        findings.error(&at, "protocol", message, "write protocol: HTTP, or public: false");
    }
    if account.job {
        let message = "a job ends, and its address with it".to_owned();
        findings.warning(&at, "job", message, "leave endpoints of a job out");
    }
}

fn cors(endpoint: &Cursor<'_>, findings: &mut Findings) {
    let Some(settings) = endpoint.get("corsSettings") else { return };
    for origin in settings.items("Access-Control-Allow-Origin") {
        let Some(text) = origin.text() else { continue };
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        if text.contains('*') || host.is_none_or(|host| host.is_empty() || host.contains('/')) {
            let message = format!("`{text}` is no whole origin, and `*` is not allowed");
            findings.error(&origin, "cors", message, "write such as https://app.example");
        }
    }
}

fn roles(root: &Cursor<'_>, endpoints: &[Cursor<'_>], findings: &mut Findings) {
    let known: Vec<&str> = endpoints.iter().filter_map(|endpoint| endpoint.text_of("name")).collect();
    let mut seen = BTreeMap::new();
    for role in root.items("serviceRoles") {
        if let Some(at) = role.get("name")
            && let Some(name) = at.text()
        {
            let allowed = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
            if !(allowed && begins && name.ends_with(|c: char| c.is_ascii_alphanumeric())) {
                let message = format!("`{name}` is no name of a service role");
                findings.error(
                    &at,
                    "name",
                    message,
                    "use letters, digits and `_`; begin with a letter, end without `_`",
                );
            }
            if let Some(first) = seen.insert(name.to_lowercase(), at.line()) {
                let message = format!("`{name}` is a role already, in line {first}");
                findings.error(&at, "duplicate-name", message, "choose another");
            }
        }
        let listed = role.items("endpoints");
        if let Some(at) = role.get("endpoints").filter(|_| listed.is_empty()) {
            findings.error(&at, "role", "the role reaches no endpoint".to_owned(), "name at least one");
        }
        for at in listed {
            if let Some(name) = at.text().filter(|name| !known.contains(name)) {
                let message = format!("there is no endpoint `{name}`");
                findings.error(&at, "role", message, format!("choose one of {}", known.join(", ")));
            }
        }
    }
}
