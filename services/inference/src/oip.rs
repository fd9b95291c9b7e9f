//! The Open Inference Protocol, version 2: a chat or a prompt as tensors, for clients that speak nothing else.
//!
//! Inputs: `text` (BYTES `[1]`), a prompt, or `messages` (BYTES `[1]`), a JSON list of `{"role", "content"}`; parameters
//! `max_tokens`, `temperature`, `top_p`, `top_k`, `min_p`, `seed`, `ignore_eos`, `json_schema`. Outputs: `text` (BYTES `[1]`),
//! `ids` (INT64 `[n]`) and `finish_reason` (BYTES `[1]`).

use std::collections::HashMap;

use firn_llm::tokenizer::Message;
use firn_proto::{
    inference::v1::{self as pb, generate_response::Event},
    inference_v2::{
        self as v2, infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
        model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
    },
};
use futures_util::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::{
    error::AnswerError,
    models::{BASE, Served},
    request::{FieldError, messages},
    serving::{Prompt, Serving},
};

/// Tensors of an answer.
const OUTPUTS: [&str; 3] = ["text", "ids", "finish_reason"];

/// Answers calls of the protocol.
#[derive(Clone, Debug)]
pub(crate) struct OpenInference(pub(crate) Serving);

#[tonic::async_trait]
impl v2::grpc_inference_service_server::GrpcInferenceService for OpenInference {
    async fn server_live(&self, _: Request<v2::ServerLiveRequest>) -> Result<Response<v2::ServerLiveResponse>, Status> {
        Ok(Response::new(v2::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<v2::ServerReadyRequest>,
    ) -> Result<Response<v2::ServerReadyResponse>, Status> {
        Ok(Response::new(v2::ServerReadyResponse { ready: self.0.engine.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<v2::ModelReadyRequest>,
    ) -> Result<Response<v2::ModelReadyResponse>, Status> {
        let v2::ModelReadyRequest { name, version } = request.into_inner();
        let there = self.find(&name, &version).is_ok();
        Ok(Response::new(v2::ModelReadyResponse { ready: there && self.0.engine.is_ready() }))
    }

    async fn server_metadata(
        &self,
        _: Request<v2::ServerMetadataRequest>,
    ) -> Result<Response<v2::ServerMetadataResponse>, Status> {
        let (name, version) = ("firn".to_owned(), firn_kit::build_info::VERSION.to_owned());
        Ok(Response::new(v2::ServerMetadataResponse { name, version, extensions: vec![] }))
    }

    async fn model_metadata(
        &self,
        request: Request<v2::ModelMetadataRequest>,
    ) -> Result<Response<v2::ModelMetadataResponse>, Status> {
        let v2::ModelMetadataRequest { name, version } = request.into_inner();
        let served = self.find(&name, &version)?;
        let tensor = |name: &str, datatype: &str, size: i64| TensorMetadata {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![size],
        };
        Ok(Response::new(v2::ModelMetadataResponse {
            name: if name.is_empty() { BASE.to_owned() } else { name },
            versions: served.into_iter().map(|served| served.number.to_string()).collect(),
            platform: "firn".to_owned(),
            inputs: vec![tensor("text", "BYTES", 1), tensor("messages", "BYTES", 1)],
            outputs: vec![tensor("text", "BYTES", 1), tensor("ids", "INT64", -1), tensor("finish_reason", "BYTES", 1)],
        }))
    }

    async fn model_infer(
        &self,
        request: Request<v2::ModelInferRequest>,
    ) -> Result<Response<v2::ModelInferResponse>, Status> {
        let mut request = request.into_inner();
        let prompt = prompt(&mut request).map_err(AnswerError::from)?;
        let sampling = sampling(&request.parameters).map_err(AnswerError::from)?;
        let served = self.find(&request.model_name, &request.model_version)?;
        let wanted: Vec<String> = request.outputs.iter().map(|output| output.name.clone()).collect();
        if let Some(unknown) = wanted.iter().find(|name| !OUTPUTS.contains(&name.as_str())) {
            let unknown: String = unknown.chars().take(80).collect();
            let reason = format!("there is no output `{unknown}`: {}", OUTPUTS.join(", "));
            return Err(AnswerError::Field(FieldError::new("outputs", reason)).into());
        }
        let mut pieces = self.0.answer(served, prompt, Some(sampling), String::new()).await?.pieces();
        let (mut text, mut ids, mut reason, mut version) = (String::new(), vec![], "", String::new());
        while let Some(piece) = pieces.next().await {
            match piece?.event {
                Some(Event::Delta(delta)) => {
                    text += &delta.text;
                    ids.extend(delta.ids.into_iter().map(i64::from));
                }
                Some(Event::Finish(finish)) => {
                    let length = finish.reason() == pb::FinishReason::Length;
                    reason = if length { "length" } else { "stop" };
                    version = finish.version;
                }
                None => {}
            }
        }
        let bytes = |name: &str, value: &str| {
            let contents =
                v2::InferTensorContents { bytes_contents: vec![value.as_bytes().to_vec()], ..Default::default() };
            output(name, "BYTES", 1, contents)
        };
        let count = ids.len() as i64;
        let ids = v2::InferTensorContents { int64_contents: ids, ..Default::default() };
        Ok(Response::new(v2::ModelInferResponse {
            model_name: if request.model_name.is_empty() { BASE.to_owned() } else { request.model_name },
            model_version: version.rsplit('/').next().unwrap_or_default().to_owned(),
            id: request.id,
            outputs: [bytes("text", &text), output("ids", "INT64", count, ids), bytes("finish_reason", reason)]
                .into_iter()
                .filter(|output| wanted.is_empty() || wanted.contains(&output.name))
                .collect(),
            ..Default::default()
        }))
    }
}

fn output(name: &str, datatype: &str, size: i64, contents: v2::InferTensorContents) -> InferOutputTensor {
    let (name, datatype) = (name.to_owned(), datatype.to_owned());
    InferOutputTensor { name, datatype, shape: vec![size], contents: Some(contents), ..Default::default() }
}

impl OpenInference {
    /// What a name means, if it is served in the version that is asked for; any version if none is.
    fn find(&self, name: &str, version: &str) -> Result<Option<Served>, AnswerError> {
        let served = self.0.models.find(name)?;
        let number = served.as_ref().map(|served| served.number.to_string()).unwrap_or_default();
        if version.is_empty() || version == number {
            return Ok(served);
        }
        let there = if number.is_empty() { "no versions".to_owned() } else { format!("version {number} now") };
        Err(AnswerError::Field(FieldError::new("model_version", format!("{name} has {there}"))))
    }
}

fn prompt(request: &mut v2::ModelInferRequest) -> Result<Prompt, FieldError> {
    let raw = std::mem::take(&mut request.raw_input_contents);
    let inputs = std::mem::take(&mut request.inputs);
    let [input] = <[InferInputTensor; 1]>::try_from(inputs)
        .map_err(|_| FieldError::new("inputs", "must be one tensor: text or messages"))?;
    if input.datatype != "BYTES" || input.shape != [1] {
        return Err(FieldError::new("inputs", "must be BYTES of shape [1]: one element"));
    }
    let contents = input.contents.map(|contents| contents.bytes_contents).unwrap_or_default();
    let bytes = match (contents.into_iter().next(), raw.into_iter().next()) {
        (Some(bytes), None) => bytes,
        (None, Some(raw)) => element(&raw).ok_or_else(|| {
            FieldError::new("raw_input_contents", "must be the element after its length in four bytes, little-endian")
        })?,
        _ => return Err(FieldError::new("inputs", "must have its element in contents or in raw_input_contents")),
    };
    let text = String::from_utf8(bytes).map_err(|_| FieldError::new("inputs", "must be UTF-8"))?;
    match input.name.as_str() {
        "text" => Ok(Prompt::Text(text)),
        "messages" => {
            let turns: Vec<Message> =
                serde_json::from_str(&text).map_err(|error| FieldError::new("inputs", format!("messages: {error}")))?;
            let turn = |Message { role, content }| pb::ChatMessage { role, content };
            Ok(Prompt::Chat(messages(turns.into_iter().map(turn).collect())?, true))
        }
        other => {
            let other: String = other.chars().take(80).collect();
            Err(FieldError::new("inputs", format!("there is no input `{other}`: text or messages")))
        }
    }
}

/// The only element of a BYTES tensor in raw form.
fn element(raw: &[u8]) -> Option<Vec<u8>> {
    let (length, bytes) = raw.split_first_chunk::<4>()?;
    (bytes.len() == u32::from_le_bytes(*length) as usize).then(|| bytes.to_vec())
}

fn sampling(parameters: &HashMap<String, v2::InferParameter>) -> Result<pb::Sampling, FieldError> {
    let mut sampling = pb::Sampling::default();
    for (name, value) in parameters {
        let choice = value.parameter_choice.as_ref();
        let wrong = |what: &str| FieldError::new("parameters", format!("{name} must be {what}"));
        let number = || match choice {
            Some(ParameterChoice::DoubleParam(value)) => Ok(*value as f32),
            Some(ParameterChoice::Int64Param(value)) => Ok(*value as f32),
            Some(ParameterChoice::Uint64Param(value)) => Ok(*value as f32),
            _ => Err(wrong("a number")),
        };
        let whole = || match choice {
            Some(ParameterChoice::Int64Param(value)) => u64::try_from(*value).map_err(|_| wrong("from 0 on")),
            Some(ParameterChoice::Uint64Param(value)) => Ok(*value),
            _ => Err(wrong("a whole number")),
        };
        let small = || u32::try_from(whole()?).map_err(|_| wrong("a whole number of 32 bits"));
        match name.as_str() {
            "max_tokens" => sampling.max_tokens = Some(small()?),
            "top_k" => sampling.top_k = Some(small()?),
            "seed" => sampling.seed = Some(whole()?),
            "temperature" => sampling.temperature = Some(number()?),
            "top_p" => sampling.top_p = Some(number()?),
            "min_p" => sampling.min_p = Some(number()?),
            "ignore_eos" => match choice {
                Some(ParameterChoice::BoolParam(value)) => sampling.ignore_eos = *value,
                _ => return Err(wrong("true or false")),
            },
            "json_schema" => match choice {
                Some(ParameterChoice::StringParam(schema)) => sampling.json_schema.clone_from(schema),
                _ => return Err(wrong("a text")),
            },
            other => {
                let other: String = other.chars().take(80).collect();
                return Err(FieldError::new("parameters", format!("unknown parameter {other}")));
            }
        }
    }
    Ok(sampling)
}
