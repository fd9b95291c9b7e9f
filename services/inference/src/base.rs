//! The base checkpoint: found, and checked before anything is loaded.

use std::{
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use firn_llm::{
    config::{ConfigError, ModelConfig},
    generate::Grammars,
    template::KnownTemplate,
    tokenizer::{Tokenizer, TokenizerError},
};
use firn_stage::{Stage, StageError};

/// Why a base can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// There is no such folder.
    #[error("there is no base at {}: --base names a checkpoint's folder, by an absolute path or a path on the stage", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The path leaves the stage.
    #[error("base {path:?} leaves the stage: use a path below it, or an absolute path")]
    Outside {
        /// As given.
        path: String,
    },
    /// The stage is no folder and has no finished folder there.
    #[error("the stage has no finished folder {path}: it has no manifest.json")]
    Unfinished {
        /// As given.
        path: String,
    },
    /// It can't be copied from the stage.
    #[error("failed to copy base {path} from the stage: {source}")]
    Stage {
        /// As given.
        path: String,
        /// Why.
        source: StageError,
    },
    /// `config.json` is missing or asks for a model that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer is missing or broken.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// There is no chat template, so chats can't be answered.
    #[error("{} has no chat template: add chat_template.jinja", path.display())]
    NoTemplate {
        /// The folder.
        path: PathBuf,
    },
}

/// A base that can be served; its weights are not read yet.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) dir: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template_sha256: String,
    /// Templates that adapters may have been trained with instead.
    known: Vec<(KnownTemplate, Tokenizer)>,
    /// Made when the first answer is to keep to a schema.
    grammars: OnceLock<Result<Grammars, String>>,
}

impl Base {
    /// The tokenizer with this template; none if the base can't end a turn of it.
    pub(crate) fn with_template(&self, known: KnownTemplate) -> Option<&Tokenizer> {
        self.known.iter().find(|(template, _)| *template == known).map(|(_, tokenizer)| tokenizer)
    }

    /// What chats go through: the base's own template, or an adapter's.
    pub(crate) fn chats(&self, template: Option<KnownTemplate>) -> &Tokenizer {
        template.and_then(|known| self.with_template(known)).unwrap_or(&self.tokenizer)
    }

    /// Makes constraints for answers. Blocks the first time.
    pub(crate) fn grammars(&self) -> Result<&Grammars, String> {
        let make = || Grammars::new(&self.tokenizer, self.config.vocab).map_err(|error| error.to_string());
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Finds and checks the base. A finished folder of the stage is copied below `work_dir` and checked against its
    /// hashes; one that a user put there without a manifest is read where it is.
    pub(crate) async fn open(base: &str, stage: &Stage, work_dir: &Path) -> Result<Self, BaseError> {
        let dir = place(base, stage, work_dir).await?;
        if !dir.is_dir() {
            return Err(BaseError::Missing { path: dir });
        }
        let config = ModelConfig::from_dir(&dir)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        config.check_tokenizer(&tokenizer)?;
        let Some(template_sha256) = tokenizer.template_sha256().map(str::to_owned) else {
            return Err(BaseError::NoTemplate { path: dir });
        };
        let known = KnownTemplate::ALL.into_iter();
        let known = known.filter_map(|known| Some((known, tokenizer.with_template(known).ok()?))).collect();
        Ok(Self { dir, config, tokenizer, template_sha256, known, grammars: OnceLock::new() })
    }
}

async fn place(base: &str, stage: &Stage, work_dir: &Path) -> Result<PathBuf, BaseError> {
    let named = Path::new(base);
    if named.is_absolute() {
        return Ok(named.to_owned());
    }
    if base.is_empty() || named.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(BaseError::Outside { path: base.to_owned() });
    }
    let failed = |source| BaseError::Stage { path: base.to_owned(), source };
    if stage.is_finished(base).await.map_err(failed)? {
        return stage.fetch_dir(base, &work_dir.join(named)).await.map_err(failed);
    }
    match stage.local_root() {
        Some(root) => Ok(root.join(named)),
        None => Err(BaseError::Unfinished { path: base.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama")
    }

    async fn refusal(base: &str, stage: &Stage) -> String {
        Base::open(base, stage, Path::new("/nowhere")).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::open(dir.path().to_str().unwrap()).unwrap();
        assert!(refusal("bases/a", &stage).await.contains("there is no base at "));
        assert!(refusal("../a", &stage).await.contains("leaves the stage"));
        assert!(refusal("bases/a", &Stage::memory()).await.contains("no manifest.json"));
        let base = dir.path().join("bases/a");
        std::fs::create_dir_all(&base).unwrap();
        for (file, missing) in [
            ("config.json", "config.json"),
            ("tokenizer.json", "has no tokenizer.json"),
            ("tokenizer_config.json", "has no chat template"),
        ] {
            let text = refusal("bases/a", &stage).await;
            assert!(text.contains(missing), "{text}");
            std::fs::copy(llama().join(file), base.join(file)).unwrap();
        }
        std::fs::copy(llama().join("chat_template.jinja"), base.join("chat_template.jinja")).unwrap();
        let opened = Base::open("bases/a", &stage, Path::new("/nowhere")).await.unwrap();
        assert_eq!((opened.config.vocab, opened.template_sha256.len()), (512, 64));
    }

    #[tokio::test]
    async fn a_finished_folder_is_copied_and_checked() {
        let (stage, work) = (Stage::memory(), tempfile::tempdir().unwrap());
        let mut folder = stage.folder("bases/a");
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            folder.put_file(file, &llama().join(file)).await.unwrap();
        }
        folder.finish().await.unwrap();
        let opened = Base::open("bases/a", &stage, work.path()).await.unwrap();
        assert_eq!(opened.dir, work.path().join("bases/a"));
    }
}
