//! Text as the model reads it.

use firn_gateway::Token;
use firn_proto::inference::v1::{TokenIds, tokenize_request::Input};

use super::*;

#[tokio::test]
async fn text_and_chats_become_tokens() {
    let running = Running::start().await;
    let asked = || running.fake.tokenized.lock().unwrap().pop().unwrap().input.unwrap();
    let body = json!({"model": "base", "prompt": "hi", "add_special_tokens": true, "return_token_strs": true});
    let (status, answer) = json_of(running.post("/tokenize", &body).await).await;
    let expected = json!({
        "count": 2, "max_model_len": 512, "tokens": [7, 8], "token_strs": ["hi", "\u{fffd}"], "text": "hi?",
        "template_sha256": "abc",
    });
    assert_eq!((status.as_u16(), answer), (200, expected));
    assert_eq!(asked(), Input::Text("hi".to_owned()));
    for (extra, expected) in [(json!({}), true), (json!({"add_generation_prompt": false}), false)] {
        assert_eq!(running.post("/tokenize", &question(extra)).await.status(), 200);
        let Input::Chat(turns) = asked() else { panic!("it is a chat") };
        assert_eq!((turns.messages.len(), turns.add_generation_prompt), (1, expected));
    }
    running.stop().await;
}

#[tokio::test]
async fn tokens_become_text() {
    let running = Running::start().await;
    let (status, body) = json_of(running.post("/detokenize", &json!({"tokens": [7, 8]})).await).await;
    assert_eq!((status.as_u16(), body), (200, json!({"prompt": "hi?"})));
    let asked = running.fake.tokenized.lock().unwrap().pop().unwrap().input.unwrap();
    assert_eq!(asked, Input::Ids(TokenIds { ids: vec![7, 8] }));
    running.stop().await;
}

#[tokio::test]
async fn what_would_be_read_otherwise_is_refused() {
    let running = Running::start().await;
    for (path, body, param) in [
        ("/tokenize", json!({"prompt": "hi", "add_special_tokens": false}), "add_special_tokens"),
        ("/tokenize", question(json!({"add_special_tokens": true})), "add_special_tokens"),
        ("/tokenize", json!({}), "messages"),
        ("/tokenize", json!({"prompt": "hi", "messages": []}), "messages"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": ["a"]}), "tokens"),
    ] {
        let (status, answer) = json_of(running.post(path, &body).await).await;
        assert_eq!((status.as_u16(), answer["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
    running.stop().await;
    let running = Running::start_with(Options { token: Some(Token::new("s3cret")), ..Options::default() }).await;
    for path in ["/tokenize", "/detokenize", "/v1/load_lora_adapter"] {
        assert_eq!(running.post(path, &json!({})).await.status(), 401);
    }
    running.stop().await;
}
