//! Pulls that are cut, and go on.

use std::time::{Duration, Instant};

use firn_trainer::hub::{HubError, pull};
use tokio_util::sync::CancellationToken;

use crate::{
    fake::Asked,
    house::{BASE, House, fixture},
};

const WEIGHTS: &str = "model.safetensors";
/// After so many bytes the connection is cut.
const CUT: usize = 500_000;

/// The byte from which the storage was asked for the weights, a request.
fn starts(asked: &[Asked]) -> Vec<usize> {
    let weights = asked.iter().filter(|asked| asked.by_storage && asked.what == WEIGHTS);
    let start = |range: &String| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    weights.map(|asked| asked.range.as_ref().map_or(0, start)).collect()
}

#[tokio::test]
async fn the_next_pull_goes_on_where_the_connection_was_cut() {
    let house = House::new().await;
    house.hub.faults(|faults| faults.cut = Some((CUT, 1)));
    let error = house.refused().await;
    assert!(error.starts_with("failed to fetch model.safetensors from 127.0.0.1:"), "{error}");
    assert!(!error.contains("xyzzy"), "no signed address: {error}");
    let kept = std::fs::metadata(house.spooled("model.safetensors.part")).unwrap().len() as usize;
    assert!(kept > CUT / 2 && kept <= CUT, "{kept}");
    house.hub.asked();
    house.pull().await.unwrap();
    let asked = house.hub.asked();
    assert_eq!(starts(&asked), [kept]);
    assert!(!asked.iter().any(|asked| asked.what == "tokenizer.json"), "whole files are not fetched again: {asked:?}");
    let size = fixture(WEIGHTS).len();
    assert!(house.hub.sent() <= size + (CUT - kept), "{} bytes of {size}", house.hub.sent());
    assert_eq!(house.read(&format!("{BASE}/{WEIGHTS}")), fixture(WEIGHTS));
}

#[tokio::test]
async fn one_pull_goes_on_by_itself() {
    let mut house = House::new().await;
    house.options.limits.tries = 2;
    // Each try brings something, so they may be more than two.
    house.hub.faults(|faults| faults.cut = Some((200_000, 3)));
    house.pull().await.unwrap();
    let starts = starts(&house.hub.asked());
    assert!(starts.len() == 4 && starts.is_sorted() && starts[1] > 0, "{starts:?}");
    assert_eq!(house.read(&format!("{BASE}/{WEIGHTS}")), fixture(WEIGHTS));
}

#[tokio::test]
async fn what_cannot_be_gone_on_with_is_fetched_whole() {
    for fault in ["no ranges", "no middle", "damaged", "too long"] {
        let mut house = House::new().await;
        house.options.limits.tries = 2;
        house.hub.faults(|faults| (faults.no_ranges, faults.no_middle) = (fault == "no ranges", fault == "no middle"));
        let part = house.spooled("model.safetensors.part");
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        let left = match fault {
            "damaged" => vec![7; CUT],
            "too long" => vec![7; fixture(WEIGHTS).len() + 1],
            _ => fixture(WEIGHTS)[..CUT].to_vec(),
        };
        std::fs::write(&part, left).unwrap();
        house.pull().await.unwrap();
        assert_eq!(house.read(&format!("{BASE}/{WEIGHTS}")), fixture(WEIGHTS), "{fault}");
        let expected: &[usize] = match fault {
            "no ranges" => &[CUT],
            "too long" => &[0],
            _ => &[CUT, 0],
        };
        assert_eq!(starts(&house.hub.asked()), expected, "{fault}");
    }
}

#[tokio::test]
async fn a_whole_file_that_changed_on_the_local_disk_is_fetched_again() {
    let house = House::new().await;
    let local = house.spooled(WEIGHTS);
    std::fs::create_dir_all(local.parent().unwrap()).unwrap();
    std::fs::write(&local, vec![7; fixture(WEIGHTS).len()]).unwrap();
    house.pull().await.unwrap();
    assert_eq!(house.read(&format!("{BASE}/{WEIGHTS}")), fixture(WEIGHTS));
}

#[tokio::test]
async fn a_silent_server_is_not_waited_for_without_end() {
    let mut house = House::new().await;
    house.hub.faults(|faults| faults.stalls = true);
    house.options.limits.stall = Duration::from_millis(200);
    let error = house.refused().await;
    assert!(error.contains("sent nothing of model.safetensors for 0.2 s"), "{error}");
    assert!(std::fs::metadata(house.spooled("model.safetensors.part")).unwrap().len() > 0, "what came is kept");

    house.options.limits.stall = Duration::from_secs(60);
    house.options.limits.deadline = Duration::from_millis(400);
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny was not here after 0.4 s"), "{error}");

    house.options.limits.deadline = Duration::from_secs(60);
    let (stop, begin) = (CancellationToken::new(), Instant::now());
    let repo = "acme/tiny".parse().unwrap();
    let pulling = pull(&house.stage, &repo, &house.options, |_| {}, &stop);
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.cancel();
    };
    let (stopped, ()) = tokio::join!(pulling, stopping);
    assert!(matches!(stopped, Err(HubError::Stopped { .. })), "{stopped:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));

    house.hub.faults(|_| {});
    house.pull().await.unwrap();
    assert_eq!(house.read(&format!("{BASE}/{WEIGHTS}")), fixture(WEIGHTS));
}

#[tokio::test]
async fn a_pull_is_work_for_any_thread() {
    let house = House::new().await;
    let (stage, options) = (house.stage.clone(), house.options.clone());
    let task = tokio::spawn(async move {
        pull(&stage, &"acme/tiny".parse().unwrap(), &options, |_| {}, &CancellationToken::new()).await
    });
    assert_eq!(task.await.unwrap().unwrap(), BASE);
}
