//! How fast rows become tokens, and how much memory that takes: `cargo bench -p firn-data-prep`.
//!
//! Each line is a file of that size, in a process of its own: read twice, hashed, split, templated, tokenised by the bundled
//! base's tokenizer and, for `snapshot`, packed into shards on a stage by the service itself. `lint` keeps nothing.
//! "Text" is what the templates gave, in bytes; "a core" is by the processor time of all threads, and by wall time over
//! all cores. Peak is the most memory that the process ever held: flat means that it does not depend on the size.
//!
//! `FIRN_BENCH_MB=10,100,1000` asks for other sizes.
//!
//! Words are drawn by Zipf's law from 20,000 invented ones, among numbers, names and punctuation, for a cache of words
//! gains most where there are few of them. Real text has a longer tail of rare words, and more characters beyond ASCII.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicBool,
    time::Instant,
};

use anyhow::Context as _;
use firn_data_prep::DataPrep;
use firn_kit::ServerArgs;
use firn_llm::tokenizer::{Message, Tokenizer};
use firn_proto::dataprep::v1::{
    CreateSnapshotRequest, PromptFormat, RowFormat, SnapshotState, WatchSnapshotRequest,
    data_prep_service_client::DataPrepServiceClient, row_format::Format,
};
use firn_stage::Stage;
use tokio_util::sync::CancellationToken;

const SIZES: &str = "10,100";
const VOCABULARY: usize = 20_000;
const ASKED: &str = "Describe this offer to a customer.\n";
/// Ticks of `/proc/self/stat` in a second, on all Linux systems.
const TICKS: f64 = 100.0;

fn main() -> anyhow::Result<()> {
    if let Ok(job) = std::env::var("FIRN_BENCH_CHILD") {
        let (mode, path) = job.split_once(' ').context("a mode and a file")?;
        return child(mode, Path::new(path));
    }
    let dir = tempfile::tempdir()?;
    let sizes = std::env::var("FIRN_BENCH_MB").unwrap_or_else(|_| SIZES.to_owned());
    println!("                                  text MB/s a core   CSV MB/s a core");
    println!("what       CSV MB  text MB     by CPU    by wall  by CPU  by wall  seconds    tokens/s  peak MiB");
    for size in sizes.split(',') {
        let path = dir.path().join("rows.csv");
        let (csv, text) = Words::new().write(&path, size.trim().parse::<usize>()? * 1_000_000)?;
        for mode in ["lint", "snapshot"] {
            let mut command = Command::new(std::env::current_exe()?);
            let output = command.env("FIRN_BENCH_CHILD", format!("{mode} {}", path.display())).output()?;
            let line = String::from_utf8(output.stdout)?;
            let values: Vec<f64> = line.split_whitespace().filter_map(|value| value.parse().ok()).collect();
            let [seconds, cpu, tokens, peak] = values[..] else {
                anyhow::bail!("{mode} failed: {line}{}", String::from_utf8_lossy(&output.stderr));
            };
            let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
            let (csv, text) = (csv as f64 / 1e6, text as f64 / 1e6);
            println!(
                "{mode:<9} {csv:>7.0} {text:>8.0} {:>10.1} {:>10.1} {:>7.1} {:>8.1} {seconds:>8.2} {:>11.0} {peak:>9.0}",
                text / cpu,
                text / seconds / cores,
                csv / cpu,
                csv / seconds / cores,
                tokens / seconds,
            );
        }
    }
    Ok(())
}

/// Does the work once, and prints seconds, processor seconds, tokens and the peak in MiB.
fn child(mode: &str, path: &Path) -> anyhow::Result<()> {
    let prompt = PromptFormat {
        prompt_template: format!("{ASKED}{{{{ row | tojson }}}}"),
        completion_template: "{{ NAME }} offers {{ REWARD }}. {{ TEXT }}".to_owned(),
        system: String::new(),
    };
    let request = CreateSnapshotRequest {
        dataset: "bench".to_owned(),
        source: path.display().to_string(),
        base: base().display().to_string(),
        format: Some(RowFormat { format: Some(Format::Prompt(prompt)) }),
        held_out_rows: 100,
        ..CreateSnapshotRequest::default()
    };
    let begin = Instant::now();
    let tokens = match mode {
        "lint" => firn_data_prep::lint(request, None, &AtomicBool::new(false))?.train_tokens,
        _ => tokio::runtime::Runtime::new()?.block_on(snapshot(request, path.with_extension("stage")))?,
    };
    let peak = firn_kit::memory::peak().unwrap_or(0) >> 20;
    println!("{} {} {tokens} {peak}", begin.elapsed().as_secs_f64(), cpu_seconds());
    Ok(())
}

/// Has the service make a snapshot, and returns the number of its training tokens.
async fn snapshot(request: CreateSnapshotRequest, root: PathBuf) -> anyhow::Result<u64> {
    std::fs::create_dir_all(&root)?;
    let stage = Stage::open(&root.display().to_string())?;
    let service = DataPrep::bind_with(&ServerArgs::loopback(), stage).await?;
    let mut client = DataPrepServiceClient::new(firn_kit::channel(&format!("http://{}", service.local_addr()))?);
    let stop = CancellationToken::new();
    let task = tokio::spawn(service.run(stop.clone()));
    let name = client.create_snapshot(request).await?.into_inner().name;
    let mut frames = client.watch_snapshot(WatchSnapshotRequest { name }).await?.into_inner();
    let mut last = None;
    while let Some(frame) = frames.message().await? {
        last = Some(frame);
    }
    let last = last.context("no snapshot")?;
    anyhow::ensure!(last.state() == SnapshotState::Ready, "{}", last.error);
    stop.cancel();
    task.await??;
    std::fs::remove_dir_all(root)?;
    Ok(last.train_tokens)
}

/// Processor time of all threads of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |index| after_name.split_whitespace().nth(index).and_then(|text| text.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/base")
}

/// Invented words and how often each is drawn.
struct Words {
    words: Vec<String>,
    /// The sum of the shares up to each word.
    sums: Vec<f64>,
    state: u64,
}

impl Words {
    fn new() -> Self {
        let mut words = Self { words: Vec::new(), sums: Vec::new(), state: 1 };
        let mut sum = 0.0;
        for rank in 0..VOCABULARY {
            let syllables = 1 + words.below(1 + (rank + 20).ilog10() as usize);
            let mut word = words.syllables(syllables);
            if words.below(8) == 0 {
                word = word[..1].to_uppercase() + &word[1..];
            }
            words.words.push(word);
            sum += 1.0 / (rank + 2) as f64;
            words.sums.push(sum);
        }
        words
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % limit
    }

    fn syllables(&mut self, count: usize) -> String {
        const ONSETS: [&str; 16] = ["b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "w", "st", "th"];
        const RIMES: [&str; 16] =
            ["a", "e", "i", "o", "u", "an", "er", "in", "on", "al", "ing", "est", "ou", "é", "y", "ar"];
        (0..count).map(|_| ONSETS[self.below(16)].to_owned() + RIMES[self.below(16)]).collect()
    }

    fn word(&mut self) -> String {
        let at = self.below(1 << 30) as f64 / f64::from(1 << 30) * self.sums.last().copied().unwrap_or(1.0);
        let index = self.sums.partition_point(|sum| *sum < at);
        self.words[index.min(VOCABULARY - 1)].clone()
    }

    /// About 60 words in sentences, with numbers, dates and prices between them.
    fn text(&mut self) -> String {
        let mut text = self.word();
        for _ in 0..30 + self.below(60) {
            match self.below(40) {
                0 => text += &format!(" {}", self.below(100_000)),
                1 => text += &format!(" ${}.{:02}", self.below(500), self.below(100)),
                2 => text += &format!(" 20{:02}-{:02}-{:02}", self.below(40), 1 + self.below(12), 1 + self.below(28)),
                3..=5 => text += ".",
                6..=8 => text += ",",
                9 => text += " —",
                10 => text += "'s",
                _ => {
                    let word = self.word();
                    text += " ";
                    text += &word;
                }
            }
        }
        text
    }

    /// Writes rows until the file has this size; the file's bytes, and those of its templated text.
    fn write(&mut self, path: &Path, size: usize) -> anyhow::Result<(u64, u64)> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(b"NAME,REWARD,TEXT\n")?;
        let around = {
            let turns = [Message::new("user", "q"), Message::new("assistant", "a")];
            Tokenizer::from_dir(&base())?.render(&turns, false)?.text.len() - 2
        };
        let (mut written, mut templated, mut row) = (0, 0, 0usize);
        while written < size {
            let name = format!("{} {} {row}", self.word(), self.word());
            let (reward, text) = (format!("${}", self.below(97)), self.text());
            let line = format!("{name},{reward},\"{text}\"\n");
            out.write_all(line.as_bytes())?;
            written += line.len();
            let json = r#"{"NAME":"","REWARD":"","TEXT":""}"#.len() + name.len() + reward.len() + text.len();
            let answer = " offers . ".len() + name.len() + reward.len() + text.len();
            templated += around + ASKED.len() + json + answer;
            row += 1;
        }
        out.flush()?;
        Ok((std::fs::metadata(path)?.len(), templated as u64))
    }
}
