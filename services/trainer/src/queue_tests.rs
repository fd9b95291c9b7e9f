use jiff::Timestamp;

use super::*;
use crate::spec::tests::spec;

/// A job that runs and is asked to pause.
async fn pausing() -> (Jobs, Arc<Job>) {
    let (stage, clock) = (Stage::memory(), Clock::system());
    let (job, request_id) = ("job-1".to_owned(), "r".to_owned());
    let record = SpecRecord { job, request_id, create_time: Timestamp::UNIX_EPOCH, trace: None, spec: spec() };
    Job::create(&stage, &clock, record).await.unwrap();
    let jobs = Jobs::load(stage.clone(), clock.clone()).await.unwrap();
    let job = jobs.next().await;
    job.enter(&stage, &clock, State::Running, |_| {}).await.unwrap();
    jobs.pause(&job.name()).unwrap();
    (jobs, job)
}

/// What the worker does that heard the wish to pause.
async fn pause(jobs: &Jobs, job: &Arc<Job>) {
    job.enter(&jobs.0.stage, &jobs.0.clock, State::Paused, |_| {}).await.unwrap();
    jobs.paused(job).await.unwrap();
}

#[tokio::test]
async fn a_job_resumed_while_it_pauses_goes_on() {
    let (jobs, job) = pausing().await;
    assert_eq!(jobs.resume(&job.name()).await.unwrap().state(), pb::JobState::Running);
    pause(&jobs, &job).await;
    assert_eq!(job.state(), State::Queued);
    assert!(Arc::ptr_eq(&jobs.next().await, &job));
}

#[tokio::test]
async fn the_last_of_several_wishes_counts() {
    let (jobs, job) = pausing().await;
    jobs.resume(&job.name()).await.unwrap();
    jobs.pause(&job.name()).unwrap();
    pause(&jobs, &job).await;
    assert_eq!(job.state(), State::Paused);
    assert!(jobs.waiting().is_empty());
    jobs.resume(&job.name()).await.unwrap();
    // Resumed in between, the job is in the queue once.
    jobs.paused(&job).await.unwrap();
    assert_eq!((job.state(), jobs.waiting().len()), (State::Queued, 1));
}
