//! What a job would do, said before a step runs.

use std::path::PathBuf;

use firn_kit::Channel;
use firn_llm::{
    config::ModelConfig,
    device::Device,
    train::{Fit, Schedule, seconds_per_token},
};
use firn_proto::{dataprep::v1::data_prep_service_client::DataPrepServiceClient, trainer::v1::JobPlan};
use firn_stage::Stage;
use tokio_util::sync::CancellationToken;

use crate::{
    base::{self, Located},
    dataset::Dataset,
    error::WorkError,
    hub::HubOptions,
    plan::Plan,
    prepare,
    record::SnapshotRef,
    room::Room,
    runner::blocking,
    spec::{Packing, Spec, When},
};

/// Points of the schedule that are told.
const POINTS: u64 = 24;

/// Plans jobs without running them.
#[derive(Clone, Debug)]
pub(crate) struct Forecaster {
    pub(crate) stage: Stage,
    pub(crate) device: Device,
    pub(crate) data_prep: DataPrepServiceClient<Channel>,
    pub(crate) scratch: PathBuf,
    pub(crate) hub: HubOptions,
    pub(crate) stop: CancellationToken,
}

impl Forecaster {
    /// Has the snapshot prepared and packed, and estimates what training would take. No weight is read.
    pub(crate) async fn forecast(&self, spec: Spec) -> Result<JobPlan, WorkError> {
        spec.adapter_dir(self.stage.local_root())?;
        let Located { dir, name } = base::locate(&self.stage, &spec, &self.hub, |_, _| {}, &self.stop).await?;
        let config = blocking(move || Ok(ModelConfig::from_dir(&dir)?)).await?;
        let request = prepare::request(&spec, &name, &config);
        let snapshot = prepare::snapshot(&self.data_prep, &request, |_| {}).await?;
        let scratch = self.scratch.join(format!("plan-{}", uuid::Uuid::now_v7().simple()));
        let planned = self.plan(spec, config, &snapshot, scratch.clone()).await;
        if let Err(error) = tokio::fs::remove_dir_all(&scratch).await {
            tracing::debug!(%error, "failed to remove the scratch folder");
        }
        planned
    }

    async fn plan(
        &self,
        spec: Spec,
        config: ModelConfig,
        snapshot: &SnapshotRef,
        scratch: PathBuf,
    ) -> Result<JobPlan, WorkError> {
        let failed = |source| WorkError::Scratch { folder: scratch.display().to_string(), source };
        tokio::fs::create_dir_all(&scratch).await.map_err(failed)?;
        let dir = self.stage.fetch_dir(&snapshot.path, &scratch.join("dataset")).await?;
        let (device, snapshot) = (self.device.clone(), snapshot.clone());
        blocking(move || {
            let Dataset { train, .. } = Dataset::read(&dir, &config, spec.preference().is_some(), 0)?;
            let plan = Plan::new(train, &spec.hyperparameters, config.context)?;
            describe(&spec, &config, &device, &snapshot, &plan)
        })
        .await
    }
}

fn describe(
    spec: &Spec,
    config: &ModelConfig,
    device: &Device,
    snapshot: &SnapshotRef,
    plan: &Plan,
) -> Result<JobPlan, WorkError> {
    let hyper = &spec.hyperparameters;
    let lora = spec.lora.as_ref().map(|lora| lora.config()).transpose()?;
    let (block, room) = (plan.block_tokens(), Room::new(spec, config, device, plan)?);
    // What does not fit is told by a warning.
    let fit = room.fit().unwrap_or(Fit { blocks: 1, recompute: !hyper.keep_activations });
    let (steps, packed) = (plan.steps(), plan.packed());
    let passes = steps as f64 / packed.steps.max(1) as f64;
    let step_tokens = (packed.tokens as f64 * passes).round() as u64;
    let seconds = step_tokens as f64 * seconds_per_token(config, lora.is_some(), fit.recompute, device);
    let base_parameters = config.parameters() as u64;
    let mut plan = JobPlan {
        snapshot: snapshot.name.clone(),
        train_rows: snapshot.train_rows,
        held_out_rows: snapshot.held_out_rows,
        train_tokens: snapshot.train_tokens,
        epoch_steps: plan.epochs().map(|(_, _, steps)| steps).collect(),
        steps,
        step_tokens,
        packed_share: packed.share,
        learning_rates: learning_rates(&hyper.schedule()?, steps),
        warmup_steps: (hyper.warmup_ratio * steps as f64).ceil() as u64,
        trained_parameters: lora.map_or(base_parameters, |lora| lora.parameters(config) as u64),
        base_parameters,
        memory_bytes: room.estimate.total(fit),
        free_memory_bytes: room.free.unwrap_or(0),
        parallel_blocks: u32::try_from(fit.blocks).unwrap_or(u32::MAX),
        recompute: fit.recompute,
        seconds,
        warnings: vec![],
    };
    plan.warnings = warnings(spec, &plan, block);
    Ok(plan)
}

/// At equal distances, the first and the last step included.
fn learning_rates(schedule: &Schedule, steps: u64) -> Vec<f64> {
    let points = POINTS.min(steps).max(1);
    let step = |point: u64| point * (steps - 1) / (points - 1).max(1);
    (0..points).map(|point| schedule.rate(step(point) as f64 / steps as f64, 1.0 / steps as f64)).collect()
}

fn warnings(spec: &Spec, plan: &JobPlan, block: usize) -> Vec<String> {
    let hyper = &spec.hyperparameters;
    let mut warnings = vec![];
    if hyper.packing == Packing::Bfd && block > hyper.block_size as usize {
        let asked = hyper.block_size;
        warnings.push(format!("blocks have {block} tokens instead of {asked}: the longest row needs them"));
    }
    if plan.held_out_rows == 0 {
        let decides = hyper.measure.decides() && hyper.measure.when != When::Never;
        let so = if decides { ", so neither early stopping nor the best checkpoint can work" } else { "" };
        warnings
            .push(format!("no row is held out: nothing will be measured{so}; name held-out rows or a validation file"));
    }
    if plan.free_memory_bytes > 0 && plan.memory_bytes > plan.free_memory_bytes {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        warnings.push(format!(
            "about {:.1} GiB of memory are needed and {:.1} GiB are free: lower block_size, quantise the base, or ask for \
             fit_memory",
            gib(plan.memory_bytes),
            gib(plan.free_memory_bytes)
        ));
    }
    if hyper.budget_seconds > 0.0 && plan.seconds > hyper.budget_seconds {
        let steps = (plan.steps as f64 * hyper.budget_seconds / plan.seconds).floor();
        let budget = hyper.budget_seconds;
        warnings.push(format!("the budget of {budget} s ends the run after about {steps} of {} steps", plan.steps));
    }
    if plan.packed_share < 0.5 && hyper.packing == Packing::Bfd {
        let share = plan.packed_share * 100.0;
        warnings.push(format!("blocks are filled to {share:.0} % only: a larger block_size wastes less"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use firn_llm::train::SchedulerKind;

    use super::*;
    use crate::spec::tests::spec;

    #[test]
    fn the_schedule_is_told_from_its_first_step_to_its_last() {
        let schedule = Schedule { peak: 1.0, kind: SchedulerKind::Linear, warmup_ratio: 0.1 };
        let rates = learning_rates(&schedule, 100);
        assert_eq!(rates.len(), 24);
        assert_eq!((rates[0], rates[23]), (schedule.rate(0.0, 0.01), schedule.rate(0.99, 0.01)));
        assert_eq!(learning_rates(&schedule, 1).len(), 1);
        assert_eq!(learning_rates(&schedule, 3).len(), 3);
    }

    #[test]
    fn what_will_go_otherwise_is_said() {
        let plan = JobPlan {
            steps: 100,
            seconds: 50.0,
            memory_bytes: 3 << 30,
            free_memory_bytes: 2 << 30,
            packed_share: 0.3,
            ..JobPlan::default()
        };
        let mut spec = spec();
        spec.hyperparameters.budget_seconds = 10.0;
        let all = warnings(&spec, &plan, 700).join("\n");
        for part in
            ["700 tokens instead of 512", "nothing will be measured;", "3.0 GiB", "about 20 of 100 steps", "30 %"]
        {
            assert!(all.contains(part), "{part} is not in {all}");
        }
        let good = JobPlan { held_out_rows: 1, packed_share: 0.9, ..JobPlan::default() };
        assert!(warnings(&crate::spec::tests::spec(), &good, 512).is_empty());
    }
}
