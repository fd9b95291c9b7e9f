//! A registry that follows what another one writes.

use std::{path::Path, time::Duration};

use firn_kit::{ServerArgs, status::reason};
use firn_model_registry::Registry;
use firn_stage::Stage;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    Client, Running, adapter,
    aliases::{next, watch},
    create, get, model_names, on_disk, request, set, version_names, within,
};

const PRODUCTION: &str = "models/support/aliases/production";
const STAGING: &str = "models/support/aliases/staging";

async fn follow(stage: &Stage) -> Running {
    let registry =
        Registry::follow_with(ServerArgs::loopback(), stage.clone(), Duration::from_millis(20)).await.unwrap();
    let channel = firn_kit::channel(&format!("http://{}", registry.local_addr())).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(registry.run(shutdown.clone()));
    Running { client: Client::new(channel), shutdown, task }
}

/// Several looks of the follower.
async fn some_looks() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn what_one_registry_writes_another_takes_up_and_tells_its_watchers() {
    let (folder, stage) = on_disk();
    let mut writer = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    create(&mut writer.client, request("support", &source, "production", "")).await.unwrap();
    // As another service does, with a mount of its own.
    let mounted = Stage::open(folder.path().to_str().unwrap()).unwrap();
    let mut follower = follow(&mounted).await;
    let mut events = watch(&mut follower.client).await;
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 1, 1, true), "what is there at the start");

    create(&mut writer.client, request("support", &source, "staging", "")).await.unwrap();
    assert_eq!(next(&mut events).await, (STAGING.to_owned(), 2, 2, false));
    set(&mut writer.client, PRODUCTION, 2).await.unwrap();
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 2, 3, false));
    set(&mut writer.client, PRODUCTION, 1).await.unwrap();
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 1, 4, false), "an alias may move back");
    create(&mut writer.client, request("sales", &source, "production", "")).await.unwrap();
    assert_eq!(next(&mut events).await, ("models/sales/aliases/production".to_owned(), 1, 1, false));

    let client = &mut follower.client;
    for name in [PRODUCTION, STAGING, "models/support/versions/2", "models/sales/versions/1"] {
        assert_eq!(get(client, name).await.unwrap(), get(&mut writer.client, name).await.unwrap());
    }
    assert_eq!(model_names(client).await, ["models/sales", "models/support"]);

    let before = stage.list("models").await.unwrap();
    let refused = [
        create(client, request("support", &source, "production", "")).await.unwrap_err(),
        set(client, PRODUCTION, 2).await.unwrap_err(),
        set(client, PRODUCTION, 1).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert_eq!(reason(&status).as_deref(), Some("READ_ONLY"));
        assert!(status.message().contains("without FIRN_REGISTRY_FOLLOW_SECONDS"), "{status:?}");
    }
    assert_eq!(stage.list("models").await.unwrap(), before, "nothing was written");

    follower.stop().await;
    assert_eq!(within(events.message()).await.unwrap_err().code(), Code::Unavailable, "a watcher comes back");
    writer.stop().await;
}

/// Shows a file of one stage on another.
fn show(from: &Path, to: &Path, file: &str, bytes: usize) {
    let content = std::fs::read(from.join(file)).unwrap();
    let to = to.join(file);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::write(to, &content[..bytes.min(content.len())]).unwrap();
}

#[tokio::test]
async fn what_appears_late_in_parts_or_out_of_order_is_taken_up_once_it_is_whole() {
    let (written, stage) = on_disk();
    let mut writer = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    for alias in ["production", ""] {
        create(&mut writer.client, request("support", &source, alias, "")).await.unwrap();
    }
    for (alias, version) in [(PRODUCTION, 2), (STAGING, 1), (PRODUCTION, 1)] {
        set(&mut writer.client, alias, version).await.unwrap();
    }
    writer.stop().await;

    let (shown, mounted) = on_disk();
    let show = |file: &str, bytes| show(written.path(), shown.path(), &format!("models/support/{file}"), bytes);
    let mut follower = follow(&mounted).await;
    let mut events = watch(&mut follower.client).await;
    let none = within(events.message()).await.unwrap().unwrap();
    assert!(none.current && none.alias.is_none());

    // An alias before its version, and half of a manifest.
    show("aliases/000001.json", usize::MAX);
    show("versions/1/version.json", usize::MAX);
    show("versions/1/manifest.json", 40);
    some_looks().await;
    assert_eq!(get(&mut follower.client, PRODUCTION).await.unwrap_err().code(), Code::NotFound);
    show("versions/1/manifest.json", usize::MAX);
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 1, 1, false));

    // The fourth move while the second and the third are torn.
    show("aliases/000002.json", 10);
    show("aliases/000003.json", 0);
    show("aliases/000004.json", usize::MAX);
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 1, 4, false));
    show("aliases/000003.json", usize::MAX);
    assert_eq!(next(&mut events).await, (STAGING.to_owned(), 1, 3, false));

    // The second was before the fourth: it moves nothing back.
    for file in ["version.json", "manifest.json"] {
        show(&format!("versions/2/{file}"), usize::MAX);
    }
    show("aliases/000002.json", usize::MAX);
    std::fs::write(shown.path().join("models/support/aliases/000009.json"), "{}\n").unwrap();
    some_looks().await;
    assert_eq!(version_names(&mut follower.client, "support").await.len(), 2);
    // The ninth is no record, and whose it was cannot be told.
    let status = get(&mut follower.client, PRODUCTION).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::DataLoss, Some("ALIAS_DAMAGED")));
    assert!(status.message().contains("aliases/000009.json"), "{status}");
    std::fs::remove_file(shown.path().join("models/support/aliases/000009.json")).unwrap();
    // Known again, and told to those whose watch began in between.
    let mut known = [next(&mut events).await, next(&mut events).await];
    known.sort();
    assert_eq!(known, [(PRODUCTION.to_owned(), 1, 4, false), (STAGING.to_owned(), 1, 3, false)]);
    assert_eq!(get(&mut follower.client, PRODUCTION).await.unwrap().name, "models/support/versions/1");
    std::fs::write(
        shown.path().join("models/support/aliases/000010.json"),
        std::fs::read_to_string(written.path().join("models/support/aliases/000002.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 2, 10, false), "nothing came in between");
    follower.stop().await;
}

#[tokio::test]
async fn a_stage_that_is_away_for_a_while_is_followed_again() {
    let (folder, stage) = on_disk();
    let mut writer = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    create(&mut writer.client, request("support", &source, "production", "")).await.unwrap();
    let mut follower = follow(&stage).await;
    let mut events = watch(&mut follower.client).await;
    assert_eq!(next(&mut events).await.1, 1);
    let (models, away) = (folder.path().join("models"), folder.path().join("away"));
    std::fs::rename(&models, &away).unwrap();
    std::fs::write(&models, "not a folder").unwrap();
    some_looks().await;
    assert_eq!(get(&mut follower.client, PRODUCTION).await.unwrap().name, "models/support/versions/1");
    std::fs::remove_file(&models).unwrap();
    std::fs::rename(&away, &models).unwrap();
    create(&mut writer.client, request("support", &source, "production", "")).await.unwrap();
    assert_eq!(next(&mut events).await, (PRODUCTION.to_owned(), 2, 2, false));
    follower.stop().await;
    writer.stop().await;
}
