//! Pulls that succeed.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use firn_llm::{config::ModelConfig, tokenizer::Tokenizer, weights::Weights};
use firn_trainer::hub::Progress;
use serde_json::{Value, json};

use crate::{
    fake::COMMIT,
    house::{BASE, House, files, fixture},
};

const PULLED: [&str; 7] = [
    "LICENSE",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

#[tokio::test]
async fn a_base_is_pulled_once_and_only_what_firn_reads() {
    let house = House::new().await;
    assert_eq!(house.pull().await.unwrap(), BASE);
    let manifest = house.stage.manifest(BASE).await.unwrap();
    let names: BTreeSet<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, PULLED.into_iter().chain(["hub.json"]).collect());
    for file in &manifest.files {
        let bytes = house.read(&format!("{BASE}/{}", file.path));
        assert_eq!(file.sha256, firn_stage::sha256_hex(&bytes));
        if !["hub.json", "LICENSE", "README.md"].contains(&file.path.as_str()) {
            assert_eq!(bytes, fixture(&file.path), "{}", file.path);
        }
    }
    let origin: Value = serde_json::from_slice(&house.read(&format!("{BASE}/hub.json"))).unwrap();
    assert_eq!(origin["repo"], json!("acme/tiny"));
    assert_eq!(origin["commit"], json!(COMMIT));
    let folder = house.root.path().join(BASE);
    ModelConfig::from_dir(&folder).unwrap();
    Tokenizer::from_dir(&folder).unwrap();
    assert!(!Weights::open_dir(&folder).unwrap().names().is_empty());

    let asked: Vec<String> = house.hub.asked().into_iter().map(|asked| asked.what).collect();
    assert!(asked.iter().all(|what| what == "list" || PULLED.contains(&what.as_str())), "{asked:?}");
    let told = house.told.lock().unwrap().clone();
    let total = PULLED.iter().map(|file| house.read(&format!("{BASE}/{file}")).len() as u64).sum();
    assert!(told.contains(&Progress::Pulled { done: total, total }), "{told:?}");
    assert_eq!(told.last(), Some(&Progress::Stored { done: total, total }));
    assert_eq!(files(house.work.path()), [house.work.path().join("acme/tiny/lock")], "the local copies are gone");

    assert_eq!(house.pull().await.unwrap(), BASE);
    assert_eq!(house.hub.asked(), [], "the second time nobody is asked");
}

#[tokio::test]
async fn shards_are_those_that_the_index_names() {
    let house = House::new().await;
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let index = json!({ "metadata": {}, "weight_map": { "a": one, "b": two, "c": one } });
    house.hub.file("model.safetensors.index.json", Some(index.to_string().as_bytes()));
    for name in [one, two, "model-00003-of-00002.safetensors"] {
        house.hub.file(name, Some(name.as_bytes()));
    }
    house.pull().await.unwrap();
    let manifest = house.stage.manifest(BASE).await.unwrap();
    let weights: Vec<_> = manifest.files.iter().filter(|file| file.path.ends_with(".safetensors")).collect();
    assert_eq!(weights.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), [one, two]);
    assert_eq!(house.read(&format!("{BASE}/{two}")), two.as_bytes());
    assert!(manifest.file("model.safetensors.index.json").is_some());
}

#[tokio::test]
async fn a_revision_has_its_own_folder() {
    let house = House::new().await;
    assert_eq!(house.pull_named("acme/tiny@v1").await.unwrap(), "bases/acme/tiny@v1");
    assert_eq!(house.pull().await.unwrap(), BASE);
    let error = house.pull_named("acme/tiny@v2").await.unwrap_err().to_string();
    assert!(error.starts_with("acme/tiny has no revision v2"), "{error}");
}

#[tokio::test]
async fn of_two_pulls_at_once_one_works() {
    let house = House::new().await;
    let (one, two) = tokio::join!(house.pull(), house.pull());
    assert_eq!((one.unwrap().as_str(), two.unwrap().as_str()), (BASE, BASE));
    let asked = house.hub.asked();
    let mut seen: Vec<_> = asked.iter().map(|asked| (asked.what.as_str(), asked.by_storage)).collect();
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "nothing is asked for twice: {asked:?}");
    assert!(house.told.lock().unwrap().contains(&Progress::Waiting));
    assert!(!house.root.path().join("bases/acme/tiny.2").exists());
}

#[tokio::test]
async fn a_mirror_that_lists_names_alone_is_asked_for_each_file() {
    let house = House::new().await;
    house.hub.faults(|faults| faults.names_alone = true);
    house.pull().await.unwrap();
    let asked = house.hub.asked();
    let heads = asked.iter().filter(|asked| asked.method == Method::HEAD);
    assert!(heads.clone().all(|head| !head.by_storage) && heads.count() >= PULLED.len());
    let house = House::new().await;
    house.hub.faults(|faults| (faults.names_alone, faults.no_tags) = (true, true));
    let error = house.refused().await;
    assert!(error.starts_with("the hub names no hash of config.json, so it cannot be checked"), "{error}");
}

#[tokio::test]
async fn a_busy_hub_is_asked_again() {
    let mut house = House::new().await;
    house.options.limits.tries = 4;
    let busy = vec![StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY];
    house.hub.faults(|faults| faults.busy.clone_from(&busy));
    house.pull().await.unwrap();

    let mut house = House::new().await;
    house.options.limits.tries = 3;
    house.hub.faults(|faults| faults.busy = busy);
    let error = house.refused().await;
    assert!(error.contains("answers 502 to the request for the list of files"), "{error}");
}

#[tokio::test]
async fn a_moved_repository_is_followed() {
    let house = House::new().await;
    house.hub.faults(|faults| faults.moved = 5);
    house.pull().await.unwrap();
    let house = House::new().await;
    house.hub.faults(|faults| faults.moved = 6);
    let error = house.refused().await;
    assert!(error.contains("redirects the list of files more than 5 times"), "{error}");
}

#[tokio::test]
async fn what_a_crash_left_on_the_stage_does_not_count() {
    let house = House::new().await;
    house.stage.put(&format!("{BASE}/hub.json"), "{}".into()).await.unwrap();
    house.stage.put(&format!("{BASE}/config.json"), "{}".into()).await.unwrap();
    assert_eq!(house.pull().await.unwrap(), "bases/acme/tiny.2");
    house.hub.asked();
    assert_eq!(house.pull().await.unwrap(), "bases/acme/tiny.2");
    assert_eq!(house.hub.asked(), []);
}

#[tokio::test]
async fn another_model_with_the_name_of_a_fresh_folder_is_left_alone() {
    let house = House::new().await;
    house.stage.put(&format!("{BASE}/hub.json"), "{}".into()).await.unwrap();
    let mut other = house.stage.folder("bases/acme/tiny.2");
    other.put("hub.json", r#"{"endpoint":"","repo":"acme/tiny.2","commit":""}"#.into()).await.unwrap();
    other.finish().await.unwrap();
    for _ in 0..2 {
        assert_eq!(house.pull().await.unwrap(), "bases/acme/tiny.3");
    }
}
