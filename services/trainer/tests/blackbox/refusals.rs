//! Requests that are refused, jobs that fail, jobs that are cancelled.

use firn_proto::trainer::v1::{
    CancelJobRequest, CreateJobRequest, GetJobRequest, JobSpec, JobState, WatchJobRequest, job_event::Event,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::house::{House, epochs, spec};

#[tokio::test]
async fn a_wrong_request_names_its_field() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let cases = [
        ("spec", None, "must be set"),
        ("spec.base", Some(JobSpec { base: "bases/none".to_owned(), ..spec() }), "bases/none is no checkpoint"),
        ("spec.base", Some(JobSpec { base: "../x".to_owned(), ..spec() }), "must not leave the stage"),
        ("spec.model", Some(JobSpec { model: "No!".to_owned(), ..spec() }), "is not an id"),
        ("spec.hyperparameters.epochs", Some(epochs(-1.0)), "-1"),
    ];
    for (field, spec, text) in cases {
        let request = CreateJobRequest { spec, request_id: String::new() };
        let status = trainer.client.create_job(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
        assert!(status.message().contains(text), "{}", status.message());
    }
    let name = "jobs/job-none".to_owned();
    let missing = trainer.client.get_job(GetJobRequest { name: name.clone() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let missing = trainer.client.watch_job(WatchJobRequest { name, cursor: 0 }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let wrong = trainer.client.cancel_job(CancelJobRequest { name: "x".to_owned() }).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(!house.root.path().join("jobs").exists(), "nothing was written");
    trainer.stop().await;
}

#[tokio::test]
async fn a_failed_job_says_where_and_why() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    // A base whose weights do not fit its configuration.
    let bases = house.root.path().join("bases/tiny");
    let (good, broken) = (bases.join("llama"), bases.join("broken"));
    std::fs::create_dir_all(&broken).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(good.join(file), broken.join(file)).unwrap();
    }
    let job = trainer.create(JobSpec { base: "bases/tiny/broken".to_owned(), ..spec() }).await;
    let failed = trainer.end(&job).await;
    assert_eq!(failed.state(), JobState::Failed);
    assert!(failed.error.starts_with("validating: failed to use "), "{}", failed.error);
    assert!(failed.error.contains("bases/tiny/broken/model.safetensors"), "{}", failed.error);

    let mut spec_without_rows = spec();
    spec_without_rows.data.as_mut().unwrap().source = "none.csv".to_owned();
    let job = trainer.create(spec_without_rows).await;
    let failed = trainer.end(&job).await;
    assert_eq!(failed.state(), JobState::Failed);
    assert!(failed.error.starts_with("preparing: data-prep says: source: "), "{}", failed.error);

    // The last weights are no numbers: they are named. If they are too large to compute with, the base's loss shows it,
    // and without held-out rows the first step.
    for file in ["model.safetensors", "chat_template.jinja"] {
        std::fs::copy(good.join(file), broken.join(file)).unwrap();
    }
    let fill = |byte: u8| {
        let mut weights = std::fs::read(good.join("model.safetensors")).unwrap();
        let end = weights.len();
        weights[end - 4096..].fill(byte);
        std::fs::write(broken.join("model.safetensors"), weights).unwrap();
    };
    let mut odd = JobSpec { base: "bases/tiny/broken".to_owned(), ..spec() };
    fill(0xFF);
    let job = trainer.create(odd.clone()).await;
    let failed = trainer.end(&job).await;
    assert!(
        failed.error.starts_with("validating: tensor model.layers.2.self_attn.v_proj.weight in "),
        "{}",
        failed.error
    );
    assert!(failed.error.contains("expected finite values: the file is damaged"), "{}", failed.error);
    fill(0x7F);
    let job = trainer.create(odd.clone()).await;
    let failed = trainer.end(&job).await;
    assert_eq!(failed.error, "preparing: the loss of the base on the held-out rows is NaN: its weights are broken");
    odd.data.as_mut().unwrap().held_out_rows = 0;
    let job = trainer.create(odd).await;
    let failed = trainer.end(&job).await;
    assert_eq!(failed.state(), JobState::Failed);
    assert!(failed.error.starts_with("step 1: the loss is NaN"), "{}", failed.error);

    // After failures the queue goes on, and what failed is remembered.
    let job = trainer.create(spec()).await;
    assert_eq!(trainer.end(&job).await.state(), JobState::Succeeded);
    trainer.stop().await;
    let mut trainer = house.start().await;
    let list = trainer.list().await;
    assert_eq!(list[4], failed);
    trainer.stop().await;
}

#[tokio::test]
async fn jobs_are_cancelled_while_they_run_and_while_they_wait() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let running = trainer.create(epochs(900.0)).await;
    let waiting = trainer.create(spec()).await;
    let cancel = |name: &str| CancelJobRequest { name: name.to_owned() };
    let ended = trainer.client.cancel_job(cancel(&waiting.name)).await.unwrap().into_inner();
    assert_eq!(ended.state(), JobState::Cancelled, "at once");
    trainer.events(&running, 0, |event| matches!(event, Event::Step(step) if step.step == 3)).await;
    trainer.client.cancel_job(cancel(&running.name)).await.unwrap();
    let ended = trainer.end(&running).await;
    assert_eq!((ended.state(), ended.error.as_str()), (JobState::Cancelled, ""));
    assert!(ended.step >= 3 && ended.step < ended.steps);
    for name in [&running.name, &waiting.name] {
        let refused = trainer.client.cancel_job(cancel(name)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    }
    trainer.stop().await;
    let mut trainer = house.start().await;
    let list = trainer.list().await;
    assert!(list.iter().all(|job| job.state() == JobState::Cancelled));
    assert_eq!(trainer.end(&running).await, ended);
    trainer.stop().await;
}
