//! Who gets in, and what is there besides answers.

use firn_gateway::{StartError, Token};

use super::*;

#[tokio::test]
async fn a_token_is_asked_for_where_there_is_one() {
    let running = Running::start_with(Options { token: Some(Token::new("s3cret")), ..Options::default() }).await;
    let get = |path: &str, token: Option<&str>| {
        let request = Request::get(path).header("host", "gateway.example");
        let request = match token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        request.body(Body::default()).unwrap()
    };
    for wrong in [None, Some("s3cre"), Some("")] {
        let response = running.send(get("/v1/models", wrong)).await;
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let (status, body) = json_of(response).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (401, &json!("invalid_api_key")));
    }
    assert_eq!(running.send(get("/v1/models", Some("s3cret"))).await.status(), 200);
    assert_eq!(running.send(get("/healthz", None)).await.status(), 200);
    assert_eq!(running.send(get("/", None)).await.status(), 200);
    let response = running.post("/v1/chat/completions", &question(json!({}))).await;
    assert_eq!(response.status(), 401);
    running.stop().await;
}

#[tokio::test]
async fn a_token_that_changes_on_disk_counts_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    let running = Running::start_with(Options { token_file: Some(path.clone()), ..Options::default() }).await;
    let ask = async |token: &str| {
        let request = Request::get("/v1/models").header("authorization", format!("Bearer {token}"));
        running.send(request.body(Body::default()).unwrap()).await.status().as_u16()
    };
    assert_eq!((ask("s3cret").await, ask("n3xt").await), (200, 401));
    // While callers change, both count.
    for content in ["s3cret\nn3xt\n", "n3xt\ns3cret\n"] {
        std::fs::write(&path, content).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!((ask("s3cret").await, ask("n3xt").await), (200, 200), "{content:?}");
        assert_eq!((ask("s3cret\u{a0}n3xt").await, ask("").await), (401, 401), "{content:?}");
    }
    // A file that is empty for a moment, or gone, lets nobody in and locks nobody out.
    for content in [Some("n3xt"), Some(""), None] {
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!((ask("s3cret").await, ask("n3xt").await, ask("").await), (401, 200, 401), "{content:?}");
    }
    running.stop().await;

    let start = async |token: Option<&str>, file: &str| {
        let options = Options { token: token.map(Token::new), token_file: Some(file.into()), ..Options::default() };
        let options = Options { http: "0.0.0.0:0".parse().unwrap(), ..options };
        Gateway::bind_with(options).await.unwrap_err().to_string()
    };
    assert!(start(None, "/nowhere/token").await.contains("/nowhere/token"));
    assert!(start(Some("s3cret"), "/nowhere/token").await.contains("FIRN_GATEWAY_TOKEN_FILE are both set"));
    assert!(start(None, "").await.contains("can be reached from elsewhere"), "an empty path is none");
}

#[tokio::test]
async fn without_a_token_it_answers_this_machine_alone() {
    let open = |options| Gateway::bind_with(Options { http: "0.0.0.0:0".parse().unwrap(), ..options });
    let error = open(Options::default()).await.unwrap_err();
    assert!(matches!(&error, StartError::Unguarded { .. }) && error.to_string().contains("--no-auth"), "{error}");
    let empty = Options { token: Some(Token::new("")), ..Options::default() };
    assert!(open(empty).await.is_err(), "an empty token is none");
    assert!(open(Options { no_auth: true, ..Options::default() }).await.is_ok());
    assert!(open(Options { token: Some(Token::new("x")), ..Options::default() }).await.is_ok());

    let running = Running::start().await;
    let rebound = Request::get("/v1/models").header("host", "evil.example").body(Body::default()).unwrap();
    assert_eq!(running.send(rebound).await.status(), 403);
    let simple = Request::post("/v1/chat/completions").header("host", "localhost").header("content-type", "text/plain");
    let body = question(json!({})).to_string();
    assert_eq!(running.send(simple.body(Body::from(body)).unwrap()).await.status(), 415);
    running.stop().await;
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let running = Running::start().await;
    let ask = |name: &str, value: &str| {
        let request = Request::post("/v1/jobs/job-1/cancel").header("host", "localhost:8080").header(name, value);
        request.body(Body::default()).unwrap()
    };
    for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example"), ("origin", "null")] {
        let (status, body) = json_of(running.send(ask(name, value)).await).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (403, &json!("wrong_origin")), "{name}: {value}");
    }
    assert!(running.fake.told.lock().unwrap().is_empty());
    assert_eq!(running.send(ask("sec-fetch-site", "same-origin")).await.status(), 200);
    assert_eq!(running.send(ask("origin", "http://localhost:8080")).await.status(), 200);
    running.stop().await;
}

#[tokio::test]
async fn a_body_has_a_limit_and_must_be_json() {
    let running = Running::start_with(Options { max_body_bytes: 1000, ..Options::default() }).await;
    let long = question(json!({"user": "x".repeat(2000)}));
    let (status, body) = json_of(running.post("/v1/chat/completions", &long).await).await;
    assert_eq!(
        (status.as_u16(), body["error"]["message"].as_str().unwrap()),
        (413, "the body has more than 1000 bytes")
    );
    let broken =
        Request::post("/v1/completions").header("host", "localhost").header("content-type", "application/json");
    let (status, body) = json_of(running.send(broken.body(Body::from("{")).unwrap()).await).await;
    assert_eq!(status, 400);
    assert!(body["error"]["message"].as_str().unwrap().starts_with("the body is not JSON"));
    running.stop().await;
}

#[tokio::test]
async fn models_jobs_and_versions_are_listed() {
    let running = Running::start().await;
    let (_, models) = running.get("/v1/models").await;
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["base", "offers@best"]);
    assert_eq!(models["data"][0]["object"], "model");
    assert_eq!(running.get("/v1/models/offers@best").await.1["parent"], "base");
    let (status, body) = running.get("/v1/models/none").await;
    assert_eq!((status.as_u16(), &body["error"]["param"]), (404, &json!("model")));

    *running.fake.many_jobs.lock().unwrap() = 3;
    let (_, jobs) = running.get("/v1/jobs?page_size=2").await;
    assert_eq!((jobs["data"].as_array().unwrap().len(), &jobs["next_page_token"]), (2, &json!("next")));
    let job = &jobs["data"][0];
    assert_eq!((&job["state"], &job["create_time"]), (&json!("RUNNING"), &json!("1970-01-01T00:00:00Z")));
    assert_eq!(running.get("/v1/jobs?page_size=many").await.0, 400);

    let (_, registry) = running.get("/v1/registry/models").await;
    assert_eq!(registry["data"][0]["aliases"][0]["version"], 2);
    let (_, datasets) = running.get("/v1/datasets").await;
    assert_eq!(datasets["data"][0]["name"], "datasets/offers/snapshots/1234");
    running.stop().await;
}

#[tokio::test]
async fn the_page_asks_nobody_else() {
    let running = Running::start().await;
    let ask = async |path: &str, tag: Option<&str>| {
        let request = Request::get(path).header("host", "localhost");
        let request = match tag {
            Some(tag) => request.header("if-none-match", tag),
            None => request,
        };
        running.send(request.body(Body::default()).unwrap()).await
    };
    let response = ask("/", None).await;
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    for part in ["default-src 'none'", "script-src 'self'", "connect-src 'self'"] {
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    let page = text_of(response).await;
    assert!(!page.contains("://") && page.contains("page/app.js"));
    let script = ask("/page/api.js", None).await;
    assert!(script.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/javascript"));
    let tag = script.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert!(text_of(script).await.contains("v1/chat/completions"));
    assert_eq!(ask("/page/api.js", Some(&tag)).await.status(), 304);
    assert_eq!(ask("/page/none.js", None).await.status(), 404);
    let (status, body) = running.get("/nowhere").await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("unknown_url")));
    assert_eq!(running.get("/v1/chat/completions").await.0, 405);
    running.stop().await;
}

#[tokio::test]
async fn it_is_ready_while_it_runs_and_open_answers_finish() {
    let health = Some("127.0.0.1:0".parse().unwrap());
    let running = Running::start_with(Options { health_listen: health, ..Options::default() }).await;
    let probe = async |path: &str| {
        let request = Request::get(path).header("host", "x").body(Body::default()).unwrap();
        connect(running.health.unwrap()).await.send_request(request).await.unwrap().status().as_u16()
    };
    assert_eq!((probe("/livez").await, probe("/readyz").await), (200, 200));
    let (pieces, _gone) = running.fake.script();
    pieces.send(Ok(fake::delta("one"))).await.unwrap();
    let response = running.post("/v1/chat/completions", &question(json!({"stream": true}))).await;
    running.shutdown.cancel();
    while probe("/readyz").await != 503 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pieces.send(Ok(fake::finish(firn_proto::inference::v1::FinishReason::Stop))).await.unwrap();
    assert!(text_of(response).await.ends_with("data: [DONE]\n\n"));
    running.stop().await;
}

#[tokio::test]
async fn health_is_that_of_what_answers() {
    let running = Running::start_with(Options { token: Some(Token::new("s3cret")), ..Options::default() }).await;
    let ask = async |running: &Running, path: &str| {
        let request = Request::get(path).header("host", "probe.example").body(Body::default()).unwrap();
        running.send(request).await
    };
    for path in ["/health", "/ping"] {
        let response = ask(&running, path).await;
        assert_eq!((response.status().as_u16(), text_of(response).await.as_str()), (200, ""));
    }
    let (status, version) = json_of(ask(&running, "/version").await).await;
    assert_eq!((status.as_u16(), &version["version"]), (200, &json!(env!("CARGO_PKG_VERSION"))));
    running.stop().await;
    let running = Running::start_on(Options::default(), Some("http://127.0.0.1:1".to_owned())).await;
    assert_eq!(ask(&running, "/health").await.status(), 503);
    assert_eq!(ask(&running, "/healthz").await.status(), 200, "the gateway itself is there");
    running.stop().await;
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable() {
    let options = Options { http: "127.0.0.1:0".parse().unwrap(), ..Options::default() };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let inference_endpoint = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let gateway = Gateway::bind_with(Options { inference_endpoint, ..options }).await.unwrap();
    let (address, shutdown) = (gateway.local_addr(), CancellationToken::new());
    let task = tokio::spawn(gateway.run(shutdown.clone()));
    let asked = connect(address).await.send_request(post("/v1/chat/completions", &question(json!({})))).await.unwrap();
    let (status, body) = json_of(asked).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("unavailable")));
    shutdown.cancel();
    within(task).await.unwrap();
}
