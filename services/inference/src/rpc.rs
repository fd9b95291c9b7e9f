//! The gRPC service: messages in, one call, messages out.

use firn_proto::inference::v1::{
    self as pb, generate_request, inference_service_server::InferenceService, score_request, tokenize_request,
};
use tonic::{Request, Response, Status};

use crate::{
    error::{AdapterCallError, AnswerError},
    models::{BASE, Served},
    reading::Pieces,
    request::{FieldError, messages},
    serving::{Prompt, Serving},
};

/// Answers calls.
#[derive(Clone, Debug)]
pub(crate) struct Rpc(pub(crate) Serving);

#[tonic::async_trait]
impl InferenceService for Rpc {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let pb::GenerateRequest { model, input, sampling, tenant } = request.into_inner();
        let prompt = match input {
            Some(generate_request::Input::Prompt(text)) => Prompt::Text(text),
            Some(generate_request::Input::Ids(ids)) => Prompt::Ids(ids.ids),
            None => return Err(AnswerError::Field(FieldError::new("input", "must be prompt or ids")).into()),
        };
        let served = self.0.models.find(&model).map_err(AnswerError::from)?;
        Ok(Response::new(self.0.answer(served, prompt, sampling, tenant).await?.pieces()))
    }

    async fn chat(&self, request: Request<pb::ChatRequest>) -> Result<Response<Pieces>, Status> {
        let pb::ChatRequest { model, messages: turns, sampling, tenant } = request.into_inner();
        let turns = messages(turns).map_err(AnswerError::from)?;
        let served = self.0.models.find(&model).map_err(AnswerError::from)?;
        Ok(Response::new(self.0.answer(served, Prompt::Chat(turns, true), sampling, tenant).await?.pieces()))
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let pb::ScoreRequest { model, input } = request.into_inner();
        let text = match input {
            Some(score_request::Input::Text(text)) => Prompt::Text(text),
            Some(score_request::Input::Ids(ids)) => Prompt::Ids(ids.ids),
            None => return Err(AnswerError::Field(FieldError::new("input", "must be text or ids")).into()),
        };
        let (ids, logprobs) = self.0.score(&model, text).await?;
        let sum = logprobs.iter().map(|logprob| f64::from(*logprob)).sum();
        Ok(Response::new(pb::ScoreResponse { ids, logprobs, sum }))
    }

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let context_length = self.0.context();
        let base = pb::ServedModel { id: BASE.to_owned(), context_length, ..Default::default() };
        let adapters = self.0.models.list().into_iter().map(|(id, served)| self.served(id, served));
        Ok(Response::new(pb::ListModelsResponse { models: [base].into_iter().chain(adapters).collect() }))
    }

    async fn load_model(&self, request: Request<pb::LoadModelRequest>) -> Result<Response<pb::ServedModel>, Status> {
        let id = request.into_inner().id;
        let served = self.0.loader.load(&id).await.map_err(AdapterCallError::Load)?;
        Ok(Response::new(self.served(id, served)))
    }

    async fn unload_model(
        &self,
        request: Request<pb::UnloadModelRequest>,
    ) -> Result<Response<pb::UnloadModelResponse>, Status> {
        let id = request.into_inner().id;
        if !self.0.models.unload(&id) {
            return Err(AdapterCallError::NotLoaded { id }.into());
        }
        tracing::info!(model = id, "adapter is served no more, as a call asked");
        Ok(Response::new(pb::UnloadModelResponse {}))
    }

    async fn tokenize(&self, request: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        let input = match request.into_inner().input {
            Some(tokenize_request::Input::Text(text)) => Prompt::Text(text),
            Some(tokenize_request::Input::Ids(ids)) => Prompt::Ids(ids.ids),
            Some(tokenize_request::Input::Chat(pb::Turns { messages: turns, add_generation_prompt })) => {
                Prompt::Chat(messages(turns).map_err(AnswerError::from)?, add_generation_prompt)
            }
            None => return Err(AnswerError::Field(FieldError::new("input", "must be text, chat or ids")).into()),
        };
        Ok(Response::new(self.0.tokenize(input).await?))
    }

    async fn get_stats(&self, _: Request<pb::GetStatsRequest>) -> Result<Response<pb::Stats>, Status> {
        let (adapters, max_adapters) = (self.0.models.count() as u64, self.0.loader.max_adapters as u64);
        Ok(Response::new(pb::Stats { adapters, max_adapters, ..self.0.engine.stats() }))
    }
}

impl Rpc {
    fn served(&self, id: String, served: Served) -> pb::ServedModel {
        let Served { version, loaded, .. } = served;
        pb::ServedModel { id, version, parent: BASE.to_owned(), context_length: self.0.context(), loaded }
    }
}
