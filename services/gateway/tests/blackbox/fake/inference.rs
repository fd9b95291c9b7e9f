//! Inference, as scripted.

use firn_proto::inference::v1::{self as pb, inference_service_server::InferenceService};
use tonic::{Request, Response, Status};

use super::{Fake, Pieces, not_found};

fn base() -> pb::ServedModel {
    pb::ServedModel { id: "base".to_owned(), context_length: 512, ..Default::default() }
}

fn tuned() -> pb::ServedModel {
    let (id, version) = ("offers@best".to_owned(), "models/offers/versions/2".to_owned());
    pb::ServedModel { id, version, parent: "base".to_owned(), ..base() }
}

#[tonic::async_trait]
impl InferenceService for Fake {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        let answer = self.answer(&request.model, request.sampling.as_ref());
        self.generated.lock().unwrap().push(request);
        answer
    }

    async fn chat(&self, request: Request<pb::ChatRequest>) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        let answer = self.answer(&request.model, request.sampling.as_ref());
        self.asked.lock().unwrap().push(request);
        answer
    }

    async fn score(&self, _: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let loaded = self.loaded.lock().unwrap().clone();
        let loaded = loaded.into_iter().map(|id| pb::ServedModel { id, loaded: true, ..tuned() });
        let models = [base(), tuned()].into_iter().chain(loaded).collect();
        Ok(Response::new(pb::ListModelsResponse { models }))
    }

    async fn load_model(&self, request: Request<pb::LoadModelRequest>) -> Result<Response<pb::ServedModel>, Status> {
        self.refused()?;
        let id = request.into_inner().id;
        let version = match id.as_str() {
            "offers@3" => "models/offers/versions/3",
            "job-1@50" => "jobs/job-1/checkpoints/50",
            _ => return Err(not_found(&id)),
        };
        self.loaded.lock().unwrap().push(id.clone());
        Ok(Response::new(pb::ServedModel { id, version: version.to_owned(), loaded: true, ..tuned() }))
    }

    async fn unload_model(
        &self,
        request: Request<pb::UnloadModelRequest>,
    ) -> Result<Response<pb::UnloadModelResponse>, Status> {
        let id = request.into_inner().id;
        let mut loaded = self.loaded.lock().unwrap();
        let place = loaded.iter().position(|other| *other == id).ok_or_else(|| not_found(&id))?;
        loaded.remove(place);
        Ok(Response::new(pb::UnloadModelResponse {}))
    }

    async fn tokenize(&self, request: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        self.refused()?;
        self.tokenized.lock().unwrap().push(request.into_inner());
        let tokens = vec![b"hi".to_vec(), vec![0xff]];
        let template_sha256 = "abc".to_owned();
        let text = "hi?".to_owned();
        Ok(Response::new(pb::TokenizeResponse { ids: vec![7, 8], text, tokens, context_length: 512, template_sha256 }))
    }

    async fn get_stats(&self, _: Request<pb::GetStatsRequest>) -> Result<Response<pb::Stats>, Status> {
        Ok(Response::new(pb::Stats {
            running: 2,
            waiting: 3,
            max_running: 8,
            max_waiting: 64,
            cache_pages: 60,
            max_cache_pages: 100,
            page_tokens: 16,
            idle_pages: 35,
            prefix_queries_total: 1000,
            prefix_hits_total: 400,
            prompt_tokens_total: 1200,
            answer_tokens_total: 345,
            preemptions_total: 1,
            ended_total: [("stop".to_owned(), 5), ("length".to_owned(), 4)].into(),
            steps_total: 77,
            adapters: 1,
            max_adapters: 16,
        }))
    }
}
