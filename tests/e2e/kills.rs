//! Kills at random moments, without a chance to write anything more.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use firn_tests::{Work, binary, workspace};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Kills of which each must be survived.
const KILLS: usize = 20;
/// Of these, kills that must hit a job on its way: one that comes too early or too late proves little.
const HITS: usize = 10;

fn command(dir: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(binary("firn").unwrap());
    let model = workspace().join("tests/fixtures/llama").display().to_string();
    command.args(["llm", "--train", "--project-name", "out", "--data-path", "rows.csv", "--model", &model]);
    // A checkpoint at each second step: every other kill meets one that is being written.
    command.args(["--epochs", "20", "--batch-size", "2", "--block-size", "64", "--checkpoint-steps", "2"]);
    command.args(["--lora-dropout", "0.1", "--held-out-rows", "4", "--load-best-model-at-end"]);
    command.args(extra).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn folder() -> Work {
    let dir = Work::new().unwrap();
    let rows: String = (0..24).map(|row| format!("\"Number {row} of the rows about Salt Haven, {row}.\"\n")).collect();
    std::fs::write(dir.path().join("rows.csv"), format!("text\n{rows}")).unwrap();
    dir
}

fn adapter(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("out/adapter_model.safetensors")).unwrap()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_job_killed_at_any_moment_ends_with_the_same_bytes() {
    let straight = folder();
    let began = Instant::now();
    succeeded(&command(straight.path(), &[]).output().unwrap());
    let (mut whole, expected) = (began.elapsed(), adapter(straight.path()));
    // The moments differ from machine to machine anyway; the seed keeps their spread.
    let mut rng = StdRng::seed_from_u64(20);
    let mut hits = 0;
    for kill in 0..KILLS {
        let dir = folder();
        let mut child = command(dir.path(), &[]).spawn().unwrap();
        let moment = whole.mul_f64(rng.random_range(0.15..1.0));
        let began = Instant::now();
        while began.elapsed() < moment && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // On a machine that is less busy than before a job takes less.
        whole = if child.try_wait().unwrap().is_some() { whole.min(began.elapsed()) } else { whole };
        child.kill().unwrap();
        child.wait().unwrap();
        let mut output = command(dir.path(), &["--resume"]).output().unwrap();
        if String::from_utf8_lossy(&output.stderr).contains("is unfinished") {
            // Before the job was there, or after its end.
            output = command(dir.path(), &[]).output().unwrap();
        } else {
            hits += 1;
        }
        succeeded(&output);
        assert!(adapter(dir.path()) == expected, "kill {kill} after {moment:?}: other bytes");
    }
    assert!(hits >= HITS, "only {hits} of {KILLS} kills met a job on its way in {whole:?}");
}
