use firn_llm::train::Document;
use safetensors::{Dtype, tensor::TensorView};

use super::*;

fn model() -> ModelConfig {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
    ModelConfig { context: 64, vocab: 100, ..ModelConfig::from_dir(&dir).unwrap() }
}

/// Writes a shard as data-prep does.
pub(crate) fn write(dir: &Path, file: &str, documents: &[Document]) {
    write_shifted(dir, file, documents, 0);
}

fn write_shifted(dir: &Path, file: &str, documents: &[Document], offsets_shift: u64) {
    let ids: Vec<u8> = documents.iter().flat_map(|document| &document.ids).flat_map(|id| id.to_le_bytes()).collect();
    let mask: Vec<u8> = documents.iter().flat_map(|document| document.loss_mask.clone()).collect();
    let mut offsets = vec![0];
    for document in documents {
        offsets.push(offsets.last().unwrap() + document.ids.len() as u64 + offsets_shift);
    }
    let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    let tensors = [
        ("input_ids", TensorView::new(Dtype::U32, vec![mask.len()], &ids).unwrap()),
        ("loss_mask", TensorView::new(Dtype::U8, vec![mask.len()], &mask).unwrap()),
        ("row_offsets", TensorView::new(Dtype::U64, vec![offsets.len()], &bytes).unwrap()),
    ];
    std::fs::write(dir.join(file), safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// Rows of documents, in a folder that stays while they are used.
pub(crate) fn rows(documents: &[Document], pairs: bool) -> (tempfile::TempDir, Rows) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "train-00001.safetensors", documents);
    let rows = Rows::open(dir.path(), "train", &model(), pairs).unwrap();
    (dir, rows)
}

fn document(ids: &[u32]) -> Document {
    Document { ids: ids.to_vec(), loss_mask: vec![1; ids.len()] }
}

#[test]
fn rows_come_out_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) = (document(&[1, 2, 3]), document(&[9, 8]), document(&[7]));
    write(dir.path(), "train-00001.safetensors", &[first.clone(), second.clone()]);
    write(dir.path(), "train-00002.safetensors", &[third.clone(), first.clone()]);
    write(dir.path(), "held_out-00001.safetensors", &[]);
    let line = |prompt: &str| {
        format!(
            r#"{{"row":7,"sha256":"00","messages":[{{"role":"user","content":"hi"}}],"prompt_ids":{prompt},"completion":"x","fields":{{"A":"$5"}}}}"#
        )
    };
    let lines = [line("[]"), line("[1,2]"), line("[3]")].join("\n");
    std::fs::write(dir.path().join("held_out.jsonl"), lines).unwrap();
    let dataset = Dataset::read(dir.path(), &model(), false, 1).unwrap();
    let all: Vec<_> = (0..4).map(|row| dataset.train.document(row).unwrap()).collect();
    assert_eq!(all, [first, second, third, document(&[1, 2, 3])]);
    assert_eq!((dataset.train.len(), dataset.train.longest(), dataset.held_out.documents.len()), (4, 3, 0));
    assert_eq!(dataset.train.pack(&[0, 1, 2, 3], 5), [[0, 1].as_slice(), &[3]], "a row of one token learns nothing");
    assert_eq!(dataset.train.block(&[3, 1]).unwrap().tokens(), 5);
    let pairs = Dataset::read(dir.path(), &model(), true, 1).unwrap().train;
    assert_eq!((pairs.len(), pairs.longest(), pairs.longest_document()), (2, 5, 3));
    assert_eq!((pairs.block(&[1]).unwrap().tokens(), pairs.chosen_block(&[0, 1]).unwrap().tokens()), (4, 4));
    let asked = &dataset.held_out.rows;
    assert_eq!((asked.len(), asked[0].prompt_ids.as_slice()), (1, [1, 2].as_slice()));
    assert_eq!((asked[0].messages[0].content.as_str(), &asked[0].fields["A"]), ("hi", &"$5".into()));
}

#[test]
fn what_the_model_cannot_take_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |pairs| Rows::open(dir.path(), "train", &model(), pairs).unwrap_err().to_string();
    assert!(refuse(false).contains("no train-*.safetensors"));
    let file = "train-00001.safetensors";
    write(dir.path(), file, &[document(&[1]), document(&[1; 65])]);
    assert!(refuse(false).starts_with("row 2 of train-00001.safetensors has 65 tokens, but the base's context is 64"));
    write(dir.path(), file, &[document(&[1, 100])]);
    assert!(refuse(false).starts_with("row 1 of train-00001.safetensors has the token id 100"));
    assert!(refuse(true).contains("preferences come in twos"));
    write_shifted(dir.path(), file, &[document(&[1, 2])], 1);
    assert!(refuse(false).starts_with("train-00001.safetensors is damaged"));
    std::fs::write(dir.path().join(file), b"no safetensors").unwrap();
    assert!(refuse(false).starts_with("train-00001.safetensors is damaged"));
}
