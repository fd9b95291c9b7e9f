//! Records of moves that are damaged: what they say of no alias goes on, and setting an alias again repairs it.

use std::path::Path;

use firn_kit::status::reason;
use firn_proto::registry::v1::{AliasEvent, ListModelsRequest};
use tonic::Code;

use crate::{
    Client, Running, adapter,
    aliases::{next, watch},
    create, get, on_disk, request, set, version_names, within,
};

const PRODUCTION: &str = "models/support/aliases/production";
const STAGING: &str = "models/support/aliases/staging";

/// Two models of two versions each: production has moved from the first to the second, staging is on the first.
async fn filled() -> (tempfile::TempDir, firn_stage::Stage) {
    let (folder, stage) = on_disk();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    for model in ["support", "sales"] {
        for (alias, id) in [("production", "one"), ("", "two")] {
            create(&mut registry.client, request(model, &source, alias, &format!("{model}-{id}"))).await.unwrap();
        }
        set(&mut registry.client, &format!("models/{model}/aliases/staging"), 1).await.unwrap();
        set(&mut registry.client, &format!("models/{model}/aliases/production"), 2).await.unwrap();
    }
    registry.stop().await;
    (folder, stage)
}

fn damage(folder: &Path, file: &str, content: &str) {
    std::fs::write(folder.join("models/support").join(file), content).unwrap();
}

async fn assert_lost(client: &mut Client, name: &str, words: &[&str]) {
    let status = get(client, name).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::DataLoss, Some("ALIAS_DAMAGED")), "{status}");
    assert!(words.iter().all(|word| status.message().contains(word)), "{words:?}: {status}");
}

async fn points_to(client: &mut Client, name: &str, version: u64) {
    let found = get(client, name).await.unwrap();
    assert!(found.name.ends_with(&format!("/versions/{version}")), "{name}: {}", found.name);
}

#[tokio::test]
async fn a_record_that_names_its_alias_makes_that_one_unknown_until_it_is_set_again() {
    let (folder, stage) = filled().await;
    damage(folder.path(), "aliases/000003.json", "{\"alias\":\"production\",\"version\":\"2\"}\n");
    let mut registry = Running::start(&stage).await;
    let client = &mut registry.client;
    let words = ["models/support/aliases/000003.json", PRODUCTION, "version 1 before", "set the alias again"];
    assert_lost(client, PRODUCTION, &words).await;
    points_to(client, STAGING, 1).await;
    points_to(client, "models/sales/aliases/production", 2).await;
    assert_eq!(version_names(client, "support").await.len(), 2, "nothing that is registered is lost");
    // It is not shown where it was before, either.
    assert_eq!(get(client, "models/support/versions/1").await.unwrap().aliases, ["staging"]);
    let models = client.list_models(ListModelsRequest::default()).await.unwrap().into_inner().models;
    let shown: Vec<_> = models.iter().flat_map(|model| &model.aliases).map(|alias| alias.name.as_str()).collect();
    assert_eq!(shown, ["models/sales/aliases/production", "models/sales/aliases/staging", STAGING]);

    // Who watches hears of it, and keeps what it has; what is set is told.
    let mut events = watch(client).await;
    for _ in 0..3 {
        assert!(!next(&mut events).await.3);
    }
    let AliasEvent { alias, version, current } = within(events.message()).await.unwrap().unwrap();
    assert_eq!((alias.unwrap().name.as_str(), version, current), (PRODUCTION, None, true));
    // Where it was last known to be: that it points there already can't be told.
    assert_eq!(set(client, PRODUCTION, 1).await.unwrap(), 4);
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 1, 4, false));
    points_to(client, PRODUCTION, 1).await;
    registry.stop().await;

    let mut registry = Running::start(&stage).await;
    points_to(&mut registry.client, PRODUCTION, 1).await;
    points_to(&mut registry.client, STAGING, 1).await;
    registry.stop().await;
}

#[tokio::test]
async fn a_record_that_names_none_leaves_no_alias_before_it_to_be_told() {
    let (folder, stage) = filled().await;
    let content = std::fs::read(folder.path().join("models/support/aliases/000003.json")).unwrap();
    for bytes in ["\0\0\0\0\n", "{}\n", "[\"production\"]\n", "{\"alias\":\"No Name\"}\n"] {
        damage(folder.path(), "aliases/000003.json", bytes);
        let mut registry = Running::start(&stage).await;
        for name in [PRODUCTION, STAGING, "models/support/aliases/unheard-of"] {
            assert_lost(&mut registry.client, name, &["models/support/aliases/000003.json", name]).await;
        }
        points_to(&mut registry.client, "models/sales/aliases/staging", 1).await;
        registry.stop().await;
    }
    let mut registry = Running::start(&stage).await;
    set(&mut registry.client, STAGING, 2).await.unwrap();
    points_to(&mut registry.client, STAGING, 2).await;
    assert_lost(&mut registry.client, PRODUCTION, &["000003.json"]).await;
    registry.stop().await;
    // A file that is whole again, as from a copy, says what it said.
    std::fs::write(folder.path().join("models/support/aliases/000003.json"), content).unwrap();
    let mut registry = Running::start(&stage).await;
    points_to(&mut registry.client, PRODUCTION, 2).await;
    points_to(&mut registry.client, STAGING, 2).await;
    registry.stop().await;
}

#[tokio::test]
async fn an_alias_of_a_version_that_is_damaged_does_not_go_back_to_the_one_before() {
    let (folder, stage) = filled().await;
    damage(folder.path(), "versions/2/manifest.json", "{\"files\"");
    let mut registry = Running::start(&stage).await;
    assert_lost(&mut registry.client, PRODUCTION, &["000003.json", "models/support/versions/2 can't be read"]).await;
    points_to(&mut registry.client, STAGING, 1).await;
    registry.stop().await;
}

#[tokio::test]
async fn a_new_version_repairs_its_alias_and_a_retry_does_not_move_one_back() {
    let (folder, stage) = filled().await;
    let source = "jobs/j/adapter";
    damage(folder.path(), "aliases/000003.json", "{}\n");
    let mut registry = Running::start(&stage).await;
    assert_lost(&mut registry.client, PRODUCTION, &["000003.json"]).await;
    let made = create(&mut registry.client, request("support", source, "production", "three")).await.unwrap();
    assert_eq!((made.name.as_str(), made.aliases), ("models/support/versions/3", vec!["production".to_owned()]));
    points_to(&mut registry.client, PRODUCTION, 3).await;
    registry.stop().await;

    // The move of the third is lost, and a move back came after it: a late retry of the third must not undo that.
    let mut registry = Running::start(&stage).await;
    assert_eq!(set(&mut registry.client, PRODUCTION, 1).await.unwrap(), 5);
    registry.stop().await;
    damage(folder.path(), "aliases/000004.json", "{}\n");
    let mut registry = Running::start(&stage).await;
    let late = create(&mut registry.client, request("support", source, "production", "three")).await.unwrap();
    assert_eq!((late.name.as_str(), late.aliases), ("models/support/versions/3", vec![]));
    points_to(&mut registry.client, PRODUCTION, 1).await;
    registry.stop().await;
}
