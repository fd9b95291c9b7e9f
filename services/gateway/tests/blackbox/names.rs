//! What is refused has the name by which the caller sent it.

use super::*;

const TUNING: &str = "/v1/fine_tuning/jobs";

impl Running {
    /// Sends a body that a service refuses for a field, and asserts what the caller is told of.
    async fn refused(&self, path: &str, body: &Value, field: &str, name: &str) {
        self.fake.refuse(field);
        let (status, answer) = json_of(self.post(path, body).await).await;
        let error = &answer["error"];
        assert_eq!((status.as_u16(), &error["param"]), (400, &json!(name)), "{answer}");
        assert_eq!(error["message"], format!("{name}: is wrong"));
    }
}

#[tokio::test]
async fn what_inference_refuses_has_the_caller_s_name() {
    let running = Running::start().await;
    let schema = json!({"type": "json_schema", "json_schema": {"schema": {"type": 7}}});
    let chat = "/v1/chat/completions";
    for (body, field, name) in [
        (json!({"response_format": schema}), "sampling.json_schema", "response_format"),
        (json!({"guided_json": {"type": 7}, "response_format": null}), "sampling.json_schema", "guided_json"),
        (json!({"max_tokens": 0}), "sampling.max_tokens", "max_tokens"),
        (json!({"max_completion_tokens": 0}), "sampling.max_tokens", "max_completion_tokens"),
        (json!({"top_p": 0, "stream": true}), "sampling.top_p", "top_p"),
        (json!({}), "messages", "messages"),
    ] {
        running.refused(chat, &question(body), field, name).await;
    }
    let text = "/v1/completions";
    for (body, field, name) in [
        (json!({"prompt": [1]}), "ids", "prompt"),
        (json!({"prompt": "a"}), "prompt", "prompt"),
        (json!({"prompt": "a", "logprobs": 5}), "sampling.top_logprobs", "logprobs"),
        (json!({"prompt": "a", "guided_json": {"type": 7}}), "sampling.json_schema", "guided_json"),
    ] {
        running.refused(text, &body, field, name).await;
    }
    running.refused("/detokenize", &json!({"tokens": [1]}), "ids", "tokens").await;
    running.refused("/v1/load_lora_adapter", &json!({"lora_name": "x"}), "id", "lora_name").await;
    running.stop().await;
}

#[tokio::test]
async fn what_is_longer_than_the_context_has_its_code() {
    let running = Running::start().await;
    for (path, body, field, name) in [
        ("/v1/chat/completions", question(json!({})), "messages", "messages"),
        ("/v1/completions", json!({"prompt": [1]}), "ids", "prompt"),
    ] {
        let reason = "has 9 tokens, more than the context of 8";
        let status = firn_kit::status::invalid_argument_because("x.firn.dev", "CONTEXT_TOO_LONG", field, reason);
        *running.fake.refusal.lock().unwrap() = Some(status);
        let (status, answer) = json_of(running.post(path, &body).await).await;
        let error = json!({
            "message": format!("{name}: {reason}"), "type": "invalid_request_error", "param": name,
            "code": "context_length_exceeded",
        });
        assert_eq!((status.as_u16(), &answer["error"]), (400, &error));
    }
    running.stop().await;
}

#[tokio::test]
async fn what_the_trainer_refuses_has_the_caller_s_name() {
    let running = Running::start().await;
    running.fake.store("a.jsonl", "fine-tune", b"{\"messages\":[]}\n");
    let by = |method: &str| {
        json!({"method": {"type": method, method: {"hyperparameters": {
            "n_epochs": 0, "batch_size": 0, "learning_rate_multiplier": 1e9, "beta": 0,
        }}}})
    };
    let older = json!({"hyperparameters": {"n_epochs": 0}});
    let own = |own: Value| json!({"firn": own});
    for (wishes, field, name) in [
        (by("supervised"), "hyperparameters.epochs", "method.supervised.hyperparameters.n_epochs"),
        (by("supervised"), "hyperparameters.batch_size", "method.supervised.hyperparameters.batch_size"),
        (by("dpo"), "hyperparameters.learning_rate", "method.dpo.hyperparameters.learning_rate_multiplier"),
        (by("dpo"), "hyperparameters.beta", "method.dpo.hyperparameters.beta"),
        (older.clone(), "hyperparameters.epochs", "hyperparameters.n_epochs"),
        (own(json!({"hyperparameters": {"epochs": 0}})), "hyperparameters.epochs", "firn.hyperparameters.epochs"),
        (
            own(json!({"hyperparameters": {"block_size": 0}})),
            "hyperparameters.block_size",
            "firn.hyperparameters.block_size",
        ),
        (json!({"model": "bases/none"}), "base", "model"),
        (json!({"model": "offers@best"}), "adapter", "model"),
        (own(json!({"adapter": "x"})), "adapter", "firn.adapter"),
        (json!({"suffix": "offers"}), "model", "suffix"),
        (json!({"suffix": "offers"}), "data.dataset", "suffix"),
        (own(json!({"dataset": "x"})), "data.dataset", "firn.dataset"),
        (json!({}), "data.format", "training_file"),
        (own(json!({"format": {"text": {"column": ""}}})), "data.format.text.column", "firn.format"),
        (json!({}), "data.source", "training_file"),
        (json!({"validation_file": "file-1"}), "data.held_out_source", "validation_file"),
        (own(json!({"lora": {"r": 1}})), "lora.r", "firn.lora.r"),
    ] {
        let mut body = json!({"model": "base", "training_file": "file-1"});
        body.as_object_mut().unwrap().extend(wishes.as_object().unwrap().clone());
        running.refused(TUNING, &body, &format!("spec.{field}"), name).await;
    }
    let negative = json!({"learning_rate_multiplier": -1});
    let body = json!({"model": "base", "training_file": "file-1", "hyperparameters": negative});
    let (status, answer) = json_of(running.post(TUNING, &body).await).await;
    let name = json!("hyperparameters.learning_rate_multiplier");
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &name), "{answer}");
    running.fake.files.lock().unwrap().collections.insert("votes".to_owned(), vec!["{}".to_owned(); 2]);
    let train = "/v1/votes/train";
    running.refused(train, &json!({"epochs": 0}), "spec.hyperparameters.epochs", "epochs").await;
    running.refused(train, &json!({"base": "none"}), "spec.base", "base").await;
    running.stop().await;
}

#[tokio::test]
async fn a_row_s_refusal_has_the_argument_s_name() {
    let running = Running::start().await;
    for (path, row, field, name) in [
        ("/functions/complete", json!([0, "base", "hi"]), "messages", "prompt"),
        (
            "/functions/finetune/create",
            json!([0, "m", "b", "s", {"max_epochs": 0}]),
            "spec.hyperparameters.epochs",
            "max_epochs",
        ),
        (
            "/functions/finetune/create",
            json!([0, "m", "b", "s", {"epochs": 0}]),
            "spec.hyperparameters.epochs",
            "epochs",
        ),
        ("/functions/finetune/create", json!([0, "m", "b", "s"]), "spec.data.source", "rows"),
        ("/functions/finetune/create", json!([0, "m", "b", "s", {"lora_r": 0}]), "spec.lora.r", "lora_r"),
    ] {
        running.fake.refuse(field);
        let (_, body) = json_of(running.send(batch(path, "", &json!([row]))).await).await;
        assert_eq!(body["data"][0][1]["error"]["param"], name, "{body}");
    }
    running.stop().await;
}
