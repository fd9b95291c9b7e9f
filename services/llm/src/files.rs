//! Files of a checkpoint: what may be opened, and how much of a text is read.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Longest text and longest header of a weights file, bytes. A thousand layers' names take one.
pub(crate) const MOST_TEXT: u64 = 16 << 20;

/// Name of the index of a checkpoint in shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What Trainer leaves beside weights. None of it is a checkpoint.
const BESIDE: [&str; 5] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state"];
/// More entries of a folder than a checkpoint has.
const MOST_ENTRIES: usize = 10_000;

/// Opens a regular file and tells its length: a pipe would wait for ever.
///
/// # Errors
/// A sentence that says why not.
pub(crate) fn open(path: &Path) -> Result<(File, u64), String> {
    let fail = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => {
            let instead = path.parent().and_then(instead_of_safetensors);
            instead.map_or_else(|| "it is missing".to_owned(), |instead| format!("it is missing, and {instead}"))
        }
        _ => error.to_string(),
    };
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    Ok((file, length))
}

/// Reads a text of at most [`MOST_TEXT`] bytes.
///
/// # Errors
/// A sentence that says why not.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let (file, _) = open(path)?;
    let mut text = String::new();
    let length = file.take(MOST_TEXT + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if length as u64 > MOST_TEXT {
        return Err(format!("it is longer than {MOST_TEXT} bytes"));
    }
    Ok(text)
}

/// What a folder holds that looks like weights and is no safetensors file, and the way out.
fn instead_of_safetensors(dir: &Path) -> Option<String> {
    let entries = std::fs::read_dir(dir).ok()?.take(MOST_ENTRIES);
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    // With weights that can be read, nothing else matters.
    if names.iter().any(|name| name == INDEX || name.ends_with(".safetensors") && !is_shard(name)) {
        return None;
    }
    names.sort_unstable();
    names.iter().find_map(|name| foreign(name).map(|what| format!("the folder holds {name}, {what}")))
}

/// What a file is, judged by its name, and the way out; `None` if it may be safetensors or no weights at all.
pub(crate) fn foreign(name: &str) -> Option<&'static str> {
    let (stem, extension) = name.rsplit_once('.')?;
    match extension {
        _ if BESIDE.iter().any(|beside| stem.starts_with(beside)) => None,
        "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle" => Some(
            "a pickle: one can run code as it is opened, so Firn never opens any. Where you trust it, load it with \
             transformers or PEFT and write it as safetensors with save_pretrained",
        ),
        "gguf" | "ggml" => Some("a file of llama.cpp: use the safetensors checkpoint that it was made from"),
        "h5" | "msgpack" | "onnx" | "npz" => {
            Some("which is not safetensors: load it with transformers and write it as safetensors with save_pretrained")
        }
        "safetensors" if is_shard(name) => {
            Some("one of several shards: the index that names them all, model.safetensors.index.json, is not there")
        }
        _ => None,
    }
}

fn is_shard(name: &str) -> bool {
    name.contains("-of-")
}
