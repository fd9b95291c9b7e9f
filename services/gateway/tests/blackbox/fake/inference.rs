//! Inference, as scripted.

use firn_proto::inference::v1::{self as pb, inference_service_server::InferenceService};
use tonic::{Request, Response, Status};

use super::{Fake, Pieces};

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
        let base = pb::ServedModel { id: "base".to_owned(), context_length: 512, ..Default::default() };
        let tuned = pb::ServedModel { id: "offers@best".to_owned(), parent: "base".to_owned(), ..base.clone() };
        Ok(Response::new(pb::ListModelsResponse { models: vec![base, tuned] }))
    }

    async fn load_model(&self, _: Request<pb::LoadModelRequest>) -> Result<Response<pb::ServedModel>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn unload_model(
        &self,
        _: Request<pb::UnloadModelRequest>,
    ) -> Result<Response<pb::UnloadModelResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn tokenize(&self, _: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_stats(&self, _: Request<pb::GetStatsRequest>) -> Result<Response<pb::Stats>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
