//! Versions of models.

use super::*;

#[tokio::test]
async fn versions_are_listed_with_where_they_came_from() {
    let running = Running::start().await;
    let (_, list) = running.get("/v1/registry/models/offers/versions").await;
    assert_eq!((list["data"].as_array().unwrap().len(), &list["next_page_token"]), (2, &json!("")));
    assert_eq!(running.get("/v1/registry/models/offers/versions?page_size=1").await.1["next_page_token"], "next");
    let (_, version) = running.get("/v1/registry/models/offers/versions/2").await;
    assert_eq!(version, list["data"][1]);
    assert_eq!(
        (&version["model"], &version["version"], &version["aliases"]),
        (&json!("offers"), &json!(2), &json!(["best"]))
    );
    assert_eq!(
        (&version["metrics"]["tuned.loss"], &version["lineage"]["base"]),
        (&json!(1.5), &json!("bases/org/model"))
    );
    assert_eq!(version["create_time"], "1970-01-01T00:00:00Z");
    assert_eq!(running.get("/v1/registry/models/none/versions").await.0, 404);
    assert_eq!(running.get("/v1/registry/models/offers/versions/7").await.0, 404);
    running.stop().await;
}

#[tokio::test]
async fn files_that_people_read_are_shown_and_can_do_nothing() {
    let running = Running::start().await;
    let get = async |path: &str| {
        let path = format!("/v1/registry/models/offers/versions/{path}");
        running.send(Request::get(path).header("host", "localhost").body(Body::default()).unwrap()).await
    };
    for (file, kind) in [
        ("report.html", "text/html; charset=utf-8"),
        ("README.md", "text/markdown; charset=utf-8"),
        ("loss.svg", "image/svg+xml"),
        ("report.json", "application/json"),
    ] {
        let response = get(&format!("2/files/{file}")).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], kind);
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("sandbox;") && !policy.contains("script"), "{policy}");
        assert_eq!(text_of(response).await, "<b><b>");
    }
    for (path, status) in [
        ("2/files/adapter_model.safetensors", 404),
        ("2/files/..%2Fversion.json", 404),
        ("2/files/sub/report.html", 404),
        ("2/files/training_params.json", 404),
        ("1/files/report.json", 422),
    ] {
        assert_eq!(get(path).await.status(), status, "{path}");
    }
    running.stop().await;
}

#[tokio::test]
async fn an_alias_is_moved() {
    let running = Running::start().await;
    let put = async |body: Value| {
        let request = Request::put("/v1/registry/models/offers/aliases/best").header("host", "localhost");
        let request = request.header("content-type", "application/json").body(Body::from(body.to_string()));
        json_of(running.send(request.unwrap()).await).await
    };
    let moved = json!({"name": "models/offers/aliases/best", "version": 1, "sequence": 3});
    assert_eq!(put(json!({"version": 1})).await, (StatusCode::OK, moved));
    assert_eq!(put(json!({"version": 9})).await.0, 404);
    for (body, param) in
        [(json!({}), "version"), (json!({"version": "x"}), "version"), (json!({"version": 1, "a": 1}), "a")]
    {
        let (status, answer) = put(body).await;
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!(param)));
    }
    running.stop().await;
}
