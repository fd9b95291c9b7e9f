//! Answers from SQL.

use super::*;
use crate::fake::{delta, finish};

const PATH: &str = "/functions/complete";
const TEXT: &str = "Hello \"there\"\n🚀";

fn poll(id: &str) -> Request<Body> {
    let request = Request::get(PATH).header("host", "localhost").header("sf-external-function-query-batch-id", id);
    request.body(Body::default()).unwrap()
}

fn hurried() -> Options {
    Options { function_patience: Duration::from_millis(50), ..Options::default() }
}

#[tokio::test]
async fn rows_are_answered_in_their_order() {
    let running = Running::start().await;
    let turns = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
    let rows = json!([
        [10, "base", "hi"],
        [7, "nobody", "hi"],
        [8, "offers@best", turns, {"temperature": 0, "max_tokens": 4}],
        "no row",
        [9, "base", 5],
        [11, null, "hi", null],
    ]);
    let response = running.send(batch(PATH, "", &rows)).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let (status, body) = json_of(response).await;
    assert_eq!(status, 200, "{body}");
    let numbers: Vec<&Value> = body["data"].as_array().unwrap().iter().map(|row| &row[0]).collect();
    assert_eq!(numbers, [10, 7, 8, 3, 9, 11]);
    let said: Vec<&Value> = body["data"].as_array().unwrap().iter().map(|row| &row[1]).collect();
    assert_eq!((said[0], said[2], said[5]), (&json!(TEXT), &json!(TEXT), &json!(TEXT)));
    assert_eq!(said[1]["error"]["code"], "model_not_found");
    assert_eq!((&said[3]["error"]["param"], &said[4]["error"]["param"]), (&json!("data"), &json!("prompt")));
    let asked = running.fake.asked.lock().unwrap().clone();
    let asked = asked.iter().find(|asked| asked.model == "offers@best").unwrap();
    assert_eq!((asked.messages.len(), asked.sampling.as_ref().unwrap().max_tokens), (2, Some(4)));
    running.stop().await;
}

#[tokio::test]
async fn a_batch_has_limits() {
    let running = Running::start().await;
    let rows = |count: usize, model: &str| json!(vec![json!([0, model, "hi"]); count]);
    let (status, body) = json_of(running.send(batch(PATH, "", &rows(501, "base"))).await).await;
    assert_eq!((status.as_u16(), &body["error"]["param"]), (400, &json!("data")));
    assert!(body["error"]["message"].as_str().unwrap().contains("MAX_BATCH_ROWS"));
    let (one, two) = tokio::join!(
        running.send(batch(PATH, "a", &rows(40, "slow"))),
        running.send(batch(PATH, "b", &rows(40, "slow"))),
    );
    for response in [one, two] {
        let (_, body) = json_of(response).await;
        assert!(body["data"].as_array().unwrap().iter().all(|row| row[1] == "slow"), "{body}");
    }
    assert_eq!(*running.fake.open.lock().unwrap(), (0, 16), "of both batches together");
    let mut strange = batch(PATH, "x", &rows(1, "base"));
    strange.headers_mut().insert("sf-external-function-query-batch-id", "x".repeat(300).parse().unwrap());
    assert_eq!(running.send(strange).await.status(), 400);
    running.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let running = Running::start().await;
    *running.fake.full.lock().unwrap() = 3;
    let rows = json!([[0, "base", "hi"]]);
    let (_, body) = json_of(running.send(batch(PATH, "", &rows)).await).await;
    assert_eq!(body, json!({"data": [[0, TEXT]]}));
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_nobody_can_answer_fails_and_may_come_again() {
    let running = Running::start().await;
    let rows = json!([[0, "base", "hi"], [1, "base", "hi"]]);
    *running.fake.full.lock().unwrap() = 12;
    let response = running.send(batch(PATH, "q-1", &rows)).await;
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    let (status, body) = json_of(response).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    let (_, body) = json_of(running.send(batch(PATH, "q-1", &rows)).await).await;
    assert_eq!(body["data"][1], json!([1, TEXT]));
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_answered_once() {
    let running = Running::start().await;
    let rows = json!([[0, "base", "hi"], [1, "nobody", "hi"]]);
    let mut answers = vec![];
    for _ in 0..3 {
        answers.push(text_of(running.send(batch(PATH, "q-1", &rows)).await).await);
    }
    answers.push(text_of(running.send(poll("q-1")).await).await);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(running.fake.asked.lock().unwrap().len(), 2);
    text_of(running.send(batch(PATH, "q-2", &rows)).await).await;
    assert_eq!(running.fake.asked.lock().unwrap().len(), 4);
    running.stop().await;
}

#[tokio::test]
async fn a_slow_batch_is_polled() {
    let running = Running::start_with(hurried()).await;
    let (pieces, _gone) = running.fake.script();
    let rows = json!([[0, "base", "hi"]]);
    for _ in 0..2 {
        let response = running.send(batch(PATH, "q-1", &rows)).await;
        assert_eq!((response.status().as_u16(), text_of(response).await.as_str()), (202, ""));
    }
    assert_eq!(running.send(poll("q-1")).await.status(), 202);
    for piece in [delta("late"), finish(firn_proto::inference::v1::FinishReason::Stop)] {
        pieces.send(Ok(piece)).await.unwrap();
    }
    let answer = loop {
        let response = running.send(poll("q-1")).await;
        if response.status() == 200 {
            break text_of(response).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(answer, r#"{"data":[[0,"late"]]}"#);
    assert_eq!(running.fake.asked.lock().unwrap().len(), 1);
    assert_eq!(running.send(poll("q-9")).await.status(), 404);
    assert_eq!(running.get(PATH).await.0, 400, "without an id there is nothing to look for");
    running.stop().await;
}

#[tokio::test]
async fn nobody_gets_another_s_batch() {
    let running = Running::start_with(Options { trust_ingress_user: true, ..Options::default() }).await;
    let of = |mut request: Request<Body>, user: &str| {
        request.headers_mut().insert("sf-context-current-user", user.parse().unwrap());
        request
    };
    let rows = json!([[0, "base", "hi"]]);
    assert_eq!(running.send(batch(PATH, "q-1", &rows)).await.status(), 401);
    assert_eq!(running.send(of(batch(PATH, "q-1", &rows), "ADA")).await.status(), 200);
    assert_eq!(running.send(of(poll("q-1"), "ADA")).await.status(), 200);
    assert_eq!(running.send(of(poll("q-1"), "BOB")).await.status(), 404);
    assert_eq!(running.fake.asked.lock().unwrap()[0].tenant, "ADA");
    running.stop().await;
}

#[tokio::test]
async fn a_batch_goes_on_when_its_caller_leaves_and_ends_with_the_gateway() {
    let running = Running::start_with(hurried()).await;
    let (_pieces, gone) = running.fake.script();
    let response = running.send(batch(PATH, "q-1", &json!([[0, "base", "hi"]]))).await;
    assert_eq!(response.status(), 202);
    assert_eq!(running.send(poll("q-1")).await.status(), 202);
    running.stop().await;
    within(gone).await.unwrap();
}
