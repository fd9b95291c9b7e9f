use super::*;
use crate::{record::SnapshotRef, spec::tests::spec};

fn records() -> (SpecRecord, StateRecord) {
    let spec = SpecRecord {
        job: "job-1".to_owned(),
        request_id: String::new(),
        create_time: jiff::Timestamp::UNIX_EPOCH,
        trace: None,
        spec: spec(),
    };
    let mut record = StateRecord::queued(jiff::Timestamp::UNIX_EPOCH);
    record.snapshot = Some(SnapshotRef {
        name: "datasets/offers/snapshots/ab".to_owned(),
        path: "datasets/offers/ab".to_owned(),
        template_sha256: "00ff".to_owned(),
        train_rows: 90,
        held_out_rows: 10,
        train_tokens: 1234,
    });
    let evaluation = Evaluation {
        loss: 2.5,
        rows: 10,
        field_recall: None,
        sample_prompt: "secret".to_owned(),
        sample_answer: "secret".to_owned(),
        preference_accuracy: None,
        token_accuracy: None,
    };
    record.base_evaluation = Some(evaluation.clone());
    record.tuned_evaluation = Some(Evaluation { loss: 0.51234, field_recall: Some(0.875), ..evaluation });
    (record.step, record.train_tokens, record.train_seconds) = (60, 4000, 12.34);
    (spec, record)
}

#[test]
fn a_card_says_what_was_trained_on_what_and_how_well() {
    let (spec, record) = records();
    let text = card(&spec, &record);
    let expected = "---\nbase_model: \"a/b\"\nbase_model_relation: adapter\nlibrary_name: peft\npipeline_tag: \
                    text-generation\ntags:\n- lora\n- firn\n- sft\n---\n\n# offers\n\nA LoRA adapter of `bases/a/b`, trained by \
                    Firn in `jobs/job-1`.\n";
    assert!(text.starts_with(expected), "{text}");
    for line in [
        "| snapshot | `datasets/offers/snapshots/ab` |",
        "| training rows | 90 |",
        "| sha256 of the chat template | `00ff` |",
        "| loss, nats a completion token | 2.5000 | 0.5123 |",
        "| field recall of greedy answers | – | 0.8750 |",
        "| LoRA rank | 16 |",
        "| schedule | linear, warm-up 0.1 |",
        "60 steps, 4000 tokens, 12.3 seconds.",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("secret"), "rows stay out of the card");
    assert!(text.ends_with('\n') && !text.contains("\n\n\n"), "{text}");
}

#[test]
fn whole_weights_are_no_adapter() {
    let (mut spec, record) = records();
    (spec.spec.lora, spec.spec.base) = (None, "/models/odd \"name\"".to_owned());
    let text = card(&spec, &record);
    assert!(text.contains(
        "base_model: \"/models/odd \\\"name\\\"\"\nbase_model_relation: finetune\nlibrary_name: transformers"
    ));
    assert!(!text.to_lowercase().contains("lora"), "{text}");
}
