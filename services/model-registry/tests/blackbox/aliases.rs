use firn_proto::registry::v1::{AliasEvent, WatchAliasesRequest};
use firn_stage::Stage;
use tonic::{Code, Streaming};

use crate::{Client, Running, adapter, create, request, set, within};

pub(crate) async fn watch(client: &mut Client) -> Streaming<AliasEvent> {
    within(client.watch_aliases(WatchAliasesRequest {})).await.unwrap().into_inner()
}

/// Alias, version, number of the move, and `current`.
pub(crate) async fn next(events: &mut Streaming<AliasEvent>) -> (String, u64, u64, bool) {
    let event = within(events.message()).await.unwrap().unwrap();
    let alias = event.alias.unwrap();
    let version = event.version.unwrap();
    assert!(version.name.ends_with(&format!("/versions/{}", alias.version)), "{}", version.name);
    assert!(version.aliases.iter().any(|name| alias.name.ends_with(&format!("/aliases/{name}"))));
    (alias.name, alias.version, alias.sequence, event.current)
}

#[tokio::test]
async fn moves_are_watched() {
    let stage = Stage::memory();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    let client = &mut registry.client;
    let mut early = watch(client).await;
    let none = within(early.message()).await.unwrap().unwrap();
    assert_eq!(none, AliasEvent { alias: None, version: None, current: true });

    let (production, staging) = ("models/support/aliases/production", "models/support/aliases/staging");
    create(client, request("support", &source, "production", "")).await.unwrap();
    create(client, request("support", &source, "staging", "")).await.unwrap();
    assert_eq!(next(&mut early).await, (production.to_owned(), 1, 1, false));
    assert_eq!(next(&mut early).await, (staging.to_owned(), 2, 2, false));

    let mut late = watch(client).await;
    assert_eq!(next(&mut late).await, (production.to_owned(), 1, 1, false));
    assert_eq!(next(&mut late).await, (staging.to_owned(), 2, 2, true));

    assert_eq!(set(client, production, 2).await.unwrap(), 3);
    assert_eq!(set(client, production, 2).await.unwrap(), 3, "it points there already");
    assert_eq!(set(client, production, 1).await.unwrap(), 4, "an alias may move back");
    for events in [&mut early, &mut late] {
        assert_eq!(next(events).await, (production.to_owned(), 2, 3, false));
        assert_eq!(next(events).await, (production.to_owned(), 1, 4, false));
    }

    registry.stop().await;
    for mut events in [early, late] {
        let end = within(events.message()).await.unwrap_err();
        assert_eq!(end.code(), Code::Unavailable, "a watcher comes back: {end}");
    }
}

#[tokio::test]
async fn an_alias_needs_a_version() {
    let stage = Stage::memory();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    let client = &mut registry.client;
    create(client, request("support", &source, "", "")).await.unwrap();
    let missing = set(client, "models/support/aliases/production", 2).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("models/support/versions/2"), "{missing}");
    assert_eq!(set(client, "models/none/aliases/production", 1).await.unwrap_err().code(), Code::NotFound);
    for name in ["models/support/aliases/A", "models/support/versions/1", "models/../aliases/a"] {
        assert_eq!(set(client, name, 1).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    assert!(stage.list("models/none").await.unwrap().is_empty());
    registry.stop().await;
}
