//! `firn spcs`: specifications for Snowpark Container Services.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::base;
use crate::spcs::{
    Account, FAMILIES, Family, Findings, Kind, Needs, Order, Severity, Statement, check, check_script, family, render,
    statement,
};

/// Largest file that is read.
const MOST_BYTES: u64 = 4 << 20;

/// Writes and checks specifications for Snowpark Container Services.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn spcs check service.yaml --instance-family GPU_NV_M\n  \
                  firn spcs check 02_service.sql --sql\n  \
                  firn spcs render service --image-repository firn/app/images --tag 0.1.0 > service.yaml\n  \
                  firn spcs render inference --sql --min-instances 1 --max-instances 4\n  \
                  firn spcs render job -- --epochs 3 --lr 1e-4")]
pub(crate) struct SpcsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Check(CheckArgs),
    Render(Box<RenderArgs>),
}

/// Names everything in a specification that the account would refuse, each with its place and a way out.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The specification, or a template of one.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Instance family of the compute pool that it is for.
    #[arg(long, value_name = "FAMILY", value_parser = family)]
    instance_family: Option<&'static Family>,
    /// It is a job's and not a service's.
    #[arg(long)]
    job: bool,
    /// FILE is an SQL script with specifications between $$.
    #[arg(long, conflicts_with = "job")]
    sql: bool,
    /// Value of a template's variable, as USING gives it; again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints a specification of Firn as YAML.
#[derive(Debug, clap::Args)]
struct RenderArgs {
    /// What it runs.
    #[arg(value_enum)]
    kind: Kind,
    /// Where the images are.
    #[arg(long, default_value = "firn/app/images", value_name = "DB/SCHEMA/REPOSITORY")]
    image_repository: String,
    /// Tag of the images.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// The stage that is mounted, with a folder if need be.
    #[arg(long, default_value = "firn.app.stage", value_name = "DB.SCHEMA.STAGE")]
    stage: String,
    /// Base checkpoint, on the stage.
    #[arg(long, default_value = base::BUNDLED, value_name = "FOLDER")]
    base: String,
    /// Instance family of the compute pool. Default: GPU_NV_M for a service, GPU_NV_S for the others.
    #[arg(long, value_name = "FAMILY", value_parser = family)]
    instance_family: Option<&'static Family>,
    /// A registry of another service, for inference. Default: one of its own, that follows what others write to the stage.
    #[arg(long, value_name = "URL")]
    registry_endpoint: Option<String>,
    /// A secret as a variable of a container, or as a file that the variable names if it ends with _FILE: a file is renewed
    /// while the container runs. Again for each.
    #[arg(long, value_name = "CONTAINER:VARIABLE=DB.SCHEMA.SECRET")]
    secret: Vec<String>,
    /// Make the images' paths variables of a specification template.
    #[arg(long)]
    template: bool,
    /// Print the SQL statement around it too.
    #[arg(long)]
    sql: bool,
    /// Name of the service, for --sql. Default: firn, firn_train or firn_inference.
    #[arg(long, value_name = "NAME", requires = "sql")]
    name: Option<String>,
    /// Compute pool, for --sql.
    #[arg(long, default_value = "firn_pool", value_name = "NAME", requires = "sql")]
    compute_pool: String,
    /// Instances that always run, for --sql.
    #[arg(long, default_value_t = 1, value_name = "COUNT", requires = "sql")]
    min_instances: u32,
    /// Most instances, for --sql; one more starts at 80 % of the requested CPU or memory. Default: --min-instances.
    #[arg(long, value_name = "COUNT", requires = "sql")]
    max_instances: Option<u32>,
    /// Flags of `firn llm --train`, for a job.
    #[arg(last = true, value_name = "FLAGS")]
    train: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &SpcsArgs) -> Result<()> {
    match &args.what {
        What::Check(args) => run_check(args),
        What::Render(args) => run_render(args),
    }
}

fn run_check(args: &CheckArgs) -> Result<()> {
    let text = read(&args.file)?;
    let variables: BTreeMap<String, String> = args.set.iter().cloned().collect();
    let account = Account { family: args.instance_family, job: args.job, variables };
    let (findings, needs) = if args.sql { (check_script(&text, &account), None) } else { check(&text, &account) };
    print(&args.file, &findings, needs, args.json);
    match findings.count(Severity::Error) {
        0 => Ok(()),
        1 => bail!("the account would refuse {}: 1 error", args.file.display()),
        errors => bail!("the account would refuse {}: {errors} errors", args.file.display()),
    }
}

fn print(file: &Path, findings: &Findings, needs: Option<Needs>, as_json: bool) {
    let accepted = findings.count(Severity::Error) == 0;
    let fits: Vec<&str> = needs
        .map(|needs| FAMILIES.iter().filter(|family| needs.fit(family)).map(|f| f.name).collect())
        .unwrap_or_default();
    if as_json {
        let findings: Vec<_> = findings.iter().collect();
        println!(
            "{}",
            json!({ "file": file, "accepted": accepted, "findings": findings, "needs": needs, "fits": fits })
        );
        return;
    }
    for finding in findings.iter() {
        println!("{}:{finding}", file.display());
    }
    if let Some(Needs { cpus, gib, gpus }) = needs.filter(|_| accepted) {
        println!(
            "{}: accepted; an instance reserves {cpus} CPUs, {gib} GiB, {gpus} GPUs: {}",
            file.display(),
            fits.join(", ")
        );
    } else if accepted {
        println!("{}: accepted", file.display());
    }
}

fn run_render(args: &RenderArgs) -> Result<()> {
    let default = if args.kind == Kind::Service { "GPU_NV_M" } else { "GPU_NV_S" };
    let family = args.instance_family.map_or_else(|| family(default).map_err(anyhow::Error::msg), Ok)?;
    ensure!(
        args.registry_endpoint.is_none() || args.kind == Kind::Inference,
        "--registry-endpoint is for inference alone"
    );
    ensure!(args.train.is_empty() || args.kind == Kind::Job, "flags after -- are for a job alone");
    let order = Order {
        kind: args.kind,
        family,
        image_repository: args.image_repository.clone(),
        tag: args.tag.clone(),
        stage: args.stage.clone(),
        base: args.base.clone(),
        registry_endpoint: args.registry_endpoint.clone(),
        secrets: args.secret.clone(),
        train: args.train.clone(),
        template: args.template,
    };
    if !args.sql {
        print!("{}", render(&order)?);
        return Ok(());
    }
    let name = match args.kind {
        Kind::Service => "firn",
        Kind::Job => "firn_train",
        Kind::Inference => "firn_inference",
    };
    let around = Statement {
        name: args.name.as_deref().unwrap_or(name),
        pool: &args.compute_pool,
        instances: (args.min_instances, args.max_instances.unwrap_or(args.min_instances)),
    };
    print!("{}", statement(&order, &around)?);
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    let context = || format!("failed to read {}", file.display());
    let bytes = std::fs::metadata(file).with_context(context)?.len();
    ensure!(bytes <= MOST_BYTES, "{} has {bytes} bytes, which no specification has", file.display());
    std::fs::read_to_string(file).with_context(context)
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
