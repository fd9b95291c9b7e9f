//! What one instance asks for, against what one node has.

use serde::Serialize;

use super::super::document::Cursor;
use super::super::finding::Findings;
use super::super::units;
use super::super::{Account, FAMILIES, Family};

/// What a container reserves if nothing is said.
const DEFAULT: (f64, f64) = (0.5, 0.5);
/// What the sidecar of a stage volume reserves if nothing is said.
const SIDECAR: (f64, f64) = (0.0, 0.5);
const GPU: &str = "nvidia.com/gpu";

/// What one instance reserves: its containers, and a sidecar for each stage volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Needs {
    /// CPUs.
    pub(crate) cpus: f64,
    /// GiB of memory.
    pub(crate) gib: f64,
    /// GPUs.
    pub(crate) gpus: i64,
}

impl Needs {
    /// Whether a node of this family holds one instance.
    pub(crate) fn fit(&self, family: &Family) -> bool {
        !family.is_arm() && self.cpus <= family.cpus && self.gib <= family.gib && self.gpus <= family.gpus
    }

    fn add(&mut self, (cpus, gib): (f64, f64)) {
        self.cpus += cpus;
        self.gib += gib;
    }
}

pub(super) fn check(spec: &Cursor<'_>, account: &Account, findings: &mut Findings) -> Option<Needs> {
    let mut needs = Needs::default();
    for container in spec.items("containers") {
        needs.add(amounts(&container, DEFAULT, account, findings));
        needs.gpus += gpus(&container, findings);
    }
    for volume in spec.items("volumes").iter().filter(|volume| volume.text_of("source") == Some("stage")) {
        if let Some(config) = volume.get("stageConfig") {
            needs.add(amounts(&config, SIDECAR, account, findings));
        }
    }
    fits(spec, &needs, account, findings);
    Some(needs)
}

/// CPUs and GiB that are reserved: what is requested, else the limit but no less than the default.
fn amounts(at: &Cursor<'_>, default: (f64, f64), account: &Account, findings: &mut Findings) -> (f64, f64) {
    let cpus = amount(at, "cpu", default.0, units::cpus, account.family.map(|family| family.cpus), findings);
    let gib = |text: &str| units::memory(text).map(units::gib);
    let gib = amount(at, "memory", default.1, gib, account.family.map(|family| family.gib), findings);
    (cpus, gib)
}

fn amount(
    at: &Cursor<'_>,
    key: &str,
    default: f64,
    parse: impl Fn(&str) -> Option<f64>,
    capacity: Option<f64>,
    findings: &mut Findings,
) -> f64 {
    let mut read = |side: &str| {
        let at = at.at(&["resources", side, key])?;
        let parsed = at.scalar().and_then(|text| parse(&text));
        if parsed.is_none() {
            let way_out = if key == "cpu" { "write such as 0.5 or 500m" } else { "write a number with M, Mi, G or Gi" };
            findings.error(&at, "unit", format!("this is no amount of {key}"), way_out);
        }
        parsed.map(|amount| (at, amount))
    };
    let (request, limit) = (read("requests"), read("limits"));
    if let Some((at, amount)) = &limit
        && capacity.is_some_and(|capacity| *amount > capacity)
    {
        let message =
            format!("the limit is above what a node has ({}), and is cut to that", capacity.unwrap_or_default());
        findings.warning(at, "limit", message, "lower it");
    }
    match (request, limit) {
        (Some((at, request)), Some((_, limit))) if request > limit => {
            let message = format!("the request of {key} is above its limit");
            findings.error(&at, "limit", message, "raise the limit or lower the request");
            request
        }
        (Some((_, request)), _) => request,
        (None, Some((at, limit))) => {
            let reserved = limit.max(default);
            if limit > default {
                let message = format!("without a request the whole limit of {key} is reserved");
                findings.warning(&at, "no-request", message, format!("add a request of {key}"));
            }
            reserved
        }
        (None, None) => default,
    }
}

/// GPUs are counted in requests and limits alike, or the container sees none.
fn gpus(container: &Cursor<'_>, findings: &mut Findings) -> i64 {
    let mut read = |side: &str| {
        let at = container.at(&["resources", side, GPU])?;
        let count = at.scalar().and_then(|text| text.parse::<i64>().ok()).filter(|count| *count >= 1);
        if count.is_none() {
            let message = "a container has whole GPUs to itself, one at least".to_owned();
            findings.error(&at, "gpu", message, "write a whole number from 1 on, or leave it out");
        }
        Some((at, count))
    };
    match (read("requests"), read("limits")) {
        (Some((_, Some(request))), Some((at, Some(limit)))) => {
            if request != limit {
                let message = format!("{request} are requested and {limit} are the limit: the two must be equal");
                findings.error(&at, "gpu", message, "write the same number");
            }
            request.max(limit)
        }
        (Some((at, Some(count))), None) | (None, Some((at, Some(count)))) => {
            let message = format!("`{GPU}` must be both in requests and in limits, or the container sees no GPU");
            findings.error(&at, "gpu", message, "write it in both");
            count
        }
        // None, or a number that was refused already.
        _ => 0,
    }
}

fn fits(spec: &Cursor<'_>, needs: &Needs, account: &Account, findings: &mut Findings) {
    let at = spec.get("containers").unwrap_or_else(|| spec.clone());
    let Needs { cpus, gib, gpus } = needs;
    let Some(family) = account.family else {
        if !FAMILIES.iter().any(|family| needs.fit(family)) {
            let message = format!(
                "an instance asks for {gpus} GPUs, {cpus} CPUs and {gib} GiB, and a node of no instance family has that"
            );
            findings.error(&at, "fit", message, "lower the requests, or split the service");
        }
        return;
    };
    let name = family.name;
    if family.is_arm() {
        let message = format!("{name} runs images for arm64");
        return findings.error(&at, "fit", message, "choose another family: images are for linux/amd64");
    }
    let larger: Vec<&str> = FAMILIES.iter().filter(|other| needs.fit(other)).map(|other| other.name).collect();
    let way_out = match larger.as_slice() {
        [] => "lower the requests, or split the service".to_owned(),
        names => format!("lower the requests, split the service, or choose one of {}", names.join(", ")),
    };
    if *gpus > family.gpus {
        let message =
            format!("an instance asks for {gpus} GPUs, and a node of {name} has {}; none is shared", family.gpus);
        findings.error(&at, "fit", message, way_out.as_str());
    }
    for (amount, most, unit) in [(*cpus, family.cpus, "CPUs"), (*gib, family.gib, "GiB of memory")] {
        if amount > most {
            let message =
                format!("an instance asks for {amount} {unit}, sidecars of stage volumes included; {name} has {most}");
            findings.error(&at, "fit", message, way_out.as_str());
        }
    }
    if *gpus == 0 && family.gpus > 0 {
        let message = format!("no container asks for a GPU, and {name} costs what its {} cost", family.gpus);
        findings.warning(&at, "idle-gpu", message, format!("request {GPU}, or choose a CPU family"));
    }
}
