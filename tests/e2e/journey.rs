//! Rows to a served model, through five processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use firn_tests::{MESH_TOKEN, Processes, SERVICES, binary, firn, http};
use serde_json::{Value, json};

/// Rows that say who sells what, with a prompt for each.
fn write_rows(processes: &Processes, rows: usize) {
    let mut csv = "SELLER,ITEM,PRICE\n".to_owned();
    for index in 0..rows {
        let seller = ["Alder", "Birch", "Cedar", "Dogwood", "Elm"][index % 5];
        let item = ["lamp", "rope", "kettle", "drum"][index % 4];
        csv += &format!("{seller} & Co,{item} {index},${}\n", 3 + index * 2);
    }
    std::fs::write(processes.folder().join("rows.csv"), csv).unwrap();
}

fn train(processes: &Processes, extra: &[&str]) -> Command {
    let mut command = Command::new(binary("firn").unwrap());
    command
        .args(["llm", "--train", "--remote", "--json", "--project-name", "shop", "--data-path", "rows.csv"])
        .args(["--prompt-template", "Sell this.\\n{{ row | tojson }}"])
        .args(["--completion-template", "{{ SELLER }} sells {{ ITEM }} for {{ PRICE }}."])
        .args(["--held-out-rows", "6", "--answered-rows", "4"])
        .args(processes.endpoints())
        .args(extra)
        .env(MESH_TOKEN.0, MESH_TOKEN.1)
        .current_dir(processes.folder())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn last_json(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap()
}

fn chat(processes: &Processes, model: &str) -> (u16, Value) {
    let port = processes.url("gateway").rsplit(':').next().unwrap().parse().unwrap();
    let body = json!({
        "model": model, "temperature": 0, "max_tokens": 12, "logprobs": true,
        "messages": [{ "role": "user", "content": "Sell this." }],
    });
    let (status, text) = http(port, "POST", "/v1/chat/completions", &body.to_string()).unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

#[test]
fn rows_become_a_served_model() {
    let mut processes = Processes::start().unwrap();
    write_rows(&processes, 40);
    let result = last_json(&train(&processes, &["--epochs", "2"]).output().unwrap());
    assert_eq!(result["state"], "succeeded");
    assert_eq!(result["version"], "models/shop/versions/1");
    assert!(result["tuned"]["loss"].as_f64().unwrap() < result["base"]["loss"].as_f64().unwrap());
    assert!(result["tuned"]["field_recall"].is_number());
    for file in ["adapter_model.safetensors", "adapter_config.json", "README.md", "report.json"] {
        assert!(processes.folder().join("shop").join(file).is_file(), "{file} is missing");
    }
    // The alias is watched: inference takes the version up by itself.
    let begin = std::time::Instant::now();
    while chat(&processes, "shop@latest").0 != 200 {
        assert!(begin.elapsed().as_secs() < 30, "inference did not take the version up");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let (_, answer) = chat(&processes, "shop@latest");
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(chat(&processes, "nothing").0, 404);
    strangers_are_refused(&processes);
    let ends = processes.stop().unwrap();
    assert!(ends.len() == SERVICES.len() && ends.values().all(|end| *end == Some(0)), "{ends:?}");
}

/// Who reaches the ports and does not know the stack's secret learns which variable holds it, and nothing else.
fn strangers_are_refused(processes: &Processes) {
    for (service, flag, command) in [
        ("data-prep", "--data-prep-endpoint", ["datasets", "list"]),
        ("trainer", "--trainer-endpoint", ["jobs", "list"]),
        ("model-registry", "--registry-endpoint", ["models", "list"]),
        ("inference", "--inference-endpoint", ["models", "served"]),
    ] {
        let mut stranger = Command::new(binary("firn").unwrap());
        stranger.args(command).args([flag, &processes.url(service)]).env_remove(MESH_TOKEN.0);
        let output = stranger.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{service} answered a stranger");
        assert!(stderr.contains(MESH_TOKEN.0) && !stderr.contains(MESH_TOKEN.1), "{stderr}");
    }
}

/// Reads the client's JSON lines until a step is at least `step`.
fn until_step(client: &mut Child, step: u64) -> BufReader<std::process::ChildStdout> {
    let mut lines = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the client ended before step {step}");
        let value: Value = serde_json::from_str(&line).unwrap();
        if value["step"].as_u64().unwrap_or(0) >= step {
            return lines;
        }
    }
}

#[test]
fn any_service_may_die_and_the_job_ends() {
    let mut processes = Processes::start().unwrap();
    write_rows(&processes, 120);
    let plain = last_json(&train(&processes, &["--epochs", "6"]).output().unwrap());
    let adapter = processes.folder().join("shop/adapter_model.safetensors");
    let expected = std::fs::read(&adapter).unwrap();
    std::fs::remove_file(&adapter).unwrap();
    for (round, service) in ["trainer", "data-prep", "model-registry", "inference", "gateway"].into_iter().enumerate() {
        let mut client = train(&processes, &["--epochs", "6"]).spawn().unwrap();
        let mut rest = until_step(&mut client, 2);
        processes.kill(service).unwrap();
        processes.restart(service).unwrap();
        let mut lines = String::new();
        std::io::Read::read_to_string(&mut rest, &mut lines).unwrap();
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "{service}: {}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(result["state"], "succeeded", "{service}");
        assert_eq!(result["version"], format!("models/shop/versions/{}", round + 2), "{service}");
        assert_eq!(result["tuned"]["loss"], plain["tuned"]["loss"], "{service}");
        assert!(std::fs::read(&adapter).unwrap() == expected, "{service}: the adapter differs");
    }
    let list =
        firn(processes.folder(), &["models", "show", "shop", "--registry-endpoint", &processes.url("model-registry")]);
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    assert!((1..=6).all(|version| list.contains(&format!("models/shop/versions/{version}"))), "{list}");
}

#[test]
fn a_checkpoint_is_served_beside_the_base_while_its_job_runs() {
    let processes = Processes::start().unwrap();
    write_rows(&processes, 40);
    let mut client = train(&processes, &["--epochs", "500"]).spawn().unwrap();
    // The trainer saves every fifty steps.
    let _rest = until_step(&mut client, 51);
    let jobs = firn(processes.folder(), &["jobs", "list", "--json", "--trainer-endpoint", &processes.url("trainer")]);
    let jobs = String::from_utf8(jobs.unwrap().stdout).unwrap();
    let job: Value = serde_json::from_str(jobs.lines().last().unwrap()).unwrap();
    let id = job["name"].as_str().unwrap().trim_start_matches("jobs/").to_owned();
    let model = format!("{id}@50");
    let inference = processes.url("inference");
    let load = ["models", "load", &model, "--inference-endpoint", &inference, "--json"];
    let begin = std::time::Instant::now();
    // The last step's message comes before its checkpoint is whole.
    let loaded = loop {
        let loaded = firn(processes.folder(), &load).unwrap();
        if loaded.status.success() {
            break loaded;
        }
        assert!(begin.elapsed().as_secs() < 30, "{}", String::from_utf8_lossy(&loaded.stderr));
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    assert_eq!(last_json(&loaded)["version"], format!("jobs/{id}/checkpoints/50"));
    let (status, tuned) = chat(&processes, &model);
    let (_, base) = chat(&processes, "base");
    assert_eq!(status, 200, "{tuned}");
    let first = |answer: &Value| answer["choices"][0]["logprobs"]["content"][0]["logprob"].as_f64().unwrap();
    assert!((first(&tuned) - first(&base)).abs() > 1e-4, "fifty steps have changed nothing: {tuned}");
    let trainer = processes.url("trainer");
    let show = firn(processes.folder(), &["jobs", "show", &id, "--json", "--trainer-endpoint", &trainer]).unwrap();
    assert_eq!(last_json(&show)["state"], "running");
    assert!(
        firn(processes.folder(), &["jobs", "cancel", &id, "--trainer-endpoint", &trainer]).unwrap().status.success()
    );
    // The client says that the job was cancelled, which is no success.
    assert!(!client.wait().unwrap().success());
    assert_eq!(chat(&processes, &model).0, 200, "what was loaded stays");
}
