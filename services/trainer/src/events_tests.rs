use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::*;
use crate::{
    record::{State, example_step},
    spec::tests::spec,
};

fn state(state: State, sequence: u64) -> Kept {
    Kept::State(Box::new(StateRecord { state, sequence, ..StateRecord::queued(Timestamp::UNIX_EPOCH) }))
}

fn step(step: u64) -> Kept {
    Kept::Step(example_step(step, 2))
}

fn record() -> Arc<SpecRecord> {
    let (job, request_id) = ("job-1".to_owned(), String::new());
    Arc::new(SpecRecord { job, request_id, create_time: Timestamp::UNIX_EPOCH, trace: None, spec: spec() })
}

/// Cursor and kind of an event.
fn brief(event: Result<pb::JobEvent, Status>) -> (u64, String) {
    let event = event.unwrap();
    let kind = match event.event.unwrap() {
        job_event::Event::State(job) => job.state().as_str_name().to_owned(),
        job_event::Event::Step(step) => format!("step {}", step.step),
        job_event::Event::Progress(progress) => format!("{} {}/{}", progress.what, progress.done, progress.total),
    };
    (event.cursor, kind)
}

#[tokio::test]
async fn a_watch_has_what_was_then_what_comes_and_ends_with_the_job() {
    let events = Arc::new(Events::new(vec![state(State::Queued, 1), state(State::Running, 2)]));
    let stop = CancellationToken::new();
    let mut all = Box::pin(watch(record(), Arc::clone(&events), 0, stop.clone()));
    let mut late = Box::pin(watch(record(), Arc::clone(&events), 1, stop.clone()));
    assert_eq!(brief(all.next().await.unwrap()), (1, "JOB_STATE_QUEUED".to_owned()));
    assert_eq!(brief(all.next().await.unwrap()), (2, "JOB_STATE_RUNNING".to_owned()));
    assert_eq!(brief(late.next().await.unwrap()), (2, "JOB_STATE_RUNNING".to_owned()));
    events.progress("rows", 1, 2);
    assert_eq!(brief(all.next().await.unwrap()), (2, "rows 1/2".to_owned()));
    events.push(step(1));
    events.push(state(State::Failed, 3));
    assert_eq!(brief(all.next().await.unwrap()), (3, "step 1".to_owned()));
    assert_eq!(brief(all.next().await.unwrap()), (4, "JOB_STATE_FAILED".to_owned()));
    assert!(all.next().await.is_none());
    let rest: Vec<_> = late.map(brief).collect().await;
    assert_eq!(rest, [(3, "step 1".to_owned()), (4, "JOB_STATE_FAILED".to_owned())]);
    let past: Vec<_> = watch(record(), Arc::clone(&events), 9, stop).collect().await;
    assert!(past.is_empty(), "nothing comes after the last event");
}

#[tokio::test]
async fn an_event_says_when_it_happened() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let queued = Kept::State(Box::new(StateRecord::queued(at(1))));
    let made = Kept::Step(Step { time: Some(at(2)), ..example_step(1, 2) });
    let events = Arc::new(Events::new(vec![queued, made, step(2), state(State::Failed, 2)]));
    let all = watch(record(), events, 0, CancellationToken::new());
    let times: Vec<_> = all.map(|event| event.unwrap().time.map(|time| time.seconds)).collect().await;
    assert_eq!(times, [Some(1), Some(2), None, Some(0)], "a step of before does not know");
}

#[tokio::test]
async fn a_watch_of_a_stopping_service_says_so() {
    let events = Arc::new(Events::new(vec![state(State::Queued, 1)]));
    let stop = CancellationToken::new();
    let mut all = Box::pin(watch(record(), events, 1, stop.clone()));
    assert!(tokio::time::timeout(Duration::from_millis(20), all.next()).await.is_err(), "it waits");
    stop.cancel();
    assert_eq!(all.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    assert!(all.next().await.is_none());
}

#[tokio::test]
async fn steps_stand_between_the_states_that_they_came_between() {
    let stage = Stage::memory();
    let log = stage.log("jobs/job-1/state").await.unwrap();
    let life = [(State::Queued, 0), (State::Running, 0), (State::Paused, 2), (State::Queued, 2), (State::Running, 2)];
    for (sequence, (state, step)) in (1..).zip(life) {
        let record = StateRecord { state, sequence, step, ..StateRecord::queued(Timestamp::UNIX_EPOCH) };
        log.append(&record).await.unwrap();
    }
    let steps: Vec<Step> = (1..=4).map(|step| example_step(step, 4)).collect();
    crate::record::write_steps(&stage, "job-1", &steps).await.unwrap();
    let brief = |kept: Vec<Kept>| -> Vec<String> {
        kept.into_iter()
            .map(|event| match event {
                Kept::State(record) => record.state.name().to_owned(),
                Kept::Step(step) => step.step.to_string(),
            })
            .collect()
    };
    let all = brief(load(&stage, "job-1", 4).await.unwrap());
    assert_eq!(all, ["queued", "running", "1", "2", "paused", "queued", "running", "3", "4"]);
    assert_eq!(brief(load(&stage, "job-1", 3).await.unwrap()).last().unwrap(), "3");
}
