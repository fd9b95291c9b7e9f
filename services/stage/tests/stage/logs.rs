use std::{fs, sync::Arc};

use firn_stage::Stage;
use serde_json::{Value, json};

use crate::on_disk;

#[tokio::test]
async fn the_last_record_wins_and_a_new_process_goes_on() {
    let Some((_folder, disk)) = on_disk() else { return };
    for stage in [disk, Stage::memory()] {
        let log = stage.log("jobs/j/state").await.unwrap();
        assert_eq!(log.last::<Value>().await.unwrap(), None);
        assert_eq!(log.append(&json!({"s": "QUEUED"})).await.unwrap(), 1);
        assert_eq!(log.append(&json!({"s": "RUNNING"})).await.unwrap(), 2);
        let log = stage.log("jobs/j/state").await.unwrap();
        assert_eq!(log.append(&json!({"s": "FAILED"})).await.unwrap(), 3);
        assert_eq!(log.last::<Value>().await.unwrap(), Some(json!({"s": "FAILED"})));
        assert_eq!(log.all::<Value>().await.unwrap().len(), 3);
        assert!(stage.exists("jobs/j/state/000003.json").await.unwrap());
    }
}

#[tokio::test]
async fn a_torn_record_is_skipped_and_its_number_is_not_used_again() {
    let Some((folder, stage)) = on_disk() else { return };
    let log = stage.log("log").await.unwrap();
    log.append(&json!({"n": 1})).await.unwrap();
    fs::write(folder.path().join("log/000002.json"), b"{\"n\": ").unwrap();
    // A prefix that happens to be JSON is torn all the same.
    fs::write(folder.path().join("log/000003.json"), b"{\"n\": 3}").unwrap();
    fs::write(folder.path().join("log/readme.json"), b"{}\n").unwrap();

    let log = stage.log("log").await.unwrap();
    assert_eq!(log.last::<Value>().await.unwrap(), Some(json!({"n": 1})));
    assert_eq!(log.append(&json!({"n": 4})).await.unwrap(), 4);
    assert_eq!(log.all_numbered::<Value>().await.unwrap(), [(1, json!({"n": 1})), (4, json!({"n": 4}))]);
    assert_eq!(log.numbers().await.unwrap(), [1, 2, 3, 4]);
    assert_eq!(log.get::<Value>(3).await.unwrap(), None);
    fs::write(folder.path().join("log/000003.json"), b"{\"n\": 3}\n").unwrap();
    assert_eq!(log.get::<Value>(3).await.unwrap(), Some(json!({"n": 3})), "it was just being written");
    assert!(log.get::<Value>(5).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_whole_record_of_another_kind_is_an_error_that_names_it() {
    let Some((_folder, stage)) = on_disk() else { return };
    let log = stage.log("log").await.unwrap();
    log.append(&json!({"n": 1})).await.unwrap();
    let error = log.last::<Vec<u8>>().await.unwrap_err();
    assert!(error.is_damaged() && error.to_string().contains("log/000001.json"), "{error}");
}

#[tokio::test]
async fn a_number_that_the_list_did_not_show_is_skipped() {
    let Some((_folder, stage)) = on_disk() else { return };
    let (early, late) = (stage.log("log").await.unwrap(), stage.log("log").await.unwrap());
    early.append(&json!({"n": 1})).await.unwrap();
    assert_eq!(late.append(&json!({"n": 2})).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_at_once_by_one_writer_all_stay() {
    let Some((_folder, stage)) = on_disk() else { return };
    let log = Arc::new(stage.log("log").await.unwrap());
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.append(&json!({"n": n})).await.unwrap() })
        })
        .collect();
    let mut numbers = vec![];
    for task in tasks {
        numbers.push(task.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    assert_eq!(log.all::<Value>().await.unwrap().len(), 50);
}
