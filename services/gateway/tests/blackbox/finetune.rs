//! Fine-tuning from SQL.

use super::*;

const PATH: &str = "/functions/finetune";

async fn results(running: &Running, path: &str, id: &str, rows: Value) -> Vec<Value> {
    let (status, body) = json_of(running.send(batch(path, id, &rows)).await).await;
    assert_eq!(status, 200, "{body}");
    body["data"].as_array().unwrap().iter().map(|row| row[1].clone()).collect()
}

#[tokio::test]
async fn a_job_is_created_once_a_row() {
    let running = Running::start().await;
    let rows = json!([
        [0, "CREATE", "offers", "bases/a/b", "inputs/train.parquet", {"max_epochs": 2}],
        [1, "create", "other", "bases/a/b", "inputs/other.parquet", null],
        [2, "CREATE", "Wrong", "bases/a/b", "inputs/train.parquet"],
        [3, "CREATE", "offers"],
        [4, "EXPLODE"],
    ]);
    let made = results(&running, PATH, "q-1", rows.clone()).await;
    assert_eq!((&made[0], &made[1]), (&json!("job-1"), &json!("job-2")));
    let params: Vec<&Value> = made[2..].iter().map(|error| &error["error"]["param"]).collect();
    assert_eq!(params, ["model", "base", "action"]);
    let created = running.fake.created.lock().unwrap().clone();
    let ids: Vec<&str> = created.iter().map(|request| request.request_id.as_str()).collect();
    assert_eq!(ids, ["q-1-0", "q-1-1"]);
    let spec = created[0].spec.clone().unwrap();
    assert_eq!(spec.hyperparameters.unwrap().epochs, Some(2.0));
    let data = spec.data.unwrap();
    assert_eq!((data.source.as_str(), data.seed), ("inputs/train.parquet", 42));
    running.stop().await;
}

#[tokio::test]
async fn a_gateway_that_was_restarted_makes_no_second_job() {
    let running = Running::start().await;
    // Another path is another batch to the gateway's memory, as a restart makes it.
    let row = json!([[0, "offers", "bases/a/b", "inputs/train.parquet"]]);
    let first = results(&running, "/functions/finetune/create", "q-1", row).await;
    let again = json!([[0, "CREATE", "offers", "bases/a/b", "inputs/train.parquet"]]);
    assert_eq!(results(&running, PATH, "q-1", again.clone()).await, first);
    assert_eq!(running.fake.created.lock().unwrap().len(), 1);
    assert_ne!(results(&running, PATH, "", again).await, first, "without an id each call is a new one");
    running.stop().await;
}

#[tokio::test]
async fn jobs_are_described_in_snowflake_s_words() {
    let running = Running::start().await;
    let rows = json!([
        [0, "DESCRIBE", "done"],
        [1, "DESCRIBE", "jobs/failed"],
        [2, "describe", "running"],
        [3, "DESCRIBE", "none"],
        [4, "DESCRIBE"],
    ]);
    let jobs = results(&running, PATH, "", rows).await;
    let done = &jobs[0];
    assert_eq!((&done["id"], &done["status"], &done["progress"]), (&json!("done"), &json!("SUCCESS"), &json!(1.0)));
    let result = json!({"training_loss": 0.5, "validation_loss": 1.5, "base_validation_loss": 2.5});
    assert_eq!((&done["training_result"], &done["model"]), (&result, &json!("offers@latest")));
    assert_eq!((&done["trained_tokens"], &done["created_on"]), (&json!(999), &json!(7000)));
    assert_eq!(done["training_data"], "inputs/train.parquet");
    assert_eq!((&jobs[1]["status"], &jobs[1]["error"]["message"]), (&json!("ERROR"), &json!("there are no rows")));
    assert_eq!((&jobs[2]["status"], &jobs[2]["progress"]), (&json!("IN_PROGRESS"), &json!(0.5)));
    assert!(jobs[2].get("training_result").is_none() && jobs[2].get("model").is_none());
    assert_eq!((&jobs[3]["error"]["code"], &jobs[4]["error"]["param"]), (&json!("not_found"), &json!("job")));
    assert_eq!(results(&running, "/functions/finetune/status", "", json!([[0, "done"]])).await[0], *done);
    running.stop().await;
}

#[tokio::test]
async fn jobs_are_shown_and_cancelled() {
    let running = Running::start().await;
    *running.fake.many_jobs.lock().unwrap() = 60;
    let shown = results(&running, PATH, "", json!([[0, "SHOW", null, null]])).await;
    let jobs = shown[0].as_array().unwrap();
    assert_eq!((jobs.len(), &jobs[0]["status"], &jobs[0]["progress"]), (100, &json!("IN_PROGRESS"), &json!(0.4)));
    assert_eq!(results(&running, "/functions/finetune/list", "", json!([[0]])).await, shown);
    let cancelled = results(&running, PATH, "", json!([[0, "CANCEL", "job-1"]])).await;
    assert_eq!(cancelled, ["Canceled Job: job-1"]);
    assert_eq!(results(&running, "/functions/finetune/cancel", "", json!([[0, "job-1"]])).await, cancelled);
    let (status, body) = json_of(running.send(batch("/functions/finetune/explode", "", &json!([]))).await).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("unknown_url")));
    running.stop().await;
}
