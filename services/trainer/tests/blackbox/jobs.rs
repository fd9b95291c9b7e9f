//! Jobs that succeed.

use std::collections::HashMap;

use firn_proto::{
    registry::v1::GetVersionRequest,
    trainer::v1::{CreateJobRequest, GetJobRequest, JobSpec, JobState, job_event::Event},
};
use firn_stage::Stage;

use crate::house::{House, epochs, spec};

#[tokio::test]
async fn a_job_trains_registers_and_tells_of_it() {
    let mut house = House::new().await;
    let mut trainer = house.start().await;
    let wanted = || JobSpec { prove_merge: true, ..spec() };
    let request = CreateJobRequest { spec: Some(wanted()), request_id: "once".to_owned() };
    let job = trainer.client.create_job(request.clone()).await.unwrap().into_inner();
    assert!(job.name.starts_with("jobs/job-"), "{}", job.name);
    let again = trainer.client.create_job(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.name, job.name, "the same request makes one job");
    let other = CreateJobRequest { spec: Some(epochs(9.0)), ..request };
    assert_eq!(trainer.client.create_job(other).await.unwrap_err().code(), tonic::Code::InvalidArgument);

    let events = trainer.events(&job, 0, |_| false).await;
    let kept: Vec<_> = events.iter().filter(|event| !matches!(event.event, Some(Event::Progress(_)))).collect();
    let cursors: Vec<u64> = kept.iter().map(|event| event.cursor).collect();
    assert_eq!(cursors, (1..=kept.len() as u64).collect::<Vec<_>>());
    let states = kept.iter().filter_map(|event| match event.event.as_ref().unwrap() {
        Event::State(job) => Some(job.state()),
        _ => None,
    });
    let all = [
        JobState::Queued,
        JobState::Validating,
        JobState::Preparing,
        JobState::Running,
        JobState::Evaluating,
        JobState::Registering,
        JobState::Succeeded,
    ];
    assert_eq!(states.collect::<Vec<_>>(), all);
    let steps: Vec<_> = kept
        .iter()
        .filter_map(|event| match event.event.as_ref().unwrap() {
            Event::Step(step) => Some(step),
            _ => None,
        })
        .collect();
    assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
    assert!(steps.iter().all(|step| step.steps == 6 && step.loss.is_finite() && step.grad_norm > 0.0));
    assert!(steps[5].loss < steps[0].loss, "{} to {}", steps[0].loss, steps[5].loss);

    let done = trainer.client.get_job(GetJobRequest { name: job.name.clone() }).await.unwrap().into_inner();
    assert_eq!((done.error.as_str(), done.state(), done.sequence), ("", JobState::Succeeded, 7));
    assert_eq!((done.step, done.steps, done.version.as_str()), (6, 6, "models/offers/versions/1"));
    assert!(done.train_tokens > 0 && done.train_seconds > 0.0);
    let (base, tuned) = (done.base_evaluation.clone().unwrap(), done.tuned_evaluation.clone().unwrap());
    assert!(tuned.loss < base.loss, "{} to {}", base.loss, tuned.loss);
    assert_eq!((base.rows, tuned.rows), (3, 3));
    assert!((0.0..=1.0).contains(&base.field_recall.unwrap()) && tuned.field_recall.is_some());
    assert!(base.sample_prompt.starts_with("Say it: {"), "{}", base.sample_prompt);

    // A resumed watch gets the rest, and the stage has it after a restart.
    let cursor = kept[4].cursor;
    let rest: Vec<_> = trainer.events(&job, cursor, |_| false).await;
    assert_eq!(rest, kept[5..].iter().map(|event| (*event).clone()).collect::<Vec<_>>());
    trainer.stop().await;
    let mut trainer = house.start().await;
    let stored = trainer.events(&job, cursor, |_| false).await;
    assert_eq!(stored, rest, "the same events with the same numbers");
    let list = trainer.list().await;
    assert_eq!(list, std::slice::from_ref(&done));
    let again = CreateJobRequest { spec: Some(wanted()), request_id: "once".to_owned() };
    assert_eq!(trainer.client.create_job(again).await.unwrap().into_inner(), done);
    trainer.stop().await;

    let version = GetVersionRequest { name: "models/offers/aliases/latest".to_owned() };
    let version = house.registry.get_version(version).await.unwrap().into_inner();
    assert_eq!(version.name, done.version);
    let lineage = version.lineage.clone().unwrap();
    assert_eq!(
        (lineage.base.as_str(), &lineage.job, &lineage.snapshot),
        ("bases/tiny/llama", &job.name, &done.snapshot)
    );
    assert_eq!(lineage.template_sha256.len(), 64);
    let metrics: HashMap<_, _> = version.metrics.into_iter().collect();
    assert_eq!((metrics["base.loss"], metrics["tuned.loss"]), (base.loss, tuned.loss));
    assert_eq!(metrics["train.tokens"], done.train_tokens as f64);
    let files: Vec<&str> = version.files.iter().map(|file| file.path.as_str()).collect();
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "report.json",
        "training_params.json",
    ] {
        assert!(files.contains(&file), "{file} is not in {files:?}");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&house.read(&format!("{}/artifact/report.json", job.name))).unwrap();
    assert_eq!(report["loss_curve"].as_array().unwrap().len(), 6);
    assert_eq!(report["tuned_evaluation"]["loss"], tuned.loss);
    let proof = &report["merge_proof"];
    assert_eq!((&proof["accepted"], &proof["rows"]), (&serde_json::json!(true), &serde_json::json!(3)), "{proof}");
    assert!(
        proof["tokens"].as_u64().unwrap() > 3 && proof["largest_logit_difference"].as_f64().unwrap() < 1e-3,
        "{proof}"
    );
    assert_eq!(metrics["merge.greedy_agreement"], proof["greedy_agreement"].as_f64().unwrap());
    let stage = Stage::open(house.root.path().to_str().unwrap()).unwrap();
    let checkpoints = stage.list(&format!("{}/checkpoints", job.name)).await.unwrap();
    let kept = |step: &str| checkpoints.iter().any(|file| file.path.contains(&format!("/{step}/manifest.json")));
    assert!(!kept("000002") && kept("000004") && kept("000006"));
}

#[tokio::test]
async fn all_weights_can_be_trained_without_held_out_rows() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let mut whole = JobSpec { lora: None, alias: "production".to_owned(), ..spec() };
    whole.data.as_mut().unwrap().held_out_rows = 0;
    let job = trainer.create(whole).await;
    let done = trainer.end(&job).await;
    assert_eq!((done.error.as_str(), done.state()), ("", JobState::Succeeded));
    assert!(done.base_evaluation.is_none() && done.tuned_evaluation.is_none());
    let weights = house.read(&format!("{}/artifact/model.safetensors", job.name));
    let base = house.read("bases/tiny/llama/model.safetensors");
    assert!(weights.len() < base.len() && weights.len() > base.len() / 3, "half the bytes of f32");
    for file in ["config.json", "tokenizer.json", "README.md"] {
        house.read(&format!("{}/artifact/{file}", job.name));
    }
    trainer.stop().await;
}

#[tokio::test]
async fn a_budget_ends_the_run() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let mut spec = epochs(1_000.0);
    spec.hyperparameters.as_mut().unwrap().budget_seconds = 0.5;
    let job = trainer.create(spec).await;
    let done = trainer.end(&job).await;
    assert_eq!((done.error.as_str(), done.state()), ("", JobState::Succeeded));
    assert!(done.step > 0 && done.step < done.steps, "{} of {}", done.step, done.steps);
    assert!(done.train_seconds >= 0.5 && done.train_seconds < 5.0, "{}", done.train_seconds);
    trainer.stop().await;
}
