use std::{collections::HashSet, path::PathBuf};

use firn_llm::template::KnownTemplate;
use safetensors::SafeTensors;
use serde_json::Value;

use super::*;
use crate::plan::Request;

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama");

/// A folder with `offers.csv` of 20 rows, of which rows 1 and 11 are the same.
fn offers() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("offers.csv");
    let row = |index: usize| format!("\"Fern, {}\",${}\n", index % 19, 5 * (index % 19));
    let rows: String = (0..20).map(row).collect();
    std::fs::write(&path, format!("ORGANIZATION_NAME,REWARD\n{rows}")).unwrap();
    (dir, path)
}

fn request(source: &std::path::Path) -> Request {
    Request {
        dataset: "offers".to_owned(),
        source: source.display().to_string(),
        base: LLAMA.to_owned(),
        format: FormatSpec::Prompt {
            prompt_template: "{{ row | tojson }}".to_owned(),
            completion_template: "{{ ORGANIZATION_NAME }} gives {{ REWARD }}.".to_owned(),
            system: String::new(),
        },
        held_out_rows: 4,
        held_out_source: String::new(),
        seed: 7,
        max_tokens: 1024,
        chat_template: None,
    }
}

fn plan(request: Request) -> Arc<Plan> {
    Plan::open(request, None, &Limits::default()).unwrap().into()
}

async fn made_on(stage: &Stage, plan: &Arc<Plan>) -> Result<(Report, String), PrepareError> {
    let (create_time, stop) = ("2031-01-01T00:00:00Z".to_owned(), CancellationToken::new());
    make(stage, Arc::clone(plan), create_time, Limits::default(), |_| (), &stop).await
}

async fn made(plan: &Arc<Plan>) -> Result<(Stage, Report, String), PrepareError> {
    let stage = Stage::memory();
    let (report, path) = made_on(&stage, plan).await?;
    Ok((stage, report, path))
}

async fn refusal(request: Request) -> String {
    made(&plan(request)).await.unwrap_err().to_string()
}

async fn text(stage: &Stage, path: &str) -> String {
    String::from_utf8(stage.get(path).await.unwrap().to_vec()).unwrap()
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[tokio::test]
async fn the_folder_holds_what_the_report_says() {
    let (_dir, csv) = offers();
    let plan = plan(request(&csv));
    let (stage, report, path) = made(&plan).await.unwrap();
    assert_eq!(path, format!("datasets/offers/{}", plan.id));
    let names: Vec<_> = stage.manifest(&path).await.unwrap().files.into_iter().map(|file| file.path).collect();
    assert_eq!(
        names,
        ["train-00001.safetensors", "held_out-00001.safetensors", "held_out.jsonl", "rows.sha256", "report.json"]
    );
    assert_eq!((report.rows, report.train_rows, report.held_out_rows, report.duplicate_rows), (20, 16, 4, 2));
    assert_eq!(report.source, "offers.csv");

    let bytes = stage.get(&format!("{path}/train-00001.safetensors")).await.unwrap();
    let train = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(train.tensor("input_ids").unwrap().shape(), [report.train_tokens as usize]);
    assert_eq!(train.tensor("row_offsets").unwrap().shape(), [17]);
    let learnt: u64 = train.tensor("loss_mask").unwrap().data().iter().map(|&bit| u64::from(bit)).sum();
    assert_eq!(learnt, report.completion_tokens);

    let hashes = text(&stage, &format!("{path}/rows.sha256")).await;
    assert_eq!(hashes.lines().count(), 20);
    assert_eq!(hashes.lines().filter(|line| line.ends_with(" held_out")).count(), 4);
}

#[tokio::test]
async fn held_out_rows_come_as_questions() {
    let (_dir, csv) = offers();
    let (stage, _, path) = made(&plan(request(&csv))).await.unwrap();
    let text = text(&stage, &format!("{path}/held_out.jsonl")).await;
    let bytes = stage.get(&format!("{path}/held_out-00001.safetensors")).await.unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids = u32s(tensors.tensor("input_ids").unwrap().data());
    let offsets = tensors.tensor("row_offsets").unwrap();
    let offsets: Vec<u64> = offsets.data().chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for (line, start) in lines.iter().zip(&offsets) {
        let name = line["fields"]["ORGANIZATION_NAME"].as_str().unwrap();
        let reward = line["fields"]["REWARD"].as_str().unwrap();
        assert_eq!(line["completion"], format!("{name} gives {reward}."));
        let prompt = format!("{{\"ORGANIZATION_NAME\":\"{name}\",\"REWARD\":\"{reward}\"}}");
        assert_eq!(line["messages"], serde_json::json!([{"role": "user", "content": prompt}]));
        let asked: Vec<u32> = serde_json::from_value(line["prompt_ids"].clone()).unwrap();
        assert_eq!(ids[*start as usize..][..asked.len()], asked[..]);
        assert_eq!(name.trim_start_matches("Fern, "), (line["row"].as_u64().unwrap() % 19).to_string());
    }
}

#[tokio::test]
async fn two_builds_give_the_same_bytes() {
    let (_dir, csv) = offers();
    let plan = plan(request(&csv));
    let ((one, _, path), (two, _, other)) = (made(&plan).await.unwrap(), made(&plan).await.unwrap());
    assert_eq!(one.manifest(&path).await.unwrap(), two.manifest(&other).await.unwrap());
}

#[tokio::test]
async fn no_training_row_is_a_held_out_one() {
    let (_dir, csv) = offers();
    for seed in 0..20 {
        let (stage, _, path) = made(&plan(Request { seed, ..request(&csv) })).await.unwrap();
        let hashes = text(&stage, &format!("{path}/rows.sha256")).await;
        let side = |side: &str| -> HashSet<String> {
            hashes.lines().filter_map(|line| line.strip_suffix(side)).map(str::to_owned).collect()
        };
        assert!(side(" train").is_disjoint(&side(" held_out")), "seed {seed}");
    }
}

#[tokio::test]
async fn a_template_that_comes_along_takes_the_place_of_the_bases_own() {
    let (_dir, csv) = offers();
    let own = plan(request(&csv));
    for known in KnownTemplate::ALL {
        let plan = plan(Request { chat_template: Some(known), ..request(&csv) });
        assert_ne!(plan.id, own.id);
        let (stage, report, path) = made(&plan).await.unwrap();
        assert_eq!(report.template_sha256, known.sha256());
        let questions = text(&stage, &format!("{path}/held_out.jsonl")).await;
        let tokenizer = firn_llm::tokenizer::Tokenizer::from_dir(std::path::Path::new(LLAMA)).unwrap();
        let first: Value = serde_json::from_str(questions.lines().next().unwrap()).unwrap();
        let ids: Vec<u32> = serde_json::from_value(first["prompt_ids"].clone()).unwrap();
        let (begin, end) = match known {
            KnownTemplate::Chatml => ("<|im_start|>user\n{", "}<|im_end|>\n<|im_start|>assistant\n"),
            KnownTemplate::Zephyr => ("<|user|>\n{", "}</s>\n<|assistant|>\n"),
        };
        let asked = tokenizer.decode(&ids, false).unwrap();
        assert!(asked.starts_with(begin) && asked.ends_with(end), "{asked:?}");
        // Loss is on the answers alone, each with its end.
        assert!(report.completion_tokens > 0 && report.completion_tokens < report.train_tokens / 2);
        assert!(report.lint.findings.iter().all(|finding| finding.code != "template-unmarked"), "{:?}", report.lint);
    }
    let of_text = Request { format: FormatSpec::Text { column: "REWARD".to_owned() }, ..request(&csv) };
    let with = plan(Request { chat_template: Some(KnownTemplate::Zephyr), ..of_text.clone() });
    assert_eq!(with.id, plan(of_text).id, "ready-made text sees no template");
}

#[tokio::test]
async fn what_fails_late_leaves_nothing_on_the_stage() {
    let (dir, csv) = offers();
    let rows = std::fs::read_to_string(&csv).unwrap();
    // Enough hashes before it for more than one piece.
    let many: String = (0..40_000).map(|row| format!("Salt,${row}\n")).collect();
    std::fs::write(&csv, format!("{rows}{many}odd,x\n")).unwrap();
    let number = FormatSpec::Prompt {
        prompt_template: "{{ REWARD[1:] | int }}".to_owned(),
        completion_template: "{{ ORGANIZATION_NAME }}".to_owned(),
        system: String::new(),
    };
    let request = Request { format: number, ..request(&csv) };
    let root = dir.path().join("stage");
    let stage = Stage::open(root.to_str().unwrap()).unwrap();
    let error = made_on(&stage, &plan(request.clone())).await.unwrap_err().to_string();
    assert!(error.starts_with("row 40021 of offers.csv: prompt template failed"), "{error}");
    assert!(stage.list("datasets").await.unwrap().is_empty());
    std::fs::write(&csv, format!("{rows}{many}")).unwrap();
    let repaired = plan(request);
    let (report, path) = made_on(&stage, &repaired).await.unwrap();
    assert_eq!((report.rows, path), (40_020, format!("datasets/offers/{}", repaired.id)));
    let mut local = Vec::new();
    check(&stage, &format!("datasets/offers/{}", repaired.id), &mut local).await;
    assert_eq!(local.len(), 5);
}

/// Notes the files whose size and hash are those of the manifest.
async fn check(stage: &Stage, path: &str, whole: &mut Vec<String>) {
    for file in stage.manifest(path).await.unwrap().files {
        let bytes = stage.get(&format!("{path}/{}", file.path)).await.unwrap();
        if (bytes.len() as u64, firn_stage::sha256_hex(&bytes)) == (file.size, file.sha256) {
            whole.push(file.path);
        }
    }
}

#[tokio::test]
async fn a_stage_that_cannot_be_written_is_named() {
    let (dir, csv) = offers();
    let root = dir.path().join("stage");
    let stage = Stage::open(root.to_str().unwrap()).unwrap();
    std::fs::write(root.join("datasets"), "not a folder").unwrap();
    let error = made_on(&stage, &plan(request(&csv))).await.unwrap_err();
    assert!(matches!(error, PrepareError::Stage(_)) && error.to_string().contains("datasets/offers/"), "{error}");
}

#[tokio::test]
async fn shards_lie_in_the_manifest_as_they_are_numbered() {
    let (_dir, csv) = offers();
    let (_, report, _) = made(&plan(request(&csv))).await.unwrap();
    let (stage, stop) = (Stage::memory(), CancellationToken::new());
    let mut output = Output::open(&stage, "d/x", &stop).await.unwrap();
    let names = ["train-00001", "train-00002", "train-00003", "held_out-00001"].map(str::to_owned).to_vec();
    let files = [names.clone(), vec![HASH_LINES.to_owned()]].concat();
    let write = move || {
        let mut lines = Lines::new(HASH_LINES);
        for name in names.iter().rev() {
            output.shard(name, Shard::default()).unwrap();
            lines.buffer.extend_from_slice(name.as_bytes());
            lines.end_line(&mut output).unwrap();
        }
        lines.finish(&mut output).unwrap();
        output
    };
    let output = tokio::task::spawn_blocking(write).await.unwrap();
    let (_, path) = output.end(Ok(Built { report, files: files.clone() })).await.unwrap();
    let named: Vec<_> = stage.manifest(&path).await.unwrap().files.into_iter().map(|file| file.path).collect();
    assert_eq!(named, [files, vec![REPORT.to_owned()]].concat());
    let lines = "held_out-00001\ntrain-00003\ntrain-00002\ntrain-00001\n";
    assert_eq!(text(&stage, &format!("{path}/rows.sha256")).await, lines);
}

#[tokio::test]
async fn refusals_are_sentences() {
    let (dir, csv) = offers();
    let templates = |prompt: &str, completion: &str| FormatSpec::Prompt {
        prompt_template: prompt.to_owned(),
        completion_template: completion.to_owned(),
        system: String::new(),
    };
    assert_eq!(
        refusal(Request { format: templates("{{ PRICE }}", "x"), ..request(&csv) }).await,
        "prompt template names column PRICE that offers.csv lacks (it has ORGANIZATION_NAME, REWARD)"
    );
    assert!(
        refusal(Request { format: templates("{{ row['PRICE'] }}", "x"), ..request(&csv) })
            .await
            .starts_with("row 1 of offers.csv: prompt template failed: ")
    );
    assert!(
        refusal(Request { held_out_rows: 20, ..request(&csv) })
            .await
            .starts_with("held_out_rows is 20, but offers.csv has 20 rows")
    );
    assert!(
        refusal(Request { max_tokens: 3, ..request(&csv) })
            .await
            .contains("keeps a token to learn within max_tokens 3")
    );
    let text = FormatSpec::Text { column: "TEXT".to_owned() };
    assert_eq!(
        refusal(Request { format: text, ..request(&csv) }).await,
        "column TEXT is not in offers.csv (it has ORGANIZATION_NAME, REWARD)"
    );
    let changed = plan(request(&csv));
    std::fs::write(dir.path().join("offers.csv"), "ORGANIZATION_NAME,REWARD\na,b\nc,d\n").unwrap();
    assert_eq!(made(&changed).await.unwrap_err().to_string(), "offers.csv changed while it was read: ask again");
}

#[tokio::test]
async fn limits_and_stops_hold() {
    let (_dir, csv) = offers();
    let plan = plan(request(&csv));
    let limits = Limits { max_snapshot_tokens: 10, ..Limits::default() };
    let limited = async |limits: Limits, stop: &CancellationToken| {
        let made = make(&Stage::memory(), Arc::clone(&plan), String::new(), limits, |_| (), stop).await;
        made.unwrap_err().to_string()
    };
    let stop = CancellationToken::new();
    let text = limited(limits, &stop).await;
    assert!(text.starts_with("offers.csv gives more than 10 tokens"), "{text}");
    stop.cancel();
    assert!(limited(Limits::default(), &stop).await.starts_with("the service stopped"));
}
