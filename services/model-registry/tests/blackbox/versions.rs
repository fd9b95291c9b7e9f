use std::time::Duration;

use bytes::Bytes;
use firn_kit::status::reason;
use firn_proto::registry::v1::{ListModelsRequest, ListVersionsRequest, ReadFileRequest};
use firn_stage::Stage;
use tonic::{Code, Request};

use crate::{Running, adapter, create, get, model_names, on_disk, request, version_names, within};

#[tokio::test]
async fn a_version_is_found_by_number_and_by_alias() {
    let stage = Stage::memory();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    let made = create(&mut registry.client, request("support", &source, "production", "")).await.unwrap();
    assert_eq!((made.name.as_str(), made.path.as_str()), ("models/support/versions/1", "models/support/versions/1"));
    assert_eq!(made.aliases, ["production"]);
    assert_eq!(made.metrics["tuned.loss"], 1.25);
    assert_eq!(made.lineage.as_ref().unwrap().base, "org/base");
    assert!(made.create_time.unwrap().seconds > 0);
    let paths: Vec<_> = made.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["adapter_model.safetensors", "tokenizer/tokenizer.json", "version.json"]);
    assert_eq!(made.files[0].sha256, firn_stage::sha256_hex(b"weights of j"));

    assert_eq!(get(&mut registry.client, "models/support/versions/1").await.unwrap(), made);
    assert_eq!(get(&mut registry.client, "models/support/aliases/production").await.unwrap(), made);
    for name in ["models/support/versions/2", "models/other/versions/1", "models/support/aliases/none"] {
        assert_eq!(get(&mut registry.client, name).await.unwrap_err().code(), Code::NotFound, "{name}");
    }
    assert!(stage.is_finished(&made.path).await.unwrap());
    registry.stop().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let stage = Stage::memory();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    for model in ["b", "a", "a", "a"] {
        create(&mut registry.client, request(model, &source, "", "")).await.unwrap();
    }
    let (mut names, mut page_token, mut pages) = (vec![], String::new(), 0);
    loop {
        let request = ListVersionsRequest { parent: "models/a".to_owned(), page_size: 2, page_token };
        let page = registry.client.list_versions(request).await.unwrap().into_inner();
        names.extend(page.versions.into_iter().map(|version| version.name));
        (page_token, pages) = (page.next_page_token, pages + 1);
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["models/a/versions/1", "models/a/versions/2", "models/a/versions/3"]);
    assert_eq!(pages, 2);

    let request = ListModelsRequest { page_size: 1, ..Default::default() };
    let first = registry.client.list_models(request).await.unwrap().into_inner();
    assert_eq!((first.models[0].name.as_str(), first.models[0].versions), ("models/a", 3));
    let request = ListModelsRequest { page_size: 1, page_token: first.next_page_token };
    let second = registry.client.list_models(request).await.unwrap().into_inner();
    assert_eq!((second.models[0].name.as_str(), second.next_page_token.as_str()), ("models/b", ""));
    let request = ListModelsRequest { page_size: -1, ..Default::default() };
    let wrong = registry.client.list_models(request).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    registry.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let (_folder, stage) = on_disk();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    create(&mut registry.client, request("support", &source, "staging", "one")).await.unwrap();
    create(&mut registry.client, request("support", &source, "production", "two")).await.unwrap();
    crate::set(&mut registry.client, "models/support/aliases/staging", 2).await.unwrap();
    let before = registry.client.list_models(ListModelsRequest::default()).await.unwrap().into_inner();
    let version = get(&mut registry.client, "models/support/aliases/staging").await.unwrap();
    assert_eq!(version.aliases, ["production", "staging"]);
    registry.stop().await;

    let mut registry = Running::start(&stage).await;
    let after = registry.client.list_models(ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(after, before);
    assert_eq!(get(&mut registry.client, "models/support/aliases/staging").await.unwrap(), version);
    let again = create(&mut registry.client, request("support", &source, "production", "two")).await.unwrap();
    assert_eq!(again, version);
    let next = create(&mut registry.client, request("support", &source, "production", "three")).await.unwrap();
    assert_eq!(next.name, "models/support/versions/3");
    registry.stop().await;
}

#[tokio::test]
async fn a_request_id_makes_one_version() {
    let stage = Stage::memory();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    let client = &mut registry.client;
    let first = create(client, request("support", &source, "production", "one")).await.unwrap();
    assert_eq!(create(client, request("support", &source, "production", "one")).await.unwrap(), first);

    create(client, request("support", &source, "production", "two")).await.unwrap();
    let late = create(client, request("support", &source, "production", "one")).await.unwrap();
    assert_eq!((late.name, late.aliases), (first.name, vec![]), "a late retry does not move the alias back");
    assert_eq!(version_names(client, "support").await.len(), 2);

    let reused = create(client, request("support", &source, "staging", "one")).await.unwrap_err();
    assert_eq!((reused.code(), reason(&reused).as_deref()), (Code::InvalidArgument, Some("REQUEST_ID_REUSED")));
    registry.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_copy() {
    let (_folder, stage) = on_disk();
    let mut registry = Running::start(&stage).await;
    let mut folder = stage.folder("jobs/large/adapter");
    folder.put("weights", Bytes::from(vec![7; 20 << 20])).await.unwrap();
    folder.finish().await.unwrap();
    let mut impatient = Request::new(request("support", "jobs/large/adapter", "production", "one"));
    impatient.set_timeout(Duration::from_millis(5));
    let _ = registry.client.create_version(impatient).await;
    let made =
        create(&mut registry.client, request("support", "jobs/large/adapter", "production", "one")).await.unwrap();
    assert_eq!(made.name, "models/support/versions/1");
    assert_eq!(version_names(&mut registry.client, "support").await, ["models/support/versions/1"]);
    registry.stop().await;
}

#[tokio::test]
async fn a_bad_hash_registers_nothing() {
    let (folder, stage) = on_disk();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    let bad = folder.path().join(&source).join("tokenizer/tokenizer.json");
    std::fs::write(&bad, b"[]").unwrap();
    let status = create(&mut registry.client, request("support", &source, "production", "one")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::DataLoss, Some("SOURCE_DAMAGED")));
    assert!(status.message().contains("jobs/j/adapter/tokenizer/tokenizer.json"), "{status}");
    std::fs::remove_file(&bad).unwrap();
    let status = create(&mut registry.client, request("support", &source, "production", "one")).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert!(model_names(&mut registry.client).await.is_empty());
    assert!(stage.list("models").await.unwrap().is_empty(), "nothing is left on the stage");

    std::fs::write(&bad, b"{}").unwrap();
    let made = create(&mut registry.client, request("support", &source, "production", "one")).await.unwrap();
    assert_eq!(made.name, "models/support/versions/1");
    registry.stop().await;
}

#[tokio::test]
async fn debris_is_not_a_version_and_its_number_is_skipped() {
    let (folder, stage) = on_disk();
    let source = adapter(&stage, "j").await;
    let mut torn = stage.folder("models/support/versions/1");
    torn.put("adapter_model.safetensors", Bytes::from_static(b"wei")).await.unwrap();
    let mut registry = Running::start(&stage).await;
    assert!(model_names(&mut registry.client).await.is_empty());
    let made = create(&mut registry.client, request("support", &source, "production", "")).await.unwrap();
    assert_eq!(made.name, "models/support/versions/2");

    // A crash in the middle of the last files: both are torn.
    stage.put("models/support/versions/3/version.json", Bytes::from_static(b"{\"version\"")).await.unwrap();
    stage.put("models/support/versions/3/manifest.json", Bytes::from_static(b"{\"files\"")).await.unwrap();
    std::fs::write(folder.path().join("models/support/aliases/000002.json"), b"{\"alias\": \"prod").unwrap();
    registry.stop().await;
    let mut registry = Running::start(&stage).await;
    assert_eq!(version_names(&mut registry.client, "support").await, ["models/support/versions/2"]);
    assert_eq!(get(&mut registry.client, "models/support/aliases/production").await.unwrap().name, made.name);
    let made = create(&mut registry.client, request("support", &source, "production", "")).await.unwrap();
    assert_eq!(made.name, "models/support/versions/4");
    registry.stop().await;
}

#[tokio::test]
async fn wrong_requests_name_their_field() {
    let stage = Stage::memory();
    let mut registry = Running::start(&stage).await;
    let source = adapter(&stage, "j").await;
    let good = || request("support", &source, "production", "");
    let mut bad_metric = good();
    bad_metric.metrics.insert("loss".to_owned(), f64::NAN);
    let cases = [
        ("model", request("No Name", &source, "", "")),
        ("model", request("../up", &source, "", "")),
        ("alias", request("support", &source, "-", "")),
        ("source", request("support", "../../etc", "", "")),
        ("source", request("support", "/etc", "", "")),
        ("request_id", request("support", &source, "", &"x".repeat(129))),
        ("metrics.loss", bad_metric),
    ];
    for (field, request) in cases {
        let status = create(&mut registry.client, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(status.message().starts_with(field), "{field}: {status}");
    }
    let status = create(&mut registry.client, request("support", "jobs/none/adapter", "", "")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("jobs/none/adapter"), "{status}");
    for name in ["models/support/versions/one", "models/support", "jobs/j", ""] {
        assert_eq!(get(&mut registry.client, name).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    registry.stop().await;
}

#[tokio::test]
async fn a_file_is_read_in_chunks_from_an_offset() {
    let (_folder, stage) = on_disk();
    let mut registry = Running::start(&stage).await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut folder = stage.folder("jobs/j/adapter");
    folder.put("weights", Bytes::from(bytes.clone())).await.unwrap();
    folder.finish().await.unwrap();
    create(&mut registry.client, request("support", "jobs/j/adapter", "", "")).await.unwrap();
    let read = |path: &str, offset| ReadFileRequest {
        name: "models/support/versions/1".to_owned(),
        path: path.to_owned(),
        offset,
    };
    for start in [0, 1_234_567, bytes.len()] {
        let request = read("weights", start as u64);
        let mut stream = registry.client.read_file(request).await.unwrap().into_inner();
        let mut found = vec![];
        while let Some(chunk) = within(stream.message()).await.unwrap() {
            assert_eq!(chunk.offset, (start + found.len()) as u64);
            assert!(!chunk.data.is_empty() && chunk.data.len() <= 1 << 20);
            found.extend(chunk.data);
        }
        assert!(found == bytes[start..]);
    }
    let past = registry.client.read_file(read("weights", 3_000_001)).await.unwrap_err();
    assert_eq!(past.code(), Code::OutOfRange, "{past}");
    for path in ["none", "manifest.json", "../1/weights", "../../../../jobs/j/adapter/weights"] {
        let missing = registry.client.read_file(read(path, 0)).await.unwrap_err();
        assert_eq!(missing.code(), Code::NotFound, "{path}: {missing}");
    }
    registry.stop().await;
}
