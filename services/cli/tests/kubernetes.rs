//! The Kubernetes manifests, as far as they can be held against each other without a cluster.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// All objects of the files that the kustomization lists.
fn objects() -> Vec<Value> {
    let folder = deploy().join("kubernetes/base");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let list: Value = serde_saphyr::from_str(&read("kustomization.yaml")).unwrap();
    let files: BTreeSet<&str> =
        list["resources"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    let there: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect();
    assert!(there.iter().map(String::as_str).eq(files.iter().copied()), "{there:?} {files:?}");
    files.iter().flat_map(|file| serde_saphyr::from_multiple::<Value>(&read(file)).unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn container(deployment: &Value) -> &Value {
    &deployment["spec"]["template"]["spec"]["containers"][0]
}

fn amount(value: &Value) -> f64 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let units = [("Mi", 1.0), ("Gi", 1024.0), ("m", 0.001), ("", 1.0)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor)).unwrap()
}

#[test]
fn the_five_services_run_without_rights_and_with_probes() {
    let objects = objects();
    let deployments = of_kind(&objects, "Deployment");
    let names: BTreeSet<&str> = deployments.iter().map(|deployment| name(deployment)).collect();
    assert_eq!(names, BTreeSet::from(["data-prep", "gateway", "inference", "model-registry", "trainer"]));
    for deployment in deployments {
        let (pod, container, name) = (&deployment["spec"]["template"]["spec"], container(deployment), name(deployment));
        assert!(container["image"].as_str().unwrap().starts_with(&format!("firn-{name}:")), "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false, "{name}");
        let health = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == "health").unwrap();
        let listen = value_of(container, "FIRN_HEALTH_LISTEN").unwrap();
        assert_eq!(listen, format!("0.0.0.0:{}", health["containerPort"]), "{name}");
        for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
            assert_eq!(container[probe]["httpGet"]["path"], path, "{name}");
            assert_eq!(container[probe]["httpGet"]["port"], "health", "{name}");
        }
        let resources = &container["resources"];
        for (key, request) in resources["requests"].as_object().unwrap() {
            assert!(amount(request) <= amount(&resources["limits"][key]), "{name}: {key}");
        }
        let volumes: Vec<&Value> = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(
            mounts.iter().all(|mount| volumes.contains(&&mount["name"])) && mounts.len() == volumes.len(),
            "{name}"
        );
    }
}

fn value_of<'a>(container: &'a Value, variable: &str) -> Option<&'a str> {
    let env = container["env"].as_array()?;
    env.iter().find(|entry| entry["name"] == variable)?["value"].as_str()
}

#[test]
fn every_variable_of_the_containers_is_set() {
    for deployment in of_kind(&objects(), "Deployment") {
        let file = deploy().join(format!("env/{}.env", name(deployment)));
        for line in std::fs::read_to_string(file).unwrap().lines().filter(|line| !line.starts_with('#')) {
            let variable = line.split('=').next().unwrap();
            assert!(value_of(container(deployment), variable).is_some(), "{}: {variable}", name(deployment));
        }
    }
}

#[test]
fn selectors_find_pods_and_endpoints_find_services() {
    let objects = objects();
    let deployments = of_kind(&objects, "Deployment");
    let labels: Vec<&Value> = deployments.iter().map(|d| &d["spec"]["template"]["metadata"]["labels"]).collect();
    for deployment in &deployments {
        assert!(labels.contains(&&deployment["spec"]["selector"]["matchLabels"]), "{}", name(deployment));
    }
    let mut ports = BTreeSet::new();
    for service in of_kind(&objects, "Service") {
        let deployment =
            deployments.iter().find(|d| d["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]);
        let target = &service["spec"]["ports"][0]["targetPort"];
        let listed = container(deployment.unwrap())["ports"].as_array().unwrap();
        let port = listed.iter().find(|port| port["name"] == *target).unwrap();
        assert_eq!(port["containerPort"], service["spec"]["ports"][0]["port"], "{}", name(service));
        ports.insert(format!("http://{}:{}", name(service), port["containerPort"]));
    }
    for deployment in &deployments {
        for entry in container(deployment)["env"].as_array().unwrap() {
            if entry["name"].as_str().unwrap().ends_with("_ENDPOINT") {
                assert!(ports.contains(entry["value"].as_str().unwrap()), "{}: {entry}", name(deployment));
            }
        }
    }
    for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
        for object in of_kind(&objects, kind) {
            let selector = object["spec"].get("selector").or(object["spec"].get("podSelector")).unwrap();
            let wanted = selector["matchLabels"].as_object().unwrap();
            let found = |labels: &&&Value| wanted.iter().all(|(key, value)| labels.get(key) == Some(value));
            assert!(labels.iter().any(|labels| found(&labels)), "{kind} {}", name(object));
        }
    }
}

#[test]
fn inference_scales_and_writers_do_not() {
    let objects = objects();
    let scaler = of_kind(&objects, "HorizontalPodAutoscaler");
    assert_eq!(scaler.len(), 1);
    assert_eq!(scaler[0]["spec"]["scaleTargetRef"]["name"], "inference");
    assert!(scaler[0]["spec"]["minReplicas"].as_i64() < scaler[0]["spec"]["maxReplicas"].as_i64());
    for deployment in of_kind(&objects, "Deployment") {
        let spec = &deployment["spec"];
        match name(deployment) {
            "inference" => assert!(spec.get("replicas").is_none(), "the autoscaler's number would be overwritten"),
            "gateway" => assert!(spec["replicas"].as_i64() >= Some(2)),
            writer => {
                assert_eq!(spec["replicas"], 1, "{writer}");
                assert_eq!(spec["strategy"]["type"], "Recreate", "{writer}");
            }
        }
    }
    let budgets: BTreeSet<&str> = of_kind(&objects, "PodDisruptionBudget").into_iter().map(name).collect();
    assert_eq!(budgets, BTreeSet::from(["gateway", "inference"]));
}
