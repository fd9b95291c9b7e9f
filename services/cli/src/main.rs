//! The `firn` command line. Results go to stdout, everything else to stderr; the exit status is 0 only if the work is
//! done.

mod base;
mod chart;
mod clients;
mod commands;
mod flags;
mod progress;
mod spcs;
mod stack;
mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use firn_kit::{TelemetryArgs, telemetry};
use tracing::{Instrument as _, info_span};

/// Fine-tunes a language model on your own rows and serves it.
#[derive(Debug, Parser)]
#[command(
    name = "firn",
    version = firn_kit::build_info::VERSION,
    after_help = "Examples:\n  firn quickstart                         the whole way on invented offers, in minutes\n  \
                  firn up                                 the services on this machine, with a page to chat on\n  \
                  firn llm --train --project-name out --data-path rows.csv --text-column text\n  \
                  firn chat --model offers@latest         talk to a tuned model of a running stack"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(commands::quickstart::QuickstartArgs),
    Up(commands::up::UpArgs),
    Init(commands::init::InitArgs),
    Llm(Box<commands::llm::LlmArgs>),
    Lint(commands::lint::LintArgs),
    Score(commands::score::ScoreArgs),
    Generate(commands::generate::GenerateArgs),
    Template(commands::template::TemplateArgs),
    Tools(commands::tools::ToolsArgs),
    Stage(commands::stage::StageArgs),
    Jobs(commands::jobs::JobsArgs),
    Models(commands::models::ModelsArgs),
    Datasets(commands::datasets::DatasetsArgs),
    Chat(commands::chat::ChatArgs),
    Bench(commands::bench::BenchArgs),
    Pretrain(commands::pretrain::PretrainArgs),
    Spcs(commands::spcs::SpcsArgs),
}

fn main() -> ExitCode {
    let prepared = match flags::prepare(std::env::args_os()) {
        Ok(prepared) => prepared,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    prepared.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let cli = match parse(prepared.args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Score(args) => return commands::score::run(&args),
        Command::Generate(args) => return commands::generate::run(&args),
        Command::Template(args) => return commands::template::run(&args),
        Command::Tools(args) => return commands::tools::run(&args),
        Command::Pretrain(args) => return commands::pretrain::run(&args),
        Command::Spcs(args) => return commands::spcs::run(&args),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Quickstart(args) => traced("quickstart", commands::quickstart::run(&args)).await,
            Command::Up(args) => commands::up::run(&args).await,
            Command::Init(args) => commands::init::run(&args).await,
            Command::Llm(args) => traced("llm", commands::llm::run(*args)).await,
            Command::Lint(args) => commands::lint::run(&args).await,
            Command::Stage(args) => commands::stage::run(args).await,
            Command::Jobs(args) => commands::jobs::run(&args).await,
            Command::Models(args) => commands::models::run(&args).await,
            Command::Datasets(args) => commands::datasets::run(&args).await,
            Command::Chat(args) => commands::chat::run(&args).await,
            Command::Bench(args) => commands::bench::run(&args).await,
            _ => Ok(()),
        }
    });
    // Blocking work that was told to stop may still be in its last step.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    result
}

/// Runs a command whose services' traces and metrics go where the environment says, as one trace; `FIRN_LOG` shows their
/// logs.
async fn traced(name: &'static str, command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let _guard = telemetry::init("firn", &TelemetryArgs::from_environment("error")?)?;
    command.instrument(info_span!("command", name)).await
}

/// The whole chain of causes in one line, each cause once; a gRPC status by its message.
fn sentence(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.downcast_ref::<tonic::Status>().map_or_else(|| cause.to_string(), clients::describe);
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}
