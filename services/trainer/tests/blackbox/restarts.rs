//! Services that end in the middle of a job.

use firn_proto::trainer::v1::{Job, JobState, job_event::Event};

use crate::house::{House, Running, epochs};

/// Long enough to be caught in the middle.
const EPOCHS: f64 = 60.0;
/// Three steps an epoch.
const STEPS: u64 = 180;

/// Runs a job to its end and returns its adapter.
async fn adapter(house: &House, mut trainer: Running, job: &Job, cursor: u64) -> Vec<u8> {
    let events = trainer.events(job, cursor, |_| false).await;
    let kept: Vec<u64> =
        events.iter().filter(|e| !matches!(e.event, Some(Event::Progress(_)))).map(|event| event.cursor).collect();
    assert_eq!(kept, (cursor + 1..=cursor + kept.len() as u64).collect::<Vec<_>>(), "no event twice or left out");
    let Some(Event::State(done)) = events.last().unwrap().event.clone() else { panic!("no last state") };
    assert_eq!((done.error.as_str(), done.state(), done.step), ("", JobState::Succeeded, STEPS));
    // Seven states and a step each.
    assert_eq!(*kept.last().unwrap(), 7 + STEPS);
    trainer.stop().await;
    house.read(&format!("{}/artifact/adapter_model.safetensors", job.name))
}

async fn until_step(trainer: &mut Running, job: &Job, wanted: u64) -> u64 {
    let events = trainer.events(job, 0, |event| matches!(event, Event::Step(step) if step.step == wanted)).await;
    events.last().unwrap().cursor
}

#[tokio::test]
async fn a_killed_service_goes_on_to_the_same_bytes() {
    let straight = House::new().await;
    let mut trainer = straight.start().await;
    let job = trainer.create(epochs(EPOCHS)).await;
    let expected = adapter(&straight, trainer, &job, 0).await;

    let house = House::new().await;
    let mut trainer = house.start().await;
    let job = trainer.create(epochs(EPOCHS)).await;
    let mut cursor = 0;
    for step in [7, 20] {
        cursor = until_step(&mut trainer, &job, step).await;
        trainer.kill().await;
        trainer = house.start().await;
        let list = trainer.list().await;
        assert_eq!((list[0].state(), list[0].name == job.name), (JobState::Running, true));
    }
    assert!(adapter(&house, trainer, &job, cursor).await == expected, "the adapters differ");
}

#[tokio::test]
async fn a_stopped_service_writes_a_checkpoint_and_goes_on() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let job = trainer.create(epochs(EPOCHS)).await;
    let waiting = trainer.create(epochs(1.0)).await;
    let cursor = until_step(&mut trainer, &job, 5).await;
    trainer.stop().await;
    let mut trainer = house.start().await;
    let list = trainer.list().await;
    let states: Vec<_> = list.iter().map(|job| (job.name.as_str(), job.state())).collect();
    assert_eq!(states, [(job.name.as_str(), JobState::Running), (waiting.name.as_str(), JobState::Queued)]);
    assert!(list[0].step >= 5, "nothing is lost: {}", list[0].step);
    assert_eq!(trainer.end(&waiting).await.state(), JobState::Succeeded);
    adapter(&house, trainer, &job, cursor).await;
}

#[tokio::test]
async fn a_service_killed_before_the_first_step_begins_again() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let job = trainer.create(epochs(EPOCHS)).await;
    let preparing = |event: &Event| matches!(event, Event::State(job) if job.state() == JobState::Preparing);
    let cursor = trainer.events(&job, 0, preparing).await.last().unwrap().cursor;
    trainer.kill().await;
    adapter(&house, house.start().await, &job, cursor).await;
}
