//! What is asked for, checked against the files that it names.

use std::path::{Component, Path, PathBuf};

use firn_llm::{
    template::KnownTemplate,
    tokenizer::{Tokenizer, TokenizerError},
};
use firn_stage::{MANIFEST, Manifest};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    collections,
    config::Limits,
    encode::{Encoder, Format},
    files::FOLDER,
    rows::{Files, RowsError},
    split::hex,
    template::{RowTemplate, TemplateError},
};

/// How a row becomes text, as asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FormatSpec {
    /// Ready-made text.
    Text { column: String },
    /// Templates of prompt and completion.
    Prompt { prompt_template: String, completion_template: String, system: String },
    /// A list of messages.
    Messages { column: String },
    /// Tokens already.
    Tokens { pairs: bool },
    /// A prompt and two answers.
    Preference { prompt: String, chosen: String, rejected: String },
}

/// A request whose fields are well-formed; the files that it names may still be missing.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) dataset: String,
    pub(crate) source: String,
    pub(crate) base: String,
    pub(crate) format: FormatSpec,
    pub(crate) held_out_rows: u32,
    /// File or folder whose rows are all held out; empty: none.
    pub(crate) held_out_source: String,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
    /// In place of the base's own.
    pub(crate) chat_template: Option<KnownTemplate>,
}

/// Why a request cannot be carried out at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PlanError {
    #[error("{path} is relative, but the stage is not a folder: name an absolute path")]
    NoFolder { field: &'static str, path: String },
    #[error("{path} must not leave the stage: name an absolute path, or one without ..")]
    Outside { field: &'static str, path: String },
    #[error(transparent)]
    Source(#[from] RowsError),
    #[error(transparent)]
    Base(#[from] TokenizerError),
    #[error("{base} has no chat template: add chat_template.jinja, take zephyr or chatml, or train on ready-made text")]
    NoTemplate { base: String },
    #[error("{0}")]
    KnownTemplate(TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl PlanError {
    /// The field of the request that is to blame.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::NoFolder { field, .. } | Self::Outside { field, .. } => field,
            Self::Source(_) => "source",
            Self::Base(_) | Self::NoTemplate { .. } => "base",
            Self::KnownTemplate(_) => "chat_template",
            Self::Template(_) => "format.prompt",
        }
    }
}

/// A request with its files found, and the id of the snapshot that it makes.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) request: Request,
    /// First 16 hex digits of the hash over all that the snapshot depends on.
    pub(crate) id: String,
    pub(crate) source: Files,
    pub(crate) source_sha256: String,
    pub(crate) held_out_source: Option<Files>,
    pub(crate) held_out_sha256: String,
    pub(crate) tokenizer_sha256: String,
    /// Empty for ready-made text.
    pub(crate) template_sha256: String,
    pub(crate) encoder: Encoder,
}

impl Plan {
    /// Opens the tokenizer and hashes the source, unless it is a stored file. Blocks.
    pub(crate) fn open(request: Request, root: Option<&Path>, limits: &Limits) -> Result<Self, PlanError> {
        let source = resolve("source", &request.source, root)?;
        let base = resolve("base", &request.base, root)?;
        let source = find(&source, root)?;
        let named = Some(request.held_out_source.as_str()).filter(|path| !path.is_empty());
        let held_out_source =
            named.map(|path| Ok::<_, PlanError>(find(&resolve("held_out_source", path, root)?, root)?)).transpose()?;
        let format = compile(&request.format)?;
        let own = Tokenizer::from_dir(&base)?;
        let tokenizer = match request.chat_template.filter(|_| format.has_chats()) {
            Some(known) => own.with_template(known).map_err(PlanError::KnownTemplate)?,
            None => own,
        };
        let template_sha256 = if format.has_chats() {
            let none = || PlanError::NoTemplate { base: base.display().to_string() };
            tokenizer.template_sha256().ok_or_else(none)?.to_owned()
        } else {
            String::new()
        };
        let encoder = Encoder::new(tokenizer, &base, format, request.max_tokens as usize)?;
        let tokenizer_file = base.join("tokenizer.json");
        let bytes = std::fs::read(&tokenizer_file)
            .map_err(|error| TokenizerError::Unreadable { path: tokenizer_file, reason: error.to_string() })?;
        let tokenizer_sha256 = hex(&Sha256::digest(&bytes));
        let hash = |files: &Files| noted_hash(files, root, limits).map_or_else(|| files.hash(limits), Ok);
        let source_sha256 = hash(&source)?;
        let held_out_sha256 = held_out_source.as_ref().map(hash).transpose()?.unwrap_or_default();
        let parts = serde_json::json!([
            source_sha256,
            request.format,
            tokenizer_sha256,
            template_sha256,
            request.seed,
            request.held_out_rows,
            request.max_tokens,
            held_out_sha256,
        ]);
        let id = hex(&Sha256::digest(parts.to_string())[..8]);
        Ok(Self {
            request,
            id,
            source,
            source_sha256,
            held_out_source,
            held_out_sha256,
            tokenizer_sha256,
            template_sha256,
            encoder,
        })
    }

    /// The snapshot's resource name.
    pub(crate) fn name(&self) -> String {
        format!("datasets/{}/snapshots/{}", self.request.dataset, self.id)
    }
}

fn compile(format: &FormatSpec) -> Result<Format, TemplateError> {
    Ok(match format {
        FormatSpec::Text { column } => Format::Text { column: column.clone() },
        FormatSpec::Messages { column } => Format::Messages { column: column.clone() },
        FormatSpec::Tokens { pairs } => Format::Tokens { pairs: *pairs },
        FormatSpec::Preference { prompt, chosen, rejected } => {
            Format::Preference { prompt: prompt.clone(), chosen: chosen.clone(), rejected: rejected.clone() }
        }
        FormatSpec::Prompt { prompt_template, completion_template, system } => Format::Prompt {
            prompt: Box::new(RowTemplate::new("prompt template", prompt_template)?),
            completion: Box::new(RowTemplate::new("completion template", completion_template)?),
            system: Some(system.clone()).filter(|system| !system.is_empty()),
        },
    })
}

/// An absolute path stands for itself; any other is below the stage's folder.
fn resolve(field: &'static str, path: &str, root: Option<&Path>) -> Result<PathBuf, PlanError> {
    let named = Path::new(path);
    if named.is_absolute() {
        return Ok(named.to_owned());
    }
    if named.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(PlanError::Outside { field, path: path.to_owned() });
    }
    root.map(|root| root.join(named)).ok_or_else(|| PlanError::NoFolder { field, path: path.to_owned() })
}

/// The hash of a file that a caller stored, as its manifest has it: so the snapshot of a large one is found without reading
/// it. The first pass over the rows checks the hash.
fn noted_hash(files: &Files, root: Option<&Path>, limits: &Limits) -> Option<String> {
    let file = files.single()?;
    let folder = file.parent().filter(|folder| folder.parent() == root.map(|root| root.join(FOLDER)).as_deref())?;
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(folder.join(MANIFEST)).ok()?).ok()?;
    let entry = manifest.file(file.file_name()?.to_str()?)?;
    (entry.size <= limits.max_source_bytes).then(|| entry.sha256.clone())
}

/// The files that a path means; of a collection, those that are whole.
fn find(path: &Path, root: Option<&Path>) -> Result<Files, RowsError> {
    let files = Files::find(path)?;
    let in_collections = root.is_some_and(|root| path.starts_with(root.join(collections::FOLDER)));
    if in_collections && path.is_dir() { files.keep(path, collections::is_whole_file) } else { Ok(files) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama");

    fn request(source: &Path) -> Request {
        Request {
            dataset: "offers".to_owned(),
            source: source.display().to_string(),
            base: LLAMA.to_owned(),
            format: FormatSpec::Text { column: "A".to_owned() },
            held_out_rows: 1,
            held_out_source: String::new(),
            seed: 0,
            max_tokens: 64,
            chat_template: None,
        }
    }

    #[test]
    fn the_id_depends_on_content_not_on_place_or_dataset() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a.csv"), dir.path().join("b.csv"));
        std::fs::write(&first, "A\nx\n").unwrap();
        std::fs::write(&second, "A\nx\n").unwrap();
        let open = |request: Request| Plan::open(request, None, &Limits::default()).unwrap();
        let id = open(request(&first)).id;
        assert_eq!(id.len(), 16);
        assert_eq!(open(Request { dataset: "other".to_owned(), ..request(&second) }).id, id);
        assert_ne!(open(Request { seed: 1, ..request(&first) }).id, id);
        assert_ne!(open(Request { held_out_rows: 2, ..request(&first) }).id, id);
        assert_ne!(open(Request { max_tokens: 65, ..request(&first) }).id, id);
        assert_ne!(open(Request { format: FormatSpec::Messages { column: "A".to_owned() }, ..request(&first) }).id, id);
        std::fs::write(&second, "A\ny\n").unwrap();
        assert_ne!(open(request(&second)).id, id);
    }

    #[test]
    fn a_stored_file_is_not_read_for_its_hash() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(FOLDER).join("file-1");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("rows.csv");
        std::fs::write(&file, "A\nx\n").unwrap();
        let open = |limits: Limits| Plan::open(request(&file), Some(root.path()), &limits);
        let hash = hex(&Sha256::digest("A\nx\n"));
        assert_eq!(open(Limits::default()).unwrap().source_sha256, hash, "without a manifest it is read");
        let manifest = |sha256: &str| {
            let json = serde_json::json!({"files": [{"path": "rows.csv", "size": 4, "sha256": sha256}]});
            std::fs::write(folder.join(MANIFEST), json.to_string()).unwrap();
        };
        let noted = "0".repeat(64);
        manifest(&noted);
        assert_eq!(open(Limits::default()).unwrap().source_sha256, noted);
        let elsewhere = Plan::open(request(&file), Some(&root.path().join("inputs")), &Limits::default()).unwrap();
        assert_eq!(elsewhere.source_sha256, hash, "a manifest counts for stored files alone");
        let small = Limits { max_source_bytes: 3, ..Limits::default() };
        assert!(open(small).unwrap_err().to_string().contains("more than 3 bytes"));
    }

    #[test]
    fn paths_are_absolute_or_below_the_stage() {
        let root = Path::new("/stage");
        assert_eq!(resolve("base", "bases/a/b", Some(root)).unwrap(), Path::new("/stage/bases/a/b"));
        assert_eq!(resolve("base", "/x/y", None).unwrap(), Path::new("/x/y"));
        assert!(matches!(resolve("base", "../x", Some(root)), Err(PlanError::Outside { field: "base", .. })));
        assert!(matches!(resolve("source", "x.csv", None), Err(PlanError::NoFolder { field: "source", .. })));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let csv = dir.path().join("a.csv");
        std::fs::write(&csv, "A\nx\n").unwrap();
        let refuse = |request: Request| {
            let error = Plan::open(request, None, &Limits::default()).unwrap_err();
            (error.field(), error.to_string())
        };
        let base = dir.path().display().to_string();
        let (field, text) = refuse(Request { base: base.clone(), ..request(&csv) });
        assert!(field == "base" && text.contains(&format!("{base} has no tokenizer.json")), "{text}");
        std::fs::copy(format!("{LLAMA}/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        let chat = FormatSpec::Messages { column: "A".to_owned() };
        let (field, text) = refuse(Request { base, format: chat, ..request(&csv) });
        assert!(field == "base" && text.contains("has no chat template"), "{text}");
        let (field, text) = refuse(request(&dir.path().join("none.csv")));
        assert!(field == "source" && text.contains("none.csv"), "{text}");
        let (field, text) = refuse(request(&dir.path().join("a.txt")));
        assert!(field == "source" && text.starts_with("a.txt is neither CSV, JSON Lines nor Parquet"), "{text}");
    }
}
