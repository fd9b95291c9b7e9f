//! The worker: takes one job after the other through its states.

mod steps;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firn_kit::{Channel, Clock};
use firn_llm::{
    config::ModelConfig,
    device::{Device, DeviceSpec},
    model::{Adapter, Decoder},
    quant::Quantization,
    tokenizer::Tokenizer,
};
use firn_proto::{
    dataprep::v1::data_prep_service_client::DataPrepServiceClient,
    registry::v1::registry_service_client::RegistryServiceClient,
};
use firn_stage::Stage;
use tracing::{Instrument as _, info_span};

use crate::{
    artifact,
    base::{self, Located},
    config::Options,
    dataset::{Dataset, HeldOut},
    error::{StartError, WorkError},
    evaluate::{self, EvaluateError, Model, Subject},
    forecast::Forecaster,
    hub::HubOptions,
    job::Job,
    merge,
    plan::Plan,
    prepare,
    queue::Jobs,
    record::{Evaluation, MergeProof, SnapshotRef, State, StateRecord},
    register,
    spec::Objective,
    train::{Interrupt, TrainError},
};

/// Tries to write a job's last state, and the pause after the first of them, which doubles.
const END_TRIES: u32 = 5;
const END_PAUSE: Duration = Duration::from_secs(1);

/// Runs jobs.
#[derive(Debug)]
pub(crate) struct Runner {
    jobs: Jobs,
    stage: Stage,
    clock: Clock,
    device: Device,
    data_prep: DataPrepServiceClient<Channel>,
    registry: RegistryServiceClient<Channel>,
    checkpoint_steps: u64,
    scratch: PathBuf,
    hub: HubOptions,
}

/// The base's folder and what was read from it; its weights go their own way.
#[derive(Debug)]
struct Base {
    at: Located,
    config: ModelConfig,
    tokenizer: Tokenizer,
}

impl Runner {
    pub(crate) fn new(jobs: Jobs, stage: Stage, clock: Clock, options: &Options) -> Result<Self, StartError> {
        let spec: DeviceSpec = options.device.parse()?;
        Ok(Self {
            jobs,
            stage,
            clock,
            device: Device::open(spec)?,
            data_prep: DataPrepServiceClient::new(firn_kit::channel(&options.data_prep_endpoint)?),
            registry: RegistryServiceClient::new(firn_kit::channel(&options.registry_endpoint)?),
            checkpoint_steps: options.checkpoint_steps.get(),
            scratch: options.scratch(),
            hub: options.hub.clone(),
        })
    }

    /// Plans jobs on the same device and stage.
    pub(crate) fn forecaster(&self) -> Forecaster {
        Forecaster {
            stage: self.stage.clone(),
            device: self.device.clone(),
            data_prep: self.data_prep.clone(),
            scratch: self.scratch.clone(),
            hub: self.hub.clone(),
            stop: self.jobs.stopped().clone(),
        }
    }

    /// Runs jobs until the service stops.
    pub(crate) async fn run(self) {
        loop {
            let job = tokio::select! {
                biased;
                () = self.jobs.stopped().cancelled() => return,
                job = self.jobs.next() => job,
            };
            let span = info_span!("job.run", job = job.id());
            if let Some(trace) = &job.spec.trace {
                firn_kit::trace::continue_from(&span, trace);
            }
            self.work(&job).instrument(span).await;
        }
    }

    /// Takes a job as far as it goes, and writes how it ended.
    async fn work(&self, job: &Arc<Job>) {
        // A folder of its own for each try: a thread of a service that was dropped may still hold the one before.
        let scratch = self.scratch.join(job.id()).join(uuid::Uuid::now_v7().simple().to_string());
        let outcome = match tokio::fs::create_dir_all(&scratch).await {
            Ok(()) => self.attempt(job, &scratch).await,
            Err(source) => Err(WorkError::Scratch { folder: scratch.display().to_string(), source }),
        };
        if let Err(error) = tokio::fs::remove_dir_all(&scratch).await {
            tracing::debug!(%error, "failed to remove the scratch folder");
        }
        // Gone only if no other try left something there.
        let _ = tokio::fs::remove_dir(self.scratch.join(job.id())).await;
        match outcome {
            Ok(version) => {
                tracing::info!(version, "job succeeded");
                self.end(job, State::Succeeded, |record| record.version.clone_from(&version)).await;
            }
            // What else fails while the service stops fails because of that.
            Err(_) if self.jobs.stopped().is_cancelled() => {
                tracing::info!("job stopped; the next start goes on with it")
            }
            Err(WorkError::Cancelled) => self.end(job, State::Cancelled, |_| {}).await,
            Err(WorkError::Paused) => {
                self.end(job, State::Paused, |_| {}).await;
                if let Err(error) = self.jobs.paused(job).await {
                    tracing::error!(%error, "failed to go on with the job, which was resumed while it paused");
                }
            }
            Err(error) => {
                let text = format!("{}: {error}", place(&job.record(), &error));
                tracing::warn!(error = text, "job failed");
                self.end(job, State::Failed, |record| record.error.clone_from(&text)).await;
            }
        }
    }

    async fn attempt(&self, job: &Arc<Job>, scratch: &Path) -> Result<String, WorkError> {
        if job.state() == State::Registering
            && let Some(path) = self.stage.finished_folder(&job.path("artifact")).await?
        {
            return self.register(job, &path).await;
        }
        self.enter(job, State::Validating, |_| {}).await?;
        let (base, decoder) = self.open_base(job).instrument(info_span!("job.open_base")).await?;
        let base = Arc::new(base);

        self.enter(job, State::Preparing, |_| {}).await?;
        let snapshot = self.snapshot(job, &base).await?;
        let read = self.dataset(job, &base, &snapshot, scratch).instrument(info_span!("job.read_dataset"));
        let (plan, held_out) = read.await?;
        let held_out = Arc::new(held_out);
        let model = Arc::new(Model { decoder, adapter: None });
        if job.record().snapshot.is_none() {
            // A base gives no rewards.
            let evaluation = match job.spec.spec.objective {
                Objective::Reward => None,
                _ => self.evaluate(job, "base", &model, &base, &held_out).await?,
            };
            let steps = plan.steps();
            let change = |record: &mut StateRecord| {
                (record.snapshot, record.base_evaluation, record.steps) = (Some(snapshot), evaluation, steps);
            };
            self.enter(job, State::Running, change).await?;
        }
        self.enter(job, State::Running, |_| {}).await?;

        let training = self.train(job, model, plan, &held_out, scratch).instrument(info_span!("job.train"));
        let (trained, best_step) = training.await?;
        let trained = Arc::new(trained);
        self.enter(job, State::Evaluating, |record| record.best_step = best_step).await?;
        if job.state() < State::Registering {
            let evaluation = self.evaluate(job, "tuned model", &trained, &base, &held_out).await?;
            let proof = self.prove_merge(job, &base, &trained, &held_out, scratch).await?;
            let change = |record: &mut StateRecord| {
                (record.tuned_evaluation, record.merge_proof) = (evaluation, proof);
            };
            self.enter(job, State::Registering, change).await?;
        }
        let path = self.artifact(job, &base, &trained, scratch).instrument(info_span!("job.store")).await?;
        self.check(job)?;
        self.register(job, &path).await
    }

    /// Checks the base and loads it.
    async fn open_base(&self, job: &Arc<Job>) -> Result<(Base, Decoder), WorkError> {
        let tell = |done, total| job.progress("bytes of the base from the hub", done, total);
        let stop = self.jobs.stopped().child_token();
        let at = tokio::select! {
            biased;
            () = job.cancel.cancelled() => return Err(WorkError::Cancelled),
            at = base::locate(&self.stage, &job.spec.spec, &self.hub, tell, &stop) => at?,
        };
        let quantization = job.spec.spec.quantization()?;
        let device = match job.spec.spec.lora {
            Some(_) => self.device.clone(),
            // All weights are trained: the base's own are what small updates are added to.
            None => self.device.clone().in_full_precision(),
        };
        // A name that leads nowhere is told now, not after the evaluation of the base.
        job.spec.spec.adapter_dir(self.stage.local_root())?;
        let template = job.spec.spec.data.known_template();
        blocking(move || {
            let config = ModelConfig::from_dir(&at.dir)?;
            let own = Tokenizer::from_dir(&at.dir)?;
            // Answers are to end as the rows do.
            let tokenizer = match template {
                Some(known) => own.with_template(known)?,
                None => own,
            };
            config.check_tokenizer(&tokenizer)?;
            let decoder = Decoder::load_quantized(&at.dir, &device, quantization)?;
            Ok((Base { at, config, tokenizer }, decoder))
        })
        .await
    }

    /// The snapshot that the job trains on: the one it began with, or a new one.
    async fn snapshot(&self, job: &Arc<Job>, base: &Base) -> Result<SnapshotRef, WorkError> {
        if let Some(snapshot) = job.record().snapshot {
            return Ok(snapshot);
        }
        let request = prepare::request(&job.spec.spec, &base.at.name, &base.config);
        let tell = |rows| job.progress("rows read by data-prep", rows, 0);
        tokio::select! {
            biased;
            () = self.jobs.stopped().cancelled() => Err(WorkError::Stopping),
            () = job.cancel.cancelled() => Err(WorkError::Cancelled),
            snapshot = prepare::snapshot(&self.data_prep, &request, tell) => Ok(snapshot?),
        }
    }

    async fn dataset(
        &self,
        job: &Arc<Job>,
        base: &Arc<Base>,
        snapshot: &SnapshotRef,
        scratch: &Path,
    ) -> Result<(Plan, HeldOut), WorkError> {
        let dir = self.stage.fetch_dir(&snapshot.path, &scratch.join("dataset")).await?;
        let (base, job) = (Arc::clone(base), Arc::clone(job));
        blocking(move || {
            let pairs = job.spec.spec.preference().is_some();
            let spec = &job.spec.spec;
            let Dataset { train, held_out } = Dataset::read(&dir, &base.config, pairs, spec.answered_rows as usize)?;
            Ok((Plan::new(train, &job.spec.spec.hyperparameters, base.config.context)?, held_out))
        })
        .await
    }

    async fn evaluate(
        &self,
        job: &Arc<Job>,
        name: &'static str,
        model: &Arc<Model>,
        base: &Arc<Base>,
        held_out: &Arc<HeldOut>,
    ) -> Result<Option<Evaluation>, WorkError> {
        self.check(job)?;
        let stop = self.stopper(job);
        let (subject, model, base, held_out) =
            (Arc::clone(job), Arc::clone(model), Arc::clone(base), Arc::clone(held_out));
        let work = move || {
            let tell = |what: &str, done, total| subject.progress(what, done, total);
            let whom = Subject { name, model: &model, tokenizer: &base.tokenizer };
            Ok(evaluate::evaluate(&whom, &held_out, &subject.spec.spec, &tell, &stop))
        };
        match blocking(work).instrument(info_span!("job.evaluate", what = name)).await? {
            Err(EvaluateError::Stopped) => Err(self.interrupted(job)),
            evaluation => evaluation.map_err(WorkError::Evaluate),
        }
    }

    /// Folds the adapter into the base and compares what comes of it with both, if the job asks for that.
    async fn prove_merge(
        &self,
        job: &Arc<Job>,
        base: &Arc<Base>,
        trained: &Arc<Model>,
        held_out: &Arc<HeldOut>,
        scratch: &Path,
    ) -> Result<Option<MergeProof>, WorkError> {
        let spec = &job.spec.spec;
        if !spec.prove_merge {
            return Ok(None);
        }
        self.check(job)?;
        job.progress("merged weights compared", 0, 1);
        let is_quantised = spec.quantization()? != Quantization::None;
        let (device, into) = (self.device.clone(), scratch.join("merged"));
        let (base, trained, held_out) = (Arc::clone(base), Arc::clone(trained), Arc::clone(held_out));
        blocking(move || {
            let Some(adapter) = &trained.adapter else { return Ok(None) };
            let failed = |source| WorkError::Scratch { folder: into.display().to_string(), source };
            std::fs::create_dir_all(&into).map_err(failed)?;
            // An adapter is folded into the base itself, however the base was kept while it was trained.
            // And in f32: bf16's own rounding is larger than what is looked for.
            let decoder = match is_quantised || !device.is_full_precision() {
                true => Decoder::load(&base.at.dir, &device.in_full_precision())?,
                false => trained.decoder.clone(),
            };
            let proof = merge::compare(&decoder, adapter, &base.at.dir, &held_out.documents, &into)?;
            std::fs::remove_dir_all(&into).map_err(failed)?;
            Ok(Some(proof))
        })
        .await
    }

    async fn artifact(
        &self,
        job: &Arc<Job>,
        base: &Arc<Base>,
        trained: &Arc<Model>,
        scratch: &Path,
    ) -> Result<String, WorkError> {
        let dir = scratch.join("artifact");
        let (named, model, into) = (job.spec.spec.base.clone(), Arc::clone(trained), dir.clone());
        let weights = blocking(move || {
            std::fs::create_dir_all(&into)
                .map_err(|source| WorkError::Scratch { folder: into.display().to_string(), source })?;
            Ok(artifact::save(&model, &named, &into)?)
        })
        .await?;
        let parameters = trained.adapter.as_ref().map_or_else(|| base.config.parameters(), Adapter::parameters);
        Ok(artifact::write(&self.stage, job, &base.at.dir, &weights, parameters).await?)
    }

    /// From here on a wish to cancel comes too late: the version may be there already.
    async fn register(&self, job: &Arc<Job>, path: &str) -> Result<String, WorkError> {
        tokio::select! {
            biased;
            () = self.jobs.stopped().cancelled() => Err(WorkError::Stopping),
            version = register::register(&self.registry, job, path) => Ok(version?),
        }
    }

    /// Enters a state, unless the job was there before the service was restarted.
    async fn enter(
        &self,
        job: &Arc<Job>,
        state: State,
        change: impl FnOnce(&mut StateRecord),
    ) -> Result<(), WorkError> {
        self.check(job)?;
        if job.state() < state {
            job.enter(&self.stage, &self.clock, state, change).await?;
        }
        Ok(())
    }

    /// Writes a job's last state. If the stage does not take it, those who watch learn that; the next start tries again.
    async fn end(&self, job: &Arc<Job>, state: State, change: impl Fn(&mut StateRecord)) {
        let mut pause = END_PAUSE;
        for left in (0..END_TRIES).rev() {
            let Err(error) = job.enter(&self.stage, &self.clock, state, &change).await else { return };
            tracing::error!(%error, left, "failed to write the job's last state");
            if left == 0 {
                let mut record = job.record();
                change(&mut record);
                (record.sequence, record.state, record.time) = (record.sequence + 1, State::Failed, self.clock.now());
                record.error = format!("{}: {error} (the job had {})", state.name(), state.name());
                return job.show(record);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.jobs.stopped().cancelled() => return,
            }
            pause *= 2;
        }
    }

    fn check(&self, job: &Arc<Job>) -> Result<(), WorkError> {
        if self.stopper(job)() { Err(self.interrupted(job)) } else { Ok(()) }
    }

    /// Says whether the job is to end.
    fn stopper(&self, job: &Arc<Job>) -> impl Fn() -> bool + Send + Sync + 'static {
        let (stop, cancel) = (self.jobs.stopped().clone(), job.cancel.clone());
        move || stop.is_cancelled() || cancel.is_cancelled()
    }

    /// Says whether and how the job's steps are to end early.
    fn interrupter(&self, job: &Arc<Job>) -> impl Fn() -> Option<Interrupt> + Send + 'static {
        let (stopped, job) = (self.stopper(job), Arc::clone(job));
        move || match (stopped(), job.is_to_pause()) {
            (true, _) => Some(Interrupt::Stop),
            (false, true) => Some(Interrupt::Pause),
            (false, false) => None,
        }
    }

    /// Why a job ends early.
    fn interrupted(&self, job: &Job) -> WorkError {
        match (self.jobs.stopped().is_cancelled(), job.cancel.is_cancelled()) {
            (true, _) => WorkError::Stopping,
            (false, true) => WorkError::Cancelled,
            (false, false) => WorkError::Paused,
        }
    }
}

/// Where a job failed.
fn place(record: &StateRecord, error: &WorkError) -> String {
    match (error, record.state) {
        (WorkError::Train(TrainError::NotFinite { step, .. }), _) => format!("step {step}"),
        (_, State::Running) if record.step > 0 => format!("step {}", record.step),
        (_, state) => state.name().to_owned(),
    }
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WorkError> + Send + 'static,
) -> Result<T, WorkError> {
    let span = tracing::Span::current();
    let result = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "worker crashed");
        Err(WorkError::Crash)
    })
}
