//! `firn lint`: what is wrong with rows, before a step is trained on them.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use firn_data_prep::{Finding, LintReport, Severity};
use firn_proto::dataprep::v1::{CreateSnapshotRequest, RowFormat};
use firn_stage::Stage;
use firn_trainer::hub::HubOptions;

use super::llm::args::{RowArgs, Trainer};
use super::llm::rows;
use crate::base;
use crate::stack::locate_base;

/// Looks at all rows as training would take them: what can't be trained on, is cut, doubled, empty, or leaks into the
/// validation rows. Exit status 1 if a row can't be trained on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn lint --data rows.csv\n  firn lint --model base --data votes.jsonl --trainer dpo --json"
)]
pub(crate) struct LintArgs {
    /// Base whose tokenizer and template count: a folder, a path on the stage, or org/name on the hub. Default: the bundled base.
    #[arg(long, default_value = base::BUNDLED, value_name = "FOLDER")]
    model: String,
    #[command(flatten)]
    rows: RowArgs,
    /// What would be learnt from: it decides how rows are read.
    #[arg(long, value_enum, default_value_t)]
    trainer: Trainer,
    /// Rows that would be measured, not trained on.
    #[arg(long, default_value_t = 0)]
    held_out_rows: u32,
    /// Seed of the split.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Stage of a base that is named by its path there.
    #[arg(long, default_value = "stage", value_name = "FOLDER")]
    stage: String,
    #[command(flatten)]
    hub: HubOptions,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: &LintArgs) -> Result<()> {
    let source = rows::source(&args.rows)?;
    let format = Some(RowFormat { format: Some(rows::format(&args.rows, args.trainer.is_preference(), &source)?) });
    let stage = Stage::open(&args.stage)?;
    let request = CreateSnapshotRequest {
        dataset: "lint".to_owned(),
        source: source.to_str().context("the path of the data is no UTF-8")?.to_owned(),
        base: locate_base(&stage, &args.model, &args.hub, &firn_kit::shutdown_token()?).await?,
        format,
        held_out_rows: args.held_out_rows,
        seed: args.seed,
        max_tokens: args.rows.model_max_length,
        held_out_source: rows::held_out_source(&args.rows)?,
        chat_template: args.rows.template_name(),
    };
    let root = stage.local_root().map(ToOwned::to_owned);
    let look = move || firn_data_prep::lint(request, root.as_deref(), &AtomicBool::new(false));
    let report = tokio::task::spawn_blocking(look).await??;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    let errors: u64 = report.findings.iter().filter(|f| f.severity == Severity::Error).map(|f| f.count).sum();
    if errors > 0 {
        bail!("{errors} rows can't be trained on");
    }
    Ok(())
}

/// Prints a report for people.
fn print(report: &LintReport) {
    let LintReport { rows, train_rows, held_out_rows, train_tokens, completion_tokens, .. } = report;
    println!("{rows} rows: {train_rows} to train on, {held_out_rows} held out");
    println!("{train_tokens} tokens, {completion_tokens} of them learnt");
    print_findings(report);
}

/// Prints how long rows are, and what stands out in them.
pub(crate) fn print_findings(report: &LintReport) {
    let LintReport { tokens, findings, .. } = report;
    println!("tokens a row: {} to {}, half up to {}, 95 % up to {}", tokens.min, tokens.max, tokens.median, tokens.p95);
    if findings.is_empty() {
        println!("nothing stands out");
    }
    findings.iter().for_each(print_finding);
}

fn print_finding(finding: &Finding) {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    println!("\n{severity}: {} ({} rows, {:.1} %)", finding.code, finding.count, finding.share * 100.0);
    println!("  {}", finding.advice);
    for example in finding.examples.iter().filter(|example| example.row > 0) {
        println!("  row {} of {}: {}", example.row, example.file, example.detail);
    }
}
