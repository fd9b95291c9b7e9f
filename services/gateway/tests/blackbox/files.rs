//! Files, and what became of them.

use super::*;

const BOUNDARY: &str = "----firn7";

/// A form's field: name, filename, content.
type Field<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(fields: &[Field<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, filename, content) in fields {
        let filename = filename.map(|filename| format!("; filename=\"{filename}\"")).unwrap_or_default();
        body.extend(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n").bytes(),
        );
        body.extend_from_slice(content);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    body
}

fn upload(fields: &[Field<'_>]) -> Request<Body> {
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let request = Request::post("/v1/files").header("host", "localhost").header("content-type", kind);
    request.body(Body::from(form(fields))).unwrap()
}

#[tokio::test]
async fn a_file_goes_up_and_comes_back() {
    let running = Running::start().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (purpose, file) = (("purpose", None, b"fine-tune".as_slice()), ("file", Some("a b.jsonl"), bytes.as_slice()));
    for fields in [[purpose, file], [file, purpose]] {
        let (status, body) = json_of(running.send(upload(&fields)).await).await;
        assert_eq!(status, 200, "{body}");
        let id = body["id"].as_str().unwrap().to_owned();
        assert_eq!(
            (&body["object"], &body["bytes"], &body["filename"]),
            (&json!("file"), &json!(3_000_000), &json!("a b.jsonl"))
        );
        assert_eq!(
            (&body["purpose"], &body["status"], &body["created_at"]),
            (&json!("fine-tune"), &json!("processed"), &json!(7))
        );
        assert_eq!(running.get(&format!("/v1/files/{id}")).await.1, body);
        let path = format!("/v1/files/{id}/content");
        let response =
            running.send(Request::get(path).header("host", "localhost").body(Body::default()).unwrap()).await;
        assert_eq!(response.headers()[header::CONTENT_DISPOSITION], "attachment; filename=\"a_b.jsonl\"");
        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), bytes);
    }
    assert!(running.fake.files.lock().unwrap().largest <= 1 << 20);
    running.fake.store("c.csv", "batch", b"x");
    let (_, list) = running.get("/v1/files?limit=2").await;
    assert_eq!(
        (&list["data"][0]["id"], &list["data"][1]["id"], &list["has_more"]),
        (&json!("file-3"), &json!("file-2"), &json!(true))
    );
    let (_, rest) = running.get("/v1/files?limit=2&after=file-2").await;
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&json!("file-1"), &json!(false)));
    assert_eq!(running.get("/v1/files?purpose=batch").await.1["data"].as_array().unwrap().len(), 1);
    for purpose in ["user_data", "evals", "assistants", "vision"] {
        let fields = [("purpose", None, purpose.as_bytes()), ("file", Some("d.csv"), b"A\nx\n".as_slice())];
        assert_eq!(json_of(running.send(upload(&fields)).await).await.1["purpose"], purpose);
    }
    let delete = || Request::delete("/v1/files/file-3").header("host", "localhost").body(Body::default()).unwrap();
    let (status, body) = json_of(running.send(delete()).await).await;
    assert_eq!((status.as_u16(), &body["deleted"]), (200, &json!(true)));
    assert_eq!(running.send(delete()).await.status(), 404);
    assert_eq!(running.get("/v1/files/file-3/content").await.0, 404);
    running.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_form_is_named_and_no_file_stays() {
    let running = Running::start_with(Options { max_upload_bytes: 1000, ..Options::default() }).await;
    let purpose = ("purpose", None, b"fine-tune".as_slice());
    let file = ("file", Some("a.csv"), b"A\nx\n".as_slice());
    let (large, huge) = (vec![b'x'; 1001], vec![b'x'; 200_000]);
    let cases: [(&[Field<'_>], u16, Value); 11] = [
        (&[purpose], 400, json!("file")),
        (&[file], 400, json!("purpose")),
        (&[("purpose", None, b"fun"), file], 400, json!("purpose")),
        (&[file, ("purpose", None, b"")], 400, json!("purpose")),
        (&[file, ("purpose", None, b"batch")], 400, json!("purpose")),
        (&[purpose, file, file], 400, json!("file")),
        (&[purpose, file, ("expires_after[anchor]", None, b"x")], 400, json!("expires_after[anchor]")),
        (&[purpose, ("file", Some("a.exe"), b"x")], 400, json!("filename")),
        (&[purpose, ("file", Some("a.csv"), b"")], 400, json!("file")),
        (&[purpose, ("file", Some("a.csv"), &large)], 413, Value::Null),
        (&[purpose, ("file", Some("a.csv"), &huge)], 413, Value::Null),
    ];
    for (fields, expected, param) in cases {
        let (status, body) = json_of(running.send(upload(fields)).await).await;
        assert_eq!((status.as_u16(), &body["error"]["param"]), (expected, &param), "{body}");
        assert!(running.fake.files.lock().unwrap().files.is_empty(), "{body}");
    }
    assert_eq!(running.post("/v1/files", &json!({})).await.status(), 400, "it is no form");
    running.stop().await;
}

#[tokio::test]
async fn an_upload_that_is_cut_is_no_file() {
    let running = Running::start().await;
    let body = form(&[("purpose", None, b"fine-tune"), ("file", Some("a.jsonl"), &vec![b'x'; 2_000_000])]);
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let half = [head.as_bytes(), &body[..1_500_000]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &half).await.unwrap();
    while running.fake.files.lock().unwrap().largest == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stored = running.fake.files.lock().unwrap().files.len();
    assert_eq!((running.fake.files.lock().unwrap().begun, stored), (1, 0));
    running.stop().await;
}

#[tokio::test]
async fn a_snapshot_and_its_report_are_shown() {
    let running = Running::start().await;
    let (_, snapshot) = running.get("/v1/datasets/offers/1234").await;
    assert_eq!((&snapshot["state"], &snapshot["completion_tokens"]), (&json!("READY"), &json!(9)));
    assert_eq!(snapshot["path"], "datasets/offers/1234");
    assert_eq!(running.get("/v1/datasets/offers/1234/report").await.1, json!({"rows": 3}));
    assert_eq!(running.get("/v1/datasets/offers/none").await.0, 404);
    assert_eq!(running.get("/v1/datasets/offers/none/report").await.0, 404);
    running.stop().await;
}

#[tokio::test]
async fn uploads_are_counted_by_route_and_against_the_limit() {
    let running = Running::start_with(Options { requests_per_minute: 1, ..Options::default() }).await;
    running.fake.store("a.jsonl", "fine-tune", b"{}\n");
    assert_eq!(running.get("/v1/files/file-1").await.0, 200);
    let upload = async || running.post("/v1/files", &json!({})).await.status().as_u16();
    let statuses = [upload().await, upload().await];
    assert_eq!(statuses[1], 429, "{statuses:?}");
    let metrics = running.metrics().await;
    for (route, status) in [("/v1/files/{id}", 200), ("/v1/files", statuses[0]), ("/v1/files", 429)] {
        let sample = format!("firn_http_requests_total{{route=\"{route}\",status=\"{status}\"}} 1\n");
        assert!(metrics.contains(&sample), "{sample} is not in {metrics}");
    }
    running.stop().await;
}
