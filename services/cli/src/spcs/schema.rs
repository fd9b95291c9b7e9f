//! The fields of a specification as its reference lists them: unknown ones, missing ones and wrong types.

use super::document::{Cursor, Value};
use super::finding::Findings;

/// What a value may be.
#[derive(Debug)]
enum Kind {
    Text,
    Flag,
    Whole,
    /// Text or a number: amounts may be written either way.
    Scalar,
    /// Any number of keys of any name, each with a scalar.
    Scalars,
    List(&'static Kind),
    OneOf(&'static [&'static str]),
    Object(&'static [Field]),
    /// Either a text or a mapping with these fields.
    TextOr(&'static [Field]),
    /// What the reference leaves open.
    Any,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    required: bool,
    kind: Kind,
}

const fn needed(name: &'static str, kind: Kind) -> Field {
    Field { name, required: true, kind }
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, required: false, kind }
}

const ROOT: &[Field] = &[
    needed("spec", Kind::Object(SPEC)),
    may("capabilities", Kind::Object(&[may("securityContext", Kind::Object(SECURITY_CONTEXT))])),
    may("serviceRoles", Kind::List(&Kind::Object(SERVICE_ROLE))),
];

const SECURITY_CONTEXT: &[Field] = &[may("executeAsCaller", Kind::Flag), may("enableCustomCredentials", Kind::Flag)];

const SERVICE_ROLE: &[Field] = &[needed("name", Kind::Text), needed("endpoints", Kind::List(&Kind::Text))];

const SPEC: &[Field] = &[
    needed("containers", Kind::List(&Kind::Object(CONTAINER))),
    may("endpoints", Kind::List(&Kind::Object(ENDPOINT))),
    may("volumes", Kind::List(&Kind::Object(VOLUME))),
    may("logExporters", Kind::Object(&[may("eventTableConfig", Kind::Object(EVENT_TABLE))])),
    may("platformMonitor", Kind::Object(&[may("metricConfig", Kind::Object(METRICS))])),
    may("resourceManagement", Kind::Object(&[needed("autoScalingPolicies", Kind::Object(SCALING))])),
];

const EVENT_TABLE: &[Field] = &[needed("logLevel", Kind::OneOf(&["INFO", "ERROR", "NONE"]))];

const METRICS: &[Field] =
    &[needed("groups", Kind::List(&Kind::OneOf(&["system", "system_limits", "status", "network", "storage"])))];

const SCALING: &[Field] = &[
    may("scaleUp", Kind::Object(&[needed("anyConditions", Kind::List(&Kind::Any))])),
    may("scaleDown", Kind::Object(&[needed("allConditions", Kind::List(&Kind::Any))])),
    may("suspend", Kind::Object(&[needed("allConditions", Kind::List(&Kind::Any))])),
];

const CONTAINER: &[Field] = &[
    needed("name", Kind::Text),
    needed("image", Kind::Text),
    may("command", Kind::List(&Kind::Scalar)),
    may("args", Kind::List(&Kind::Scalar)),
    may("env", Kind::Scalars),
    may("readinessProbe", Kind::Object(PROBE)),
    may("livenessProbe", Kind::Object(PROBE)),
    may("volumeMounts", Kind::List(&Kind::Object(&[needed("name", Kind::Text), needed("mountPath", Kind::Text)]))),
    may("resources", Kind::Object(&[may("requests", Kind::Object(AMOUNTS)), may("limits", Kind::Object(AMOUNTS))])),
    may("mountSessionToken", Kind::Flag),
    may("sessionTokenConfig", Kind::Object(SESSION_TOKEN)),
    may("secrets", Kind::List(&Kind::Object(SECRET))),
];

const PROBE: &[Field] = &[
    needed("port", Kind::Whole),
    needed("path", Kind::Text),
    may("periodSeconds", Kind::Whole),
    may("failureThreshold", Kind::Whole),
];

const AMOUNTS: &[Field] = &[may("memory", Kind::Scalar), may("cpu", Kind::Scalar), may("nvidia.com/gpu", Kind::Scalar)];

const SESSION_TOKEN: &[Field] =
    &[may("path", Kind::Text), may("permission", Kind::Scalar), may("mountConnectionConfig", Kind::Flag)];

const SECRET: &[Field] = &[
    needed("snowflakeSecret", Kind::TextOr(&[may("objectName", Kind::Text), may("objectReference", Kind::Text)])),
    may("directoryPath", Kind::Text),
    may("envVarName", Kind::Text),
    may("secretKeyRef", Kind::OneOf(&["username", "password", "secret_string", "access_token"])),
];

const ENDPOINT: &[Field] = &[
    needed("name", Kind::Text),
    may("port", Kind::Whole),
    may("portRange", Kind::Text),
    may("public", Kind::Flag),
    may("protocol", Kind::OneOf(&["HTTP", "TCP"])),
    may("corsSettings", Kind::Object(CORS)),
];

const CORS: &[Field] = &[
    needed("Access-Control-Allow-Origin", Kind::List(&Kind::Text)),
    may("Access-Control-Allow-Methods", Kind::List(&Kind::Text)),
    may("Access-Control-Allow-Headers", Kind::List(&Kind::Text)),
    may("Access-Control-Expose-Headers", Kind::List(&Kind::Text)),
];

const VOLUME: &[Field] = &[
    needed("name", Kind::Text),
    needed("source", Kind::Text),
    may("size", Kind::Scalar),
    may("uid", Kind::Whole),
    may("gid", Kind::Whole),
    may("blockConfig", Kind::Object(BLOCK)),
    may("stageConfig", Kind::Object(STAGE)),
];

const BLOCK: &[Field] = &[
    may("initialContents", Kind::Object(&[needed("fromSnapshot", Kind::Text)])),
    may("iops", Kind::Whole),
    may("throughput", Kind::Whole),
    may("encryption", Kind::OneOf(&["SNOWFLAKE_SSE", "SNOWFLAKE_FULL"])),
    may("snapshotOnDelete", Kind::Flag),
    may("snapshotDeleteAfter", Kind::Text),
];

const STAGE: &[Field] = &[
    needed("name", Kind::Text),
    may("metadataCache", Kind::Text),
    may("resources", Kind::Object(&[may("requests", Kind::Object(SIDECAR)), may("limits", Kind::Object(SIDECAR))])),
];

const SIDECAR: &[Field] = &[may("memory", Kind::Scalar), may("cpu", Kind::Scalar)];

/// Fields that people write and the reference does not have, each with what to do.
const KNOWN_STRANGERS: [(&str, &str); 17] = [
    ("container", "write `containers`: the singular is of the preview"),
    ("endpoint", "write `endpoints`: the singular is of the preview"),
    ("volume", "write `volumes`: the singular is of the preview"),
    ("networkPolicyConfig", "leave it out: it is of the preview; name EXTERNAL_ACCESS_INTEGRATIONS in SQL instead"),
    (
        "initContainers",
        "leave it out: order is undefined, so that each client must try again until its peers are there",
    ),
    ("dependsOn", "leave it out: order is undefined, so that each client must try again until its peers are there"),
    ("depends_on", "leave it out: order is undefined, so that each client must try again until its peers are there"),
    ("startupProbe", "leave it out: let liveness answer from the start of the process, and readiness after loading"),
    ("initialDelaySeconds", "leave it out: let liveness answer from the start of the process"),
    ("timeoutSeconds", "leave it out: a probe has a period and a threshold, no more"),
    ("httpGet", "put `port` and `path` directly under the probe"),
    ("exec", "probe with HTTP GET: give the container a small HTTP/1.1 health port"),
    ("tcpSocket", "probe with HTTP GET: give the container a small HTTP/1.1 health port"),
    ("grpc", "probe with HTTP GET: give the container a small HTTP/1.1 health port"),
    ("restartPolicy", "leave it out: a service's containers are restarted whatever their end, a job's are not"),
    ("runAsUser", "set USER in the image, and uid and gid on the volume"),
    ("terminationGracePeriodSeconds", "leave it out: it is 30 seconds from SIGTERM on"),
];

/// Holds the document against the reference.
pub(super) fn check(root: &Cursor<'_>, findings: &mut Findings) {
    object(root, ROOT, findings);
}

fn object(at: &Cursor<'_>, fields: &[Field], findings: &mut Findings) {
    if !matches!(at.value(), Value::Map(_)) {
        return wrong_type(at, "a mapping", findings);
    }
    for (name, entry) in at.entries() {
        match fields.iter().find(|field| field.name == name) {
            // A key without a value is as if it were not there; if it is needed, that is said below.
            Some(_) if entry.is_null() => {}
            Some(field) => value(&entry, &field.kind, findings),
            None => unknown(&entry, name, fields, findings),
        }
    }
    for field in fields.iter().filter(|field| field.required && at.get(field.name).is_none()) {
        let message = format!("`{}` is missing", field.name);
        findings.error(at, "missing-field", message, format!("add `{}`", field.name));
    }
}

fn unknown(entry: &Cursor<'_>, name: &str, fields: &[Field], findings: &mut Findings) {
    let depth = entry.path().matches('.').count();
    let elsewhere = match name {
        "capabilities" | "serviceRoles" if depth > 0 => Some("put it at the top level, beside `spec`".to_owned()),
        "containers" | "endpoints" | "volumes" | "logExporters" | "platformMonitor" if depth == 0 => {
            Some("put it under `spec`".to_owned())
        }
        _ => KNOWN_STRANGERS.iter().find(|(stranger, _)| *stranger == name).map(|(_, way)| (*way).to_owned()),
    };
    let similar = || fields.iter().find(|field| field.name.eq_ignore_ascii_case(name) || is_close(field.name, name));
    let way_out = elsewhere.or_else(|| similar().map(|field| format!("did you mean `{}`?", field.name)));
    let way_out = way_out.unwrap_or_else(|| {
        let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
        format!("leave it out; there may be {}", names.join(", "))
    });
    findings.error(entry, "unknown-field", format!("there is no field `{name}` here"), way_out);
}

/// Whether one edit, or two letters that changed places, makes one name of the other.
fn is_close(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (a.get(same..).unwrap_or_default(), b.get(same..).unwrap_or_default());
    let tail = |list: &'_ [char], skip: usize| list.get(skip..).map(<[char]>::to_vec);
    let swapped = rest_a.len() >= 2 && rest_b.first() == rest_a.get(1) && rest_b.get(1) == rest_a.first();
    tail(rest_a, 1).is_some_and(|x| tail(rest_b, 1) == Some(x.clone()) || x == rest_b)
        || tail(rest_b, 1).is_some_and(|y| y == rest_a)
        || (swapped && tail(rest_a, 2) == tail(rest_b, 2))
}

fn value(at: &Cursor<'_>, kind: &Kind, findings: &mut Findings) {
    match (kind, at.value()) {
        (Kind::Text, Value::Text(_))
        | (Kind::Flag, Value::Flag(_))
        | (Kind::Whole, Value::Whole(_))
        | (Kind::Any, _) => {}
        (Kind::Scalar, Value::Text(_) | Value::Whole(_) | Value::Real(_) | Value::Flag(_)) => {}
        (Kind::Object(fields), _) | (Kind::TextOr(fields), Value::Map(_)) => object(at, fields, findings),
        (Kind::TextOr(_), Value::Text(_)) => {}
        (Kind::List(item), Value::List(_)) => at.elements().iter().for_each(|element| value(element, item, findings)),
        (Kind::Scalars, Value::Map(_)) => {
            at.entries().iter().for_each(|(_, entry)| value(entry, &Kind::Scalar, findings));
        }
        (Kind::OneOf(choices), Value::Text(text)) => {
            if !choices.contains(&text.as_str()) {
                let message = format!("`{text}` is none of {}", choices.join(", "));
                findings.error(at, "value", message, "choose one of them, in this spelling");
            }
        }
        (Kind::Text | Kind::OneOf(_) | Kind::TextOr(_), _) => wrong_type(at, "text", findings),
        (Kind::Flag, _) => wrong_type(at, "true or false", findings),
        (Kind::Whole, _) => wrong_type(at, "a whole number", findings),
        (Kind::Scalar, _) => wrong_type(at, "one value", findings),
        (Kind::Scalars, _) => wrong_type(at, "a mapping of names to values", findings),
        (Kind::List(_), _) => wrong_type(at, "a list", findings),
    }
}

fn wrong_type(at: &Cursor<'_>, wanted: &str, findings: &mut Findings) {
    let message = format!("this is {}, and must be {wanted}", at.value().kind());
    findings.error(at, "type", message, format!("write {wanted}"));
}

#[cfg(test)]
mod tests {
    use super::is_close;

    #[test]
    fn one_slip_is_close_and_two_are_not() {
        for slip in ["mountPaht", "mountPat", "mountPathh", "mountPoth"] {
            assert!(is_close("mountPath", slip), "{slip}");
        }
        assert!(!is_close("mountPath", "mount") && !is_close("name", "port"));
    }
}
