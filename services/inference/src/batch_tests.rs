use std::{path::Path, sync::atomic::AtomicBool, time::Duration};

use firn_llm::{device::Device, generate::Sampling};
use tokio::sync::oneshot;

use super::*;
use crate::{
    engine::{Engine, EngineError, State, SubmitError, engine},
    job::{AHEAD, EVENTS},
};

/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    engine: Engine,
    stop: CancellationToken,
}

impl Running {
    async fn start(max_queue: usize, max_sequences: usize) -> Self {
        Self::with_cache(max_queue, max_sequences, 4_096).await
    }

    async fn with_cache(max_queue: usize, sequences: usize, cache_tokens: usize) -> Self {
        let (engine, worker) = engine(max_queue, Limits { sequences, step_tokens: 8 });
        let stop = CancellationToken::new();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        let load = move || {
            let model = Decoder::load(&dir, &Device::cpu())?;
            let cache = KvCache::new(&model, cache_tokens);
            Ok((model, cache))
        };
        worker.start(load, stop.clone()).unwrap();
        let running = Self { engine, stop };
        running.until(|state| matches!(state, State::Ready)).await;
        running
    }

    async fn until(&self, wanted: impl FnMut(&State) -> bool) -> State {
        tokio::time::timeout(PATIENCE, self.engine.state().wait_for(wanted)).await.unwrap().unwrap().clone()
    }

    fn ask(&self, max_tokens: usize) -> Result<mpsc::Receiver<Event>, SubmitError> {
        self.ask_after(vec![1, 40, 41], max_tokens)
    }

    fn ask_after(&self, ids: Vec<u32>, max_tokens: usize) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let (events, receiver) = mpsc::channel(EVENTS);
        let generation = Generation {
            ids,
            adapter: None,
            sampling: Sampling::greedy(),
            constraint: None,
            logprobs: None,
            max_tokens,
            ends: vec![],
            satisfied: Arc::default(),
            events,
        };
        self.submit(Job::Generate(Box::new(generation))).map(|()| receiver)
    }

    fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.engine.submit(self.engine.place()?, String::new(), job)
    }
}

/// The next event after the beginning.
async fn next(events: &mut mpsc::Receiver<Event>) -> Option<Event> {
    loop {
        match tokio::time::timeout(PATIENCE, events.recv()).await.unwrap() {
            Some(Event::Begun { .. }) => {}
            event => return event,
        }
    }
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
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_slow_reader_pauses_alone_and_loses_nothing() {
    let running = Running::start(8, 4).await;
    let slow = running.ask(60).unwrap();
    let quick = ids(running.ask(60).unwrap()).await;
    assert_eq!(quick.len(), 60);
    assert_eq!(slow.len(), AHEAD + 1, "as far ahead as it may be, after its beginning");
    assert_eq!(ids(slow).await, quick, "goes on where it paused");
    running.stop.cancel();
}

#[tokio::test]
async fn a_long_text_is_scored_beside_the_answers_and_as_in_one_piece() {
    let running = Running::start(8, 2).await;
    let text: Vec<u32> = (0..500).map(|at| 1 + at * 7 % 200).collect();
    let (reply, mut score) = oneshot::channel();
    running.submit(Job::Score(Scoring { ids: text.clone(), adapter: None, reply })).unwrap();
    assert_eq!(ids(running.ask(20).unwrap()).await.len(), 20);
    // 500 tokens are 63 pieces: an answer of 20 tokens, begun after the text, is long done.
    assert!(score.try_recv().is_err(), "the answer waited for the text");
    let pieces = tokio::time::timeout(PATIENCE, score).await.unwrap().unwrap().unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
    let whole = Decoder::load(&dir, &Device::cpu()).unwrap().score(&text, None).unwrap();
    assert_eq!(pieces, whole);
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
    running.submit(Job::Panic).unwrap();
    let (reply, score) = oneshot::channel();
    let scoring = Scoring { ids: vec![1, 2], adapter: None, reply };
    // The panic may have come first.
    let submitted = running.submit(Job::Score(scoring));
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
    let (engine, worker) = engine(1, Limits { sequences: 1, step_tokens: 1 });
    let load = || {
        let model = Decoder::load(Path::new("/nowhere"), &Device::cpu())?;
        let cache = KvCache::new(&model, 16);
        Ok((model, cache))
    };
    worker.start(load, CancellationToken::new()).unwrap();
    let mut states = engine.state();
    let ended = states.wait_for(|state| matches!(state, State::Ended(_))).await.unwrap().clone();
    assert!(matches!(ended, State::Ended(Some(error)) if error.to_string().starts_with("failed to load the base")));
}

#[tokio::test]
async fn too_little_room_delays_answers_and_loses_none_of_their_words() {
    // Room for one context and a half: three long answers can't have their pages at once.
    let roomy = Running::start(8, 4).await;
    let ask = |running: &Running, first: u32| running.ask_after((first..first + 40).collect(), 300).unwrap();
    let mut expected = vec![];
    for first in [10, 60, 110] {
        expected.push(ids(ask(&roomy, first)).await);
    }
    roomy.stop.cancel();
    let tight = Running::with_cache(8, 4, 512 + 256).await;
    let asked = [10, 60, 110].map(|first| tokio::spawn(ids(ask(&tight, first))));
    for (asked, expected) in asked.into_iter().zip(expected) {
        assert_eq!(asked.await.unwrap(), expected);
    }
    assert!(tight.engine.stats().preemptions_total > 0);
    // The last word is sent before it is counted.
    let counted = async {
        while tight.engine.stats().ended_total["length"] < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    assert_eq!(tight.engine.stats().waiting, 0);
    tight.stop.cancel();
}

#[tokio::test]
async fn a_paused_answer_gives_its_pages_up_and_still_loses_nothing() {
    let tight = Running::with_cache(8, 4, 512 + 16).await;
    let prompt: Vec<u32> = (10..400).collect();
    let slow = tight.ask_after(prompt.clone(), 60).unwrap();
    while slow.len() < AHEAD {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = ids(tight.ask_after((100..480).collect(), 20).unwrap()).await;
    assert_eq!(other.len(), 20);
    assert!(tight.engine.stats().preemptions_total > 0);
    let late = ids(slow).await;
    assert_eq!(late, ids(tight.ask_after(prompt, 60).unwrap()).await);
    tight.stop.cancel();
}

#[tokio::test]
async fn readers_that_are_behind_keep_nobody_from_the_batch() {
    let running = Running::start(8, 2).await;
    let mut slow = [running.ask(60).unwrap(), running.ask(60).unwrap()];
    while slow.iter().any(|slow| slow.len() < AHEAD) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Both places are theirs, and nobody reads.
    let begun = std::time::Instant::now();
    let quick = ids(running.ask(60).unwrap()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for slow in &mut slow {
        assert!(matches!(next(slow).await, Some(Event::Token(_))));
    }
    for slow in slow {
        assert_eq!(ids(slow).await, quick[1..], "they go on where they were");
    }
    running.stop.cancel();
}

#[tokio::test]
async fn an_answer_that_its_reader_ends_is_no_abort() {
    let running = Running::start(8, 2).await;
    let satisfied = Arc::new(AtomicBool::new(true));
    for (wanted, name) in [(Arc::clone(&satisfied), "stop"), (Arc::default(), "abort")] {
        let (events, mut receiver) = mpsc::channel(EVENTS);
        let generation = Generation {
            ids: vec![1, 40, 41],
            adapter: None,
            sampling: Sampling::greedy(),
            constraint: None,
            logprobs: None,
            max_tokens: 400,
            ends: vec![],
            satisfied: wanted,
            events,
        };
        running.submit(Job::Generate(Box::new(generation))).unwrap();
        assert!(matches!(next(&mut receiver).await, Some(Event::Token(_))));
        drop(receiver);
        let counted = async {
            while running.engine.stats().ended_total[name] < 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, counted).await.unwrap();
    }
    running.stop.cancel();
}

#[tokio::test]
async fn prompts_that_begin_alike_are_read_once() {
    let running = Running::start(8, 4).await;
    let prompt: Vec<u32> = (10..110).collect();
    let first = ids(running.ask_after(prompt.clone(), 5).unwrap()).await;
    let mut again = running.ask_after(prompt, 5).unwrap();
    assert!(matches!(again.recv().await, Some(Event::Begun { cached: 96 })));
    assert_eq!(ids(again).await, first);
    let stats = running.engine.stats();
    assert_eq!((stats.prefix_queries_total, stats.prefix_hits_total), (200, 96));
    running.stop.cancel();
}
