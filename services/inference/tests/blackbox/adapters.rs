//! Adapters that the registry's aliases name.

use std::time::Instant;

use firn_llm::{
    config::ModelConfig,
    device::Device,
    generate::answer_greedily,
    model::{Adapter, Decoder},
    tokenizer::Tokenizer,
};
use firn_proto::registry::v1::{CreateVersionRequest, Lineage, SetAliasRequest};

use super::*;

impl Running {
    /// Registers a folder as a new version of `offers` and moves the alias; gives the version's name.
    pub(crate) async fn register(&self, folder: &Path, alias: &str, template: &str) -> String {
        let source = format!("jobs/{}/adapter", fresh_name());
        let mut writer = self.stage.folder(&source);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                writer.put_file(path.file_name().unwrap().to_str().unwrap(), &path).await.unwrap();
            }
        }
        writer.finish().await.unwrap();
        let request = CreateVersionRequest {
            model: "offers".to_owned(),
            source,
            lineage: Some(Lineage { template_sha256: template.to_owned(), ..Default::default() }),
            alias: alias.to_owned(),
            ..Default::default()
        };
        within(self.registry.clone().create_version(request)).await.unwrap().into_inner().name
    }

    pub(crate) async fn point(&self, alias: &str, version: u64) {
        let request = SetAliasRequest { name: format!("models/offers/aliases/{alias}"), version };
        within(self.registry.clone().set_alias(request)).await.unwrap();
    }
}

fn fresh_name() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("job-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

pub(crate) fn template() -> String {
    Tokenizer::from_dir(&llama()).unwrap().template_sha256().unwrap().to_owned()
}

/// What an adapter of the fixtures answers, computed without the service.
pub(crate) fn expected(name: &str, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let model = Decoder::load(&llama(), &Device::cpu()).unwrap();
    let adapter = Adapter::load(&llama().join(name), model.config(), &Device::cpu()).unwrap();
    answer_greedily(&model, Some(&adapter), &[prompt.to_vec()], &[], tokens, &|| ()).unwrap().remove(0)
}

#[tokio::test]
async fn an_alias_that_moves_serves_the_new_adapter_and_open_answers_keep_the_old_one() {
    let running = Running::start().await;
    let first = running.register(&llama().join("adapter_final"), "best", &template()).await;
    running.until_served("offers@best", &first).await;
    let prompt = golden("input_ids")[0][..8].to_vec();
    let (old, new) = (expected("adapter_final", &prompt, 400), expected("adapter_dpo", &prompt, 30));
    assert_ne!(old[..30], new[..], "the adapters differ");

    let mut pieces = running.generate(ids_request("offers@best", prompt.clone(), greedy(400))).await.unwrap();
    let Some(Event::Delta(delta)) = within(pieces.message()).await.unwrap().unwrap().event else { panic!("no delta") };
    let second = running.register(&llama().join("adapter_dpo"), "best", &template()).await;
    running.until_served("offers@best", &second).await;
    assert_eq!(running.answer(ids_request("offers@best", prompt.clone(), greedy(30))).await.ids, new);
    let after = rest(pieces).await;
    assert_eq!([delta.ids, after.ids].concat(), old);

    assert_eq!(running.answer(ids_request("offers@2", prompt.clone(), greedy(30))).await.ids, new, "by its number");
    assert!(running.generate(ids_request("offers@1", prompt.clone(), greedy(1))).await.is_err(), "no alias names it");
    running.point("old", 1).await;
    running.until_served("offers@old", &first).await;
    assert_eq!(running.answer(ids_request("offers@1", prompt, greedy(30))).await.ids, old[..30]);
    let ids: Vec<_> = running.models().await.into_iter().map(|model| (model.id, model.parent)).collect();
    let tuned = |id: &str| (id.to_owned(), "base".to_owned());
    assert_eq!(ids, [("base".to_owned(), String::new()), tuned("offers@best"), tuned("offers@old")]);
    running.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_the_base_is_not_served() {
    let running = Running::start().await;
    let good = running.register(&llama().join("adapter_final"), "best", &template()).await;
    running.until_served("offers@best", &good).await;

    // Another template under the same alias: better no answer than one to a prompt that it has not learnt.
    running.register(&llama().join("adapter_final"), "best", &"0".repeat(64)).await;
    let wide = tempfile::tempdir().unwrap();
    let config = ModelConfig { hidden: 128, ..ModelConfig::from_dir(&llama()).unwrap() };
    let other = Adapter::new(&config, firn_llm::model::LoraConfig::all_linear(2), 0, &Device::cpu());
    other.save(wide.path(), "another").unwrap();
    running.register(wide.path(), "wide", &template()).await;
    running.register(&llama(), "full", &template()).await;
    let text = running.register(&llama().join("adapter_final"), "text", "").await;
    // Events come in order, so once the last one is served the others have been looked at.
    running.until_served("offers@text", &text).await;
    let ids: Vec<_> = running.models().await.into_iter().map(|model| model.id).collect();
    assert_eq!(ids, ["base", "offers@text"]);
    running.stop().await;
}

#[tokio::test]
async fn a_registry_that_comes_late_is_found() {
    let work = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let stage = Stage::memory();
    let options = Options {
        registry_endpoint: format!("http://{address}"),
        work_dir: work.path().to_owned(),
        ..Options::new(llama().display().to_string())
    };
    let service = Inference::bind_with(&ServerArgs::loopback(), options, stage.clone()).await.unwrap();
    let channel = firn_kit::channel(&format!("http://{}", service.local_addr())).unwrap();
    let client = Client::new(channel.clone());
    let shutdown = CancellationToken::new();
    let service = tokio::spawn(service.run(shutdown.clone()));
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        let models = within(client.clone().list_models(ListModelsRequest {})).await.unwrap().into_inner().models;
        assert_eq!(models.len(), 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let args = ServerArgs { listen: address, ..ServerArgs::loopback() };
    let registry = Registry::bind_with(args, stage.clone()).await.unwrap();
    let registry_shutdown = shutdown.child_token();
    let run = registry.run(registry_shutdown.clone());
    let registry_task = tokio::spawn(async move { run.await.unwrap() });
    let registry = RegistryServiceClient::new(firn_kit::channel(&format!("http://{address}")).unwrap());
    let running = Running {
        client,
        channel,
        registry,
        stage,
        shutdown,
        service,
        registry_task,
        registry_address: address,
        registry_shutdown,
        _work: work,
    };
    let version = running.register(&llama().join("adapter_init"), "best", "").await;
    running.until_served("offers@best", &version).await;
    running.stop().await;
}
