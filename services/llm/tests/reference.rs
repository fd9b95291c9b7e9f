//! The model against what the Python stack (transformers, PEFT, PyTorch) computes on a tiny checkpoint.
#![cfg(feature = "engine")]
#![expect(clippy::expect_used, reason = "a test stops at the first thing that is not as it should be")]

use std::path::PathBuf;

use firn_llm::device::Device;
use firn_llm::generate::{Sampling, Sequence, answer_greedily, step};
use firn_llm::model::{Adapter, Decoder};
use firn_llm::tokenizer::{Message, Tokenizer};
use firn_llm::train::{AdamWConfig, Document, Tuner, TunerConfig, pack};
use firn_llm::weights::Weights;
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"))
}

fn golden() -> (Weights, Value) {
    let text = std::fs::read_to_string(folder().join("golden.json")).expect("golden.json");
    (
        Weights::open_file(&folder().join("golden.safetensors")).expect("golden"),
        serde_json::from_str(&text).expect("json"),
    )
}

fn model() -> Decoder {
    Decoder::load(&folder(), &Device::cpu()).expect("the checkpoint loads")
}

fn adapter(name: &str) -> Adapter {
    Adapter::load(&folder().join(name), model().config(), &Device::cpu()).expect("the adapter loads")
}

/// Integer tensors are small here: they are read through the safetensors crate.
fn ids(name: &str) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(folder().join("golden.safetensors")).expect("golden");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("golden");
    let view = file.tensor(name).expect("tensor");
    let values: Vec<u32> =
        view.data().as_chunks::<4>().0.iter().map(|b| u32::try_from(i32::from_le_bytes(*b)).expect("id")).collect();
    values.chunks(*view.shape().last().expect("shape")).map(<[u32]>::to_vec).collect()
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_agree_with_and_without_an_adapter() {
    let (golden, _) = golden();
    let model = model();
    for (name, adapter) in [
        ("logits", None),
        ("adapter_init_logits", Some(adapter("adapter_init"))),
        ("adapter_final_logits", Some(adapter("adapter_final"))),
    ] {
        let expected = golden.read(name).expect(name).0;
        let found: Vec<f32> =
            ids("input_ids").iter().flat_map(|ids| model.logits(ids, adapter.as_ref()).expect("logits")).collect();
        let worst = worst(&found, &expected);
        assert!(worst < 2e-4, "{name}: {worst}");
    }
}

#[test]
fn greedy_answers_agree_alone_and_in_a_batch() {
    let model = model();
    let expected = ids("greedy");
    let prompts: Vec<Vec<u32>> = expected.iter().map(|ids| ids[..12].to_vec()).collect();
    let answers = answer_greedily(&model, None, &prompts, &[], 20, &|| ()).expect("answers");
    for (answer, expected) in answers.iter().zip(&expected) {
        assert_eq!(answer, &expected[12..]);
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_neighbours_or_their_adapters() {
    let (model, adapter) = (model(), adapter("adapter_final"));
    let prompts = ids("input_ids");
    let run = |which: &[usize]| {
        let mut sequences: Vec<Sequence> = which
            .iter()
            .map(|&i| Sequence::new(&model, prompts[i % 2][..8 + i].to_vec(), Sampling::greedy(), true).expect("fits"))
            .collect();
        let mut out = vec![Vec::new(); which.len()];
        for _ in 0..10 {
            let mut batch: Vec<_> =
                sequences.iter_mut().zip(which).map(|(s, i)| (s, (i % 3 == 0).then_some(&adapter))).collect();
            for (out, token) in out.iter_mut().zip(step(&model, &mut batch).expect("step")) {
                out.push(token.id);
            }
        }
        out
    };
    let together = run(&[0, 1, 2, 3]);
    for (index, expected) in together.iter().enumerate() {
        assert_eq!(&run(&[index])[0], expected);
    }
}

#[test]
fn scores_are_the_log_softmax_of_the_logits() {
    let (golden, _) = golden();
    let model = model();
    let logits = golden.read("logits").expect("logits").0;
    let vocab = model.config().vocab;
    for (row, ids) in ids("input_ids").iter().enumerate() {
        let scores = model.score(ids, None).expect("scores");
        assert_eq!(scores.len(), ids.len() - 1);
        for (at, score) in scores.iter().enumerate() {
            let logits = &logits[(row * ids.len() + at) * vocab..][..vocab];
            let sum: f64 = logits.iter().map(|v| f64::from(*v).exp()).sum();
            let expected = f64::from(logits[ids[at + 1] as usize]) - sum.ln();
            assert!((f64::from(*score) - expected).abs() < 2e-4, "row {row}, token {at}: {score} for {expected}");
        }
    }
}

#[test]
fn eight_sft_steps_agree() {
    let (golden, json) = golden();
    let (sft_ids, sft_mask) = (ids("sft_ids"), ids("sft_mask"));
    let config = TunerConfig { optimizer: AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() } };
    let mut tuner = Tuner::new(model(), Some(adapter("adapter_init")), &config);
    for step in 0..8 {
        let documents = [0, 1].map(|row| Document {
            ids: sft_ids[step * 2 + row].clone(),
            loss_mask: sft_mask[step * 2 + row].iter().map(|bit| u8::try_from(*bit).expect("bit")).collect(),
        });
        // Both documents in one block, and in one each, must give the same step.
        let blocks = pack(&documents, if step % 2 == 0 { 80 } else { 40 });
        let report = tuner.step(&blocks, 2e-3);
        let loss = json["sft"]["losses"][step].as_f64().expect("loss");
        let norm = json["sft"]["grad_norms"][step].as_f64().expect("norm");
        assert!((report.loss - loss).abs() < 1e-4, "step {step}: loss {} for {loss}", report.loss);
        assert!((report.grad_norm / norm - 1.0).abs() < 1e-3, "step {step}: norm {} for {norm}", report.grad_norm);
    }
    let (decoder, adapter) = tuner.into_parts();
    let expected = golden.read("adapter_final_logits").expect("logits").0;
    let found: Vec<f32> =
        ids("input_ids").iter().flat_map(|ids| decoder.logits(ids, adapter.as_ref()).expect("logits")).collect();
    let worst = worst(&found, &expected);
    assert!(worst < 2e-3, "after eight steps: {worst}");
}

#[test]
fn tokenizer_and_template_agree() {
    let (_, json) = golden();
    let tokenizer = Tokenizer::from_dir(&folder()).expect("tokenizer");
    for case in json["tokenize"].as_array().expect("cases") {
        let found = tokenizer.encode(case["text"].as_str().expect("text"), false).expect("ids");
        assert_eq!(serde_json::json!(found), case["ids"]);
    }
    for case in json["chat"].as_array().expect("cases") {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).expect("messages");
        let found = tokenizer.render(&messages, case["add_generation_prompt"] == true).expect("rendered");
        assert_eq!(found.text, case["text"].as_str().expect("text"));
        assert_eq!(serde_json::json!(found.ids), case["ids"]);
        assert_eq!(serde_json::json!(found.assistant_mask), case["assistant_mask"]);
    }
}

#[test]
fn streamed_text_is_whole_and_complete() {
    let tokenizer = Tokenizer::from_dir(&folder()).expect("tokenizer");
    let text = "naïve café – 東京 🚀 end";
    let mut decoder = tokenizer.decoder();
    let mut streamed = String::new();
    for id in tokenizer.encode(text, false).expect("ids") {
        let piece = decoder.push(id).expect("piece").unwrap_or_default();
        assert!(!piece.contains('\u{FFFD}'));
        streamed += &piece;
    }
    streamed += &decoder.finish().expect("rest").unwrap_or_default();
    assert_eq!(streamed, text);
}

#[test]
fn saved_state_resumes_bit_for_bit() {
    let sft_ids = ids("sft_ids");
    let blocks =
        |step: usize| pack(&[Document { ids: sft_ids[step].clone(), loss_mask: vec![1; sft_ids[step].len()] }], 64);
    let start = || Tuner::new(model(), Some(adapter("adapter_init")), &TunerConfig::default());
    let dir = tempfile::tempdir().expect("dir");
    let mut whole = start();
    let run = |tuner: &mut Tuner, steps: std::ops::Range<usize>| {
        for step in steps {
            tuner.step(&blocks(step), 1e-3);
        }
    };
    run(&mut whole, 0..6);
    let mut first = start();
    run(&mut first, 0..3);
    first.save_state(&dir.path().join("state.safetensors")).expect("saved");
    let mut second = start();
    second.load_state(&dir.path().join("state.safetensors")).expect("loaded");
    assert_eq!(second.steps(), 3);
    run(&mut second, 3..6);
    let bytes = |tuner: Tuner| {
        let dir = tempfile::tempdir().expect("dir");
        tuner.adapter().expect("adapter").save(dir.path(), "base").expect("saved");
        std::fs::read(dir.path().join("adapter_model.safetensors")).expect("bytes")
    };
    assert_eq!(bytes(whole), bytes(second));
}
