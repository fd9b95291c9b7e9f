//! What AutoTrain gets wrong, done right: a test for each defect that its source was found to have.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use firn_tests::{Work, binary, firn, workspace};
use serde_json::Value;

fn llama() -> String {
    workspace().join("tests/fixtures/llama").display().to_string()
}

/// A folder with twelve rows of text.
fn work() -> Work {
    let dir = Work::new().unwrap();
    let rows: String = (0..12).map(|row| format!("\"Good morning number {row}, Salt Haven.\"\n")).collect();
    std::fs::write(dir.path().join("train.csv"), format!("text\n{rows}")).unwrap();
    dir
}

fn train<'a>(model: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let always = ["llm", "--train", "--project-name", "out", "--data-path", "train.csv", "--model", model, "--json"];
    [&always[..], &["--block-size", "64"], extra].concat()
}

fn run(dir: &Path, args: &[&str]) -> Output {
    firn(dir, args).unwrap()
}

/// Runs to success: the steps' lines, and the result.
fn trained(dir: &Path, extra: &[&str]) -> (Vec<Value>, Value) {
    let output = run(dir, &train(&llama(), extra));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let result = lines.pop().unwrap();
    (lines, result)
}

fn adapter(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("out/adapter_model.safetensors")).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All files below a folder.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// a: the last release rejects the flags of the one before.
#[test]
fn a_flags_of_both_generations_are_taken_with_a_notice() {
    let dir = work();
    // The tutorial's own line, with local paths.
    let base = dir.behind().join("base");
    std::fs::create_dir_all(&base).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"] {
        std::fs::copy(workspace().join("tests/fixtures/llama").join(file), base.join(file)).unwrap();
    }
    std::fs::copy(dir.path().join("train.csv"), dir.behind().join("train.csv")).unwrap();
    let line = "llm --train --project-name stage/llama-2-ft --model stage/base --data-path stage/ --text_column text \
                --use-peft --quantization int4 --lr 1e-4 --train-batch-size 4 --epochs 3 --trainer sft --token hf_x \
                --merge_adapter";
    let output = run(dir.path(), &line.split_whitespace().collect::<Vec<_>>());
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    for note in ["--use-peft is AutoTrain's old name of --peft", "--train-batch-size is", "--token has no effect"] {
        assert!(told.contains(note), "{note} is not in {told}");
    }
    for file in ["adapter_model.safetensors", "adapter_config.json", "merged/model.safetensors"] {
        assert!(dir.stage().join("llama-2-ft").join(file).is_file(), "{file}");
    }
    // And the names of 0.8.
    let (steps, _) = trained(dir.path(), &["--peft", "--batch_size=4", "--eval_strategy", "no", "--padding", "right"]);
    assert!(!steps.is_empty());
}

/// b: a validation split was always dropped.
#[test]
fn b_held_out_rows_are_measured() {
    let dir = work();
    let (steps, result) = trained(dir.path(), &["--held-out-rows", "3", "--epochs", "2", "--batch-size", "2"]);
    assert!(steps.iter().any(|step| step["eval_loss"].is_number() && step["eval_accuracy"].is_number()), "{steps:?}");
    assert!(result["tuned"]["loss"].is_number() && result["tuned"]["token_accuracy"].is_number(), "{result}");
}

/// c: the best checkpoint was looked for under a name that nothing wrote.
#[test]
fn c_the_best_checkpoint_comes_back() {
    let dir = work();
    let fast = ["--held-out-rows", "3", "--epochs", "6", "--lr", "0.2", "--scheduler", "constant", "--batch-size", "2"];
    let (steps, result) =
        trained(dir.path(), &[&fast[..], &["--load-best-model-at-end", "--warmup-ratio", "0"]].concat());
    let losses = steps.iter().filter_map(|step| Some((step["step"].as_u64()?, step["eval_loss"].as_f64()?)));
    let (best, lowest) = losses.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(result["best_step"].as_u64().filter(|step| *step > 0).unwrap_or(result["step"].as_u64().unwrap()), best);
    assert!((result["tuned"]["loss"].as_f64().unwrap() - lowest).abs() < 1e-6, "{result} for {lowest}");
}

/// d and p: errors were swallowed, the exit status was 0, and success was printed before anything was saved.
#[test]
fn d_a_failed_run_fails_and_says_why() {
    let dir = work();
    let output = run(dir.path(), &train(&llama(), &["--lr", "1000", "--epochs", "20", "--weight-decay", "1000"]));
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("failed: step") && told.contains("lower the learning rate"), "{told}");
    assert!(!text(&output.stdout).contains("succeeded"));
    assert!(!dir.path().join("out").exists(), "nothing is left that could be taken for a result");
    let mut states = Vec::new();
    files(&dir.stage().join("jobs"), &mut states);
    let failed = states.iter().any(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains("\"FAILED\"")));
    assert!(failed, "the stage has the terminal state");
}

/// e: the hub's token was written into training_params.json.
#[test]
fn e_no_secret_is_written() {
    let dir = work();
    let secret = "hf_SecretThatMustNotBeWritten";
    let mut command = Command::new(binary("firn").unwrap());
    command.args(train(&llama(), &["--token", secret])).env("HF_TOKEN", secret).current_dir(dir.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains(secret) && !text(&output.stdout).contains(secret));
    let mut all = Vec::new();
    files(dir.path(), &mut all);
    assert!(all.iter().any(|file| file.ends_with("out/training_params.json")));
    for file in all {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", file.display());
    }
}

/// f: code from checkpoints was run, and pickles were opened.
#[test]
fn f_nothing_of_a_checkpoint_is_executed() {
    let dir = work();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(workspace().join("tests/fixtures/llama").join(file), base.join(file)).unwrap();
    }
    std::fs::write(base.join("pytorch_model.bin"), b"\x80\x04cos\nsystem\n").unwrap();
    let output = run(dir.path(), &train("base", &[]));
    assert!(!output.status.success() && text(&output.stderr).contains("safetensors"), "{}", text(&output.stderr));
    let output = run(dir.path(), &train(&llama(), &["--trust-remote-code"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--trust-remote-code"), "{}", text(&output.stderr));
}

/// g: every process merged, and deleted what the others read.
#[test]
fn g_a_result_counts_once_it_is_whole() {
    let dir = work();
    trained(dir.path(), &[]);
    let mut all = Vec::new();
    files(&dir.stage(), &mut all);
    let manifests: Vec<&PathBuf> = all.iter().filter(|file| file.ends_with("manifest.json")).collect();
    assert!(manifests.iter().any(|file| file.display().to_string().contains("/models/out/versions/1/")));
    for manifest in manifests {
        let value: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        let named = value["files"].as_array().unwrap();
        for file in named {
            let path = manifest.with_file_name("").join(file["path"].as_str().unwrap());
            assert_eq!(std::fs::metadata(&path).unwrap().len(), file["size"].as_u64().unwrap(), "{}", path.display());
        }
    }
    let merge = ["tools", "merge-llm-adapter", "--adapter-path", "out", "--output-folder", "out", "--base-model-path"];
    let before = adapter(dir.path());
    assert!(!run(dir.path(), &[&merge[..], &[&llama()]].concat()).status.success(), "it would write over its input");
    assert_eq!(adapter(dir.path()), before);
}

/// h: embeddings that disagree with the vocabulary came out at the merge, after all training.
#[test]
fn h_a_wrong_vocabulary_is_refused_before_training() {
    let dir = work();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"] {
        std::fs::copy(workspace().join("tests/fixtures/llama").join(file), base.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(workspace().join("tests/fixtures/llama/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap();
    config["vocab_size"] = (vocab + 8).into();
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    let output = run(dir.path(), &train("base", &[]));
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("model.embed_tokens.weight"), "{told}");
    assert!(told.contains(&vocab.to_string()) && told.contains(&(vocab + 8).to_string()), "{told}");
    // And a tokenizer whose ids the model does not have.
    config["vocab_size"] = 100.into();
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    let output = run(dir.path(), &train("base", &[]));
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("ids up to 511, but vocab_size in config.json is 100"), "{told}");
}

/// j: merging a base of one's own got stuck.
#[test]
fn j_a_local_base_is_merged() {
    let dir = work();
    let (_, result) = trained(dir.path(), &["--merge-adapter"]);
    assert_eq!(result["merge_proof"]["greedy_agreement"].as_f64(), Some(1.0), "{result}");
    let generated = run(dir.path(), &["generate", "--model", "out/merged", "--prompt", "Good", "--max-tokens", "3"]);
    assert!(generated.status.success(), "{}", text(&generated.stderr));
}

/// k: old jobs were not found again, and jobs could not be stopped.
#[test]
fn k_jobs_are_found_and_stopped_after_a_restart() {
    let dir = work();
    let mut client = Command::new(binary("firn").unwrap());
    client
        .args(train(&llama(), &["--epochs", "1000"]))
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut client = client.spawn().unwrap();
    let begin = Instant::now();
    let running = |dir: &Path| {
        let mut all = Vec::new();
        if dir.join("stage/jobs").is_dir() {
            files(&dir.join("stage/jobs"), &mut all);
        }
        all.iter().any(|file| file.display().to_string().contains("/checkpoints/"))
    };
    while !running(dir.path()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(50));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    let output = run(dir.path(), &["llm", "--train", "--project-name", "other", "--resume", "--model", &llama()]);
    assert!(text(&output.stderr).contains("no job of other is unfinished"), "{}", text(&output.stderr));
    let mut again = Command::new(binary("firn").unwrap());
    again.args(["llm", "--train", "--project-name", "out", "--resume", "--json", "--model", &llama()]);
    let mut again = again.current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(again.stdout.take().unwrap()));
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(first["step"].as_u64().unwrap() >= 1, "the old job's steps are told: {first}");
    again.kill().unwrap();
    again.wait().unwrap();
}

/// l: the seed was ignored.
#[test]
fn l_the_seed_decides() {
    let bytes = |seed: &str| {
        let dir = work();
        trained(dir.path(), &["--seed", seed, "--lora-dropout", "0.1"]);
        adapter(dir.path())
    };
    let one = bytes("7");
    assert!(one == bytes("7"), "the same seed, other bytes");
    assert!(one != bytes("8"), "another seed, the same bytes");
}

/// m: the schedule was planned on rows, while packed blocks were trained on.
#[test]
fn m_planned_steps_are_run_and_the_rate_ends_where_it_should() {
    let dir = work();
    for packing in ["bfd", "none", "wrapped"] {
        let flags = ["--packing", packing, "--epochs", "2", "--batch-size", "1", "--warmup-ratio", "0"];
        let output = run(dir.path(), &train(&llama(), &[&flags[..], &["--dry-run"]].concat()));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (steps, _) = trained(dir.path(), &flags);
        assert_eq!(plan["steps"].as_u64(), Some(steps.len() as u64), "{packing}: {plan}");
        let (first, last) = (steps[0]["lr"].as_f64().unwrap(), steps.last().unwrap()["lr"].as_f64().unwrap());
        assert!((last / first - 1.0 / steps.len() as f64).abs() < 1e-9, "{packing}: {first} to {last}");
    }
}

/// n: the reward trainer crashed.
#[test]
fn n_a_reward_model_is_trained_and_gives_rewards() {
    let dir = work();
    let rows: String = (0..8).map(|row| format!("Offer {row}?,Yes it is {row}.,No\n")).collect();
    std::fs::write(dir.path().join("train.csv"), format!("prompt,text,rejected\n{rows}")).unwrap();
    let (steps, _) = trained(dir.path(), &["--trainer", "reward", "--epochs", "10", "--lr", "5e-3"]);
    assert!(steps.last().unwrap()["loss"].as_f64().unwrap() < 0.5, "{steps:?}");
    std::fs::write(dir.path().join("score.jsonl"), "{\"text\":\"Yes it is 3.\"}\n").unwrap();
    let scored = run(dir.path(), &["score", "--model", &llama(), "--adapter", "out", "--input", "score.jsonl"]);
    let line: Value = serde_json::from_slice(&scored.stdout).unwrap();
    assert!(line["reward"].is_number(), "{line}");
}

/// o: a list of block sizes broke.
#[test]
fn o_a_list_of_block_sizes_is_understood() {
    let dir = work();
    let output = run(dir.path(), &train(&llama(), &["--block_size", "64,32", "--dry-run"]));
    assert!(output.status.success() && text(&output.stderr).contains("only the first value counts"));
}

/// q: a notebook without a password listened on a public address.
#[test]
fn q_nothing_listens_beyond_this_machine_without_a_token() {
    let dir = work();
    let output = run(dir.path(), &["up", "--model", "x"]);
    assert!(!output.status.success(), "an unknown flag is refused");
    let mut up = Command::new(binary("firn").unwrap());
    up.args(["up", "--stage", "stage", "--http", "0.0.0.0:0"]).current_dir(dir.path()).stdin(Stdio::null());
    let mut up = up.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = up.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > Duration::from_secs(60) {
            up.kill().unwrap();
            panic!("it listens on every address without a token");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut told = String::new();
    std::io::Read::read_to_string(&mut up.stderr.take().unwrap(), &mut told).unwrap();
    assert!(!status.success() && told.contains("FIRN_GATEWAY_TOKEN"), "{told}");
}
