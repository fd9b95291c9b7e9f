//! `firn bench serve`: streams side by side against a running stack.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use firn_kit::Channel;
use firn_proto::inference::v1::{
    GenerateRequest, Sampling, TokenIds, generate_request, generate_response::Event,
    inference_service_client::InferenceServiceClient,
};
use serde_json::json;
use tokio::task::JoinSet;

use super::quantile;
use crate::clients::{Endpoints, describe};

/// Streams of one connection: HTTP/2 allows about a hundred.
const STREAMS_A_CONNECTION: usize = 64;
/// Longest that a request may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Prompts are texts of these ids, which every vocabulary has.
const FIRST_ID: u32 = 20;
const IDS: u32 = 200;

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Streams side by side.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Seconds; requests that have begun by then are finished.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Names of served models, which the streams take in turn.
    #[arg(long, default_value = "base", value_delimiter = ',')]
    models: Vec<String>,
    /// Tokens of a prompt, each request's its own.
    #[arg(long, default_value_t = 32)]
    prompt_tokens: u32,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 64)]
    max_tokens: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoints: Endpoints,
}

/// What a stream saw.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    tokens: u64,
    first: Vec<f64>,
    between: Vec<f64>,
    errors: Vec<String>,
    lost: u64,
}

/// Runs the command.
pub(super) async fn run(args: &ServeArgs) -> Result<()> {
    if args.streams == 0 || args.models.is_empty() {
        bail!("--streams and --models must name at least one");
    }
    let begin = Instant::now();
    let end = begin + Duration::from_secs(args.seconds);
    let mut streams = JoinSet::new();
    let mut client = args.endpoints.inference()?;
    for index in 0..args.streams {
        if index.is_multiple_of(STREAMS_A_CONNECTION) {
            client = args.endpoints.inference()?;
        }
        let (client, model) = (client.clone(), args.models[index % args.models.len()].clone());
        let (prompt_tokens, max_tokens) = (args.prompt_tokens.max(1), args.max_tokens);
        streams.spawn(async move {
            let mut seen = Seen::default();
            let mut number = index as u64;
            while Instant::now() < end && seen.errors.is_empty() {
                let ids = prompt(number, prompt_tokens);
                if let Err(error) = ask(client.clone(), &model, ids, max_tokens, &mut seen).await {
                    seen.errors.push(error);
                }
                number += 1_000_003;
            }
            seen
        });
    }
    let mut all = Seen::default();
    while let Some(seen) = streams.join_next().await {
        let seen = seen.context("a stream broke")?;
        all.requests += seen.requests;
        all.tokens += seen.tokens;
        all.lost += seen.lost;
        all.first.extend(seen.first);
        all.between.extend(seen.between);
        all.errors.extend(seen.errors);
    }
    report(args, all, begin.elapsed().as_secs_f64())
}

fn report(args: &ServeArgs, mut all: Seen, seconds: f64) -> Result<()> {
    let milliseconds = |values: &mut Vec<f64>, share: f64| quantile(values, share) * 1e3;
    let (first50, first99) = (milliseconds(&mut all.first, 0.5), milliseconds(&mut all.first, 0.99));
    let (between50, between99) = (milliseconds(&mut all.between, 0.5), milliseconds(&mut all.between, 0.99));
    let speed = all.tokens as f64 / seconds;
    if args.json {
        println!(
            "{}",
            json!({
                "streams": args.streams, "seconds": seconds, "requests": all.requests, "tokens": all.tokens,
                "tokens_per_second": speed, "errors": all.errors.len(), "lost_tokens": all.lost,
                "first_token_ms": {"p50": first50, "p99": first99}, "between_tokens_ms": {"p50": between50, "p99": between99},
            })
        );
    } else {
        println!("{} streams, {seconds:.0} s: {} answers, {speed:.0} tokens/s", args.streams, all.requests);
        println!("time to the first token  p50 {first50:.1} ms, p99 {first99:.1} ms");
        println!("time between tokens      p50 {between50:.2} ms, p99 {between99:.2} ms");
    }
    if let Some(error) = all.errors.first() {
        bail!("{} streams failed, one of them so: {error}", all.errors.len());
    }
    if all.lost > 0 {
        bail!("{} tokens were lost or came twice", all.lost);
    }
    Ok(())
}

/// One answer: every token is counted, and must come.
async fn ask(
    mut client: InferenceServiceClient<Channel>,
    model: &str,
    ids: Vec<u32>,
    max_tokens: u32,
    seen: &mut Seen,
) -> Result<(), String> {
    let sampling =
        Sampling { temperature: Some(0.0), max_tokens: Some(max_tokens), ignore_eos: true, ..Sampling::default() };
    let mut request = tonic::Request::new(GenerateRequest {
        model: model.to_owned(),
        input: Some(generate_request::Input::Ids(TokenIds { ids })),
        sampling: Some(sampling),
        tenant: String::new(),
    });
    request.set_timeout(PATIENCE);
    let failed = |status: tonic::Status| describe(&status);
    let mut last = Instant::now();
    let mut pieces = client.generate(request).await.map_err(failed)?.into_inner();
    let mut got = 0;
    loop {
        let Some(piece) = pieces.message().await.map_err(failed)? else {
            return Err("the answer ended before its end".to_owned());
        };
        let now = Instant::now();
        match piece.event {
            Some(Event::Delta(delta)) => {
                let since = now.duration_since(last).as_secs_f64();
                if got == 0 {
                    seen.first.push(since)
                } else {
                    seen.between.push(since)
                }
                last = now;
                got += delta.ids.len() as u64;
            }
            Some(Event::Finish(finish)) => {
                seen.requests += 1;
                seen.tokens += got;
                seen.lost += got.abs_diff(finish.completion_tokens.into()) + got.abs_diff(max_tokens.into());
                return Ok(());
            }
            None => {}
        }
    }
}

/// Ids that no other number gives.
fn prompt(number: u64, tokens: u32) -> Vec<u32> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        FIRST_ID + ((state >> 33) as u32) % IDS
    };
    (0..tokens).map(next).collect()
}
