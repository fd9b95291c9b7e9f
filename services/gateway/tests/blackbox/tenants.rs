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

#[tokio::test]
async fn a_tenant_that_asks_too_often_waits() {
    let options = Options { trust_ingress_user: true, requests_per_minute: 2, ..Options::default() };
    let running = Running::start_with(options).await;
    let ada = [("sf-context-current-user", "ADA")];
    for _ in 0..2 {
        assert_eq!(ask(&running, &ada).await.0, 200);
    }
    let mut request = post("/v1/chat/completions", &question(json!({})));
    request.headers_mut().append("sf-context-current-user", "ADA".parse().unwrap());
    let response = running.send(request).await;
    let wait: u64 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    let (status, body) = json_of(response).await;
    assert_eq!((status.as_u16(), &body["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    assert_eq!(ask(&running, &[("sf-context-current-user", "BOB")]).await.0, 200);
    let request = Request::get("/v1/models").header("sf-context-current-user", "ADA").body(Body::default()).unwrap();
    assert_eq!(running.send(request).await.status(), 200, "reading is free");
    assert_eq!(running.metrics().await.matches("status=\"429\"} 1\n").count(), 1);
    running.stop().await;
}
