//! Volumes: stages, blocks, memory and local disk.

use std::collections::BTreeSet;

use super::super::Account;
use super::super::document::Cursor;
use super::super::finding::Findings;
use super::super::units;

const MOST_BLOCKS: usize = 3;
const SOURCES: [&str; 4] = ["local", "stage", "memory", "block"];

/// Bounds of block volumes.
struct Blocks {
    cloud: &'static str,
    gib: [i64; 2],
    iops: [i64; 2],
    /// MiB a second.
    throughput: [i64; 2],
}

/// A cloud each. GCP's are those of its GPU families and others together.
const BLOCKS: [Blocks; 3] = [
    Blocks { cloud: "AWS", gib: [1, 65536], iops: [3000, 80000], throughput: [125, 2000] },
    Blocks { cloud: "Azure", gib: [1, 16384], iops: [3000, 80000], throughput: [125, 1200] },
    Blocks { cloud: "GCP", gib: [4, 16384], iops: [2000, 19_200_000], throughput: [140, 1_200_000] },
];
/// What holds on one cloud or another.
const ANY_CLOUD: Blocks =
    Blocks { cloud: "any cloud", gib: [1, 65536], iops: [2000, 19_200_000], throughput: [125, 1_200_000] };

pub(super) fn check(spec: &Cursor<'_>, account: &Account, text: &str, findings: &mut Findings) {
    let mounted: BTreeSet<&str> = spec
        .items("containers")
        .iter()
        .flat_map(|container| container.items("volumeMounts"))
        .filter_map(|mount| mount.text_of("name"))
        .collect();
    let mut blocks = 0;
    for volume in spec.items("volumes") {
        let Some(source) = volume.text_of("source") else { continue };
        if source == "block" {
            blocks += 1;
            if blocks == MOST_BLOCKS + 1 {
                let message = format!("there are more than {MOST_BLOCKS} block volumes");
                findings.error(&volume, "too-many", message, "put more into one");
            }
        }
        check_source(&volume, source, findings);
        fields(&volume, source, findings);
        match source {
            "stage" => stage(&volume, text, findings),
            "block" => block(&volume, account, findings),
            _ => {}
        }
        unmounted(&volume, source, &mounted, findings);
    }
}

fn check_source(volume: &Cursor<'_>, source: &str, findings: &mut Findings) {
    let Some(at) = volume.get("source") else { return };
    if source.starts_with('@') {
        let message = format!(
            "`{source}` mounts a stage in the old way (v1): with behaviour-change bundle 2026_08 the account refuses new \
             services with \"stage mount v1 not supported, please use v2 instead\""
        );
        let stage = format!("write source: stage, and stageConfig: {{name: \"{source}\"}} with the stage's whole name");
        findings.error(&at, "stage-v1", message, stage);
    } else if !SOURCES.contains(&source) {
        let message = format!("`{source}` is none of {}", SOURCES.join(", "));
        findings.error(&at, "value", message, "choose one of them");
    }
}

/// Fields that go with one source and not with another.
fn fields(volume: &Cursor<'_>, source: &str, findings: &mut Findings) {
    let is = |sources: &[&str]| sources.contains(&source);
    let wrong = |key: &str, goes_with: &str, findings: &mut Findings| {
        if let Some(at) = volume.get(key) {
            let message = format!("`{key}` goes with {goes_with}, and the source is `{source}`");
            findings.error(&at, "volume", message, "leave it out, or change the source");
        }
    };
    match volume.get("size") {
        None if is(&["memory", "block"]) => {
            let message = format!("a {source} volume needs a size");
            findings.error(volume, "size", message, "add such as size: 10Gi");
        }
        Some(at) if source == "memory" && at.scalar().is_none_or(|size| units::memory(&size).is_none()) => {
            findings.error(&at, "size", "this is no amount of memory".to_owned(), "write such as 10Gi");
        }
        Some(_) if is(&["local", "stage"]) => wrong("size", "memory and block volumes", findings),
        _ => {}
    }
    if !is(&["stage"]) && !source.starts_with('@') {
        wrong("stageConfig", "source: stage", findings);
    }
    if !is(&["block"]) {
        wrong("blockConfig", "source: block", findings);
    }
    for key in ["uid", "gid"] {
        let Some(at) = volume.get(key) else { continue };
        if is(&["local", "memory"]) {
            let message = format!("the reference has `{key}` for stage and block volumes alone");
            findings.warning(&at, "volume", message, "leave it out");
        }
        if at.whole().is_some_and(|id| id < 0) {
            findings.error(&at, "volume", "an id is not negative".to_owned(), "write the image's own id");
        }
    }
}

fn stage(volume: &Cursor<'_>, text: &str, findings: &mut Findings) {
    let Some(config) = volume.get("stageConfig") else {
        let message = "a stage volume needs stageConfig".to_owned();
        return findings.error(volume, "stage", message, "add stageConfig: {name: \"@db.schema.stage\"}");
    };
    if let Some(at) = config.get("name")
        && let Some(name) = at.text()
    {
        let quoted = text
            .lines()
            .nth(usize::try_from(at.line()).unwrap_or(0).saturating_sub(1))
            .and_then(|line| line.chars().nth(usize::try_from(at.column()).unwrap_or(0).saturating_sub(1)))
            == Some('"');
        if !name.starts_with('@') || name.len() < 2 {
            let message = format!("`{name}` names no internal stage");
            findings.error(&at, "stage", message, "write \"@db.schema.stage\" or \"@db.schema.stage/folder\"");
        } else if !quoted {
            findings.error(
                &at,
                "stage",
                "the name must stand in double quotes".to_owned(),
                format!("write \"{name}\""),
            );
        }
    }
    if let Some(at) = config.get("metadataCache") {
        if at.text().is_some_and(|text| !units::is_duration(text, &['h', 'm', 's'])) {
            findings.error(&at, "stage", "this is no length of time".to_owned(), "write such as 90s, 5m or 1h30m");
        }
        let message = "with a cache, files that change or appear are not seen: it is for data that stay as they are";
        findings.warning(&at, "metadata-cache", message.to_owned(), "leave it out where anything is written");
    }
}

fn block(volume: &Cursor<'_>, account: &Account, findings: &mut Findings) {
    let cloud = account.family.and_then(|family| family.only_cloud());
    let bounds = BLOCKS.iter().find(|bounds| Some(bounds.cloud) == cloud).unwrap_or(&ANY_CLOUD);
    let Blocks { cloud, gib: sizes, iops, throughput } = bounds;
    let rule = "block";
    let size = volume.get("size");
    if let Some(at) = &size {
        match at.text().and_then(units::whole_gib) {
            None => findings.error(at, "size", "a block volume's size is whole Gi".to_owned(), "write such as 100Gi"),
            Some(gib) => within(at, gib, *sizes, cloud, findings),
        }
    }
    let Some(config) = volume.get("blockConfig") else { return };
    for (key, range) in [("iops", iops), ("throughput", throughput)] {
        if let Some(at) = config.get(key)
            && let Some(amount) = at.whole()
        {
            within(&at, amount, *range, cloud, findings);
        }
    }
    let gib = size.and_then(|at| at.text().and_then(units::whole_gib));
    if let Some(at) = config.get("iops")
        && let (Some(iops), Some(gib), "AWS" | "Azure") = (at.whole(), gib, *cloud)
        && iops > 3000.max(gib.saturating_mul(500))
    {
        findings.error(&at, rule, format!("{iops} IOPS are more than 500 a GiB"), "lower them, or raise the size");
    }
    let is_one = |text: &str| units::is_duration(text, &['h', 'd']) && text.matches(['h', 'd']).count() == 1;
    if let Some(at) = config.get("snapshotDeleteAfter")
        && !at.text().is_some_and(is_one)
    {
        findings.error(&at, rule, "this is no length of time".to_owned(), "write such as 12h or 7d");
    }
}

fn within(at: &Cursor<'_>, amount: i64, [least, most]: [i64; 2], cloud: &str, findings: &mut Findings) {
    if !(least..=most).contains(&amount) {
        let message = format!("{amount} is outside {least} to {most}, which are the bounds on {cloud}");
        findings.error(at, "block", message, "choose one within");
    }
}

fn unmounted(volume: &Cursor<'_>, source: &str, mounted: &BTreeSet<&str>, findings: &mut Findings) {
    let Some(at) = volume.get("name") else { return };
    let Some(name) = at.text().filter(|name| !mounted.contains(name)) else { return };
    if source == "stage" {
        let message = format!("no container mounts `{name}`, and a stage that nobody mounts makes its sidecar crash");
        findings.error(&at, "unmounted", message, "mount it, or leave it out");
    } else {
        findings.warning(&at, "unmounted", format!("no container mounts `{name}`"), "mount it, or leave it out");
    }
}
