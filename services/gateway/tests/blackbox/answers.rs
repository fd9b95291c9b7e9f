//! Chats and completions.

use firn_proto::inference::v1::{FinishReason, generate_request};

use super::*;
use crate::fake::{delta, finish};

const TEXT: &str = "Hello \"there\"\n🚀";

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let running = Running::start().await;
    let wishes = question(json!({"temperature": 0, "max_tokens": 9, "stop": ["x"], "seed": 7}));
    let (status, body) = json_of(running.post("/v1/chat/completions", &wishes).await).await;
    assert_eq!(status, 200, "{body}");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-") && body["created"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("offers@best")));
    let message = json!({"role": "assistant", "content": TEXT, "refusal": null});
    assert_eq!(body["choices"][0]["message"], message);
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let cached = json!({"cached_tokens": 1});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": cached});
    assert_eq!(body["usage"], usage);
    let beyond = json!({
        "seed": 7, "first_token_seconds": 0.5, "seconds": 1.5, "cached_tokens": 1, "version": "models/offers/versions/2",
    });
    assert_eq!(body["firn"], beyond);
    let asked = running.fake.asked.lock().unwrap().pop().unwrap();
    let sampling = asked.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.max_tokens, sampling.seed), (Some(0.0), Some(9), Some(7)));
    assert_eq!((asked.messages[0].content.as_str(), sampling.stop.as_slice()), ("hi", ["x".to_owned()].as_slice()));
    running.stop().await;
}

#[tokio::test]
async fn a_chat_streams_as_it_comes() {
    let running = Running::start().await;
    let (pieces, _gone) = running.fake.script();
    let wishes = question(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut response = running.post("/v1/chat/completions", &wishes).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut text = String::new();
    pieces.send(Ok(delta("one"))).await.unwrap();
    while !text.contains("one") {
        let frame = within(response.frame()).await.unwrap().unwrap();
        text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    for piece in [delta(" two"), finish(FinishReason::Length)] {
        pieces.send(Ok(piece)).await.unwrap();
    }
    text += &text_of(response).await;
    let events = events(&text);
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"]));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "one");
    assert_eq!(chunks[2]["choices"][0]["delta"]["content"], " two");
    assert_eq!((&chunks[3]["choices"][0]["finish_reason"], &chunks[3]["usage"]), (&json!("length"), &Value::Null));
    assert_eq!(chunks[3]["firn"]["version"], "models/offers/versions/2");
    assert_eq!((&chunks[4]["choices"], &chunks[4]["usage"]["total_tokens"]), (&json!([]), &json!(5)));
    assert_eq!(chunks.len(), 5);
    running.stop().await;
}

#[tokio::test]
async fn a_completion_is_answered_whole_and_streamed() {
    let running = Running::start().await;
    let (status, body) =
        json_of(running.post("/v1/completions", &json!({"model": "base", "prompt": "Once"})).await).await;
    assert_eq!((status.as_u16(), &body["object"]), (200, &json!("text_completion")));
    assert_eq!(body["choices"][0], json!({"index": 0, "text": TEXT, "logprobs": null, "finish_reason": "stop"}));
    let asked = running.fake.generated.lock().unwrap().pop().unwrap();
    assert_eq!(asked.input, Some(generate_request::Input::Prompt("Once".to_owned())));

    let text = text_of(running.post("/v1/completions", &json!({"prompt": [1, 2], "stream": true})).await).await;
    let events = events(&text);
    let said: String = events[..events.len() - 1]
        .iter()
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap()["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((said.as_str(), events.last().unwrap().as_str()), (TEXT, "[DONE]"));
    running.stop().await;
}

#[tokio::test]
async fn failures_have_openai_s_shape_and_status() {
    let running = Running::start().await;
    for (model, status, code, param) in [
        ("nobody", 404, json!("model_not_found"), json!("model")),
        ("full", 429, json!("rate_limit_exceeded"), Value::Null),
        ("loading", 503, json!("unavailable"), Value::Null),
        ("wrong", 400, Value::Null, json!("temperature")),
    ] {
        for stream in [false, true] {
            let response =
                running.post("/v1/chat/completions", &question(json!({"model": model, "stream": stream}))).await;
            let retry_after = response.headers().get(header::RETRY_AFTER).cloned();
            let (found, body) = json_of(response).await;
            assert_eq!((found.as_u16(), &body["error"]["code"], &body["error"]["param"]), (status, &code, &param));
            assert_eq!(retry_after.is_some_and(|wait| wait == "2"), [429, 503].contains(&status));
        }
    }
    let (status, body) = json_of(running.post("/v1/chat/completions", &question(json!({"n": 9}))).await).await;
    assert_eq!((status.as_u16(), &body["error"]["param"]), (400, &json!("n")));
    running.stop().await;
}

#[tokio::test]
async fn what_would_be_ignored_is_refused_by_name() {
    let running = Running::start().await;
    let nothing = json!({
        "tool_choice": "none", "store": false, "service_tier": "auto", "metadata": {"a": "b"}, "parallel_tool_calls": true,
    });
    assert_eq!(running.post("/v1/chat/completions", &question(nothing)).await.status(), 200);
    for (name, value) in [
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "look"}})),
        ("store", json!(true)),
        ("service_tier", json!("priority")),
    ] {
        for (path, body) in [("/v1/chat/completions", question(json!({}))), ("/v1/completions", json!({"prompt": "a"}))]
        {
            let mut body = body;
            body[name] = value.clone();
            let (status, answer) = json_of(running.post(path, &body).await).await;
            let error = &answer["error"];
            assert_eq!((status.as_u16(), &error["param"]), (400, &json!(name)), "{answer}");
            assert_eq!(error["code"], "unsupported_parameter");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_failure_in_the_middle_ends_the_answer_as_an_error() {
    let running = Running::start().await;
    for stream in [true, false] {
        let (pieces, _gone) = running.fake.script();
        pieces.send(Ok(delta("one"))).await.unwrap();
        pieces.send(Err(tonic::Status::internal("engine"))).await.unwrap();
        let response = running.post("/v1/chat/completions", &question(json!({"stream": stream}))).await;
        assert_eq!(response.status().as_u16(), if stream { 200 } else { 500 });
        let text = text_of(response).await;
        let last = if stream { events(&text).pop().unwrap() } else { text };
        let error: Value = serde_json::from_str(&last).unwrap();
        assert_eq!(error["error"]["type"], "server_error");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_field_that_is_found_wrong_in_the_middle_has_the_caller_s_name() {
    let running = Running::start().await;
    for (path, mut body, field, name) in [
        (
            "/v1/chat/completions",
            question(json!({"max_completion_tokens": 9})),
            "sampling.max_tokens",
            "max_completion_tokens",
        ),
        ("/v1/completions", json!({"prompt": [1], "response_format": {"type": "json_object"}}), "ids", "prompt"),
    ] {
        for stream in [true, false] {
            let (pieces, _gone) = running.fake.script();
            pieces.send(Ok(delta("one"))).await.unwrap();
            let status = firn_kit::status::invalid_argument("x.firn.dev", field, "is wrong after all");
            pieces.send(Err(status)).await.unwrap();
            body["stream"] = json!(stream);
            let text = text_of(running.post(path, &body).await).await;
            let last = if stream { events(&text).pop().unwrap() } else { text };
            let error = json!({"error": {
                "message": format!("{name}: is wrong after all"), "type": "invalid_request_error", "param": name,
                "code": null,
            }});
            assert_eq!(serde_json::from_str::<Value>(&last).unwrap(), error);
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_the_call() {
    let running = Running::start().await;
    for stream in [true, false] {
        let (pieces, gone) = running.fake.script();
        pieces.send(Ok(delta("one"))).await.unwrap();
        let body = question(json!({"stream": stream}));
        within(ask_and_leave(running.address, post("/v1/chat/completions", &body), stream)).await;
        within(gone).await.unwrap();
    }
    running.stop().await;
}

/// Asks, and leaves: after the first event of a stream, or while a whole answer is awaited.
async fn ask_and_leave(address: SocketAddr, request: Request<Body>, stream: bool) {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    let connection = tokio::spawn(connection);
    if stream {
        let mut response = sender.send_request(request).await.unwrap();
        response.frame().await.unwrap().unwrap();
    } else {
        let answer = tokio::time::timeout(Duration::from_millis(300), sender.send_request(request)).await;
        assert!(answer.is_err(), "it is not complete yet");
    }
    connection.abort();
}
