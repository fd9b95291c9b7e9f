use firn_proto::dataprep::v1::{self as data, row_format::Format};

use super::*;

fn request() -> pb::JobSpec {
    let text = data::TextFormat { column: "text".to_owned() };
    let data = data::CreateSnapshotRequest {
        dataset: "offers".to_owned(),
        source: "offers.csv".to_owned(),
        format: Some(data::RowFormat { format: Some(Format::Text(text)) }),
        ..Default::default()
    };
    pb::JobSpec {
        base: "bases/a/b".to_owned(),
        model: "offers".to_owned(),
        data: Some(data),
        lora: Some(pb::LoraSpec::default()),
        ..Default::default()
    }
}

/// A specification with defaults, for other modules' tests.
pub(crate) fn spec() -> Spec {
    Spec::check(request()).unwrap()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let spec = Spec::check(request()).unwrap();
    assert_eq!((spec.alias.as_str(), spec.max_answer_tokens, spec.answered_rows), ("latest", 256, 0));
    let lora = spec.lora.as_ref().unwrap();
    assert_eq!((lora.r, lora.alpha, lora.target_modules.len()), (16, 32.0, 7));
    let all = &spec.hyperparameters;
    assert_eq!((all.learning_rate, all.epochs, all.batch_size, all.block_size), (1e-3, 3.0, 4, 512));
    assert_eq!((all.warmup_ratio, all.scheduler.as_str(), all.max_grad_norm, all.seed), (0.1, "linear", 1.0, 42));
    let proving = Spec::check(pb::JobSpec { prove_merge: true, ..request() }).unwrap();
    assert!(!spec.prove_merge && proving.prove_merge && proving.to_proto().prove_merge);
    let full = Spec::check(pb::JobSpec { lora: None, ..request() }).unwrap();
    assert_eq!(full.hyperparameters.learning_rate, 5e-4);
    assert_eq!(Spec::check(spec.to_proto()).unwrap(), spec, "what was accepted is accepted again");
    assert_eq!(spec.data.to_proto(&spec.base).base, "bases/a/b");
    let stored = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&stored).unwrap(), spec);
}

#[test]
fn a_wrong_field_is_named() {
    let hyper = |change: fn(&mut pb::Hyperparameters)| {
        let mut all = pb::Hyperparameters::default();
        change(&mut all);
        pb::JobSpec { hyperparameters: Some(all), ..request() }
    };
    let lora = |lora| pb::JobSpec { lora: Some(lora), ..request() };
    let data = |change: fn(&mut data::CreateSnapshotRequest)| {
        let mut spec = request();
        change(spec.data.as_mut().unwrap());
        spec
    };
    let cases = [
        ("spec.base", pb::JobSpec { base: String::new(), ..request() }),
        ("spec.model", pb::JobSpec { model: "Offers!".to_owned(), ..request() }),
        ("spec.alias", pb::JobSpec { alias: "-".to_owned(), ..request() }),
        ("spec.data", pb::JobSpec { data: None, ..request() }),
        ("spec.quantization", pb::JobSpec { quantization: "int3".to_owned(), ..request() }),
        ("spec.quantization", pb::JobSpec { quantization: "int4".to_owned(), lora: None, ..request() }),
        ("spec.adapter", pb::JobSpec { adapter: "/x".to_owned(), lora: None, ..request() }),
        ("spec.prove_merge", pb::JobSpec { prove_merge: true, lora: None, ..request() }),
        ("spec.objective", pb::JobSpec { objective: 9, ..request() }),
        ("spec.data.format", pb::JobSpec { objective: pb::Objective::Dpo.into(), ..request() }),
        ("spec.hyperparameters.packing", hyper(|all| all.packing = "tight".to_owned())),
        ("spec.hyperparameters.beta", hyper(|all| all.beta = Some(0.0))),
        ("spec.data.base", data(|data| data.base = "other".to_owned())),
        ("spec.data.dataset", data(|data| data.dataset.clear())),
        ("spec.data.source", data(|data| data.source.clear())),
        ("spec.data.format", data(|data| data.format = None)),
        ("spec.data.chat_template", data(|data| data.chat_template = "alpaca".to_owned())),
        ("spec.answered_rows", pb::JobSpec { answered_rows: u32::MAX, ..request() }),
        ("spec.lora.r", lora(pb::LoraSpec { r: 5_000, ..Default::default() })),
        ("spec.lora.alpha", lora(pb::LoraSpec { alpha: f32::NAN, ..Default::default() })),
        (
            "spec.lora.target_modules",
            lora(pb::LoraSpec { target_modules: vec!["x_proj".to_owned()], ..Default::default() }),
        ),
        ("spec.hyperparameters.learning_rate", hyper(|all| all.learning_rate = Some(-1.0))),
        ("spec.hyperparameters.epochs", hyper(|all| all.epochs = Some(0.0))),
        ("spec.hyperparameters.epochs", hyper(|all| all.epochs = Some(f64::NAN))),
        ("spec.hyperparameters.batch_size", hyper(|all| all.batch_size = Some(0))),
        ("spec.hyperparameters.block_size", hyper(|all| all.block_size = Some(0))),
        ("spec.hyperparameters.warmup_ratio", hyper(|all| all.warmup_ratio = Some(1.5))),
        ("spec.hyperparameters.scheduler", hyper(|all| all.scheduler = Some("step".to_owned()))),
        ("spec.hyperparameters.budget_seconds", hyper(|all| all.budget_seconds = f64::INFINITY)),
    ];
    for (field, spec) in cases {
        assert_eq!(Spec::check(spec).unwrap_err().field, field);
    }
}

#[test]
fn a_base_is_absolute_or_below_the_stage() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("bases/a/b");
    std::fs::create_dir_all(&dir).unwrap();
    let spec = |base: &str| Spec { base: base.to_owned(), ..Spec::check(request()).unwrap() };
    let error = spec("bases/a/b").base_dir(Some(root.path())).unwrap_err().to_string();
    assert_eq!(error, "spec.base: bases/a/b is no checkpoint: it has no config.json");
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    assert_eq!(spec("bases/a/b").base_dir(Some(root.path())).unwrap(), dir);
    assert_eq!(spec(dir.to_str().unwrap()).base_dir(None).unwrap(), dir);
    assert!(spec("../x").base_dir(Some(root.path())).unwrap_err().reason.contains("must not leave the stage"));
    assert!(spec("bases/a/b").base_dir(None).unwrap_err().reason.contains("not a folder"));
}
