//! Aliases of which the registry can't tell where they point, because a record of its log is damaged.

use firn_kit::status::reason;
use firn_proto::registry::v1::GetVersionRequest;
use tonic::Code;

use super::adapters::{expected, template};
use super::*;

/// The move of `best` to the second version.
const RECORD: &str = "models/offers/aliases/000002.json";

impl Running {
    /// Ends the registry and starts it again at the same address, from what is on the stage.
    async fn restart_registry(&mut self) {
        self.registry_shutdown.cancel();
        within(&mut self.registry_task).await.unwrap();
        self.registry_shutdown = self.shutdown.child_token();
        let args = ServerArgs { listen: self.registry_address, ..ServerArgs::loopback() };
        let registry = Registry::bind_with(args, self.stage.clone()).await.unwrap();
        let run = registry.run(self.registry_shutdown.clone());
        self.registry_task = tokio::spawn(async move { run.await.unwrap() });
    }

    /// What the registry says of an alias of `offers`: the version, or why it says none.
    async fn alias(&self, alias: &str) -> Result<String, (Code, Option<String>)> {
        let request = GetVersionRequest { name: format!("models/offers/aliases/{alias}") };
        // The connection to the registry before this one may still be there.
        let found = firn_kit::retry_unavailable(Duration::from_secs(60), || async {
            self.registry.clone().get_version(request.clone()).await
        });
        found.await.map(|version| version.into_inner().name).map_err(|status| (status.code(), reason(&status)))
    }
}

#[tokio::test]
async fn an_alias_that_the_registry_cannot_tell_any_more_keeps_its_version_until_it_is_set_again() {
    let mut running = Running::start().await;
    let first = running.register(&llama().join("adapter_final"), "best", &template()).await;
    running.until_served("offers@best", &first).await;
    let second = running.register(&llama().join("adapter_dpo"), "best", &template()).await;
    running.until_served("offers@best", &second).await;
    let prompt = golden("input_ids")[0][..8].to_vec();
    let (old, new) = (expected("adapter_final", &prompt, 30), expected("adapter_dpo", &prompt, 30));
    assert_ne!(old, new, "the adapters differ");

    // What the alias was before is still there, and must not be taken for what it is.
    running.stage.delete(RECORD).await.unwrap();
    running.stage.put(RECORD, "{\"alias\":\"best\",\"version\":\"2\"}\n".into()).await.unwrap();
    running.restart_registry().await;
    assert_eq!(running.alias("best").await, Err((Code::DataLoss, Some("ALIAS_DAMAGED".to_owned()))));
    // Once the first is served, the service follows again; once the second is, it has seen all that there was at first.
    for alias in ["sign", "later"] {
        running.point(alias, 1).await;
        running.until_served(&format!("offers@{alias}"), &first).await;
    }
    running.until_served("offers@best", &second).await;
    let answer = running.answer(ids_request("offers@best", prompt.clone(), greedy(30))).await;
    assert_eq!((answer.ids, answer.finish.version), (new, second));

    running.point("best", 1).await;
    running.until_served("offers@best", &first).await;
    assert_eq!(running.alias("best").await, Ok(first));
    assert_eq!(running.answer(ids_request("offers@best", prompt, greedy(30))).await.ids, old);
    running.stop().await;
}
