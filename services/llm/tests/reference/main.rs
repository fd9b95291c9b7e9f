//! The model against what the Python stack (transformers, PEFT, PyTorch) computes on a tiny checkpoint.
#![cfg(feature = "engine")]
#![expect(clippy::expect_used, reason = "a test stops at the first thing that is not as it should be")]

use firn_llm::device::Device;
use firn_llm::generate::answer_greedily;
use firn_llm::model::{Decoder, prove};
use firn_llm::tokenizer::{Message, Tokenizer};
use firn_llm::train::{AdamWConfig, Document, Pair, PairLogs, Preference, Tuner, TunerConfig, pack, pack_pairs};
use firn_llm::weights::StoredType;
use serde_json::Value;

mod decoding;
mod fixture;

use fixture::Reference;

#[test]
fn logits_agree_with_and_without_an_adapter() {
    for reference in Reference::all() {
        let (first, last) = (reference.adapter("adapter_init"), reference.adapter("adapter_final"));
        for (name, adapter) in
            [("logits", None), ("adapter_init_logits", Some(&first)), ("adapter_final_logits", Some(&last))]
        {
            reference.assert_close(name, &reference.logits(&reference.model, adapter), 2e-4);
        }
    }
}

#[test]
fn greedy_answers_agree_alone_and_in_a_batch() {
    for reference in Reference::all() {
        let expected = reference.ids("greedy");
        let prompts: Vec<Vec<u32>> = expected.iter().map(|ids| ids[..12].to_vec()).collect();
        let answers = answer_greedily(&reference.model, None, &prompts, &[], 20, &|| ()).expect("answers");
        for (answer, expected) in answers.iter().zip(&expected) {
            assert_eq!(answer, &expected[12..], "{}", reference.family);
        }
    }
}

#[test]
fn scores_are_the_log_softmax_of_the_logits() {
    let reference = Reference::new("llama");
    let logits = reference.values("logits");
    let vocab = reference.model.config().vocab;
    for (row, ids) in reference.ids("input_ids").iter().enumerate() {
        let scores = reference.model.score(ids, None).expect("scores");
        assert_eq!(scores.len(), ids.len() - 1);
        for (at, score) in scores.iter().enumerate() {
            let logits = &logits[(row * ids.len() + at) * vocab..][..vocab];
            let sum: f64 = logits.iter().map(|v| f64::from(*v).exp()).sum();
            let expected = f64::from(logits[ids[at + 1] as usize]) - sum.ln();
            assert!((f64::from(*score) - expected).abs() < 2e-4, "row {row}, token {at}: {score} for {expected}");
        }
    }
}

/// `tests/gpu/artifacts.py` made the model and the numbers, from transformers.
#[test]
fn positions_scaled_by_yarn_agree_beyond_the_original_context() {
    let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/yarn"));
    let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).expect("a file")).expect("JSON");
    let numbers = |name: &str| golden[name].as_array().expect("a list").iter().filter_map(Value::as_f64);
    let ids: Vec<u32> = numbers("ids").map(|id| id as u32).collect();
    let model = Decoder::load(dir, &Device::cpu()).expect("a model");
    let scores = model.score(&ids, None).expect("scores");
    assert_eq!((ids.len(), scores.len()), (120, 119), "four times the original context, nearly");
    for (at, (found, expected)) in scores.iter().zip(numbers("logprobs")).enumerate() {
        assert!((f64::from(*found) - expected).abs() < 2e-4, "token {at}: {found} for {expected}");
    }
}

#[test]
fn eight_sft_steps_agree() {
    for reference in Reference::all() {
        let (family, sft) = (reference.family, &reference.json["sft"]);
        let (ids, mask) = (reference.ids("sft_ids"), reference.ids("sft_mask"));
        let config = TunerConfig {
            optimizer: AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() },
            ..TunerConfig::default()
        };
        let mut tuner = Tuner::new(reference.model.clone(), Some(reference.adapter("adapter_init")), &config);
        for step in 0..8 {
            let documents = [0, 1].map(|row| Document {
                ids: ids[step * 2 + row].clone(),
                loss_mask: mask[step * 2 + row].iter().map(|bit| u8::try_from(*bit).expect("bit")).collect(),
            });
            // Both documents in one block, and in one each, must give the same step.
            let blocks = pack(&documents, if step % 2 == 0 { 80 } else { 40 });
            let report = tuner.step(&blocks, 2e-3);
            let loss = sft["losses"][step].as_f64().expect("loss");
            let norm = sft["grad_norms"][step].as_f64().expect("norm");
            assert!((report.loss - loss).abs() < 1e-4, "{family} step {step}: loss {} for {loss}", report.loss);
            let ratio = report.grad_norm / norm;
            assert!((ratio - 1.0).abs() < 1e-3, "{family} step {step}: norm {} for {norm}", report.grad_norm);
        }
        let (decoder, adapter) = tuner.into_parts();
        reference.assert_close("adapter_final_logits", &reference.logits(&decoder, adapter.as_ref()), 1e-3);
    }
}

#[test]
fn five_dpo_steps_agree() {
    for reference in Reference::all() {
        let (family, dpo) = (reference.family, &reference.json["dpo"]);
        let masks = reference.ids("dpo_mask");
        let documents = |name: &str| -> Vec<Document> {
            let rows = reference.ids(name).into_iter().zip(&masks);
            rows.map(|(ids, mask)| Document { ids, loss_mask: mask.iter().map(|bit| u8::from(*bit > 0)).collect() })
                .collect()
        };
        let pairs: Vec<Pair> = documents("dpo_chosen")
            .into_iter()
            .zip(documents("dpo_rejected"))
            .map(|(chosen, rejected)| Pair { chosen, rejected })
            .collect();
        // TRL's and PyTorch's DPO clip nothing here, and decay as in the SFT steps.
        let optimizer = AdamWConfig { weight_decay: 0.01, max_grad_norm: 0.0, ..AdamWConfig::default() };
        let mut tuner = Tuner::new(
            reference.model.clone(),
            Some(reference.adapter("adapter_final")),
            &TunerConfig { optimizer, ..TunerConfig::default() },
        );
        let numbers = |value: &Value| -> Vec<f64> {
            value.as_array().expect("list").iter().map(|n| n.as_f64().expect("number")).collect()
        };
        let assert_near = |what: &str, found: Vec<f64>, expected: &Value| {
            for (found, expected) in found.iter().zip(numbers(expected)) {
                assert!((found - expected).abs() < 1e-3, "{family} {what}: {found} for {expected}");
            }
        };
        for (index, step) in dpo["steps"].as_array().expect("steps").iter().enumerate() {
            // Pairs side by side in one block, and in blocks of their own, must give the same step.
            let blocks = pack_pairs(&pairs, if index % 2 == 0 { 96 } else { 48 });
            let report = tuner.step_pairs(&blocks, Preference::Dpo { beta: 0.1 }, 5e-4);
            let side = |of: &[PairLogs], side: fn(&PairLogs) -> f64| of.iter().map(side).collect::<Vec<_>>();
            assert_near("loss", vec![report.step.loss], &serde_json::json!([step["loss"]]));
            assert_near("chosen", side(&report.pairs, |pair| pair.chosen), &step["chosen_logps"]);
            assert_near("rejected", side(&report.pairs, |pair| pair.rejected), &step["rejected_logps"]);
            assert_near("reference", side(&report.reference, |pair| pair.chosen), &dpo["ref_chosen_logps"]);
            assert_near("reference", side(&report.reference, |pair| pair.rejected), &dpo["ref_rejected_logps"]);
        }
    }
}

#[test]
fn a_merge_computes_what_base_and_adapter_do() {
    for reference in Reference::all() {
        let adapter = reference.adapter("adapter_dpo");
        let merged = reference.model.merge(&adapter);
        reference.assert_close("merged_logits", &reference.logits(&merged, None), 3e-4);
        let dir = tempfile::tempdir().expect("dir");
        std::fs::copy(reference.folder.join("config.json"), dir.path().join("config.json")).expect("copied");
        merged.save(dir.path(), StoredType::F32).expect("saved");
        let read = Decoder::load(dir.path(), &Device::cpu()).expect("the merged checkpoint loads");
        let proof = prove(&reference.model, &adapter, &read, &reference.ids("input_ids")).expect("proof");
        assert!(proof.largest_logit_difference < 3e-4 && proof.tokens == 64, "{}: {proof:?}", reference.family);
        assert!(proof.holds(StoredType::F32));
        // The base alone is something else: the proof can fail.
        let wrong = prove(&reference.model, &adapter, &reference.model, &reference.ids("input_ids")).expect("proof");
        assert!(wrong.largest_logit_difference > 0.01, "{}: {wrong:?}", reference.family);
        assert!(!wrong.holds(StoredType::F32));
    }
}

#[test]
fn tokenizer_and_template_agree() {
    for reference in Reference::all() {
        let tokenizer = Tokenizer::from_dir(&reference.folder).expect("tokenizer");
        for case in reference.json["tokenize"].as_array().expect("cases") {
            let found = tokenizer.encode(case["text"].as_str().expect("text"), false).expect("ids");
            assert_eq!(serde_json::json!(found), case["ids"], "{}", reference.family);
        }
        for case in reference.json["chat"].as_array().expect("cases") {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).expect("messages");
            let found = tokenizer.render(&messages, case["add_generation_prompt"] == true).expect("rendered");
            assert_eq!(found.text, case["text"].as_str().expect("text"), "{}", reference.family);
            assert_eq!(serde_json::json!(found.ids), case["ids"], "{}", reference.family);
            assert_eq!(serde_json::json!(found.assistant_mask), case["assistant_mask"], "{}", reference.family);
        }
    }
}

#[test]
fn streamed_text_is_whole_and_complete() {
    let tokenizer = Tokenizer::from_dir(&Reference::new("llama").folder).expect("tokenizer");
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
    let reference = Reference::new("llama");
    let sft_ids = reference.ids("sft_ids");
    let blocks =
        |step: usize| pack(&[Document { ids: sft_ids[step].clone(), loss_mask: vec![1; sft_ids[step].len()] }], 64);
    let start =
        || Tuner::new(reference.model.clone(), Some(reference.adapter("adapter_init")), &TunerConfig::default());
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
