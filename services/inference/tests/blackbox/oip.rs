//! The Open Inference Protocol.

use std::collections::HashMap;

use firn_proto::inference_v2::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelReadyRequest, ServerReadyRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
};
use tonic::Code;

use super::*;

fn input(name: &str, text: &str) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![1],
        contents: Some(InferTensorContents { bytes_contents: vec![text.into()], ..Default::default() }),
        ..Default::default()
    }
}

fn request(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let parameters = HashMap::from([
        ("max_tokens".to_owned(), parameter(ParameterChoice::Int64Param(6))),
        ("temperature".to_owned(), parameter(ParameterChoice::DoubleParam(0.0))),
        ("ignore_eos".to_owned(), parameter(ParameterChoice::BoolParam(true))),
    ]);
    ModelInferRequest { model_name: "base".to_owned(), id: "7".to_owned(), parameters, inputs, ..Default::default() }
}

fn text(response: &ModelInferResponse) -> String {
    String::from_utf8(response.outputs[0].contents.clone().unwrap().bytes_contents[0].clone()).unwrap()
}

#[tokio::test]
async fn tensors_in_tensors_out() {
    let running = Running::start().await;
    let mut client = GrpcInferenceServiceClient::new(running.channel.clone());
    assert!(within(client.server_ready(ServerReadyRequest {})).await.unwrap().into_inner().ready);
    let ready = |name: &str| ModelReadyRequest { name: name.to_owned(), version: String::new() };
    assert!(within(client.model_ready(ready("base"))).await.unwrap().into_inner().ready);
    assert!(!within(client.model_ready(ready("nobody"))).await.unwrap().into_inner().ready);
    let metadata = ModelMetadataRequest { name: "base".to_owned(), ..Default::default() };
    let metadata = within(client.model_metadata(metadata)).await.unwrap().into_inner();
    assert_eq!(metadata.inputs.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["text", "messages"]);

    let answer = within(client.model_infer(request(vec![input("text", "Buy the")]))).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), answer.model_name.as_str(), answer.outputs[1].shape[0]), ("7", "base", 6));
    let ids = answer.outputs[1].contents.clone().unwrap().int64_contents;
    let prompt = firn_llm::tokenizer::Tokenizer::from_dir(&llama()).unwrap().encode("Buy the", true).unwrap();
    let same = running.answer(ids_request("", prompt, greedy(6))).await;
    assert_eq!(ids, same.ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>());
    assert_eq!(text(&answer), same.text);

    let mut raw = request(vec![InferInputTensor { contents: None, ..input("text", "") }]);
    raw.raw_input_contents = vec![[7u32.to_le_bytes().as_slice(), b"Buy the"].concat()];
    let raw = within(client.model_infer(raw)).await.unwrap().into_inner();
    assert_eq!(text(&raw), text(&answer));

    let chat = request(vec![input("messages", r#"[{"role":"user","content":"Hello"}]"#)]);
    assert!(within(client.model_infer(chat)).await.is_ok());
    for (wrong, part) in [
        (request(vec![]), "one tensor"),
        (request(vec![input("image", "x")]), "no input `image`"),
        (request(vec![InferInputTensor { shape: vec![2], ..input("text", "x") }]), "one element"),
        (request(vec![InferInputTensor { shape: vec![1 << 62, 4], ..input("text", "x") }]), "one element"),
        (ModelInferRequest { model_version: "7".to_owned(), ..request(vec![input("text", "x")]) }, "no versions"),
        (request(vec![input("messages", "{}")]), "messages"),
    ] {
        let status = within(client.model_infer(wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(part), "{}", status.message());
    }
    running.stop().await;
}
