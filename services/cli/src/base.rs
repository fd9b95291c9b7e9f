//! The base model that comes with the binary.

use anyhow::{Context, Result};
use firn_stage::Stage;

/// Its folder on a stage.
pub(crate) const BUNDLED: &str = "bases/firn/tiny";

const FILES: [(&str, &[u8]); 7] = [
    ("README.md", include_bytes!("../base/README.md")),
    ("chat_template.jinja", include_bytes!("../base/chat_template.jinja")),
    ("config.json", include_bytes!("../base/config.json")),
    ("generation_config.json", include_bytes!("../base/generation_config.json")),
    ("model.safetensors", include_bytes!("../base/model.safetensors")),
    ("tokenizer.json", include_bytes!("../base/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../base/tokenizer_config.json")),
];

/// Puts the bundled base on the stage, unless it is there, and gives its folder, relative to the stage's root.
pub(crate) async fn install(stage: &Stage) -> Result<String> {
    let context = || format!("failed to put the bundled base on the stage at {BUNDLED}");
    if let Some(path) = stage.finished_folder(BUNDLED).await.with_context(context)? {
        return Ok(path);
    }
    let mut folder = stage.fresh_folder(BUNDLED).await.with_context(context)?;
    for (name, bytes) in FILES {
        folder.put(name, bytes.into()).await.with_context(context)?;
    }
    let path = folder.path().to_owned();
    folder.finish().await.with_context(context)?;
    Ok(path)
}
