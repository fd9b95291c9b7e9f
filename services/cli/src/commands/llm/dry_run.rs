//! `firn llm --dry-run`: what a job would do, and what stands out in its rows.

use anyhow::{Context, Result};
use firn_data_prep::LintReport;
use firn_proto::dataprep::v1::GetReportRequest;
use firn_proto::trainer::v1::JobPlan;
use serde::Deserialize;
use serde_json::json;

use super::super::lint::print_findings;
use crate::chart::chart;
use crate::clients::{Endpoints, request};

/// Rows of the schedule's picture.
const HEIGHT: u32 = 6;

/// What was found in a snapshot's rows.
pub(super) async fn report(endpoints: &Endpoints, snapshot: &str) -> Result<LintReport> {
    #[derive(Deserialize)]
    struct Report {
        lint: LintReport,
    }
    let message = request(GetReportRequest { name: snapshot.to_owned() });
    let json = endpoints.data_prep()?.get_report(message).await?.into_inner().json;
    let Report { lint } =
        serde_json::from_str(&json).with_context(|| format!("the report of {snapshot} is damaged"))?;
    Ok(lint)
}

/// Prints a plan, and the report of its rows.
pub(super) fn print(plan: &JobPlan, rows: &LintReport, as_json: bool) {
    if as_json {
        println!("{}", to_json(plan, rows));
        return;
    }
    let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
    println!("snapshot     {}", plan.snapshot);
    println!("rows         {} to train on, {} held out", plan.train_rows, plan.held_out_rows);
    println!(
        "tokens       {} in the rows, {} over all steps; blocks are filled to {:.0} %",
        plan.train_tokens,
        plan.step_tokens,
        plan.packed_share * 100.0
    );
    println!("steps        {} ({} of them with rising rate)", plan.steps, plan.warmup_steps);
    println!(
        "parameters   {} trained, {:.2} % of the base's {}",
        plan.trained_parameters,
        share(plan.trained_parameters, plan.base_parameters),
        plan.base_parameters
    );
    let free = match plan.free_memory_bytes {
        0 => String::new(),
        bytes => format!(", {:.2} GiB are free", gib(bytes)),
    };
    println!(
        "memory       about {:.2} GiB with {} blocks at once{}{free}",
        gib(plan.memory_bytes),
        plan.parallel_blocks,
        if plan.recompute { ", layers computed again in the backward" } else { "" }
    );
    println!("time         about {} (within a factor of two)", duration(plan.seconds));
    if plan.learning_rates.len() > 1 {
        println!("\nlearning rate\n{}\n", chart(plan.learning_rates.clone(), HEIGHT));
    }
    for warning in &plan.warnings {
        println!("warning: {warning}");
    }
    println!();
    print_findings(rows);
}

fn to_json(plan: &JobPlan, rows: &LintReport) -> serde_json::Value {
    json!({
        "snapshot": plan.snapshot, "train_rows": plan.train_rows, "held_out_rows": plan.held_out_rows,
        "train_tokens": plan.train_tokens, "epoch_steps": plan.epoch_steps, "steps": plan.steps,
        "step_tokens": plan.step_tokens, "packed_share": plan.packed_share, "learning_rates": plan.learning_rates,
        "warmup_steps": plan.warmup_steps, "trained_parameters": plan.trained_parameters,
        "base_parameters": plan.base_parameters, "memory_bytes": plan.memory_bytes,
        "free_memory_bytes": plan.free_memory_bytes, "parallel_blocks": plan.parallel_blocks,
        "recompute": plan.recompute, "seconds": plan.seconds,
        "warnings": plan.warnings, "lint": rows,
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn duration(seconds: f64) -> String {
    match seconds.max(0.0).round() as u64 {
        short @ 0..=119 => format!("{short} s"),
        longer @ 120..=7_199 => format!("{} min", longer / 60),
        long => format!("{} h {} min", long / 3_600, long % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn times_are_said_as_people_say_them() {
        assert_eq!([3.4, 300.0, 9_000.0].map(duration), ["3 s", "5 min", "2 h 30 min"]);
    }
}
