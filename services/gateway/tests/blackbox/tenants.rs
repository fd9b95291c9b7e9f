//! Whose request it is.

use firn_gateway::Token;

use super::*;

/// A chat as these headers ask for it.
async fn ask(running: &Running, headers: &[(&'static str, &'static str)]) -> (StatusCode, Value) {
    let mut request = post("/v1/chat/completions", &question(json!({"user": "somebody"})));
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    json_of(running.send(request).await).await
}

fn tenant(running: &Running) -> String {
    running.fake.asked.lock().unwrap().pop().unwrap().tenant
}

#[tokio::test]
async fn the_ingress_names_the_user_if_it_is_trusted() {
    let running = Running::start_with(Options { trust_ingress_user: true, ..Options::default() }).await;
    assert_eq!(ask(&running, &[("sf-context-current-user", "ADA")]).await.0, 200);
    assert_eq!(tenant(&running), "ADA");
    for wrong in [&[][..], &[("authorization", "Bearer x")], &[("sf-context-current-user", "")]] {
        let (status, body) = ask(&running, wrong).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (401, &json!("no_user")));
    }
    assert_eq!(running.fake.asked.lock().unwrap().len(), 0);
    running.stop().await;
}

#[tokio::test]
async fn without_that_a_header_says_nothing() {
    let running = Running::start().await;
    assert_eq!(ask(&running, &[("sf-context-current-user", "ADA")]).await.0, 200);
    assert_eq!(tenant(&running), "local");
    running.stop().await;
    let running = Running::start_with(Options { token: Some(Token::new("s3cret")), ..Options::default() }).await;
    let headers = [("sf-context-current-user", "ADA"), ("authorization", "Bearer s3cret")];
    assert_eq!(ask(&running, &headers).await.0, 200);
    assert_eq!(tenant(&running), "token");
    assert_eq!(ask(&running, &headers[..1]).await.0, 401);
    running.stop().await;
}
