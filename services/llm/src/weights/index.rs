//! `model.safetensors.index.json`: which shard holds which tensor.

use std::path::Path;

use serde::Deserialize;

use super::unique::ByTensor;
use super::{Weights, WeightsError};
use crate::files::{self, INDEX};

/// Most files of a checkpoint: each is held open.
const MOST_SHARDS: usize = 512;

/// What is read of the index. Its `total_size` is for progress bars, and often wrong.
#[derive(Deserialize)]
#[serde(expecting = "an object with a weight_map")]
struct Raw {
    weight_map: ByTensor<String>,
}

/// Opens the shards that the index in `dir` names, each of which must hold what the index says.
pub(super) fn open(dir: &Path) -> Result<Weights, WeightsError> {
    let path = dir.join(INDEX);
    let fail = |reason: String| WeightsError::File { path: path.clone(), reason };
    let text = files::read_text(&path).map_err(fail)?;
    let Raw { weight_map: ByTensor(map) } = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let mut shards: Vec<&str> = map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    for name in &shards {
        check_name(name).map_err(fail)?;
    }
    if shards.is_empty() || shards.len() > MOST_SHARDS {
        return Err(fail(format!("its weight_map names {} files: 1 to {MOST_SHARDS} can be read", shards.len())));
    }
    let paths: Vec<_> = shards.iter().map(|name| dir.join(name)).collect();
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        let reason = format!("it is missing, and {INDEX} names it: fetch the checkpoint again, whole");
        return Err(WeightsError::File { path: missing.clone(), reason });
    }
    let weights = Weights::open(dir, &paths)?;
    let mut tensors: Vec<_> = map.iter().collect();
    tensors.sort_unstable();
    for (tensor, shard) in tensors {
        let found = weights.shard_of(tensor).and_then(Path::file_name);
        if found.is_none_or(|found| found != shard.as_str()) {
            let found = found.map_or_else(|| "no file holds it".into(), |found| format!("{} does", found.display()));
            return Err(fail(format!("it says that {shard} holds tensor {tensor}, but {found}")));
        }
    }
    Ok(weights)
}

/// A shard is a safetensors file in the index's own folder.
fn check_name(name: &str) -> Result<(), String> {
    if name.contains(['/', '\\']) {
        return Err(format!("its weight_map leads out of the folder: {name:?} is a path, not a file's name"));
    }
    match files::foreign(name) {
        _ if name.ends_with(".safetensors") => Ok(()),
        Some(what) => Err(format!("its weight_map names {name}, {what}")),
        None => Err(format!("its weight_map names {name:?}, which is no safetensors file")),
    }
}
