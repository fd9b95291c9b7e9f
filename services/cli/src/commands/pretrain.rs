//! `firn pretrain`: makes the bundled base model from nothing, on invented text.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use firn_llm::config::{ModelConfig, Widths};
use firn_llm::device::{Device, DeviceSpec};
use firn_llm::model::Decoder;
use firn_llm::scratch::{END_OF_TEXT, train_tokenizer, write_config};
use firn_llm::tokenizer::{Message, Tokenizer};
use firn_llm::train::{
    AdamWConfig, Document, HeldOutLoss, Schedule, SchedulerKind, Tuner, TunerConfig, held_out_loss, pack,
};
use firn_llm::weights::StoredType;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::world;

/// Documents that the tokenizer is trained on: more change little.
const TOKENIZER_DOCUMENTS: usize = 20_000;
/// Ids of the tokenizer.
const VOCABULARY: usize = 2048;
/// Width of an attention head.
const HEAD: usize = 32;
/// Documents that are measured, not trained on.
const HELD_OUT: usize = 500;

/// Trains the bundled base model from random weights, on text that Firn invents.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  firn pretrain --out base --device cuda:0      # what the bundled base saw: 10 minutes on an H100\n  firn pretrain --out base --budget-seconds 3600"
)]
pub(crate) struct PretrainArgs {
    /// Folder for the checkpoint.
    #[arg(long)]
    out: PathBuf,
    /// Continue from the checkpoint in this folder, with its tokenizer.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Invented documents to train on.
    #[arg(long, default_value_t = 182_000)]
    documents: usize,
    /// First document's number: another part of the same endless text.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Width of the model, in heads of 32.
    #[arg(long, default_value_t = 192)]
    hidden_size: usize,
    /// Blocks of the model.
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Tokens of a packed block.
    #[arg(long, default_value_t = 2048)]
    block_size: usize,
    /// Blocks a step.
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 2.5e-3)]
    lr: f64,
    /// Share of the run with rising learning rate.
    #[arg(long, default_value_t = 0.03)]
    warmup_ratio: f64,
    /// linear, cosine or constant.
    #[arg(long, default_value = "cosine", value_parser = str::parse::<SchedulerKind>)]
    scheduler: SchedulerKind,
    /// Stop after so many seconds, with the schedule fitted to that; 0: one pass over the documents.
    #[arg(long, default_value_t = 0.0)]
    budget_seconds: f64,
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
}

fn shape(args: &PretrainArgs, vocab: usize) -> ModelConfig {
    let heads = args.hidden_size / HEAD;
    ModelConfig::llama(Widths {
        vocab,
        hidden: args.hidden_size,
        intermediate: 3 * args.hidden_size,
        layers: args.layers,
        heads,
        kv_heads: heads,
        context: 1024,
    })
}

/// Runs the command.
pub(crate) fn run(args: &PretrainArgs) -> Result<()> {
    ensure!(args.batch_size > 0, "--batch-size must be positive");
    ensure!(
        args.hidden_size.is_multiple_of(HEAD) && args.hidden_size > 0,
        "--hidden-size must be a multiple of {HEAD}"
    );
    std::fs::create_dir_all(&args.out).with_context(|| format!("failed to make {}", args.out.display()))?;
    let device = Device::open_one(args.device)?.in_full_precision();
    let tokenizer_dir = args.from.as_ref().unwrap_or(&args.out);
    if args.from.is_none() {
        eprintln!("training the tokenizer");
        let texts = world::corpus(args.seed, 0..TOKENIZER_DOCUMENTS.min(args.documents)).map(|text| plain_text(&text));
        train_tokenizer(&args.out, texts, VOCABULARY)?;
    } else if *tokenizer_dir != args.out {
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            std::fs::copy(tokenizer_dir.join(name), args.out.join(name))
                .with_context(|| format!("failed to copy {name}"))?;
        }
    }
    let tokenizer = Tokenizer::from_dir(tokenizer_dir)?;
    let documents = documents(&tokenizer, args.seed, args.documents + HELD_OUT)?;
    let (train, held_out) = documents.split_at(args.documents);
    let decoder = match &args.from {
        Some(dir) => Decoder::load(dir, &device)?,
        None => Decoder::random(shape(args, tokenizer.vocab_size()), args.seed, &device),
    };
    eprintln!(
        "{} parameters, {} documents, {} tokens, {} workers",
        decoder.config().parameters(),
        train.len(),
        train.iter().map(|document| document.ids.len()).sum::<usize>(),
        device.workers(),
    );
    let optimizer = AdamWConfig { beta2: 0.98, weight_decay: 0.01, ..AdamWConfig::default() };
    let mut tuner = Tuner::new(decoder, None, &TunerConfig { optimizer, ..TunerConfig::default() });
    let run = train_steps(args, train, &mut tuner)?;
    let (decoder, _) = tuner.into_parts();
    let loss = held_out_loss(&decoder, None, &pack(held_out, args.block_size), &|| ())?;
    println!("held-out loss {:.4} over {} tokens", loss.loss, loss.tokens);
    std::fs::write(args.out.join("README.md"), card(args, decoder.config(), &run, loss))?;
    match &args.from {
        Some(dir) if *dir != args.out => {
            for name in firn_llm::config::FILES.iter().filter(|name| dir.join(name).is_file()) {
                std::fs::copy(dir.join(name), args.out.join(name)).with_context(|| format!("failed to copy {name}"))?;
            }
        }
        Some(_) => {}
        None => write_config(&args.out, decoder.config(), tokenizer.eos_ids())?,
    }
    decoder.save(&args.out, StoredType::Bf16)?;
    Ok(())
}

/// What a run did.
struct Run {
    steps: usize,
    tokens: usize,
    seconds: f64,
}

fn train_steps(args: &PretrainArgs, train: &[Document], tuner: &mut Tuner) -> Result<Run> {
    let mut order: Vec<&Document> = train.iter().collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    let blocks = pack(order, args.block_size);
    ensure!(!blocks.is_empty(), "there is nothing to train on: raise --documents");
    let schedule = Schedule { peak: args.lr, kind: args.scheduler, warmup_ratio: args.warmup_ratio };
    let steps = blocks.len().div_ceil(args.batch_size);
    let (begin, budget) = (Instant::now(), args.budget_seconds);
    let mut run = Run { steps: 0, tokens: 0, seconds: 0.0 };
    for (index, batch) in blocks.chunks(args.batch_size).enumerate() {
        let by_steps = index as f64 / steps as f64;
        let by_time = if budget > 0.0 { begin.elapsed().as_secs_f64() / budget } else { 0.0 };
        let done = by_steps.max(by_time);
        if done >= 1.0 {
            break;
        }
        let rate = schedule.rate(done, 1.0 / steps as f64);
        let report = tuner.step(batch, rate);
        run = Run { steps: index + 1, tokens: run.tokens + report.tokens, seconds: begin.elapsed().as_secs_f64() };
        if index % 20 == 0 || index + 1 == steps {
            let left = Duration::from_secs_f64(run.seconds * (1.0 - done) / done.max(1e-3));
            eprintln!(
                "step {}/{steps} loss {:.4} norm {:.3} lr {rate:.2e} {:.0} tokens/s, {} s left",
                index + 1,
                report.loss,
                report.grad_norm,
                run.tokens as f64 / run.seconds,
                left.as_secs(),
            );
        }
    }
    Ok(run)
}

/// The model card.
fn card(args: &PretrainArgs, config: &ModelConfig, run: &Run, loss: HeldOutLoss) -> String {
    let from =
        args.from.as_ref().map_or("random weights".to_owned(), |dir| format!("the checkpoint {}", dir.display()));
    format!(
        "---\nlanguage: en\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n\
         # Firn tiny\n\n\
         A Llama of {parameters} parameters ({layers} layers of {hidden}, {vocab} ids) that knows a small invented world: \
         companies, products, orders, people, places. Its text teaches it to copy names, amounts, links and phrases from a \
         record into sentences. It answers chats in a few words, and nobody taught it to describe an offer: that is what the \
         quickstart fine-tunes it for. It knows nothing of the real world and is of no use beyond trying Firn out.\n\n\
         ## Training\n\n\
         | | |\n|---|---|\n\
         | text | of {documents} documents that Firn invents (`services/cli/src/world`), seed {seed}: records retold, \
         stories, copying drills, short chats |\n\
         | from | {from} |\n\
         | steps | {steps} of {batch} blocks of {block} tokens, {tokens} tokens in all, each seen once |\n\
         | optimiser | AdamW, peak rate {lr:e}, {scheduler:?} schedule, {warmup} of it warm-up, weight decay 0.01 |\n\
         | time | {seconds:.0} s on {device} |\n\
         | held-out loss | {loss:.4} nats a token on {held_out} tokens of {held_out_documents} further documents |\n\n\
         Make it again:\n\n```\nfirn pretrain --out base --documents {documents} --seed {seed} --hidden-size {hidden} --layers {layers} \
         --block-size {block} \
         --batch-size {batch} --lr {lr} --budget-seconds {budget}\n```\n",
        parameters = config.parameters(),
        layers = config.layers(),
        hidden = config.hidden,
        vocab = config.vocab,
        documents = args.documents,
        seed = args.seed,
        steps = run.steps,
        batch = args.batch_size,
        block = args.block_size,
        tokens = run.tokens,
        lr = args.lr,
        scheduler = args.scheduler,
        warmup = args.warmup_ratio,
        seconds = run.seconds,
        device = args.device,
        budget = args.budget_seconds,
        loss = loss.loss,
        held_out = loss.tokens,
        held_out_documents = HELD_OUT,
    )
}

/// The first `count` documents as ids, in order, from all cores.
fn documents(tokenizer: &Tokenizer, seed: u64, count: usize) -> Result<Vec<Document>> {
    let share = count.div_ceil(std::thread::available_parallelism().map_or(1, usize::from));
    let encode = |begin: usize| {
        let texts = world::corpus(seed, begin..count.min(begin + share));
        texts.map(|text| document(tokenizer, &text)).collect::<Result<Vec<_>>>()
    };
    let shares = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..count).step_by(share.max(1)).map(|begin| scope.spawn(move || encode(begin))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut documents = Vec::with_capacity(count);
    for share in shares {
        documents.extend(share.map_err(|_| anyhow::anyhow!("a thread that wrote documents panicked"))??);
    }
    Ok(documents)
}

fn plain_text(document: &world::Document) -> String {
    match document {
        world::Document::Text(text) => text.clone(),
        world::Document::Chat(turns) => turns.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n"),
    }
}

fn document(tokenizer: &Tokenizer, text: &world::Document) -> Result<Document> {
    let ids = match text {
        world::Document::Text(text) => tokenizer.encode(&format!("{text}{END_OF_TEXT}"), false)?,
        world::Document::Chat(turns) => {
            let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(*role, text.as_str())).collect();
            tokenizer.render(&messages, false)?.ids
        }
    };
    Ok(Document { loss_mask: vec![1; ids.len()], ids })
}
