use std::{collections::HashSet, path::PathBuf};

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
    }
}

fn plan(request: Request) -> Plan {
    Plan::open(request, None, &Limits::default()).unwrap()
}

fn built(plan: &Plan) -> Result<Built, PrepareError> {
    build(plan, "2031-01-01T00:00:00Z".to_owned(), &Limits::default(), |_| (), &CancellationToken::new())
}

fn refusal(request: Request) -> String {
    built(&plan(request)).unwrap_err().to_string()
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[tokio::test]
async fn the_folder_holds_what_the_report_says() {
    let (_dir, csv) = offers();
    let (stage, plan) = (Stage::memory(), plan(request(&csv)));
    let built = built(&plan).unwrap();
    let report = built.report.clone();
    let path = write(&stage, &plan, built).await.unwrap();
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

    let hashes = String::from_utf8(stage.get(&format!("{path}/rows.sha256")).await.unwrap().to_vec()).unwrap();
    assert_eq!(hashes.lines().count(), 20);
    assert_eq!(hashes.lines().filter(|line| line.ends_with(" held_out")).count(), 4);
}

#[tokio::test]
async fn held_out_rows_come_as_questions() {
    let (_dir, csv) = offers();
    let (stage, plan) = (Stage::memory(), plan(request(&csv)));
    let path = write(&stage, &plan, built(&plan).unwrap()).await.unwrap();
    let text = String::from_utf8(stage.get(&format!("{path}/held_out.jsonl")).await.unwrap().to_vec()).unwrap();
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

#[test]
fn two_builds_give_the_same_bytes() {
    let (_dir, csv) = offers();
    let plan = plan(request(&csv));
    let (one, two) = (built(&plan).unwrap(), built(&plan).unwrap());
    assert_eq!(one.files, two.files);
    for name in &one.files {
        let read = |built: &Built| std::fs::read(built.dir.path().join(name)).unwrap();
        assert!(read(&one) == read(&two), "{name}");
    }
}

#[test]
fn no_training_row_is_a_held_out_one() {
    let (_dir, csv) = offers();
    for seed in 0..20 {
        let built = built(&plan(Request { seed, ..request(&csv) })).unwrap();
        let hashes = std::fs::read_to_string(built.dir.path().join("rows.sha256")).unwrap();
        let side = |side: &str| -> HashSet<String> {
            hashes.lines().filter_map(|line| line.strip_suffix(side)).map(str::to_owned).collect()
        };
        assert!(side(" train").is_disjoint(&side(" held_out")), "seed {seed}");
    }
}

#[test]
fn refusals_are_sentences() {
    let (dir, csv) = offers();
    let templates = |prompt: &str, completion: &str| FormatSpec::Prompt {
        prompt_template: prompt.to_owned(),
        completion_template: completion.to_owned(),
        system: String::new(),
    };
    assert_eq!(
        refusal(Request { format: templates("{{ PRICE }}", "x"), ..request(&csv) }),
        "prompt template names column PRICE that offers.csv lacks (it has ORGANIZATION_NAME, REWARD)"
    );
    assert!(
        refusal(Request { format: templates("{{ row['PRICE'] }}", "x"), ..request(&csv) })
            .starts_with("row 1 of offers.csv: prompt template failed: ")
    );
    assert!(
        refusal(Request { held_out_rows: 20, ..request(&csv) })
            .starts_with("held_out_rows is 20, but offers.csv has 20 rows")
    );
    assert!(refusal(Request { max_tokens: 3, ..request(&csv) }).contains("keeps a token to learn within max_tokens 3"));
    let text = FormatSpec::Text { column: "TEXT".to_owned() };
    assert_eq!(
        refusal(Request { format: text, ..request(&csv) }),
        "column TEXT is not in offers.csv (it has ORGANIZATION_NAME, REWARD)"
    );
    let changed = plan(request(&csv));
    std::fs::write(dir.path().join("offers.csv"), "ORGANIZATION_NAME,REWARD\na,b\nc,d\n").unwrap();
    assert_eq!(built(&changed).unwrap_err().to_string(), "offers.csv changed while it was read: ask again");
}

#[test]
fn limits_and_stops_hold() {
    let (_dir, csv) = offers();
    let plan = plan(request(&csv));
    let limits = Limits { max_snapshot_tokens: 10, ..Limits::default() };
    let text = build(&plan, String::new(), &limits, |_| (), &CancellationToken::new()).unwrap_err().to_string();
    assert!(text.starts_with("offers.csv gives more than 10 tokens"), "{text}");
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(build(&plan, String::new(), &Limits::default(), |_| (), &stop).is_err());
}
