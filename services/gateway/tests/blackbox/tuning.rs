//! Fine-tuning as OpenAI's clients ask for it.

use firn_proto::{
    dataprep::v1::{MessagesFormat, PreferenceFormat, PromptFormat, TextFormat, row_format::Format},
    trainer::v1::{JobSpec, Objective},
};

use super::{jobs::events, *};

impl Running {
    /// Asks for a job and returns what the trainer was asked for.
    async fn order(&self, body: Value) -> (JobSpec, Value) {
        let (status, job) = json_of(self.post("/v1/fine_tuning/jobs", &body).await).await;
        assert_eq!(status, 200, "{job}");
        (self.fake.created.lock().unwrap().pop().unwrap().spec.unwrap(), job)
    }
}

fn format(spec: &JobSpec) -> Format {
    spec.data.clone().unwrap().format.unwrap().format.unwrap()
}

#[tokio::test]
async fn a_job_is_asked_for_as_openai_s_clients_do() {
    let running = Running::start().await;
    running.fake.store("a.jsonl", "fine-tune", b"{\"messages\":[]}\n");
    let request = Request::post("/v1/fine_tuning/jobs").header("host", "localhost");
    let request = request.header("content-type", "application/json").header("idempotency-key", "once");
    let body = json!({
        "model": "base", "training_file": "file-1", "validation_file": "file-1", "suffix": "offers", "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 2}}},
        "metadata": {"a": "b"}, "firn": {"held_out_rows": 5, "alias": "best"},
    });
    let (status, job) = json_of(running.send(request.body(Body::from(body.to_string())).unwrap()).await).await;
    assert_eq!(status, 200, "{job}");
    let asked = running.fake.created.lock().unwrap().pop().unwrap();
    assert_eq!(asked.request_id, "once");
    let spec = asked.spec.unwrap();
    let data = spec.data.clone().unwrap();
    assert_eq!((spec.base.as_str(), spec.model.as_str(), spec.alias.as_str()), ("bases/firn/tiny", "offers", "best"));
    assert_eq!((data.source.as_str(), data.dataset.as_str()), ("inputs/files/file-1/a.jsonl", "offers"));
    assert_eq!((data.held_out_source.as_str(), data.held_out_rows), ("inputs/files/file-1/a.jsonl", 5));
    assert_eq!(format(&spec), Format::Messages(MessagesFormat { column: "messages".to_owned() }));
    let tuning = spec.hyperparameters.unwrap();
    assert_eq!(
        (tuning.epochs, tuning.batch_size, tuning.learning_rate, tuning.seed),
        (Some(2.0), None, Some(2e-3), Some(7))
    );
    assert!(spec.lora.is_some());
    assert_eq!(
        (&job["object"], &job["id"], &job["status"]),
        (&json!("fine_tuning.job"), &json!("job-1"), &json!("queued"))
    );
    assert_eq!((&job["training_file"], &job["fine_tuned_model"]), (&json!("file-1"), &Value::Null));
    assert_eq!(job["hyperparameters"], json!({"n_epochs": 2.0, "batch_size": null, "learning_rate_multiplier": 2.0}));
    running.stop().await;
}

#[tokio::test]
async fn rows_say_how_they_become_text() {
    let running = Running::start().await;
    for row in [
        r#"{"input":{},"preferred_output":[],"non_preferred_output":[]}"#,
        r#"{"prompt":"a","chosen":"b","rejected":"c"}"#,
        r#"{"prompt":"a","completion":"b"}"#,
        r#"{"text":"a"}"#,
    ] {
        running.fake.store("a.jsonl", "fine-tune", format!("\n{row}\n").as_bytes());
    }
    let preference = |columns: [&str; 3]| {
        let [prompt, chosen, rejected] = columns.map(str::to_owned);
        Format::Preference(PreferenceFormat { prompt, chosen, rejected })
    };
    let templates = PromptFormat {
        prompt_template: "{{ prompt }}".to_owned(),
        completion_template: "{{ completion }}".to_owned(),
        system: String::new(),
    };
    let dpo = json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}});
    for (file, method, expected) in [
        ("file-1", dpo.clone(), preference(["input", "preferred_output", "non_preferred_output"])),
        ("file-2", dpo.clone(), preference(["prompt", "chosen", "rejected"])),
        ("file-3", Value::Null, Format::Prompt(templates)),
        ("file-4", Value::Null, Format::Text(TextFormat { column: "text".to_owned() })),
    ] {
        let (spec, job) = running.order(json!({"model": "base", "training_file": file, "method": method})).await;
        assert_eq!(format(&spec), expected);
        assert_eq!(spec.objective() == Objective::Dpo, method == dpo);
        assert_eq!(job["method"]["type"], if method == dpo { "dpo" } else { "supervised" });
    }
    let own = json!({
        "format": {"preference": {"prompt": "p", "chosen": "c", "rejected": "r"}}, "objective": "orpo", "lora": false,
        "quantization": "int8", "prove_merge": true, "hyperparameters": {"keep_best": true, "block_size": 64},
    });
    let (spec, _) = running.order(json!({"model": "bases/a/b", "training_file": "file-2", "firn": own})).await;
    assert_eq!((format(&spec), spec.objective()), (preference(["p", "c", "r"]), Objective::Orpo));
    assert_eq!((spec.lora, spec.quantization.as_str(), spec.base.as_str()), (None, "int8", "bases/a/b"));
    assert!(spec.hyperparameters.unwrap().keep_best);
    // The split's seed is the trainer's where none is said, as by the function.
    assert_eq!((spec.data.unwrap().seed, spec.prove_merge), (42, true));
    // On from a version, and on a collection.
    running.fake.files.lock().unwrap().collections.insert("votes".to_owned(), vec!["{}".to_owned()]);
    for (model, path) in [("offers@best", "models/offers/versions/2"), ("offers@1", "models/offers/versions/1")] {
        let (spec, job) =
            running.order(json!({"model": model, "training_file": "collection:votes", "method": dpo})).await;
        assert_eq!((spec.base.as_str(), spec.adapter.as_str()), ("bases/org/model", path));
        assert_eq!(
            (spec.data.unwrap().source.as_str(), &job["training_file"]),
            ("inputs/collections/votes", &json!("collection:votes"))
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let running = Running::start().await;
    running.fake.store("a.jsonl", "fine-tune", b"{}");
    for (body, status, param) in [
        (json!({"model": "base", "training_file": "file-9"}), 404, "training_file"),
        (json!({"model": "base", "training_file": "/etc/passwd"}), 400, "training_file"),
        (json!({"model": "base", "training_file": "collection:none"}), 400, "training_file"),
        (json!({"model": "none@best", "training_file": "file-1"}), 404, "model"),
        (json!({"model": "base", "training_file": "file-1", "suffix": "Not Good"}), 400, "suffix"),
    ] {
        let (found, answer) = json_of(running.post("/v1/fine_tuning/jobs", &body).await).await;
        assert_eq!((found.as_u16(), &answer["error"]["param"]), (status, &json!(param)), "{answer}");
    }
    assert!(running.fake.created.lock().unwrap().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn jobs_have_openai_s_shape() {
    let running = Running::start().await;
    let (_, list) = running.get("/v1/fine_tuning/jobs?limit=2").await;
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect();
    assert_eq!((ids, &list["has_more"]), (vec![json!("job-1"), json!("job-bad")], &json!(true)));
    let (_, rest) = running.get("/v1/fine_tuning/jobs?limit=2&after=job-bad").await;
    let done = &rest["data"][0];
    assert_eq!((&done["status"], &done["fine_tuned_model"]), (&json!("succeeded"), &json!("offers@latest")));
    assert_eq!(
        (&done["trained_tokens"], &done["result_files"], &done["error"]),
        (&json!(1000), &json!([]), &Value::Null)
    );
    let (_, failed) = running.get("/v1/fine_tuning/jobs/job-bad").await;
    assert_eq!(failed["error"], json!({"code": "job_failed", "message": "no rows", "param": null}));
    for (verb, status) in [("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")] {
        let job = json_of(running.post(&format!("/v1/fine_tuning/jobs/job-1/{verb}"), &json!({})).await).await.1;
        assert_eq!(job["status"], status);
    }
    let (_, checkpoints) = running.get("/v1/fine_tuning/jobs/job-1/checkpoints").await;
    let newest = &checkpoints["data"][0];
    assert_eq!((&newest["fine_tuned_model_checkpoint"], &newest["step_number"]), (&json!("job-1@100"), &json!(100)));
    let metrics = json!({"step": 100, "train_loss": 1.25, "valid_loss": 2.5, "valid_mean_token_accuracy": 0.5});
    assert_eq!(newest["metrics"], metrics);
    assert_eq!(running.get("/v1/fine_tuning/jobs?limit=0").await.0, 400);
    running.stop().await;
}

#[tokio::test]
async fn events_are_listed_and_streamed() {
    let running = Running::start().await;
    for id in ["job-1", "job-done"] {
        let (_, list) = running.get(&format!("/v1/fine_tuning/jobs/{id}/events")).await;
        let data = list["data"].as_array().unwrap();
        assert_eq!(data.len(), if id == "job-1" { 3 } else { 4 }, "whether it has ended or not");
        let step = data.iter().find(|event| event["type"] == "metrics").unwrap();
        assert_eq!((&step["id"], &step["data"]["train_loss"]), (&json!("ftevent-3"), &json!(1.25)));
        assert_eq!((&step["message"], &step["level"]), (&json!("Step 4/10: training loss=1.2500"), &json!("info")));
        // A step that does not know its time has the job's.
        let times: Vec<i64> = data.iter().map(|event| event["created_at"].as_i64().unwrap()).collect();
        assert_eq!(times, if id == "job-1" { vec![0, 3602, 3601] } else { vec![3604, 3603, 3602, 3601] });
    }
    let path = "/v1/fine_tuning/jobs/job-done/events?stream=true";
    let request = Request::get(path).header("host", "localhost").body(Body::default()).unwrap();
    let streamed = events(&text_of(running.send(request).await).await);
    assert_eq!((streamed.len(), &streamed[4].2), (5, &json!("[DONE]")));
    assert_eq!((streamed[2].0.as_deref(), &streamed[2].2["object"]), (Some("3"), &json!("fine_tuning.job.event")));
    assert_eq!((&streamed[2].2["created_at"], &streamed[3].2["created_at"]), (&json!(3603), &json!(3604)));
    running.stop().await;
}
