//! Models that are loaded and unloaded by name.

use super::*;

#[tokio::test]
async fn models_say_what_they_are_made_of() {
    let running = Running::start().await;
    let (_, models) = running.get("/v1/models").await;
    let (base, tuned) = (&models["data"][0], &models["data"][1]);
    assert_eq!((&base["root"], &base["max_model_len"], &base["loaded"]), (&json!("base"), &json!(512), &json!(false)));
    assert_eq!((&tuned["root"], &tuned["parent"]), (&json!("models/offers/versions/2"), &json!("base")));
    running.stop().await;
}

#[tokio::test]
async fn adapters_come_and_go() {
    let running = Running::start().await;
    for (name, path) in [("offers@3", Value::Null), ("job-1@50", json!("job-1@50"))] {
        let body = json!({"lora_name": name, "lora_path": path, "load_inplace": false});
        let response = running.post("/v1/load_lora_adapter", &body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(text_of(response).await, format!("Success: LoRA adapter '{name}' added successfully."));
        assert_eq!(running.get(&format!("/v1/models/{name}")).await.1["loaded"], true);
        let body = json!({"lora_name": name});
        let text = text_of(running.post("/v1/unload_lora_adapter", &body).await).await;
        assert_eq!(text, format!("Success: LoRA adapter '{name}' removed successfully."));
        assert_eq!(json_of(running.post("/v1/unload_lora_adapter", &body).await).await.0, 404);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_path_of_the_caller_s_is_not_read() {
    let running = Running::start().await;
    for (body, param) in [
        (json!({"lora_name": "offers@3", "lora_path": "/etc"}), "lora_path"),
        (json!({"lora_name": "offers@3", "load_inplace": true}), "load_inplace"),
        (json!({"lora_name": ""}), "lora_name"),
        (json!({}), "lora_name"),
        (json!({"lora_name": "offers@3", "base_model_name": "x"}), "base_model_name"),
    ] {
        let (status, answer) = json_of(running.post("/v1/load_lora_adapter", &body).await).await;
        assert_eq!((status.as_u16(), answer["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
    let (status, body) = json_of(running.post("/v1/load_lora_adapter", &json!({"lora_name": "no@1"})).await).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("model_not_found")));
    assert!(running.fake.loaded.lock().unwrap().is_empty());
    running.stop().await;
}
