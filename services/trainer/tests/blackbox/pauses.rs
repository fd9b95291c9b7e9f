//! Jobs that are paused and go on.

use firn_proto::trainer::v1::{CancelJobRequest, Job, JobState, PauseJobRequest, ResumeJobRequest, job_event::Event};
use tonic::Code;

use crate::house::{House, Running, epochs};

fn is(wanted: JobState) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::State(job) if job.state() == wanted)
}

fn at_step(wanted: u64) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Step(step) if step.step == wanted)
}

async fn pause(trainer: &mut Running, job: &Job) -> Result<Job, tonic::Status> {
    Ok(trainer.client.pause_job(PauseJobRequest { name: job.name.clone() }).await?.into_inner())
}

async fn resume(trainer: &mut Running, job: &Job) -> Result<Job, tonic::Status> {
    Ok(trainer.client.resume_job(ResumeJobRequest { name: job.name.clone() }).await?.into_inner())
}

#[tokio::test]
async fn a_paused_job_makes_room_and_goes_on_to_the_same_bytes() {
    let straight = House::new().await;
    let mut trainer = straight.start().await;
    let job = trainer.create(epochs(20.0)).await;
    assert_eq!(trainer.end(&job).await.state(), JobState::Succeeded);
    trainer.stop().await;
    let expected = straight.read(&format!("{}/artifact/adapter_model.safetensors", job.name));

    let house = House::new().await;
    let mut trainer = house.start().await;
    let job = trainer.create(epochs(20.0)).await;
    let next = trainer.create(epochs(1.0)).await;
    assert_eq!(pause(&mut trainer, &next).await.unwrap_err().code(), Code::FailedPrecondition, "it is not running");
    assert_eq!(resume(&mut trainer, &next).await.unwrap_err().code(), Code::FailedPrecondition);
    trainer.events(&job, 0, at_step(7)).await;
    pause(&mut trainer, &job).await.unwrap();
    let events = trainer.events(&job, 0, is(JobState::Paused)).await;
    let Some(Event::State(paused)) = events.last().unwrap().event.clone() else { panic!("no state") };
    assert!(paused.step >= 7 && paused.step < 60, "{}", paused.step);
    assert_eq!(trainer.end(&next).await.state(), JobState::Succeeded, "the next job runs meanwhile");

    // It stays paused over a restart.
    trainer.stop().await;
    let mut trainer = house.start().await;
    let list = trainer.list().await;
    assert_eq!((list[0].state(), list[0].step), (JobState::Paused, paused.step));
    assert_eq!(resume(&mut trainer, &job).await.unwrap().state(), JobState::Queued);
    assert_eq!(resume(&mut trainer, &job).await.unwrap_err().code(), Code::FailedPrecondition, "once is enough");
    let done = trainer.end(&job).await;
    assert_eq!((done.error.as_str(), done.state(), done.step), ("", JobState::Succeeded, 60));
    let all = trainer.events(&job, 0, |_| false).await;
    trainer.stop().await;
    assert!(house.read(&format!("{}/artifact/adapter_model.safetensors", job.name)) == expected, "other bytes");
    let mut trainer = house.start().await;
    let stored = trainer.events(&job, 0, |_| false).await;
    let kept = all.into_iter().filter(|event| !matches!(event.event, Some(Event::Progress(_)))).collect::<Vec<_>>();
    assert_eq!(stored, kept, "the stage has the same events in the same order");
}

#[tokio::test]
async fn a_paused_job_can_be_cancelled() {
    let house = House::new().await;
    let mut trainer = house.start().await;
    let job = trainer.create(epochs(60.0)).await;
    trainer.events(&job, 0, at_step(3)).await;
    pause(&mut trainer, &job).await.unwrap();
    trainer.events(&job, 0, is(JobState::Paused)).await;
    let cancelled = trainer.client.cancel_job(CancelJobRequest { name: job.name.clone() }).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), JobState::Cancelled);
    assert_eq!(trainer.end(&job).await.state(), JobState::Cancelled);
    assert_eq!(resume(&mut trainer, &job).await.unwrap_err().code(), Code::FailedPrecondition);
}
