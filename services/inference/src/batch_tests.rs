use std::{path::Path, time::Duration};

use firn_llm::{device::Device, generate::Sampling};
use tokio::sync::oneshot;

use super::*;
use crate::engine::{AHEAD, Engine, EngineError, State, SubmitError, engine};

/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    engine: Engine,
    stop: CancellationToken,
}

impl Running {
    async fn start(max_queue: usize, max_sequences: usize) -> Self {
        let (engine, worker) = engine(max_queue, max_sequences);
        let stop = CancellationToken::new();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        worker.start(move || Decoder::load(&dir, &Device::cpu()), stop.clone()).unwrap();
        let running = Self { engine, stop };
        running.until(|state| matches!(state, State::Ready)).await;
        running
    }

    async fn until(&self, wanted: impl FnMut(&State) -> bool) -> State {
        tokio::time::timeout(PATIENCE, self.engine.state().wait_for(wanted)).await.unwrap().unwrap().clone()
    }

    fn ask(&self, max_tokens: usize) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let (events, receiver) = mpsc::channel(AHEAD + 1);
        let generation = Generation {
            ids: vec![1, 40, 41],
            adapter: None,
            sampling: Sampling::greedy(),
            logprobs: false,
            max_tokens,
            ends: vec![],
            events,
        };
        self.engine.submit(Job::Generate(generation)).map(|()| receiver)
    }
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Option<Event> {
    tokio::time::timeout(PATIENCE, events.recv()).await.unwrap()
}

async fn ids(mut events: mpsc::Receiver<Event>) -> Vec<u32> {
    let mut ids = vec![];
    loop {
        match next(&mut events).await.unwrap() {
            Event::Token(token) => ids.push(token.id),
            Event::Last(token, end) => {
                assert_eq!(end, End::Length);
                ids.extend(token.map(|token| token.id));
                return ids;
            }
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
}

#[tokio::test]
async fn a_slow_reader_pauses_alone_and_loses_nothing() {
    let running = Running::start(8, 4).await;
    let slow = running.ask(60).unwrap();
    let quick = ids(running.ask(60).unwrap()).await;
    assert_eq!(quick.len(), 60);
    assert_eq!(slow.len(), AHEAD, "as far ahead as it may be");
    assert_eq!(ids(slow).await, quick, "goes on where it paused");
    running.stop.cancel();
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_reader_that_leaves_makes_room() {
    let running = Running::start(1, 1).await;
    let mut paused = running.ask(100).unwrap();
    assert!(matches!(next(&mut paused).await, Some(Event::Token(_))), "it has the only place");
    let waiting = running.ask(5).unwrap();
    assert!(matches!(running.ask(5), Err(SubmitError::Full { limit: 1 })));
    drop(paused);
    assert_eq!(ids(waiting).await.len(), 5);
    running.stop.cancel();
}

#[tokio::test]
async fn an_answer_ends_with_the_context() {
    let running = Running::start(1, 1).await;
    assert_eq!(ids(running.ask(100_000).unwrap()).await.len(), 512 - 3 + 1, "the last token need not be read");
    running.stop.cancel();
}

#[tokio::test]
async fn stopping_tells_those_who_wait() {
    let running = Running::start(2, 1).await;
    let mut paused = running.ask(100).unwrap();
    let mut waiting = running.ask(100).unwrap();
    while paused.len() < AHEAD {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.stop.cancel();
    assert!(matches!(next(&mut waiting).await, Some(Event::Failed(Failure::Stopping))));
    for _ in 0..AHEAD {
        assert!(matches!(next(&mut paused).await, Some(Event::Token(_))));
    }
    assert!(matches!(next(&mut paused).await, Some(Event::Failed(Failure::Stopping))));
    assert!(matches!(running.until(|state| matches!(state, State::Ended(_))).await, State::Ended(None)));
    assert!(matches!(running.ask(1), Err(SubmitError::Stopping)));
}

#[tokio::test]
async fn a_panic_hangs_nobody() {
    let running = Running::start(8, 2).await;
    let mut paused = running.ask(100).unwrap();
    assert!(matches!(next(&mut paused).await, Some(Event::Token(_))));
    running.engine.submit(Job::Panic).unwrap();
    let (reply, score) = oneshot::channel();
    let scoring = Scoring { ids: vec![1, 2], adapter: None, reply };
    // The panic may have come first.
    let submitted = running.engine.submit(Job::Score(scoring));
    while let Some(event) = next(&mut paused).await {
        assert!(matches!(event, Event::Token(_)));
    }
    assert!(submitted.is_err() || tokio::time::timeout(PATIENCE, score).await.unwrap().is_err());
    let ended = running.until(|state| matches!(state, State::Ended(_))).await;
    let State::Ended(Some(error)) = ended else { panic!("{ended:?}") };
    assert!(matches!(&*error, EngineError::Panicked(text) if text == "asked to"), "{error}");
    assert!(matches!(running.ask(1), Err(SubmitError::Dead)));
}

#[tokio::test]
async fn a_base_that_cannot_be_loaded_is_an_error_of_the_engine() {
    let (engine, worker) = engine(1, 1);
    let load = || Decoder::load(Path::new("/nowhere"), &Device::cpu());
    worker.start(load, CancellationToken::new()).unwrap();
    let mut states = engine.state();
    let ended = states.wait_for(|state| matches!(state, State::Ended(_))).await.unwrap().clone();
    assert!(matches!(ended, State::Ended(Some(error)) if error.to_string().starts_with("failed to load the base")));
}
