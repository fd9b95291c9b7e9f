//! Jobs in Firn's own shapes.

use super::*;

/// A stream's events: id, kind and data.
pub(crate) fn events(text: &str) -> Vec<(Option<String>, Option<String>, Value)> {
    let line = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let event = |event: &str| {
        let data = line(event, "data")?;
        Some((line(event, "id"), line(event, "event"), serde_json::from_str(&data).unwrap_or(json!(data))))
    };
    text.split("\n\n").filter_map(event).collect()
}

#[tokio::test]
async fn a_job_is_shown_with_its_specification() {
    let running = Running::start().await;
    let (_, job) = running.get("/v1/jobs/job-done").await;
    assert_eq!(
        (&job["id"], &job["state"], &job["objective"]),
        (&json!("job-done"), &json!("SUCCEEDED"), &json!("likelihood"))
    );
    assert_eq!(job["tuned_evaluation"]["preference_accuracy"], 0.75);
    assert_eq!(
        job["spec"]["lora"],
        json!({"r": 16, "alpha": 32.0, "target_modules": [], "dropout": 0.05, "rslora": false})
    );
    assert_eq!(job["spec"]["hyperparameters"]["epochs"], 3.0);
    assert_eq!(running.get("/v1/jobs/none").await.0, 404);
    let (_, checkpoints) = running.get("/v1/jobs/job-done/checkpoints").await;
    assert_eq!(
        (&checkpoints["data"][0]["id"], &checkpoints["data"][0]["metrics"]["loss"]),
        (&json!("job-done@50"), &json!(1.25))
    );
    running.stop().await;
}

#[tokio::test]
async fn a_job_is_told_what_to_do() {
    let running = Running::start().await;
    for (verb, state) in [("pause", "PAUSED"), ("resume", "QUEUED"), ("cancel", "CANCELLED")] {
        let (status, job) = json_of(running.post(&format!("/v1/jobs/job-1/{verb}"), &json!({})).await).await;
        assert_eq!((status.as_u16(), &job["state"]), (200, &json!(state)));
    }
    let told = running.fake.told.lock().unwrap().clone();
    assert_eq!(told, ["pause jobs/job-1", "resume jobs/job-1", "cancel jobs/job-1"]);
    assert_eq!(running.post("/v1/jobs/job-1/explode", &json!({})).await.status(), 404);
    assert_eq!(running.post("/v1/jobs/job-done/cancel", &json!({})).await.status(), 400);
    assert_eq!(running.get("/v1/jobs/job-1/cancel").await.0, 405);
    running.stop().await;
}

#[tokio::test]
async fn events_come_as_they_happen_and_resume_where_they_broke() {
    let running = Running::start().await;
    let get = async |path: &str, last: Option<&str>| {
        let request = Request::get(path).header("host", "localhost");
        let request = if let Some(last) = last { request.header("last-event-id", last) } else { request };
        running.send(request.body(Body::default()).unwrap()).await
    };
    let response = get("/v1/jobs/job-done/events", None).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let all = events(&text_of(response).await);
    let (ids, kinds): (Vec<_>, Vec<_>) =
        all.iter().map(|(id, kind, _)| (id.as_deref(), kind.as_deref().unwrap())).unzip();
    assert_eq!(kinds, ["state", "state", "step", "progress", "state"]);
    assert_eq!(ids, [Some("1"), Some("2"), Some("3"), None, Some("4")], "progress is not kept");
    assert_eq!((&all[2].2["loss"], &all[2].2["held_out"]["best"]), (&json!(1.25), &json!(true)));
    let progress = json!({"what": "rows", "done": 1, "total": 2, "time": null});
    assert_eq!((&all[3].2, &all[4].2["state"]), (&progress, &json!("SUCCEEDED")));
    assert_eq!(
        (&all[2].2["time"], &all[4].2["time"]),
        (&json!("1970-01-01T01:00:03Z"), &json!("1970-01-01T01:00:04Z"))
    );
    for (path, last) in [("/v1/jobs/job-done/events?cursor=3", None), ("/v1/jobs/job-done/events?cursor=1", Some("3"))]
    {
        let rest = events(&text_of(get(path, last).await).await);
        assert_eq!((rest.len(), rest[0].0.as_deref()), (1, Some("4")));
    }
    let broken = events(&text_of(get("/v1/jobs/job-broken/events", None).await).await);
    let (id, kind, error) = broken.last().unwrap();
    assert_eq!((id, kind.as_deref(), &error["error"]["code"]), (&None, Some("error"), &json!("unavailable")));
    assert_eq!(get("/v1/jobs/job-done/events", Some("x")).await.status(), 400);
    assert_eq!(get("/v1/jobs/job-done/events?cursor=x", None).await.status(), 400);
    assert_eq!(get("/v1/jobs/none/events", None).await.status(), 404);
    // A job that runs: its events come though it has no end yet.
    let mut response = get("/v1/jobs/job-1/events", None).await;
    let mut text = String::new();
    while !text.contains("event: progress") {
        let frame = within(response.frame()).await.unwrap().unwrap();
        text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    drop(response);
    running.stop().await;
}
