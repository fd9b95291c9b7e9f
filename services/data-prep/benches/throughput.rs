//! How fast rows become tokens, and how much memory that takes: `cargo bench -p firn-data-prep`.
//!
//! Each line is a file of that size: read twice, hashed, split, templated and tokenised by the bundled base's tokenizer.
//! The peak is the process's own, so it only grows from line to line: a flat one means that memory does not depend on size.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::atomic::AtomicBool,
    time::Instant,
};

use firn_proto::dataprep::v1::{CreateSnapshotRequest, PromptFormat, RowFormat, row_format::Format};

const SIZES: [usize; 3] = [10, 100, 300];
const WORDS: [&str; 16] = [
    "harbour",
    "lantern",
    "offer",
    "gives",
    "a",
    "patient",
    "kettle",
    "for",
    "narrow",
    "balconies",
    "until",
    "Saturday",
    "and",
    "the",
    "reward",
    "code",
];

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/base");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{:>8} {:>10} {:>12} {:>12} {:>10}", "MB", "seconds", "MB/s a core", "tokens/s", "peak MiB");
    for megabytes in SIZES {
        let path = dir.path().join(format!("{megabytes}.csv"));
        let bytes = write(&path, megabytes << 20)?;
        let prompt = PromptFormat {
            prompt_template: "Describe this offer to a customer.\n{{ row | tojson }}".to_owned(),
            completion_template: "{{ NAME }} offers {{ REWARD }}. {{ TEXT }}".to_owned(),
            system: String::new(),
        };
        let request = CreateSnapshotRequest {
            dataset: "bench".to_owned(),
            source: path.display().to_string(),
            base: base.display().to_string(),
            format: Some(RowFormat { format: Some(Format::Prompt(prompt)) }),
            held_out_rows: 100,
            ..CreateSnapshotRequest::default()
        };
        let begin = Instant::now();
        let report = firn_data_prep::lint(request, None, &AtomicBool::new(false))?;
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "{:>8.1} {seconds:>10.2} {:>12.1} {:>12.0} {:>10}",
            bytes as f64 / 1e6,
            bytes as f64 / 1e6 / seconds / cores as f64,
            report.train_tokens as f64 / seconds,
            firn_kit::memory::peak().unwrap_or(0) >> 20
        );
    }
    Ok(())
}

/// Writes rows of about 400 bytes until the file has this size.
fn write(path: &Path, size: usize) -> std::io::Result<u64> {
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(b"NAME,REWARD,TEXT\n")?;
    let (mut written, mut row) = (0, 0usize);
    while written < size {
        let text: Vec<&str> = (0..56).map(|word| WORDS[(row * 7 + word * word + word) % WORDS.len()]).collect();
        let line = format!("Company {row},${} {},{}\n", row % 97, WORDS[row % 16], text.join(" "));
        out.write_all(line.as_bytes())?;
        written += line.len();
        row += 1;
    }
    out.flush()?;
    Ok(std::fs::metadata(path)?.len())
}
