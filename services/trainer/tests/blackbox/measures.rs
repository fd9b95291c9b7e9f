//! What is measured on held-out rows while a job runs, what follows from it, and plans.

use firn_proto::trainer::v1::{
    Hyperparameters, Job, JobSpec, JobState, LoraSpec, Objective, PlanJobRequest, StepMetrics, job_event::Event,
};

use crate::house::{House, Running, epochs, preferences, spec};

fn with(change: impl FnOnce(&mut Hyperparameters)) -> JobSpec {
    let mut spec = epochs(8.0);
    change(spec.hyperparameters.as_mut().unwrap());
    spec
}

/// Runs a job to its end: the job, and its steps.
async fn run(trainer: &mut Running, spec: JobSpec) -> (Job, Vec<StepMetrics>) {
    let job = trainer.create(spec).await;
    let events = trainer.events(&job, 0, |_| false).await;
    let steps = events.iter().filter_map(|event| match &event.event {
        Some(Event::Step(step)) => Some(*step),
        _ => None,
    });
    let steps = steps.collect();
    let Some(Event::State(done)) = events.last().unwrap().event.clone() else { panic!("no last state") };
    assert_eq!((done.error.as_str(), done.state()), ("", JobState::Succeeded));
    (done, steps)
}

fn adapter(house: &House, job: &Job) -> Vec<u8> {
    house.read(&format!("{}/artifact/adapter_model.safetensors", job.name))
}

#[tokio::test]
async fn the_best_measurement_is_the_result_and_training_ends_when_nothing_is_gained() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    // Far too fast: the loss on held-out rows rises after its start.
    let fast = |hyper: &mut Hyperparameters| {
        (hyper.learning_rate, hyper.warmup_ratio) = (Some(0.05), Some(0.0));
        hyper.scheduler = Some("constant".to_owned());
    };
    let (plain, steps) = run(&mut trainer, with(fast)).await;
    let measured: Vec<(u64, f64)> =
        steps.iter().filter_map(|step| Some((step.step, step.held_out.as_ref()?.loss))).collect();
    assert_eq!(measured.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 9, 12, 15, 18, 21]);
    assert!((steps[5].epoch - 2.0).abs() < 1e-9 && steps[5].memory_bytes > 0);
    assert!(plain.tuned_evaluation.as_ref().unwrap().token_accuracy.is_some());

    let (best, steps) = run(
        &mut trainer,
        with(|hyper| {
            fast(hyper);
            hyper.keep_best = true;
        }),
    )
    .await;
    let losses: Vec<_> = steps.iter().filter_map(|step| Some((step.step, step.held_out.as_ref()?.loss))).collect();
    assert_eq!(losses.len(), 8, "the last one counts, too");
    let lowest = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_ne!(lowest.0, 24, "the test would prove nothing");
    assert_eq!(best.best_step, lowest.0);
    let tuned = best.tuned_evaluation.as_ref().unwrap().loss;
    assert!((tuned - lowest.1).abs() < 1e-6, "{tuned} for {}", lowest.1);
    assert_ne!(adapter(&house, &best), adapter(&house, &plain));

    let (early, steps) = run(
        &mut trainer,
        with(|hyper| {
            fast(hyper);
            (hyper.early_stopping_patience, hyper.keep_best) = (2, true);
        }),
    )
    .await;
    assert_eq!(early.best_step, lowest.0);
    assert_eq!(early.step, lowest.0 + 6, "two passes after the best");
    assert_eq!((steps.len() as u64, early.steps), (early.step, 24));
    assert_eq!(adapter(&house, &early), adapter(&house, &best));
}

#[tokio::test]
async fn dropout_is_the_seeds_and_changes_the_result() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let dropped = |seed: u64| {
        let mut spec = with(|hyper| hyper.seed = Some(seed));
        spec.lora = Some(LoraSpec { r: 4, dropout: 0.3, ..LoraSpec::default() });
        spec
    };
    let (one, _) = run(&mut trainer, dropped(42)).await;
    let (same, _) = run(&mut trainer, dropped(42)).await;
    let (other, _) = run(&mut trainer, dropped(43)).await;
    let (none, _) = run(&mut trainer, with(|_| {})).await;
    let bytes = adapter(&house, &one);
    assert!(bytes == adapter(&house, &same), "two runs of one seed differ");
    assert!(bytes != adapter(&house, &other) && bytes != adapter(&house, &none));
    let config = house.read(&format!("{}/artifact/adapter_config.json", one.name));
    assert!(String::from_utf8(config).unwrap().contains("\"lora_dropout\": 0.3"));
}

#[tokio::test]
async fn a_reward_model_learns_which_answer_is_chosen() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let spec = JobSpec { objective: Objective::Reward.into(), ..preferences(30.0) };
    let (job, steps) = run(&mut trainer, spec).await;
    assert!(steps.last().unwrap().loss < 0.8 * steps[0].loss, "{} to {}", steps[0].loss, steps.last().unwrap().loss);
    assert!((steps[0].loss - 2.0f64.ln()).abs() < 0.05, "a new score tells nothing apart: {}", steps[0].loss);
    let tuned = job.tuned_evaluation.as_ref().unwrap();
    assert_eq!((tuned.preference_accuracy, job.base_evaluation), (Some(1.0), None), "{tuned:?}");
    let config: serde_json::Value =
        serde_json::from_slice(&house.read(&format!("{}/artifact/adapter_config.json", job.name))).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"][1]), (&"SEQ_CLS".into(), &"score".into()));
    let without = JobSpec { lora: None, objective: Objective::Reward.into(), ..preferences(1.0) };
    let request = firn_proto::trainer::v1::CreateJobRequest { spec: Some(without), request_id: String::new() };
    assert!(trainer.client.create_job(request).await.unwrap_err().message().contains("spec.lora"));
}

#[tokio::test]
async fn a_plan_counts_what_the_run_then_does() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let request = PlanJobRequest { spec: Some(with(|_| {})) };
    let plan = trainer.client.plan_job(request).await.unwrap().into_inner();
    assert!(trainer.list().await.is_empty(), "a plan is no job");
    let (job, steps) = run(&mut trainer, with(|_| {})).await;
    assert_eq!((plan.steps, plan.epoch_steps.as_slice()), (steps.len() as u64, [3; 8].as_slice()));
    assert_eq!((plan.step_tokens, plan.snapshot.as_str()), (job.train_tokens, job.snapshot.as_str()));
    assert_eq!((plan.train_rows, plan.held_out_rows), (9, 3));
    assert_eq!(plan.learning_rates.first().copied(), Some(steps[0].learning_rate));
    assert_eq!(plan.learning_rates.last().copied(), Some(steps[23].learning_rate));
    assert!(plan.memory_bytes > 0 && plan.seconds > 0.0 && plan.trained_parameters > 0);
    let missing = JobSpec { base: "bases/no/where".to_owned(), ..spec() };
    let refused = trainer.client.plan_job(PlanJobRequest { spec: Some(missing) }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("bases/no/where"), "{refused}");
}
