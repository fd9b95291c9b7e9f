//! What is refused, in one sentence with the way out.

use serde_json::json;

use crate::house::{BASE, House, files};

#[tokio::test]
async fn other_bytes_than_the_hub_says_are_not_kept() {
    let house = House::new().await;
    house.hub.faults(|faults| faults.corrupt = true);
    let error = house.refused().await;
    assert!(error.starts_with("model.safetensors has the hash "), "{error}");
    assert_eq!(std::fs::metadata(house.spooled("model.safetensors.part")).unwrap().len(), 0);
    assert!(!house.root.path().join("bases").exists(), "nothing is written to the stage");
    house.hub.faults(|_| {});
    house.pull().await.unwrap();
}

#[tokio::test]
async fn a_server_that_lies_about_sizes_is_named() {
    let house = House::new().await;
    for (lie, longer) in [(5, false), (-5, false), (0, true)] {
        house.hub.faults(|faults| (faults.lie, faults.longer) = (lie, longer));
        let error = house.refused().await;
        assert!(error.starts_with("model.safetensors has 783112 bytes on the hub's list, but 127.0.0.1:"), "{error}");
        let found = if longer { "sends more".to_owned() } else { format!("sends {}", 783_112 + lie) };
        assert!(error.contains(&found), "{error}");
    }
    house.hub.faults(|_| {});
    house.pull().await.unwrap();
}

#[tokio::test]
async fn offline_nobody_is_asked() {
    let mut house = House::new().await;
    house.options.hub_offline = true;
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny is not on the stage, and the hub is switched off here: put"), "{error}");
    assert!(error.contains(BASE) && error.contains("--hub-online"), "{error}");
    assert_eq!(house.hub.asked(), []);
    assert_eq!(files(house.work.path()).len(), 0);
    // Somebody puts it there by hand.
    house.stage.put(&format!("{BASE}/config.json"), "{}".into()).await.unwrap();
    assert_eq!(house.pull().await.unwrap(), BASE);
    assert_eq!(house.hub.asked(), []);
}

#[tokio::test]
async fn a_repository_without_a_base_is_refused_before_its_files_are_fetched() {
    let house = House::new().await;
    house.hub.file("model.safetensors", None);
    for file in ["consolidated.safetensors", "a.gguf", "onnx/model.onnx"] {
        house.hub.file(file, None);
    }
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny has no model.safetensors, only pytorch_model.bin: "), "{error}");
    assert!(error.contains("never pickle") && error.contains(BASE), "{error}");
    house.hub.file("pytorch_model.bin", None);
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny has no model.safetensors, and no other weights: "), "{error}");

    house.hub.file("model.safetensors", Some(b"x"));
    house.hub.file("tokenizer.json", None);
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny has no tokenizer.json, which Firn needs: "), "{error}");
    house.hub.file("config.json", None);
    assert!(house.refused().await.starts_with("acme/tiny has no config.json"));
    assert!(house.hub.asked().iter().all(|asked| asked.what == "list"));

    house.hub.file("tokenizer.json", Some(b"{}"));
    house.hub.file("config.json", Some(json!({ "model_type": "t5" }).to_string().as_bytes()));
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny cannot be used, and its weights were not fetched: "), "{error}");
    assert!(house.hub.asked().iter().all(|asked| asked.what == "list" || asked.what == "config.json"));
}

#[tokio::test]
async fn an_index_that_names_no_shard_is_refused() {
    let house = House::new().await;
    let cases = [
        (
            json!({ "weight_map": { "a": "model.safetensors", "b": "gone.safetensors" } }),
            "it names gone.safetensors, which",
        ),
        (json!({ "weight_map": { "a": "../x.safetensors" } }), r#"it names "../x.safetensors", which is no"#),
        (json!({ "weight_map": { "a": "pytorch_model.bin" } }), r#"it names "pytorch_model.bin", which is no"#),
        (json!({ "weight_map": { "a": 1 } }), "its weight_map must map names to files"),
        (json!({ "weight_map": {} }), "it has no weight_map"),
    ];
    for (index, reason) in cases {
        house.hub.file("model.safetensors.index.json", Some(index.to_string().as_bytes()));
        let error = house.refused().await;
        let expected = format!("model.safetensors.index.json of acme/tiny cannot be used: {reason}");
        assert!(error.starts_with(&expected), "{error}");
    }
    assert!(!house.hub.asked().iter().any(|asked| asked.by_storage));
}

#[tokio::test]
async fn a_model_over_the_limits_is_refused_before_its_weights_are_fetched() {
    let mut house = House::new().await;
    house.options.limits.file = 783_111;
    let error = house.refused().await;
    assert!(
        error.starts_with("model.safetensors of acme/tiny has 783112 bytes, more than the limit of 783111"),
        "{error}"
    );
    house.options.limits.file = u64::MAX;
    house.options.limits.total = 783_112;
    let error = house.refused().await;
    assert!(error.starts_with("all of the model of acme/tiny has "), "{error}");
    assert!(!house.hub.asked().iter().any(|asked| asked.by_storage));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_named() {
    let house = House::new().await;
    let part = house.spooled("model.safetensors.part");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = house.refused().await;
    assert!(error.starts_with("no space left in ") && error.contains("for model.safetensors"), "{error}");
}

#[tokio::test]
async fn what_is_no_hub_is_named() {
    let mut house = House::new().await;
    let error = house.pull_named("acme/none").await.unwrap_err().to_string();
    assert!(error.starts_with("the hub has no model acme/none"), "{error}");

    // TLS is there, and a server without it is no hub.
    let address = house.options.hub_endpoint.replace("http://", "");
    house.options.hub_endpoint = format!("https://{address}");
    let error = house.refused().await;
    assert!(error.starts_with(&format!("failed to fetch the list of files from {address}: ")), "{error}");
    house.options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    assert!(house.refused().await.contains("from 127.0.0.1:1: "));
    let cases = [
        ("nowhere", "the hub's endpoint cannot be used: relative URL without a base; write it like https://"),
        ("ftp://x", "the hub's endpoint cannot be used: its scheme is ftp, not https"),
        ("https://me:xyzzy@x", "the hub's endpoint cannot be used: it must not hold a user or a password"),
    ];
    for (endpoint, expected) in cases {
        house.options.hub_endpoint = endpoint.to_owned();
        let error = house.refused().await;
        assert!(error.starts_with(expected) && !error.contains("xyzzy"), "{error}");
    }
}
