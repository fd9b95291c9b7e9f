//! Versions and checkpoints that a call loads.

use firn_proto::inference::v1::{LoadModelRequest, UnloadModelRequest};
use serde_json::json;
use tonic::Code;

use super::adapters::{expected, template};
use super::*;

const JOB: &str = "job-0123456789abcdef0123456789abcdef";

impl Running {
    async fn load(&self, id: &str) -> Result<ServedModel, Status> {
        let request = LoadModelRequest { id: id.to_owned() };
        within(self.client.clone().load_model(request)).await.map(tonic::Response::into_inner)
    }

    async fn unload(&self, id: &str) -> Result<(), Status> {
        let request = UnloadModelRequest { id: id.to_owned() };
        within(self.client.clone().unload_model(request)).await.map(|_| ())
    }

    /// What a trainer leaves after a step.
    async fn save_checkpoint(&self, step: u64, adapter: &str, template: &str) {
        let mut folder = self.stage.folder(&format!("jobs/{JOB}/checkpoints/{step:06}"));
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            folder.put_file(name, &llama().join(adapter).join(name)).await.unwrap();
        }
        folder.put_json("lineage.json", &json!({"base": "b", "template_sha256": template})).await.unwrap();
        folder.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_version_without_an_alias_is_loaded_and_unloaded_by_name() {
    let running = Running::start().await;
    running.register(&llama().join("adapter_final"), "best", &template()).await;
    let second = running.register(&llama().join("adapter_dpo"), "best", &template()).await;
    running.until_served("offers@best", &second).await;
    let prompt = golden("input_ids")[0][..8].to_vec();
    assert!(running.generate(ids_request("offers@1", prompt.clone(), greedy(1))).await.is_err());

    let loaded = running.load("offers@1").await.unwrap();
    assert_eq!((loaded.version.as_str(), loaded.loaded), ("models/offers/versions/1", true));
    let answer = running.answer(ids_request("offers@1", prompt.clone(), greedy(30))).await;
    assert_eq!(answer.ids, expected("adapter_final", &prompt, 30));
    assert_eq!(answer.finish.version, "models/offers/versions/1");
    assert_eq!(running.load("offers@1").await.unwrap(), loaded, "once more is no error");
    // A new watch of the aliases must not take it away.
    running.register(&llama().join("adapter_init"), "other", &template()).await;
    assert!(running.models().await.contains(&loaded));

    assert_eq!(running.unload("offers@best").await.unwrap_err().code(), Code::NotFound, "it is the alias's");
    running.unload("offers@1").await.unwrap();
    assert!(running.generate(ids_request("offers@1", prompt, greedy(1))).await.is_err());
    assert_eq!(running.unload("offers@1").await.unwrap_err().code(), Code::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn checkpoints_of_a_job_stand_beside_each_other() {
    let running = Running::start().await;
    running.save_checkpoint(5, "adapter_init", &template()).await;
    running.save_checkpoint(10, "adapter_final", &template()).await;
    running.save_checkpoint(15, "adapter_dpo", &"0".repeat(64)).await;
    let prompt = golden("input_ids")[1][..8].to_vec();
    for (step, adapter) in [(5, "adapter_init"), (10, "adapter_final")] {
        let id = format!("{JOB}@{step}");
        let loaded = running.load(&id).await.unwrap();
        assert_eq!(loaded.version, format!("jobs/{JOB}/checkpoints/{step}"));
        let answer = running.answer(ids_request(&id, prompt.clone(), greedy(20))).await;
        assert_eq!(answer.ids, expected(adapter, &prompt, 20), "step {step}");
    }
    let refused = running.load(&format!("{JOB}@15")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let base = template();
    assert!(refused.message().contains(&base) && refused.message().contains(&"0".repeat(64)), "{}", refused.message());
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_loaded_is_said_by_name() {
    let running = Running::start().await;
    for (id, code, part) in [
        ("offers", Code::InvalidArgument, "is no version and no checkpoint"),
        ("offers@best", Code::InvalidArgument, "is no version and no checkpoint"),
        ("../../etc@3", Code::InvalidArgument, "is no version and no checkpoint"),
        ("offers@9", Code::NotFound, "registry does not give it"),
        ("job-0123456789abcdef0123456789abcdef@4", Code::NotFound, "no checkpoint of step 4"),
    ] {
        let status = running.load(id).await.unwrap_err();
        assert_eq!(status.code(), code, "{id}: {status:?}");
        assert!(status.message().contains(part), "{id}: {}", status.message());
    }
    running.stop().await;
}
