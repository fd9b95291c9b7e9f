use jiff::Timestamp;

use super::*;
use crate::{
    checkpoint::{Progress, Purpose},
    record::{example_step, write_steps},
    spec::tests::spec,
};

fn spec_record() -> SpecRecord {
    let (job, request_id) = ("job-1".to_owned(), "r".to_owned());
    SpecRecord { job, request_id, create_time: Timestamp::UNIX_EPOCH, trace: None, spec: spec() }
}

fn step(step: u64) -> Step {
    example_step(step, 9)
}

#[tokio::test]
async fn a_state_is_a_file_before_it_is_told() {
    let (stage, clock) = (Stage::memory(), Clock::system());
    let job = Job::create(&stage, &clock, spec_record()).await.unwrap();
    job.enter(&stage, &clock, State::Validating, |_| {}).await.unwrap();
    let records: Vec<StateRecord> = stage.log("jobs/job-1/state").await.unwrap().all().await.unwrap();
    assert_eq!(
        records.iter().map(|r| (r.sequence, r.state)).collect::<Vec<_>>(),
        [(1, State::Queued), (2, State::Validating)]
    );
    let message = job.to_proto();
    assert_eq!((message.name.as_str(), message.path.as_str()), ("jobs/job-1", "jobs/job-1"));
    assert_eq!((message.state(), message.sequence), (pb::JobState::Validating, 2));
}

#[tokio::test]
async fn a_running_job_comes_back_at_its_last_checkpoint() {
    let (stage, clock) = (Stage::memory(), Clock::system());
    let job = Job::create(&stage, &clock, spec_record()).await.unwrap();
    job.enter(&stage, &clock, State::Running, |record| record.steps = 9).await.unwrap();
    let local = tempfile::tempdir().unwrap();
    std::fs::write(local.path().join(checkpoint::STATE), "x").unwrap();
    // Metrics of steps 4 to 6 are there, but the kill came before their checkpoint.
    write_steps(&stage, "job-1", &[step(1), step(2), step(3)]).await.unwrap();
    let progress = Progress { step: 3, ..Progress::default() };
    checkpoint::save(&stage, "job-1", Purpose::Resume, &progress, local.path(), None).await.unwrap();
    write_steps(&stage, "job-1", &[step(4), step(5), step(6)]).await.unwrap();

    let back = Job::load(&stage, &clock, "job-1").await.unwrap();
    let record = back.record();
    assert_eq!((record.state, record.step, record.train_tokens, record.steps), (State::Running, 3, 30, 9));
    assert!(!back.cancel.is_cancelled());
    // The same step again is not told again; new ones are.
    back.step(step(3));
    back.step(step(4));
    assert_eq!(back.steps().iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    back.want_end(&stage, &clock).await.unwrap();
    assert!(Job::load(&stage, &clock, "job-1").await.unwrap().cancel.is_cancelled(), "the wish outlives the service");
}

#[tokio::test]
async fn a_job_without_a_state_is_queued() {
    let (stage, clock) = (Stage::memory(), Clock::system());
    put_json(&stage, "jobs/job-1/spec.json", &spec_record()).await.unwrap();
    assert_eq!(Job::load(&stage, &clock, "job-1").await.unwrap().state(), State::Queued);
    assert!(stage.exists("jobs/job-1/state/000001.json").await.unwrap());
    let error = Job::load(&stage, &clock, "job-2").await.unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn an_ended_job_is_read_when_it_is_asked_for() {
    let (stage, clock) = (Stage::memory(), Clock::system());
    let job = Job::create(&stage, &clock, spec_record()).await.unwrap();
    job.enter(&stage, &clock, State::Running, |_| {}).await.unwrap();
    write_steps(&stage, "job-1", &[step(1), step(2)]).await.unwrap();
    (1..=2).for_each(|number| job.step(step(number)));
    job.enter(&stage, &clock, State::Failed, |record| record.error = "step 3: no".to_owned()).await.unwrap();
    let back = Job::load(&stage, &clock, "job-1").await.unwrap();
    assert_eq!(back.to_proto(), job.to_proto());
    assert!(back.steps().is_empty(), "not in memory");
    assert_eq!(back.events(&stage).await.unwrap().steps(), [step(1), step(2)]);
}
