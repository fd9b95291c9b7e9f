//! A stream in which nothing happens shows that it is alive.

use super::*;

/// How often, and the longest wait for it: machines that run tests are slow, too.
const INTERVAL: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads up to so many comments.
async fn comments(mut response: Response<Incoming>, count: usize) -> String {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut text = String::new();
    while text.matches(": alive\n\n").count() < count {
        let frame = tokio::time::timeout(PATIENCE, response.frame()).await;
        let data = frame.unwrap_or_else(|_| panic!("silent after {text:?}")).unwrap().unwrap().into_data().unwrap();
        text += std::str::from_utf8(&data).unwrap();
    }
    text
}

#[tokio::test]
async fn a_silent_answer_shows_that_it_is_alive() {
    let running = Running::start_with(Options { heartbeat: INTERVAL, ..Options::default() }).await;
    for (path, body) in [
        ("/v1/chat/completions", question(json!({"stream": true}))),
        ("/v1/completions", json!({"prompt": "a", "stream": true})),
    ] {
        let (pieces, _gone) = running.fake.script();
        let begun = tokio::time::Instant::now();
        let text = comments(running.post(path, &body).await, 2).await;
        assert!(begun.elapsed() >= 2 * INTERVAL, "it comes when nothing else does");
        assert!(events(&text).len() <= 1, "nothing was said: {text}");
        drop(pieces);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_job_in_which_nothing_happens_shows_that_its_events_are_alive() {
    let running = Running::start_with(Options { heartbeat: INTERVAL, ..Options::default() }).await;
    for path in ["/v1/jobs/job-1/events", "/v1/fine_tuning/jobs/job-1/events?stream=true"] {
        let request = Request::get(path).header("host", "localhost").body(Body::default()).unwrap();
        comments(running.send(request).await, 2).await;
    }
    running.stop().await;
}
