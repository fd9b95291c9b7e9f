//! Training through the command line against what transformers, PEFT and PyTorch compute: `tests/fixtures`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use firn_tests::{Work, firn, workspace};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3"];

struct Fixture {
    folder: PathBuf,
    json: Value,
    tensors: Vec<u8>,
}

impl Fixture {
    fn open(family: &str) -> Result<Self> {
        let folder = workspace().join("tests/fixtures").join(family);
        let json = serde_json::from_slice(&std::fs::read(folder.join("golden.json"))?)?;
        let tensors = std::fs::read(folder.join("golden.safetensors"))?;
        Ok(Self { folder, json, tensors })
    }

    /// Rows of an integer tensor.
    fn rows(&self, name: &str) -> Result<Vec<Vec<i32>>> {
        let file = SafeTensors::deserialize(&self.tensors)?;
        let view = file.tensor(name)?;
        let values: Vec<i32> = view.data().as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        let width = view.shape().last().copied().context("a tensor has a shape")?;
        Ok(values.chunks(width).map(<[i32]>::to_vec).collect())
    }

    fn numbers(&self, pointer: &str) -> Result<Vec<f64>> {
        let list = self.json.pointer(pointer).and_then(Value::as_array).with_context(|| format!("no {pointer}"))?;
        Ok(list.iter().filter_map(Value::as_f64).collect())
    }

    /// Trains from one of the fixture's adapters on these rows, in their order, and gives the step lines.
    fn train(&self, work: &Path, adapter: &str, rows: &[Value], flags: &[&str]) -> Result<Vec<Value>> {
        let lines = rows.iter().fold(String::new(), |mut text, row| {
            let _ = writeln!(text, "{row}");
            text
        });
        std::fs::write(work.join("rows.jsonl"), lines)?;
        let (model, adapter) = (self.folder.display().to_string(), self.folder.join(adapter).display().to_string());
        let mut args = vec!["llm", "--train", "--project-name", "out", "--data-path", "rows.jsonl", "--json"];
        args.extend(["--model", &model, "--adapter", &adapter, "--no-shuffle", "--packing", "none"]);
        args.extend(["--scheduler", "constant", "--warmup-ratio", "0", "--weight-decay", "0.01"]);
        args.extend(flags);
        let output = firn(work, &args)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<Value> = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()?;
        Ok(lines.into_iter().filter(|line| line.get("grad_norm").is_some()).collect())
    }
}

fn number(line: &Value, field: &str) -> Result<f64> {
    line[field].as_f64().with_context(|| format!("{line} has no {field}"))
}

#[test]
fn eight_steps_of_sft_are_those_of_peft() -> Result<()> {
    for family in FAMILIES {
        let (fixture, work) = (Fixture::open(family)?, Work::new()?);
        let rows: Vec<Value> = fixture
            .rows("sft_ids")?
            .iter()
            .zip(fixture.rows("sft_mask")?)
            .map(|(ids, mask)| {
                let labels: Vec<i32> =
                    ids.iter().zip(mask).map(|(id, bit)| if bit == 1 { *id } else { -100 }).collect();
                json!({ "input_ids": ids, "labels": labels })
            })
            .collect();
        let steps = fixture.train(
            work.path(),
            "adapter_init",
            &rows,
            &["--epochs", "1", "--batch-size", "2", "--lr", "2e-3"],
        )?;
        let (losses, norms) = (fixture.numbers("/sft/losses")?, fixture.numbers("/sft/grad_norms")?);
        ensure!(steps.len() == losses.len(), "{family}: {} steps", steps.len());
        for (step, (loss, norm)) in steps.iter().zip(losses.iter().zip(norms)) {
            let (found, found_norm) = (number(step, "loss")?, number(step, "grad_norm")?);
            ensure!((found - loss).abs() < 1e-4, "{family}: loss {found} for {loss}");
            ensure!((found_norm / norm - 1.0).abs() < 1e-3, "{family}: norm {found_norm} for {norm}");
        }
        // The adapter that came out scores as PEFT's does.
        let ids = &fixture.rows("input_ids")?[0];
        std::fs::write(work.path().join("score.jsonl"), json!({ "ids": ids }).to_string())?;
        let score = |adapter: &Path| -> Result<f64> {
            let (model, adapter) = (fixture.folder.display().to_string(), adapter.display().to_string());
            let args = ["score", "--model", &model, "--adapter", &adapter, "--input", "score.jsonl"];
            number(&serde_json::from_slice(&firn(work.path(), &args)?.stdout)?, "sum")
        };
        let (found, expected) = (score(Path::new("out"))?, score(&fixture.folder.join("adapter_final"))?);
        ensure!((found - expected).abs() < 1e-2, "{family}: score {found} for {expected}");
    }
    Ok(())
}

#[test]
fn five_steps_of_dpo_are_those_of_the_reference() -> Result<()> {
    for family in FAMILIES {
        let (fixture, work) = (Fixture::open(family)?, Work::new()?);
        let (chosen, rejected) = (fixture.rows("dpo_chosen")?, fixture.rows("dpo_rejected")?);
        let prompt = fixture.rows("dpo_mask")?[0].iter().take_while(|bit| **bit == 0).count();
        let rows: Vec<Value> = chosen
            .iter()
            .zip(&rejected)
            .map(|(chosen, rejected)| {
                let (asked, chosen) = chosen.split_at(prompt);
                json!({ "prompt_ids": asked, "chosen_ids": chosen, "rejected_ids": &rejected[prompt..] })
            })
            .collect();
        let flags = ["--trainer", "dpo", "--epochs", "5", "--batch-size", "4", "--lr", "5e-4", "--max-grad-norm", "0"];
        let steps = fixture.train(work.path(), "adapter_final", &rows, &flags)?;
        let expected = fixture.json["dpo"]["steps"].as_array().context("steps")?;
        ensure!(steps.len() == expected.len(), "{family}: {} steps", steps.len());
        for (step, expected) in steps.iter().zip(expected) {
            let (found, expected) = (number(step, "loss")?, number(expected, "loss")?);
            ensure!((found - expected).abs() < 1e-3, "{family}: loss {found} for {expected}");
        }
    }
    Ok(())
}

#[test]
fn a_merged_project_proves_itself_and_a_quantised_base_learns() -> Result<()> {
    let (fixture, work) = (Fixture::open("qwen3")?, Work::new()?);
    let rows: Vec<Value> =
        fixture.rows("sft_ids")?.iter().map(|ids| json!({ "input_ids": ids, "labels": ids })).collect();
    let flags = ["--quantization", "int4", "--merge-adapter", "--epochs", "4", "--batch-size", "16", "--lr", "1e-2"];
    let steps = fixture.train(work.path(), "adapter_init", &rows, &flags)?;
    let (first, last) = (number(&steps[0], "loss")?, number(&steps[3], "loss")?);
    ensure!(last < first, "the loss went from {first} to {last}");
    let merged = work.path().join("out/merged");
    let proof: Value = serde_json::from_slice(&std::fs::read(merged.join("merge_proof.json"))?)?;
    ensure!(number(&proof, "largest_logit_difference")? < 1e-3, "{proof}");
    // The version has its own, of rows that are made up: none are held out.
    let report: Value = serde_json::from_slice(&std::fs::read(work.path().join("out/report.json"))?)?;
    let proof = &report["merge_proof"];
    ensure!(proof["accepted"] == true && proof["rows"] == 0, "{proof}");
    // A folder that holds something is refused, and what it holds is left alone.
    let tokenizer = work.path().join("out/tokenizer.json");
    let (model, before) = (fixture.folder.display().to_string(), std::fs::read(&tokenizer)?);
    let paths = ["--base-model-path", &model, "--adapter-path", "out", "--output-folder", "out"];
    let refused = firn(work.path(), &[&["tools", "merge-llm-adapter"], &paths[..]].concat())?;
    ensure!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("out is not empty"));
    ensure!(std::fs::read(&tokenizer)? == before, "the tokenizer was changed");
    let merged = merged.display().to_string();
    let output =
        firn(work.path(), &["generate", "--model", &merged, "--ids", "[5,6,7]", "--max-tokens", "3", "--json"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn chats_go_through_the_template_that_an_adapter_was_trained_with() -> Result<()> {
    let (fixture, work) = (Fixture::open("llama")?, Work::new()?);
    let adapter = work.path().join("adapter");
    std::fs::create_dir(&adapter)?;
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture.folder.join("adapter_init").join(file), adapter.join(file))?;
    }
    let messages = json!([{ "role": "user", "content": "Good morning" }]).to_string();
    std::fs::write(work.path().join("rows.jsonl"), format!("{{\"messages\":{messages}}}\n"))?;
    let (model, adapter_path) = (fixture.folder.display().to_string(), adapter.display().to_string());
    let paths = ["--model", &model, "--adapter", &adapter_path];
    let run = |args: &[&str]| -> Result<Value> {
        let output = firn(work.path(), &[args, &paths].concat())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let both = || -> Result<(Value, Value)> {
        let answer = run(&["generate", "--messages", &messages, "--max-tokens", "4", "--logprobs", "--json"])?;
        Ok((run(&["score", "--input", "rows.jsonl"])?["ids"].clone(), answer["logprobs"].clone()))
    };
    let (own, answered) = both()?;
    std::fs::write(adapter.join("chat_template.jinja"), "{% for m in messages %}{{ m['content'] }}{% endfor %}")?;
    let (bare, answered_otherwise) = both()?;
    std::fs::write(work.path().join("rows.jsonl"), "{\"text\":\"Good morning\"}\n")?;
    let plain = run(&["score", "--input", "rows.jsonl"])?["ids"].clone();
    let (bare, plain) = (bare.as_array().context("ids")?, plain.as_array().context("ids")?);
    ensure!(plain.ends_with(bare) && !bare.is_empty(), "{bare:?} is not the end of {plain:?}");
    ensure!(own.as_array().is_some_and(|own| own.len() > bare.len()), "{own}");
    ensure!(answered != answered_otherwise, "the prompt was the same");
    Ok(())
}
