//! Images, probes, mounts, environment, secrets and the session token of containers.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Account;
use super::super::document::{Cursor, Value};
use super::super::finding::Findings;
use super::{is_ephemeral, is_port};

const MOST_SECRETS: usize = 50;
/// Ends of variables' names that hold secrets.
const SECRET_NAMES: [&str; 5] = ["TOKEN", "PASSWORD", "SECRET", "API_KEY", "PRIVATE_KEY"];

pub(super) fn check(spec: &Cursor<'_>, account: &Account, findings: &mut Findings) {
    let volumes: BTreeSet<&str> = spec.items("volumes").iter().filter_map(|volume| volume.text_of("name")).collect();
    let mut probes = BTreeMap::new();
    let mut secrets = 0;
    for container in spec.items("containers") {
        image(&container, findings);
        for kind in ["readinessProbe", "livenessProbe"] {
            if let Some(probe) = container.get(kind) {
                check_probe(&probe, findings);
            }
        }
        shared_port(&container, &mut probes, findings);
        if !account.job {
            ready(&container, findings);
        }
        mounts(&container, &volumes, findings);
        environment(&container, findings);
        session_token(&container, findings);
        for secret in container.items("secrets") {
            secrets += 1;
            if secrets == MOST_SECRETS + 1 {
                let message = format!("there are more than {MOST_SECRETS} secrets");
                findings.error(&secret, "too-many", message, "split the service");
            }
            check_secret(&secret, findings);
        }
    }
}

fn image(container: &Cursor<'_>, findings: &mut Findings) {
    let Some(at) = container.get("image") else { return };
    let Some(image) = at.text() else { return };
    let whole = |message: String, findings: &mut Findings| {
        findings.error(&at, "image", message, "write /db/schema/repository/image:tag, in lower case");
    };
    let path = match image.split_once('/') {
        Some((host, path)) if host.ends_with(".registry.snowflakecomputing.com") => path,
        Some((host, _)) if host.contains('.') => {
            return whole(format!("{host} is not the account's registry, and no other is read"), findings);
        }
        _ => image.strip_prefix('/').unwrap_or(image),
    };
    let (path, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
    let parts: Vec<&str> = path.split('/').collect();
    let is_part = |part: &&str| !part.is_empty() && part.chars().all(|c| is_image_letter(c) && !c.is_ascii_uppercase());
    if parts.len() < 4 || !parts.iter().all(is_part) {
        return whole(format!("`{image}` is no path of an image repository"), findings);
    }
    match tag {
        None | Some("latest") => {
            let message = "the digest is pinned when the service is created: what `latest` means then is what runs";
            findings.warning(&at, "tag", message.to_owned(), "give each build a tag of its own");
        }
        Some(tag) if tag.is_empty() || !tag.chars().all(is_image_letter) => {
            whole(format!("`{tag}` is no tag"), findings);
        }
        Some(_) => {}
    }
}

fn is_image_letter(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

fn check_probe(probe: &Cursor<'_>, findings: &mut Findings) {
    if let Some((at, port)) = probe.get("port").and_then(|at| at.whole().map(|port| (at, port))) {
        if !is_port(port) {
            findings.error(&at, "port", format!("{port} is no port"), "choose one from 1 to 65535");
        } else if is_ephemeral(port) {
            let message = format!("port {port} is one that outgoing connections take (32768 to 60999)");
            findings.warning(&at, "ephemeral-port", message, "listen below 32768");
        }
    }
    if let Some(at) = probe.get("path")
        && at.text().is_some_and(|path| !path.starts_with('/'))
    {
        findings.error(&at, "probe", "a probe's path begins with `/`".to_owned(), "write such as /readyz");
    }
    for key in ["periodSeconds", "failureThreshold"] {
        if let Some(at) = probe.get(key)
            && at.whole().is_some_and(|number| number < 1)
        {
            findings.error(&at, "probe", format!("`{key}` must be at least 1"), "write 1 or more");
        }
    }
}

/// Containers of an instance share one network interface: two can't answer probes on one port.
fn shared_port<'a>(container: &Cursor<'a>, seen: &mut BTreeMap<i64, &'a str>, findings: &mut Findings) {
    let name = container.text_of("name").unwrap_or_default();
    let ports: BTreeMap<i64, Cursor<'a>> = ["readinessProbe", "livenessProbe"]
        .iter()
        .filter_map(|kind| container.at(&[kind, "port"]))
        .filter_map(|at| Some((at.whole()?, at)))
        .collect();
    for (port, at) in ports {
        if let Some(other) = seen.insert(port, name) {
            let message =
                format!("`{other}` answers probes on port {port} already: all containers share one network interface");
            findings.error(&at, "port-clash", message, "give each container a port of its own");
        }
    }
}

fn ready(container: &Cursor<'_>, findings: &mut Findings) {
    if container.get("readinessProbe").is_none() {
        let message = "without a readiness probe the container counts as ready as soon as its process starts";
        let name = container.get("name").unwrap_or_else(|| container.clone());
        findings.warning(&name, "no-probe", message.to_owned(), "add readinessProbe: {port, path}");
    }
}

fn mounts(container: &Cursor<'_>, volumes: &BTreeSet<&str>, findings: &mut Findings) {
    let mut paths = BTreeSet::new();
    for mount in container.items("volumeMounts") {
        if let Some(at) = mount.get("name")
            && let Some(name) = at.text()
            && !volumes.contains(name)
        {
            findings.error(&at, "mount", format!("there is no volume `{name}`"), "declare it under spec.volumes");
        }
        let Some(at) = mount.get("mountPath") else { continue };
        let Some(path) = at.text() else { continue };
        absolute(&at, path, "mount", findings);
        if !paths.insert(path.trim_end_matches('/')) {
            let message = format!("{path} is mounted on already in this container");
            findings.error(&at, "mount", message, "choose another path");
        }
    }
}

fn absolute(at: &Cursor<'_>, path: &str, rule: &'static str, findings: &mut Findings) {
    if !path.starts_with('/') {
        findings.error(at, rule, format!("`{path}` is no absolute path"), "begin it with `/`");
    }
}

fn environment(container: &Cursor<'_>, findings: &mut Findings) {
    for (name, at) in container.get("env").map(|env| env.entries()).unwrap_or_default() {
        if SECRET_NAMES.iter().any(|end| name.to_uppercase().ends_with(end)) {
            let message =
                format!("`{name}` looks like a secret, and a specification is shown to whoever may describe it");
            findings.warning(
                &at,
                "plain-secret",
                message,
                "CREATE SECRET, and name it under `secrets` with envVarName",
            );
        }
    }
}

fn session_token(container: &Cursor<'_>, findings: &mut Findings) {
    let Some(config) = container.get("sessionTokenConfig") else { return };
    let rule = "session-token";
    if config.entries().is_empty() {
        findings.error(&config, rule, "it has no field".to_owned(), "give one, or leave it out");
    }
    if container.get("mountSessionToken").and_then(|at| at.flag()) == Some(false) {
        let message = "there is no token to configure: mountSessionToken is false".to_owned();
        findings.error(&config, rule, message, "leave one of the two out");
    }
    if let Some(at) = config.get("path")
        && let Some(path) = at.text()
    {
        absolute(&at, path, rule, findings);
    }
    let Some(at) = config.get("permission") else { return };
    if config.get("path").is_none() {
        findings.error(&at, rule, "`permission` needs `path`".to_owned(), "add `path`");
    }
    let mode = at.text().and_then(|text| u32::from_str_radix(text, 8).ok());
    if !matches!(at.value(), Value::Text(_)) {
        findings.error(&at, rule, "it must be quoted octal digits".to_owned(), "write such as \"0640\"");
    } else if mode.is_none_or(|mode| mode & !0o644 != 0) {
        let message = "it must be octal and may not exceed 0644".to_owned();
        findings.error(&at, rule, message, "write such as \"0640\"");
    }
}

fn check_secret(secret: &Cursor<'_>, findings: &mut Findings) {
    let rule = "secret";
    if let Some(at) = secret.get("snowflakeSecret") {
        let given = at.entries().len();
        if given > 1 || (at.text().is_none() && at.get("objectName").is_none() && at.get("objectReference").is_none()) {
            let message = "a secret is named in one way".to_owned();
            findings.error(&at, rule, message, "write its name, or {objectName: db.schema.secret}");
        } else if let Some(reference) = at.get("objectReference") {
            let message = "a reference works in a Native App alone".to_owned();
            findings.warning(&reference, rule, message, "write objectName elsewhere");
        }
    }
    let key = secret.get("secretKeyRef");
    match (secret.get("directoryPath"), secret.get("envVarName")) {
        (Some(_), Some(at)) => {
            let message = "a secret becomes either files or a variable".to_owned();
            findings.error(&at, rule, message, "leave directoryPath or envVarName out");
        }
        (None, None) => {
            let message = "it is not said where the secret goes".to_owned();
            findings.error(secret, rule, message, "add directoryPath, or envVarName with secretKeyRef");
        }
        (Some(at), None) => {
            if let Some(path) = at.text() {
                absolute(&at, path, rule, findings);
            }
            if let Some(key) = key {
                let message = "`secretKeyRef` goes with envVarName alone".to_owned();
                findings.error(&key, rule, message, "leave it out: each key becomes a file");
            }
        }
        (None, Some(at)) if key.is_none() => {
            let message = "a variable holds one key of a secret".to_owned();
            findings.error(&at, rule, message, "add secretKeyRef: secret_string, username or password");
        }
        (None, Some(_)) => {}
    }
}
