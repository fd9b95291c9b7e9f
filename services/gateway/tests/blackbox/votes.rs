//! Votes, and training on them.

use firn_proto::{dataprep::v1::row_format::Format, trainer::v1::Objective};

use super::*;

#[tokio::test]
async fn votes_become_rows_and_a_job() {
    let running = Running::start().await;
    assert_eq!(running.get("/v1/votes").await.1, json!({"rows": 0, "collection": "votes"}));
    let vote = json!({
        "messages": [{"role": "user", "content": "Which city?"}], "chosen": "Salt Haven.", "rejected": "None.",
        "chosen_model": "offers@best", "rejected_model": "base",
    });
    assert_eq!(json_of(running.post("/v1/votes", &vote).await).await.1["rows"], 1);
    let (status, body) = json_of(running.post("/v1/votes/train", &json!({})).await).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &json!("too_few_votes")));
    assert!(body["error"]["message"].as_str().unwrap().contains("at least 2"), "{body}");
    running.post("/v1/votes", &vote).await;
    assert_eq!(running.get("/v1/votes").await.1["rows"], 2);
    let row: Value = {
        let stored = running.fake.files.lock().unwrap();
        serde_json::from_str(&stored.collections["votes"][0]).unwrap()
    };
    assert_eq!((&row["prompt"], &row["chosen"]), (&vote["messages"], &vote["chosen"]));
    assert_eq!(row["rejected_model"], "base");
    assert!(row["time"].as_str().unwrap().starts_with("20"), "{row}");

    let wish = json!({"model": "liked", "base": "offers@best", "epochs": 1, "beta": 0.2, "held_out_rows": 1});
    let (status, job) = json_of(running.post("/v1/votes/train", &wish).await).await;
    assert_eq!((status.as_u16(), &job["state"], &job["objective"]), (200, &json!("QUEUED"), &json!("dpo")), "{job}");
    let spec = running.fake.created.lock().unwrap().pop().unwrap().spec.unwrap();
    let data = spec.data.clone().unwrap();
    assert_eq!((data.source.as_str(), data.dataset.as_str()), ("inputs/collections/votes", "liked"));
    assert!(matches!(data.format.unwrap().format, Some(Format::Preference(_))));
    assert_eq!((spec.objective(), spec.adapter.as_str()), (Objective::Dpo, "models/offers/versions/2"));
    assert_eq!(spec.hyperparameters.unwrap().beta, Some(0.2));
    for (path, body, param) in
        [("/v1/votes", json!({"chosen": "a"}), "messages"), ("/v1/votes/train", json!({"x": 1}), "x")]
    {
        let (status, answer) = json_of(running.post(path, &body).await).await;
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!(param)));
    }
    running.stop().await;
}
