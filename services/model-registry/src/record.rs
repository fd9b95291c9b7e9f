//! What is written to the stage.

use std::collections::BTreeMap;

use firn_stage::{FileEntry, sha256_hex};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The registry's own file in a version's folder.
pub(crate) const VERSION_FILE: &str = "version.json";
/// The folder of all models.
pub(crate) const MODELS: &str = "models";

/// Where a version came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    pub(crate) base: String,
    pub(crate) snapshot: String,
    pub(crate) job: String,
    pub(crate) template_sha256: String,
}

/// What a caller wants registered, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NewVersion {
    pub(crate) model: String,
    pub(crate) source: String,
    pub(crate) lineage: Lineage,
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) alias: String,
    pub(crate) request_id: String,
}

impl NewVersion {
    /// Tells a retry from another request with the same id.
    pub(crate) fn fingerprint(&self) -> Result<String, serde_json::Error> {
        Ok(sha256_hex(&serde_json::to_vec(self)?))
    }
}

/// `version.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VersionRecord {
    pub(crate) version: u64,
    pub(crate) create_time: Timestamp,
    pub(crate) request: NewVersion,
}

/// A record of the alias log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AliasRecord {
    pub(crate) alias: String,
    pub(crate) version: u64,
    pub(crate) time: Timestamp,
}

/// A registered version.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) record: VersionRecord,
    pub(crate) files: Vec<FileEntry>,
}

impl Version {
    pub(crate) fn model(&self) -> &str {
        &self.record.request.model
    }

    pub(crate) fn number(&self) -> u64 {
        self.record.version
    }

    /// Its folder on the stage, which is its name, too.
    pub(crate) fn path(&self) -> String {
        version_path(self.model(), self.number())
    }
}

pub(crate) fn version_path(model: &str, version: u64) -> String {
    format!("{MODELS}/{model}/versions/{version}")
}

/// The number that a version's folder is called by; nothing if it is another folder.
pub(crate) fn version_number(folder: &str) -> Option<u64> {
    folder.parse().ok().filter(|number: &u64| number.to_string() == folder)
}

pub(crate) fn versions_path(model: &str) -> String {
    format!("{MODELS}/{model}/versions")
}

pub(crate) fn aliases_path(model: &str) -> String {
    format!("{MODELS}/{model}/aliases")
}
