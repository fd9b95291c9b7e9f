//! `firn spcs`, as a user runs it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn tutorial() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spcs/tutorial.yaml")
}

fn spcs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_firn")).arg("spcs").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_tutorials_specification_is_refused_with_all_reasons() {
    let file = tutorial();
    let output = spcs(&["check", file.to_str().unwrap(), "--instance-family", "GPU_NV_S", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["accepted"], false);
    let found: Vec<String> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            assert!(finding["way_out"].as_str().is_some_and(|way_out| !way_out.is_empty()));
            format!(
                "{} {} {}",
                finding["severity"].as_str().unwrap(),
                finding["rule"].as_str().unwrap(),
                finding["path"].as_str().unwrap()
            )
        })
        .collect();
    for expected in [
        "error stage-v1 spec.volumes[0].source",
        "error fit spec.containers",
        "error unknown-field spec.networkPolicyConfig",
        "warning tag spec.containers[0].image",
        "warning plain-secret spec.containers[0].env.HF_TOKEN",
        "warning no-probe spec.containers[0].name",
    ] {
        assert!(found.iter().any(|found| found == expected), "{expected} is not in {found:#?}");
    }
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn a_finding_is_one_line_with_file_line_path_reason_and_way_out() {
    let file = tutorial();
    let output = spcs(&["check", file.to_str().unwrap()]);
    let text = stdout(&output);
    let line = text.lines().find(|line| line.contains("[stage-v1]")).unwrap();
    let number =
        std::fs::read_to_string(&file).unwrap().lines().position(|line| line.contains("@VOLUMES")).unwrap() + 1;
    assert!(
        line.starts_with(&format!("{}:{number}: error[stage-v1]: spec.volumes[0].source: ", file.display())),
        "{line}"
    );
    assert!(line.contains("2026_08") && line.contains("write source: stage"), "{line}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("2 errors"));
}

#[test]
fn our_own_specifications_are_accepted_and_are_what_render_prints() {
    for (kind, family) in [("service", "GPU_NV_M"), ("job", "GPU_NV_S"), ("inference", "GPU_NV_S")] {
        let file = deploy().join(format!("spcs/{kind}.yaml"));
        let mut check = vec!["check", file.to_str().unwrap(), "--instance-family", family, "--json"];
        check.extend((kind == "job").then_some("--job"));
        let output = spcs(&check);
        assert!(output.status.success(), "{}", stdout(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report:#}");
        let rendered = stdout(&spcs(&["render", kind, "--template"]));
        let held = std::fs::read_to_string(&file).unwrap();
        if kind != "job" {
            let is_known = rendered.contains("FIRN_TRUST_INGRESS_USER: \"true\"") && !rendered.contains("FIRN_NO_AUTH");
            assert!(is_known, "the ingress says who calls, and the gateway must listen: {rendered}");
        }
        assert!(held == rendered, "{}: render it again with `firn spcs render {kind} --template`", file.display());
    }
}

#[test]
fn every_script_is_accepted() {
    let mut scripts = 0;
    for entry in std::fs::read_dir(deploy().join("spcs")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|ending| ending == "sql") {
            scripts += 1;
            let output = spcs(&["check", file.to_str().unwrap(), "--sql"]);
            assert!(output.status.success(), "{}", stdout(&output));
        }
    }
    assert!(scripts >= 6, "{scripts} scripts");
}

#[test]
fn every_function_says_who_calls_it() {
    let text = std::fs::read_to_string(deploy().join("spcs/03_functions.sql")).unwrap();
    let functions: Vec<&str> = text.split("CREATE OR REPLACE FUNCTION").skip(1).collect();
    assert!(!functions.is_empty());
    for function in functions {
        let statement = function.split(';').next().unwrap();
        assert!(statement.contains("CONTEXT_HEADERS = (CURRENT_USER)"), "{statement}");
    }
}

#[test]
fn what_is_rendered_fits_every_family_that_can_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spec.yaml");
    let mut held = 0;
    let families = [
        "CPU_X64_M",
        "CPU_X64_S",
        "HIGHMEM_X64_S",
        "GPU_NV_XS",
        "GPU_NV_S",
        "GPU_NV_2M",
        "GPU_NV_L",
        "GPU_R6K_G1_48",
        "GPU_GCP_NV_L4_1_24G",
        "GEN_ARM_G1_8",
    ];
    for family in families {
        for kind in ["service", "job", "inference"] {
            let output = spcs(&["render", kind, "--instance-family", family]);
            if !output.status.success() {
                let reason = String::from_utf8(output.stderr).unwrap();
                assert!(reason.contains("choose a") || reason.contains("arm64"), "{family} {kind}: {reason}");
                continue;
            }
            held += 1;
            std::fs::write(&file, &output.stdout).unwrap();
            let output = spcs(&["check", file.to_str().unwrap(), "--instance-family", family]);
            assert!(output.status.success(), "{family} {kind}: {}", stdout(&output));
        }
    }
    assert!(held >= 20, "{held}");
    let refused = spcs(&["render", "service", "--instance-family", "GPU_NV_S"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("a GPU each"));
}

#[test]
fn arguments_go_where_they_belong() {
    let secret = ["render", "service", "--secret", "trainer:HF_TOKEN=firn.app.hub", "--tag", "7", "--stage", "a.b.c/d"];
    let text = stdout(&spcs(&secret));
    for part in ["objectName: firn.app.hub", "envVarName: HF_TOKEN", "firn-trainer-cuda:7", "\"@a.b.c/d\""] {
        assert!(text.contains(part), "{part}");
    }
    let text = stdout(&spcs(&["render", "service", "--secret", "gateway:FIRN_MESH_TOKEN_FILE=firn.app.mesh_token"]));
    for part in [
        "FIRN_MESH_TOKEN_FILE: \"/secrets/firn_mesh_token/secret_string\"",
        "- snowflakeSecret: {objectName: firn.app.mesh_token}\n      directoryPath: /secrets/firn_mesh_token\n    readinessProbe",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let text = stdout(&spcs(&["render", "inference", "--registry-endpoint", "http://firn:7003"]));
    assert!(
        text.contains("FIRN_REGISTRY_ENDPOINT: \"http://firn:7003\"") && !text.contains("firn-model-registry"),
        "{text}"
    );
    let text = stdout(&spcs(&["render", "job", "--", "--epochs", "2", "--data-path=/stage/x.csv"]));
    assert!(text.contains("- \"2\"") && !text.contains("/stage/inputs/offers"), "{text}");
    let text = stdout(&spcs(&["render", "inference", "--sql", "--min-instances", "2", "--max-instances", "5"]));
    assert!(text.contains("MIN_INSTANCES = 2\n  MAX_INSTANCES = 5;"), "{text}");
    for refused in [
        &["render", "service", "--sql", "--max-instances", "2"][..],
        &["render", "inference", "--sql", "--min-instances", "3", "--max-instances", "2"],
        &["render", "service", "--secret", "nobody:A=b"],
        &["render", "service", "--registry-endpoint", "http://a:1"],
        &["render", "service", "--", "--epochs", "2"],
        &["check", "nothing.yaml"],
    ] {
        assert!(!spcs(refused).status.success(), "{refused:?}");
    }
}
