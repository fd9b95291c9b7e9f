//! Firn's own specifications, for any instance family that holds them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;

use super::Family;

const TEMPLATE: &str = include_str!("templates/spec.yaml.jinja");
/// What the containers are started with, here as on any other machine.
const ENVIRONMENTS: [(&str, &str); 5] = [
    ("gateway", include_str!("../../../../deploy/env/gateway.env")),
    ("data-prep", include_str!("../../../../deploy/env/data-prep.env")),
    ("trainer", include_str!("../../../../deploy/env/trainer.env")),
    ("model-registry", include_str!("../../../../deploy/env/model-registry.env")),
    ("inference", include_str!("../../../../deploy/env/inference.env")),
];
/// What the sidecar of the stage's volume reserves: checkpoints and weights are large, and its defaults are small.
const SIDECAR: Share = Share { cpus: 0.5, gib: 1.0 };
/// Least that a container gets which computes.
const LEAST: Share = Share { cpus: 1.0, gib: 4.0 };
/// Reserved by the containers that move rows and messages, and their limits.
const SMALL: [(&str, Share, Share); 3] = [
    ("gateway", Share { cpus: 0.5, gib: 0.5 }, Share { cpus: 2.0, gib: 2.0 }),
    ("data-prep", Share { cpus: 1.0, gib: 2.0 }, Share { cpus: 4.0, gib: 8.0 }),
    ("model-registry", Share { cpus: 0.5, gib: 0.5 }, Share { cpus: 2.0, gib: 2.0 }),
];

/// Where containers with a GPU keep compiled kernels: the next container of a stage need not compile them for its first step.
const KERNELS: (&str, &str) = ("FIRN_KERNEL_CACHE", "/stage/kernels");

/// What is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// The five services in one instance.
    Service,
    /// One fine-tuning that ends: data-prep, trainer and registry in one process.
    Job,
    /// Serving alone, in as many instances as there is demand for.
    Inference,
}

/// What to render, and for where.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) kind: Kind,
    pub(crate) family: &'static Family,
    /// `db/schema/repository`.
    pub(crate) image_repository: String,
    pub(crate) tag: String,
    /// `db.schema.stage`, with a folder if need be.
    pub(crate) stage: String,
    /// The base checkpoint, on the stage.
    pub(crate) base: String,
    /// A registry elsewhere, for inference.
    pub(crate) registry_endpoint: Option<String>,
    /// `container:VARIABLE=db.schema.secret`.
    pub(crate) secrets: Vec<String>,
    /// Arguments of `firn llm --train`, for a job.
    pub(crate) train: Vec<String>,
    /// Images are variables of a specification template, with these as defaults.
    pub(crate) template: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Share {
    #[serde(serialize_with = "plainly")]
    cpus: f64,
    #[serde(serialize_with = "plainly")]
    gib: f64,
}

/// Whole numbers without `.0`.
fn plainly<S: serde::Serializer>(amount: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

#[derive(Debug, Serialize)]
struct Container {
    name: &'static str,
    image: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    secrets: Vec<Secret>,
    health: Option<u16>,
    stage: bool,
    request: Share,
    limit: Share,
    gpus: u8,
}

/// A secret of the account as a container gets it.
#[derive(Debug, Serialize)]
struct Secret {
    object: String,
    variable: String,
    /// Where its file is, if the variable names one.
    folder: Option<String>,
}

/// The specification as YAML.
///
/// # Errors
/// The family can't hold it, or an argument does not go with the kind.
pub(crate) fn render(order: &Order) -> Result<String> {
    ensure!(!order.family.is_arm(), "{} runs images for arm64, and Firn's are for amd64", order.family.name);
    let containers = match order.kind {
        Kind::Service => service(order)?,
        Kind::Job => job(order)?,
        Kind::Inference => inference(order)?,
    };
    let containers = with_secrets(order, containers)?;
    let kind = format!("{:?}", order.kind).to_lowercase();
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_template("specification", TEMPLATE)?;
    let text = environment.get_template("specification")?.render(context! {
        kind,
        containers => Serde(&containers),
        family => order.family.name,
        stage => order.stage.trim_start_matches('@'),
        sidecar => Serde(&SIDECAR),
    })?;
    Ok(format!("{}\n", text.trim_end()))
}

fn service(order: &Order) -> Result<Vec<Container>> {
    let small = ["gateway", "data-prep", "model-registry"];
    let free = free(order, &small, 2)?;
    let mut containers = small.iter().map(|name| moving(order, name)).collect::<Result<Vec<_>>>()?;
    for (name, part) in [("trainer", 0.6), ("inference", 0.3)] {
        containers.push(computing(order, name, share(free, part), free)?);
    }
    for container in &mut containers {
        if container.name == "model-registry" {
            // Inference of other services watches the aliases here.
            container.env.insert("FIRN_LISTEN".to_owned(), "0.0.0.0:7003".to_owned());
        }
    }
    Ok(containers)
}

fn inference(order: &Order) -> Result<Vec<Container>> {
    let small: &[&str] = if order.registry_endpoint.is_some() { &["gateway"] } else { &["gateway", "model-registry"] };
    let free = free(order, small, 1)?;
    let mut containers = small.iter().map(|name| moving(order, name)).collect::<Result<Vec<_>>>()?;
    containers.push(computing(order, "inference", share(free, 0.9), free)?);
    for container in containers.iter_mut().filter(|container| container.name == "model-registry") {
        // A job, or another service, writes: one registry of a stage may.
        container.env.insert("FIRN_REGISTRY_FOLLOW_SECONDS".to_owned(), "5".to_owned());
    }
    if let Some(endpoint) = &order.registry_endpoint {
        for container in &mut containers {
            container.env.insert("FIRN_REGISTRY_ENDPOINT".to_owned(), endpoint.clone());
        }
    }
    Ok(containers)
}

fn job(order: &Order) -> Result<Vec<Container>> {
    let free = free(order, &[], 1)?;
    let gpu = order.family.gpus > 0;
    let device = if gpu { "cuda:0" } else { "cpu" };
    let mut args: Vec<String> =
        ["llm", "--train", "--json", "--stage", "/stage", "--device", device].map(Into::into).to_vec();
    let given = |flag: &str| order.train.iter().any(|arg| arg == flag || arg.starts_with(&format!("{flag}=")));
    for (flag, value) in
        [("--model", order.base.as_str()), ("--project-name", "/tmp/offers"), ("--data-path", "/stage/inputs/offers")]
    {
        if !given(flag) {
            args.extend([flag.to_owned(), value.to_owned()]);
        }
    }
    args.extend(order.train.iter().cloned());
    Ok(vec![Container {
        name: "train",
        image: image(order, "firn", gpu),
        args,
        env: kernels(gpu).collect(),
        secrets: Vec::new(),
        health: None,
        stage: true,
        request: share(free, 0.9),
        limit: free,
        gpus: u8::from(gpu),
    }])
}

/// The variable that says where, for a container with a GPU.
fn kernels(gpu: bool) -> impl Iterator<Item = (String, String)> {
    gpu.then_some(KERNELS).into_iter().map(|(name, folder)| (name.to_owned(), folder.to_owned()))
}

/// What a node has left beside these containers and the stage's sidecar.
fn free(order: &Order, small: &[&str], computing: u8) -> Result<Share> {
    let Family { name, cpus, gib, gpus, .. } = *order.family;
    ensure!(
        gpus == 0 || gpus >= i64::from(computing),
        "the trainer and inference need a GPU each, and a node of {name} has {gpus}: choose a family with two or more, \
         or render `job` and `inference` as two services"
    );
    let taken = SMALL.iter().filter(|(name, ..)| small.contains(name)).map(|(_, request, _)| *request);
    let free = taken
        .chain([SIDECAR])
        .fold(Share { cpus, gib }, |left, taken| Share { cpus: left.cpus - taken.cpus, gib: left.gib - taken.gib });
    let least = f64::from(computing);
    ensure!(
        free.cpus >= least * LEAST.cpus && free.gib >= least * LEAST.gib,
        "a node of {name} has {cpus} CPUs and {gib} GiB, which is too small: choose a larger family"
    );
    Ok(free)
}

/// A part of what is free, in whole CPUs and GiB.
fn share(free: Share, part: f64) -> Share {
    Share { cpus: (free.cpus * part).floor().max(LEAST.cpus), gib: (free.gib * part).floor().max(LEAST.gib) }
}

/// A container that moves rows or messages.
fn moving(order: &Order, name: &'static str) -> Result<Container> {
    let (_, request, limit) = SMALL.iter().find(|(small, ..)| *small == name).context("no such container")?;
    let limit = Share { cpus: limit.cpus.min(order.family.cpus), gib: limit.gib.min(order.family.gib) };
    let mut container = container(order, name, *request, limit, false)?;
    if name == "gateway" {
        container.stage = false;
        // The account's ingress has checked the caller, and says who it is.
        container.env.insert("FIRN_HTTP".to_owned(), "0.0.0.0:8080".to_owned());
        container.env.insert("FIRN_TRUST_INGRESS_USER".to_owned(), "true".to_owned());
        container.env.insert("FIRN_BASE".to_owned(), order.base.clone());
    }
    Ok(container)
}

/// A container that computes. Its memory is what it reserves, so that one cannot take the other's.
fn computing(order: &Order, name: &'static str, request: Share, free: Share) -> Result<Container> {
    let gpu = order.family.gpus > 0;
    let mut container = container(order, name, request, Share { cpus: free.cpus, gib: request.gib }, gpu)?;
    container.env.insert("FIRN_DEVICE".to_owned(), if gpu { "cuda:0" } else { "cpu" }.to_owned());
    container.env.extend(kernels(gpu));
    if name == "inference" {
        container.env.insert("FIRN_BASE".to_owned(), order.base.clone());
    }
    Ok(container)
}

fn container(order: &Order, name: &'static str, request: Share, limit: Share, gpu: bool) -> Result<Container> {
    let (_, file) = ENVIRONMENTS.iter().find(|(service, _)| *service == name).context("no such service")?;
    let mut env: BTreeMap<String, String> = file
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    // The account's trace view shows no others.
    env.insert("FIRN_TRACE_IDS".to_owned(), "snowflake".to_owned());
    let health = env.get("FIRN_HEALTH_LISTEN").and_then(|address| address.rsplit(':').next()?.parse().ok());
    Ok(Container {
        name,
        image: image(order, name, gpu),
        args: Vec::new(),
        env,
        secrets: Vec::new(),
        health,
        stage: true,
        request,
        limit,
        gpus: u8::from(gpu),
    })
}

fn image(order: &Order, name: &str, gpu: bool) -> String {
    let name = if name == "firn" { name.to_owned() } else { format!("firn-{name}") };
    let cuda = if gpu { "-cuda" } else { "" };
    let path = format!("/{}/{name}{cuda}:{}", order.image_repository.trim_matches('/'), order.tag);
    if order.template {
        format!("{{{{ {}_image | default('{path}') }}}}", name.trim_start_matches("firn-").replace('-', "_"))
    } else {
        path
    }
}

fn with_secrets(order: &Order, mut containers: Vec<Container>) -> Result<Vec<Container>> {
    for secret in &order.secrets {
        let form = || format!("--secret {secret}: write CONTAINER:VARIABLE=DB.SCHEMA.SECRET");
        let (container, rest) = secret.split_once(':').with_context(form)?;
        let (variable, object) = rest.split_once('=').with_context(form)?;
        let found = containers.iter_mut().find(|found| found.name == container);
        let found = found.with_context(|| format!("--secret {secret}: there is no container `{container}`"))?;
        // The account renews files while a container runs, and variables never.
        let folder = variable.strip_suffix("_FILE").map(|name| format!("/secrets/{}", name.to_lowercase()));
        if let Some(folder) = &folder {
            found.env.insert(variable.to_owned(), format!("{folder}/secret_string"));
        }
        found.secrets.push(Secret { object: object.to_owned(), variable: variable.to_owned(), folder });
    }
    Ok(containers)
}

/// Everything around a specification in SQL.
#[derive(Clone, Debug)]
pub(crate) struct Statement<'a> {
    pub(crate) name: &'a str,
    pub(crate) pool: &'a str,
    pub(crate) instances: (u32, u32),
}

/// The statement that runs a specification.
pub(crate) fn statement(order: &Order, statement: &Statement<'_>) -> Result<String> {
    let Statement { name, pool, instances: (least, most) } = statement;
    ensure!(least <= most, "--min-instances {least} is more than --max-instances {most}");
    ensure!(
        order.kind != Kind::Service || *most == 1,
        "the five services run in one instance: a second one would be a second trainer and a second writer of the stage"
    );
    let text = render(order)?;
    let using = if order.template { "SPECIFICATION_TEMPLATE" } else { "SPECIFICATION" };
    Ok(match order.kind {
        Kind::Job => format!(
            "EXECUTE JOB SERVICE\n  IN COMPUTE POOL {pool}\n  NAME = {name}\n  ASYNC = TRUE\n  FROM {using} $$\n{text}$$;\n"
        ),
        _ => format!(
            "CREATE SERVICE IF NOT EXISTS {name}\n  IN COMPUTE POOL {pool}\n  FROM {using} $$\n{text}$$\n  \
             MIN_INSTANCES = {least}\n  MAX_INSTANCES = {most};\n"
        ),
    })
}
