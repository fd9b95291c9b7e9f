use firn_proto::inference::v1::{TokenIds, generate_request};
use serde_json::Value;

use super::*;

fn chat(body: &Value) -> Result<(ChatRequest, bool, bool), Value> {
    match Ask::chat(body.to_string().as_bytes(), String::from("me")) {
        Ok(Ask { input: Input::Chat(request), stream, include_usage, .. }) => Ok((request, stream, include_usage)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.body()["error"].take()),
    }
}

fn with(extra: Value) -> Value {
    let mut body = json!({"model": "base", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn a_full_request_is_understood() {
    let (request, stream, usage) = chat(&json!({
        "model": "offers@best",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "max_tokens": 5, "max_completion_tokens": 7, "seed": -1,
        "stop": "END", "stream": true, "stream_options": {"include_usage": true}, "n": 1, "user": "me",
        "presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "logprobs": false, "audio": null,
        "tool_choice": "auto", "store": false, "service_tier": "default", "metadata": {"a": "b"}, "parallel_tool_calls": true,
    }))
    .unwrap();
    assert!(stream && usage);
    let turns: Vec<_> = request.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
    assert_eq!(turns, [("system", "Be brief."), ("user", "ab")]);
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.max_tokens, sampling.seed, sampling.top_k), (Some(7), Some(u64::MAX), Some(0)));
    assert_eq!(sampling.stop, ["END"]);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (name, value) in [
        ("n", json!(0)),
        ("n", json!(9)),
        ("best_of", json!(3)),
        ("presence_penalty", json!("much")),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(3)),
        ("logit_bias", json!({"the": 1})),
        ("logit_bias", json!([1])),
        ("response_format", json!({"type": "xml"})),
        ("response_format", json!({"type": "json_schema"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"schema": "text"}})),
        ("guided_json", json!("{")),
        ("guided_json", json!([])),
        ("tools", json!([{}])),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "look"}})),
        ("store", json!(true)),
        ("service_tier", json!("flex")),
        ("echo", json!(true)),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("temperature", json!("hot")),
        ("max_tokens", json!(-1)),
        ("top_k", json!(-2)),
        ("seed", json!(1.5)),
        ("stream", json!("yes")),
    ] {
        let error = chat(&with(json!({name: value}))).unwrap_err();
        assert_eq!((&error["param"], &error["type"]), (&json!(name), &json!("invalid_request_error")), "{error}");
    }
    let much = with(json!({"logprobs": true, "top_logprobs": 21}));
    assert_eq!(chat(&much).unwrap_err()["param"], "top_logprobs");
    let twice = with(json!({"guided_json": {}, "response_format": {"type": "json_object"}}));
    assert_eq!(chat(&twice).unwrap_err()["param"], "guided_json");
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]});
    assert_eq!(chat(&image).unwrap_err()["param"], "messages[0].content");
    assert_eq!(chat(&json!({"model": "x"})).unwrap_err()["param"], "messages");
    assert!(chat(&json!([])).is_err());
}

#[test]
fn a_prompt_is_one_text_or_one_list_of_ids() {
    let read = |prompt: Value| {
        let body = json!({"prompt": prompt, "ignore_eos": true}).to_string();
        match Ask::text(body.as_bytes(), String::new()) {
            Ok(Ask { input: Input::Text(request), .. }) => request.input,
            _ => None,
        }
    };
    let text = |text: &str| Some(generate_request::Input::Prompt(text.to_owned()));
    assert_eq!((read(json!("a")), read(json!(["a"]))), (text("a"), text("a")));
    let ids = Some(generate_request::Input::Ids(TokenIds { ids: vec![1, 2] }));
    assert_eq!((read(json!([1, 2])), read(json!([[1, 2]]))), (ids.clone(), ids));
    for wrong in [json!(["a", "b"]), json!([[1], [2]]), json!([]), json!(1), json!(null)] {
        assert_eq!(read(wrong), None);
    }
}

#[test]
fn every_wish_reaches_the_sampler() {
    let (request, ..) = chat(&with(json!({
        "min_p": 0.25, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.5, "n": 8, "best_of": 8,
        "logit_bias": {"7": -100, "12": 2.5}, "logprobs": true, "top_logprobs": 20,
    })))
    .unwrap();
    assert_eq!(request.tenant, "me");
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (Some(0.25), Some(1.5)));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (0.5, -0.5));
    assert_eq!(sampling.logit_bias, [(7, -100.0), (12, 2.5)].into());
    assert_eq!((sampling.logprobs, sampling.top_logprobs), (true, 20));
    let body = json!({"prompt": "a", "logprobs": 0}).to_string();
    let Ok(Ask { input: Input::Text(request), logprobs: true, .. }) = Ask::text(body.as_bytes(), String::new()) else {
        panic!("0 asks for the chosen tokens' alone")
    };
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.logprobs, sampling.top_logprobs), (true, 0));
}

#[test]
fn schemas_are_understood_in_all_their_shapes() {
    let schema = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {}}});
    let named = json!({"type": "json_schema", "json_schema": {"name": "offer", "strict": true, "schema": schema}});
    for wish in [
        json!({"response_format": named}),
        json!({"guided_json": schema}),
        json!({"guided_json": schema.to_string(), "response_format": {"type": "text"}}),
    ] {
        let (request, ..) = chat(&with(wish)).unwrap();
        assert_eq!(request.sampling.unwrap().json_schema, schema.to_string(), "properties keep their order");
    }
    let (request, ..) = chat(&with(json!({"response_format": {"type": "json_object"}}))).unwrap();
    assert_eq!(request.sampling.unwrap().json_schema, r#"{"type":"object"}"#);
}
