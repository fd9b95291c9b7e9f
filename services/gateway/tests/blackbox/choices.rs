//! Several answers to one request, and their log-probabilities.

use firn_proto::inference::v1::FinishReason;

use super::*;
use crate::fake::{delta, finish, token};

/// A stream's chunks, without its end mark.
fn chunks(text: &str) -> Vec<Value> {
    let mut events = events(text);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

#[tokio::test]
async fn many_answers_differ_by_seed_and_share_their_prompt() {
    let running = Running::start().await;
    let wishes = question(json!({"n": 3, "seed": u64::MAX}));
    let (status, body) = json_of(running.post("/v1/chat/completions", &wishes).await).await;
    assert_eq!(status, 200, "{body}");
    let indices: Vec<_> = body["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);
    let usage = &body["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(3), &json!(6), &json!(9))
    );
    let mut seeds: Vec<_> =
        running.fake.asked.lock().unwrap().drain(..).map(|asked| asked.sampling.unwrap().seed.unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [0, 1, u64::MAX], "they wrap");
    assert_eq!(body["firn"]["seed"], u64::MAX);

    let drawn = json!({"prompt": "Once", "n": 2});
    assert_eq!(running.post("/v1/completions", &drawn).await.status(), 200);
    let seeds: Vec<_> =
        running.fake.generated.lock().unwrap().drain(..).map(|asked| asked.sampling.unwrap().seed.unwrap()).collect();
    assert_eq!(seeds[0].abs_diff(seeds[1]), 1);
    running.stop().await;
}

#[tokio::test]
async fn streamed_answers_interleave_under_their_index() {
    let running = Running::start().await;
    let scripts = [running.fake.script(), running.fake.script()];
    let wishes = question(json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}}));
    let mut response = running.post("/v1/chat/completions", &wishes).await;
    let mut text = String::new();
    for (said, script) in [("one", 0), ("two", 1), ("three", 0)] {
        scripts[script].0.send(Ok(delta(said))).await.unwrap();
        while !text.contains(said) {
            let frame = within(response.frame()).await.unwrap().unwrap();
            text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
    }
    for (script, reason) in [(1, FinishReason::Length), (0, FinishReason::Stop)] {
        scripts[script].0.send(Ok(finish(reason))).await.unwrap();
    }
    text += &text_of(response).await;
    let chunks = chunks(&text);
    let choice = |chunk: &Value| chunk["choices"][0].clone();
    let said: Vec<_> = chunks[2..5].iter().map(|chunk| choice(chunk)["delta"]["content"].clone()).collect();
    assert_eq!(said, ["one", "two", "three"]);
    let index = |chunk: &Value| choice(chunk)["index"].as_u64();
    assert_eq!(chunks[..2].iter().map(index).collect::<Vec<_>>(), [Some(0), Some(1)], "each says its role first");
    assert_eq!(index(&chunks[2]), index(&chunks[4]));
    assert_ne!(index(&chunks[2]), index(&chunks[3]));
    let reason = |of: &Value| {
        let ends = |chunk: &&Value| index(chunk) == index(of) && !choice(chunk)["finish_reason"].is_null();
        choice(chunks.iter().find(ends).unwrap())["finish_reason"].clone()
    };
    assert_eq!((reason(&chunks[2]), reason(&chunks[3])), (json!("stop"), json!("length")));
    assert_eq!((chunks.len(), &chunks[7]["usage"]["total_tokens"]), (8, &json!(7)));
    running.stop().await;
}

#[tokio::test]
async fn one_answer_that_fails_ends_them_all() {
    let running = Running::start().await;
    let ((broken, _), (_open, gone)) = (running.fake.script(), running.fake.script());
    broken.send(Err(tonic::Status::internal("engine"))).await.unwrap();
    let text = text_of(running.post("/v1/chat/completions", &question(json!({"n": 2, "stream": true}))).await).await;
    let last: Value = serde_json::from_str(events(&text).last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    within(gone).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn log_probabilities_come_in_both_shapes() {
    let running = Running::start().await;
    let rocket = "🚀".as_bytes();
    let pieces =
        || [token("a", b"a", -0.5), token("", &rocket[..3], -1.5), token("🚀", &rocket[3..], f32::NEG_INFINITY)];
    let shapes = [
        ("/v1/chat/completions", question(json!({"logprobs": true, "top_logprobs": 2}))),
        ("/v1/completions", json!({"prompt": "a", "logprobs": 2})),
    ];
    for (path, mut body) in shapes {
        for stream in [false, true] {
            body["stream"] = json!(stream);
            let (sender, _gone) = running.fake.script();
            for piece in pieces().into_iter().chain([finish(FinishReason::Stop)]) {
                sender.send(Ok(piece)).await.unwrap();
            }
            let text = text_of(running.post(path, &body).await).await;
            let found = if stream { chunks(&text) } else { vec![serde_json::from_str(&text).unwrap()] };
            let all = |field: &str| -> Vec<Value> {
                let lists = found.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][field].as_array());
                lists.flatten().cloned().collect()
            };
            if path == "/v1/completions" {
                assert_eq!(all("tokens"), ["a", "\u{fffd}", "\u{fffd}"]);
                assert_eq!(all("text_offset"), [0, 1, 1]);
                assert_eq!(all("token_logprobs"), [-0.5, -1.5, -9999.0]);
                assert_eq!(all("top_logprobs")[0], json!({"a": -0.5, "other": -4.0}));
            } else {
                let content = all("content");
                assert_eq!(content.len(), 3);
                assert_eq!((&content[1]["bytes"], &content[2]["logprob"]), (&json!([240, 159, 154]), &json!(-9999.0)));
                assert_eq!(content[0]["top_logprobs"][1]["token"], "other");
            }
        }
    }
    let asked = running.fake.asked.lock().unwrap().pop().unwrap().sampling.unwrap();
    assert_eq!((asked.logprobs, asked.top_logprobs), (true, 2));
    running.stop().await;
}
