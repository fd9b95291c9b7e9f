//! The part of a job that trains.

use std::{path::Path, sync::Arc};

use firn_llm::{
    config::ModelConfig,
    device::Device,
    model::{Adapter, ModelError},
    train::{Preference, Tuner, TunerConfig},
};
use tokio::sync::mpsc;

use super::{Runner, blocking};
use crate::{
    checkpoint::{self, Lineage, Progress, Purpose},
    dataset::HeldOut,
    error::WorkError,
    evaluate::{self, Model},
    job::Job,
    plan::Plan,
    record::{Step, write_steps},
    room::Room,
    spec::Spec,
    train::{self, Ended, Message, Outside, Settings},
};

impl Runner {
    /// Runs the steps that are left, with checkpoints on the stage. Gives the model, and the step that its weights are
    /// from if that is not the last one, else 0.
    pub(super) async fn train(
        &self,
        job: &Arc<Job>,
        model: Arc<Model>,
        plan: Plan,
        held_out: &Arc<HeldOut>,
        scratch: &Path,
    ) -> Result<(Model, u64), WorkError> {
        let restored = checkpoint::restore(&self.stage, job.id(), scratch).await?;
        if let Some(restored) = &restored {
            tracing::info!(step = restored.progress.step, steps = plan.steps(), "training goes on from a checkpoint");
        }
        let hyper = job.spec.spec.hyperparameters.clone();
        let settings = Settings {
            schedule: hyper.schedule()?,
            preference: job.spec.spec.preference(),
            budget_seconds: hyper.budget_seconds,
            checkpoint_steps: self.checkpoint_steps,
            measure: hyper.measure,
            scratch: scratch.to_owned(),
            base: job.spec.spec.base.clone(),
        };
        let room = Room::new(&job.spec.spec, model.decoder.config(), &self.device, &plan)?.loaded();
        let fit = room.fit().ok_or_else(|| WorkError::NoMemory {
            block: plan.block_tokens(),
            needed: room.least(),
            free: room.free.unwrap_or(0),
        })?;
        tracing::info!(?fit, free = room.free, "how the steps go into the memory");
        let config = TunerConfig {
            optimizer: hyper.optimizer(),
            keep_reference: settings.preference.is_some_and(|preference| preference.needs_reference()),
            seed: hyper.seed,
            parallel_blocks: Some(fit.blocks),
            recompute: fit.recompute,
        };
        let first = job.spec.spec.adapter_dir(self.stage.local_root())?;
        let (sender, receiver) = mpsc::channel(train::MESSAGES);
        let (device, cancel, interrupt) = (self.device.clone(), job.cancel.clone(), self.interrupter(job));
        let (subject, held_out) = (Arc::clone(job), Arc::clone(held_out));
        let looping = blocking(move || {
            let spec = &subject.spec.spec;
            let decoder = model.decoder.clone();
            drop(model);
            let adapter = adapter(spec, first.as_deref(), decoder.config(), &device)?;
            let mut tuner = Tuner::new(decoder, adapter, &config);
            let mut progress = Progress::default();
            if let Some(restored) = restored {
                tuner.load_state(&restored.file).map_err(ModelError::from)?;
                progress = restored.progress;
            }
            let outside = Outside {
                messages: &sender,
                // A service that stops waits for a measurement: without it, the step could not be kept.
                measure: &|tuner| evaluate::gauge(tuner, &held_out, spec, &|| cancel.is_cancelled()),
                interrupt: &interrupt,
            };
            Ok(train::train(tuner, &plan, &settings, progress, &outside)?)
        });
        // If the stage fails the receiver goes, and with it the loop.
        let (ended, received) = tokio::join!(looping, self.receive(job, receiver));
        received?;
        let Ended::Done(mut tuner, progress) = ended? else { return Err(self.interrupted(job)) };
        let best = progress.best.filter(|best| hyper.measure.keep_best && best.step != progress.step);
        if let Some(best) = best {
            tracing::info!(step = best.step, loss = best.loss, "the best weights are the result");
            let file = checkpoint::restore_best(&self.stage, job.id(), best.step, scratch).await?;
            tuner = blocking(move || {
                tuner.load_state(&file).map_err(ModelError::from)?;
                Ok(tuner)
            })
            .await?;
        }
        let (decoder, adapter) = tuner.into_parts();
        Ok((Model { decoder, adapter }, best.map_or(0, |best| best.step)))
    }

    /// Takes what the loop tells: metrics to those who watch, checkpoints to the stage.
    async fn receive(&self, job: &Arc<Job>, mut messages: mpsc::Receiver<Message>) -> Result<(), WorkError> {
        let mut unwritten = vec![];
        let (record, spec) = (job.record(), &job.spec.spec);
        let lineage = spec.lora.is_some().then(|| Lineage {
            base: spec.base.clone(),
            template_sha256: record.snapshot.map(|snapshot| snapshot.template_sha256).unwrap_or_default(),
        });
        while let Some(message) = messages.recv().await {
            let (purpose, progress, folder) = match message {
                Message::Step(step) => {
                    let step = Step { time: Some(self.clock.now()), ..step };
                    unwritten.push(step);
                    job.step(step);
                    continue;
                }
                Message::Saved(purpose, progress, folder) => (purpose, progress, folder),
            };
            if purpose == Purpose::Resume {
                // Metrics first: a checkpoint whose steps are unknown would leave a gap.
                write_steps(&self.stage, job.id(), &unwritten).await?;
                unwritten.clear();
            }
            checkpoint::save(&self.stage, job.id(), purpose, &progress, &folder, lineage.as_ref()).await?;
            tracing::info!(step = progress.step, ?purpose, "checkpoint written");
            if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
                tracing::debug!(%error, "failed to remove a local checkpoint");
            }
        }
        Ok(write_steps(&self.stage, job.id(), &unwritten).await?)
    }
}

/// What is trained: the adapter of a folder, a new one, or none.
fn adapter(
    spec: &Spec,
    first: Option<&Path>,
    model: &ModelConfig,
    device: &Device,
) -> Result<Option<Adapter>, WorkError> {
    let Some(lora) = &spec.lora else { return Ok(None) };
    let reward = spec.preference() == Some(Preference::Reward);
    let Some(dir) = first else {
        let make = if reward { Adapter::new_reward } else { Adapter::new };
        return Ok(Some(make(model, lora.config()?, spec.hyperparameters.seed, device)));
    };
    let mut adapter = Adapter::load(dir, model, device)?;
    if adapter.is_reward() != reward {
        return Err(WorkError::OtherAdapter { adapter: spec.adapter.clone(), reward });
    }
    adapter.set_dropout(lora.dropout);
    Ok(Some(adapter))
}
