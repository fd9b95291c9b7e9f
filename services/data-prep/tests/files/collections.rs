//! Rows that are added one by one, and snapshots of them and of files.

use std::path::Path;

use firn_proto::dataprep::v1::{self as pb, row_format::Format};
use tonic::Code;

use super::{Service, field};

#[tokio::test]
async fn rows_are_added_whole_and_none_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let mut service = Service::start(root.path()).await;
    assert_eq!(service.append("votes", &[]).await.unwrap().rows, 0, "it may be asked before there is one");
    let appends = (0..40).map(|index| {
        let mut files = service.files.clone();
        let rows = vec![format!("{{\"n\":{index},\n\"t\":\"a\\nb\"}}"); 2];
        let request = pb::AppendRowsRequest { collection: "votes".to_owned(), rows };
        async move { files.append_rows(request).await.unwrap().into_inner().rows }
    });
    let mut counts = futures_util::future::join_all(appends).await;
    counts.sort_unstable();
    assert_eq!(counts, (1..=40).map(|n| 2 * n).collect::<Vec<_>>());
    let folder = root.path().join("inputs/collections/votes");
    assert!(folder.join("000001.jsonl").is_file() && folder.join("000040.jsonl").is_file());
    for (rows, says) in
        [(vec!["{}", "[1]"], "row 2 is not a JSON object"), (vec!["{\"a\":"], "row 1"), (vec![""], "row 1")]
    {
        let status = service.append("votes", &rows).await.unwrap_err();
        assert!(field(&status) == "rows" && status.message().contains(says), "{}", status.message());
    }
    assert_eq!(field(&service.append("votes", &["{}"; 1001]).await.unwrap_err()), "rows");
    assert_eq!(field(&service.append("../votes", &["{}"]).await.unwrap_err()), "collection");
    service.stop().await;

    // Torn by a crash, even at the end of a row: it counts for nothing, and its number is not used again.
    std::fs::write(folder.join("000041.jsonl"), "{\"n\":1}\n").unwrap();
    let mut service = Service::start(root.path()).await;
    let answer = service.append("votes", &["{\"n\":41}"]).await.unwrap();
    assert_eq!((answer.path.as_str(), answer.rows), ("inputs/collections/votes", 81));
    assert!(folder.join("000042.jsonl").is_file());
    service.stop().await;
}

#[tokio::test]
async fn a_collection_and_a_file_become_snapshots_with_reports() {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().join("bases/tiny/llama");
    std::fs::create_dir_all(&base).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama").join(file);
        std::fs::copy(from, base.join(file)).unwrap();
    }
    let mut service = Service::start(root.path()).await;
    let row = |n: usize| {
        let prompt = format!(r#"[{{"role":"user","content":"Which city, {n}?"}}]"#);
        format!(r#"{{"prompt":{prompt},"chosen":"Salt Haven.","rejected":"None.","chosen_model":"base"}}"#)
    };
    for n in 0..3 {
        service.append("votes", &[&row(2 * n), &row(2 * n + 1)]).await.unwrap();
    }
    let folder = root.path().join("inputs/collections/votes");
    std::fs::write(folder.join("manifest.json"), "{}").unwrap();
    std::fs::write(folder.join("000004.jsonl"), "{\"prompt\":\"torn").unwrap();
    let preference = |prompt: &str, chosen: &str, rejected: &str| {
        let format = pb::PreferenceFormat {
            prompt: prompt.to_owned(),
            chosen: chosen.to_owned(),
            rejected: rejected.to_owned(),
        };
        Some(pb::RowFormat { format: Some(Format::Preference(format)) })
    };
    let votes = pb::CreateSnapshotRequest {
        dataset: "votes".to_owned(),
        source: "inputs/collections/votes".to_owned(),
        base: "bases/tiny/llama".to_owned(),
        format: preference("prompt", "chosen", "rejected"),
        held_out_rows: 1,
        ..Default::default()
    };
    let theirs = r#"{"input":{"messages":[{"role":"user","content":"a"}]},
        "preferred_output":[{"role":"assistant","content":"b"}],"non_preferred_output":[{"role":"assistant","content":"c"}]}"#;
    let file = service.upload("dpo.jsonl", &[theirs.replace('\n', "").as_bytes()]).await.unwrap();
    let of_file = pb::CreateSnapshotRequest {
        source: file.path,
        format: preference("input", "preferred_output", "non_preferred_output"),
        held_out_rows: 0,
        ..votes.clone()
    };
    for (request, rows) in [(votes, 6), (of_file, 1)] {
        let name = service.snapshots.create_snapshot(request).await.unwrap().into_inner().name;
        let watch = pb::WatchSnapshotRequest { name: name.clone() };
        let mut frames = service.snapshots.watch_snapshot(watch).await.unwrap().into_inner();
        let mut last = pb::Snapshot::default();
        while let Some(frame) = frames.message().await.unwrap() {
            last = frame;
        }
        assert_eq!((last.error.as_str(), last.rows), ("", rows));
        let report = service.snapshots.get_report(pb::GetReportRequest { name: name.clone() }).await.unwrap();
        let json = report.into_inner().json;
        assert!(json.contains(&format!("\"name\": \"{name}\"")) && json.contains("\"lint\""), "{json}");
    }
    let none = pb::GetReportRequest { name: "datasets/votes/snapshots/none".to_owned() };
    assert_eq!(service.snapshots.get_report(none).await.unwrap_err().code(), Code::NotFound);
    service.stop().await;
}
