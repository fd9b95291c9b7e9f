//! What every door leads to: names to adapters, text to tokens, jobs to the engine.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use firn_llm::{generate::Constraint, template::KnownTemplate, tokenizer::Message};
use firn_proto::inference::v1 as pb;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    base::Base,
    engine::Engine,
    error::AnswerError,
    job::{EVENTS, Generation, Job, Scoring},
    loader::Loader,
    models::{Models, Served},
    reading::Reader,
    request::{FieldError, Wishes, check_ids, tenant, wishes},
};

/// What answers need. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    pub(crate) base: Arc<Base>,
    pub(crate) models: Models,
    pub(crate) loader: Loader,
    pub(crate) engine: Engine,
    /// Texts that are tokenised for their own sake at once.
    tokenizing: Arc<Semaphore>,
}

/// Most texts that are tokenised for their own sake at once; others wait.
const MOST_TOKENIZING: usize = 8;

/// What a prompt was given as.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    /// Turns, and whether what begins an answer follows them.
    Chat(Vec<Message>, bool),
}

impl Prompt {
    /// The request's field that it came in.
    fn field(&self) -> &'static str {
        match self {
            Self::Text(_) => "prompt",
            Self::Ids(_) => "ids",
            Self::Chat(..) => "messages",
        }
    }

    /// Ids that the model can read.
    fn checked_ids(self, base: &Base, template: Option<KnownTemplate>) -> Result<Vec<u32>, FieldError> {
        let field = self.field();
        let ids = self.ids(base, template)?;
        check_ids(&ids, field, &base.config)?;
        Ok(ids)
    }

    fn ids(self, base: &Base, template: Option<KnownTemplate>) -> Result<Vec<u32>, FieldError> {
        let field = self.field();
        let wrong = |error: firn_llm::tokenizer::TokenizerError| FieldError::new(field, error.to_string());
        match self {
            Self::Ids(ids) => Ok(ids),
            Self::Chat(turns, begin) => Ok(base.chats(template).render(&turns, begin).map_err(wrong)?.ids),
            Self::Text(text) => {
                let ids = base.tokenizer.encode(&text, true).map_err(wrong)?;
                // Nothing to go on from: then the text begins here.
                Ok(if ids.is_empty() { base.tokenizer.bos_id().into_iter().collect() } else { ids })
            }
        }
    }
}

impl Serving {
    pub(crate) fn new(base: Arc<Base>, models: Models, loader: Loader, engine: Engine) -> Self {
        Self { base, models, loader, engine, tokenizing: Arc::new(Semaphore::new(MOST_TOKENIZING)) }
    }

    /// Longest context in tokens.
    pub(crate) fn context(&self) -> u32 {
        u32::try_from(self.base.config.context).unwrap_or(u32::MAX)
    }

    /// Queues an answer of a model, of the base if it is none.
    pub(crate) async fn answer(
        &self,
        served: Option<Served>,
        prompt: Prompt,
        sampling: Option<pb::Sampling>,
        tenant_name: String,
    ) -> Result<Reader, AnswerError> {
        let started = Instant::now();
        let Wishes { sampling, max_tokens, stop, ignore_eos, logprobs, schema } = wishes(sampling)?;
        let tenant = tenant(tenant_name)?;
        // Before the text is read: who does not fit must not cost anything.
        let place = self.engine.place()?;
        let (base, template) = (Arc::clone(&self.base), served.as_ref().and_then(|served| served.template));
        // A long text takes a while, in which other calls go on. The place stays taken if the caller leaves meanwhile.
        let (ids, constraint, place) = tokio::task::spawn_blocking(move || {
            Ok::<_, FieldError>((prompt.checked_ids(&base, template)?, constraint(&base, &schema)?, place))
        })
        .await??;
        let (sender, events) = mpsc::channel(EVENTS);
        let finish = pb::Finish {
            prompt_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            seed: sampling.seed,
            version: served.as_ref().map(|served| served.version.clone()).unwrap_or_default(),
            ..Default::default()
        };
        let ends = if ignore_eos { Vec::new() } else { self.base.chats(template).eos_ids().to_vec() };
        let adapter = served.map(|served| served.adapter);
        let satisfied = Arc::<AtomicBool>::default();
        let generation = Generation {
            ids,
            adapter,
            sampling,
            constraint,
            logprobs,
            max_tokens,
            ends,
            satisfied: Arc::clone(&satisfied),
            events: sender,
        };
        self.engine.submit(place, tenant, Job::Generate(Box::new(generation)))?;
        Ok(Reader { base: Arc::clone(&self.base), events, stops: stop, satisfied, started, finish })
    }

    /// Ids of a text, and the log-probability of each but the first.
    pub(crate) async fn score(&self, model: &str, text: Prompt) -> Result<(Vec<u32>, Vec<f32>), AnswerError> {
        let served = self.models.find(model)?;
        let place = self.engine.place()?;
        let (base, template) = (Arc::clone(&self.base), served.as_ref().and_then(|served| served.template));
        let read = move || Ok::<_, FieldError>((text.checked_ids(&base, template)?, place));
        let (ids, place) = tokio::task::spawn_blocking(read).await??;
        let (reply, scores) = oneshot::channel();
        let scoring = Scoring { ids: ids.clone(), adapter: served.map(|served| served.adapter), reply };
        self.engine.submit(place, String::new(), Job::Score(scoring))?;
        let logprobs = scores.await.map_err(|_| AnswerError::EngineGone)?.map_err(AnswerError::Score)?;
        Ok((ids, logprobs))
    }

    /// A prompt as the model reads it. An over-long one is shown as well.
    pub(crate) async fn tokenize(&self, prompt: Prompt) -> Result<pb::TokenizeResponse, AnswerError> {
        let base = Arc::clone(&self.base);
        let (context_length, template_sha256) = (self.context(), self.base.template_sha256.clone());
        // It is never closed. The permit goes with the work, which goes on if the caller leaves.
        let permit = Arc::clone(&self.tokenizing).acquire_owned().await;
        let read = move || {
            let _permit = permit;
            let field = prompt.field();
            let ids = prompt.ids(&base, None)?;
            let text = base.tokenizer.decode(&ids, false);
            let text = text.map_err(|error| FieldError::new(field, error.to_string()))?;
            let tokens = ids.iter().map(|id| base.tokenizer.token_bytes(*id)).collect();
            Ok::<_, FieldError>(pb::TokenizeResponse { ids, text, tokens, context_length, template_sha256 })
        };
        Ok(tokio::task::spawn_blocking(read).await??)
    }
}

fn constraint(base: &Base, schema: &str) -> Result<Option<Constraint>, FieldError> {
    if schema.is_empty() {
        return Ok(None);
    }
    let wrong = |reason: String| FieldError::new("sampling.json_schema", reason);
    let constraint = base.grammars().map_err(wrong)?.json_schema(schema);
    Ok(Some(constraint.map_err(|error| wrong(error.to_string()))?))
}
