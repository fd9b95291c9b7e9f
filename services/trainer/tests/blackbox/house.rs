//! Data-prep, the registry and the trainer in one process.

use std::{future::Future, num::NonZeroU64, path::Path, time::Duration};

use firn_data_prep::DataPrep;
use firn_kit::{Channel, ServerArgs, channel};
use firn_model_registry::Registry;
use firn_proto::{
    dataprep::v1::{CreateSnapshotRequest, PreferenceFormat, PromptFormat, RowFormat, row_format::Format},
    registry::v1::registry_service_client::RegistryServiceClient,
    trainer::v1::{
        CreateJobRequest, Hyperparameters, Job, JobEvent, JobSpec, ListJobsRequest, LoraSpec, WatchJobRequest,
        job_event::Event, trainer_service_client::TrainerServiceClient,
    },
};
use firn_stage::Stage;
use firn_trainer::{Options, Trainer};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) type Client = TrainerServiceClient<Channel>;

/// A stage with a base, its neighbours, and where they answer.
pub(crate) struct House {
    pub(crate) root: TempDir,
    pub(crate) registry: RegistryServiceClient<Channel>,
    options: Options,
    _scratch: TempDir,
}

/// A running trainer.
pub(crate) struct Running {
    pub(crate) client: Client,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl House {
    /// Twelve rows, and a checkpoint every two steps.
    pub(crate) async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("bases/tiny/llama");
        std::fs::create_dir_all(&base).unwrap();
        for file in
            ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "model.safetensors"]
        {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama").join(file);
            std::fs::copy(from, base.join(file)).unwrap();
        }
        let rows: String = (0..12).map(|index| format!("Fern {index},${}\n", 5 * index)).collect();
        std::fs::write(root.path().join("offers.csv"), format!("ORGANIZATION_NAME,REWARD\n{rows}")).unwrap();

        let votes: String =
            (0..12).map(|index| format!("Offer {index}?,Fern gives ${index}.,No idea at all\n")).collect();
        std::fs::write(root.path().join("votes.csv"), format!("prompt,chosen,rejected\n{votes}")).unwrap();

        let stage = Stage::open(root.path().to_str().unwrap()).unwrap();
        let data_prep = DataPrep::bind_with(&ServerArgs::loopback(), stage.clone()).await.unwrap();
        let registry = Registry::bind_with(ServerArgs::loopback(), stage).await.unwrap();
        let (prep, registered) =
            (format!("http://{}", data_prep.local_addr()), format!("http://{}", registry.local_addr()));
        tokio::spawn(data_prep.run(CancellationToken::new()));
        tokio::spawn(registry.run(CancellationToken::new()));
        let scratch = tempfile::tempdir().unwrap();
        let mut options = Options::new(prep, registered.clone());
        options.work_dir = Some(scratch.path().to_owned());
        options.checkpoint_steps = NonZeroU64::new(2).unwrap();
        options.device = "cpu".to_owned();
        let registry = RegistryServiceClient::new(channel(&registered).unwrap());
        Self { root, registry, options, _scratch: scratch }
    }

    pub(crate) async fn start(&self) -> Running {
        let stage = Stage::open(self.root.path().to_str().unwrap()).unwrap();
        let trainer = Trainer::bind_with(&ServerArgs::loopback(), stage, &self.options).await.unwrap();
        let client = Client::new(channel(&format!("http://{}", trainer.local_addr())).unwrap());
        let shutdown = CancellationToken::new();
        let run = trainer.run(shutdown.clone());
        Running { client, shutdown, task: tokio::spawn(async move { run.await.unwrap() }) }
    }

    /// Bytes of a file on the stage.
    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.path().join(path)).unwrap()
    }
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        within(self.task).await.unwrap();
    }

    /// Ends it without a chance to write anything more.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn create(&mut self, spec: JobSpec) -> Job {
        let request = CreateJobRequest { spec: Some(spec), request_id: String::new() };
        self.client.create_job(request).await.unwrap().into_inner()
    }

    pub(crate) async fn list(&mut self) -> Vec<Job> {
        self.client.list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs
    }

    /// Reads events after `cursor` until `last` says it has seen enough, or the stream ends.
    pub(crate) async fn events(&mut self, job: &Job, cursor: u64, last: impl Fn(&Event) -> bool) -> Vec<JobEvent> {
        let request = WatchJobRequest { name: job.name.clone(), cursor };
        let mut frames = self.client.watch_job(request).await.unwrap().into_inner();
        let mut events: Vec<JobEvent> = vec![];
        let read = async {
            while let Some(frame) = frames.message().await.unwrap() {
                let enough = last(frame.event.as_ref().unwrap());
                events.push(frame);
                if enough {
                    break;
                }
            }
        };
        within(read).await;
        events
    }

    /// Waits for a job's end.
    pub(crate) async fn end(&mut self, job: &Job) -> Job {
        match self.events(job, 0, |_| false).await.pop().unwrap().event.unwrap() {
            Event::State(job) => job,
            other => panic!("the last event is {other:?}"),
        }
    }
}

/// No test waits longer than this.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.unwrap()
}

/// Two epochs over nine rows, a row a block, three blocks a step: six steps.
pub(crate) fn spec() -> JobSpec {
    let prompt = PromptFormat {
        prompt_template: "Say it: {{ row | tojson }}".to_owned(),
        completion_template: "{{ ORGANIZATION_NAME }} gives {{ REWARD }}.".to_owned(),
        system: String::new(),
    };
    let data = CreateSnapshotRequest {
        dataset: "offers".to_owned(),
        source: "offers.csv".to_owned(),
        format: Some(RowFormat { format: Some(Format::Prompt(prompt)) }),
        held_out_rows: 3,
        ..Default::default()
    };
    let hyperparameters = Hyperparameters {
        epochs: Some(2.0),
        batch_size: Some(3),
        block_size: Some(16),
        learning_rate: Some(5e-3),
        ..Default::default()
    };
    JobSpec {
        base: "bases/tiny/llama".to_owned(),
        model: "offers".to_owned(),
        data: Some(data),
        lora: Some(LoraSpec { r: 4, ..Default::default() }),
        hyperparameters: Some(hyperparameters),
        max_answer_tokens: 8,
        answered_rows: 2,
        ..Default::default()
    }
}

/// As [`epochs`], over preferences: the caller names the objective.
pub(crate) fn preferences(passes: f64) -> JobSpec {
    let mut spec = epochs(passes);
    let [prompt, chosen, rejected] = ["prompt", "chosen", "rejected"].map(str::to_owned);
    let data = spec.data.as_mut().unwrap();
    data.source = "votes.csv".to_owned();
    data.format = Some(RowFormat { format: Some(Format::Preference(PreferenceFormat { prompt, chosen, rejected })) });
    spec.answered_rows = 0;
    spec
}

/// As [`spec`], with this many epochs.
pub(crate) fn epochs(epochs: f64) -> JobSpec {
    let mut spec = spec();
    spec.hyperparameters.as_mut().unwrap().epochs = Some(epochs);
    spec
}
