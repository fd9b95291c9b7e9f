use tokio::sync::oneshot;

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn key(id: &str) -> Key {
    Key { tenant: Tenant::local(), path: "/functions/complete".to_owned(), id: id.to_owned() }
}

fn store(most: usize, most_bytes: usize) -> Arc<Batches> {
    Arc::new(Batches::new(most, most_bytes, Duration::from_secs(600)))
}

async fn run(store: &Arc<Batches>, id: &str, answer: &'static str) -> Bytes {
    let mut waiting = store.begin(key(id), async move { Ok(Bytes::from_static(answer.as_bytes())) }).unwrap();
    let rows = waiting.wait(SOON).await.unwrap().unwrap().unwrap();
    // It is sent before it is counted.
    while store.find(&key(id)).is_some() && store.fresh().get(&key(id)).is_some_and(|entry| entry.done.is_none()) {
        tokio::task::yield_now().await;
    }
    rows
}

#[tokio::test]
async fn the_first_answer_stays() {
    let store = store(10, 1000);
    assert_eq!(run(&store, "a", "first").await, "first");
    assert_eq!(run(&store, "a", "second").await, "first");
    let other = Key { path: "/functions/finetune".to_owned(), ..key("a") };
    assert!(store.find(&other).is_none() && store.find(&key("a")).is_some());
}

#[tokio::test]
async fn the_oldest_answers_are_forgotten() {
    let store = store(3, 10);
    for id in ["a", "b", "c", "d"] {
        run(&store, id, "1234").await;
    }
    let left: Vec<bool> = ["a", "b", "c", "d"].into_iter().map(|id| store.find(&key(id)).is_some()).collect();
    assert_eq!(left, [false, false, true, true], "12 bytes are more than 10");
    let store = Arc::new(Batches::new(3, 10, Duration::ZERO));
    run(&store, "a", "1").await;
    assert!(store.find(&key("a")).is_none(), "its time has passed");
}

#[tokio::test]
async fn what_runs_is_bounded_and_ends_with_the_store() {
    let store = store(1, 10);
    let (sender, dropped) = oneshot::channel::<()>();
    let mut waiting = store
        .begin(key("a"), async move {
            let _sender = sender;
            std::future::pending().await
        })
        .unwrap();
    assert!(waiting.wait(Duration::from_millis(10)).await.unwrap().is_none());
    assert!(waiting.now().unwrap().is_none());
    assert!(store.begin(key("b"), async { Ok(Bytes::new()) }).is_err());
    assert!(store.begin(key("a"), async { Ok(Bytes::new()) }).is_ok(), "it is there");
    drop(store);
    assert!(dropped.await.is_err());
    assert!(waiting.wait(SOON).await.is_err());
}

#[tokio::test]
async fn a_batch_that_panics_may_be_sent_again() {
    let store = store(10, 1000);
    let mut waiting = store.begin(key("a"), async { panic!("a defect") }).unwrap();
    assert!(waiting.wait(SOON).await.is_err() && waiting.now().is_err());
    assert_eq!(run(&store, "a", "well").await, "well");
}

#[tokio::test]
async fn a_batch_that_failed_may_be_sent_again() {
    let store = store(10, 1000);
    let mut waiting = store.begin(key("a"), async { Err(ApiError::internal()) }).unwrap();
    assert!(waiting.wait(SOON).await.unwrap().unwrap().is_err());
    assert!(store.find(&key("a")).unwrap().now().unwrap().unwrap().is_err(), "whoever polls hears why");
    assert_eq!(run(&store, "a", "well").await, "well");
}
