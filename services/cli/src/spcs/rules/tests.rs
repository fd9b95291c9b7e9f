//! Each rule, by a specification that breaks it and nothing else.

use std::collections::BTreeMap;

use super::super::{Account, Severity, check, check_script, family};

/// A service that breaks no rule.
const GOOD: &str = r#"
spec:
  containers:
  - name: web
    image: /db/schema/repo/web:1
    env: {LEVEL: info}
    readinessProbe: {port: 7101, path: /readyz}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: disk, mountPath: /disk}
    resources:
      requests: {cpu: 1, memory: 2Gi, nvidia.com/gpu: 1}
      limits: {cpu: 2, memory: 4Gi, nvidia.com/gpu: 1}
    secrets:
    - snowflakeSecret: {objectName: db.schema.secret}
      envVarName: HF_KEY
      secretKeyRef: secret_string
    sessionTokenConfig: {path: /token, permission: "0640"}
  - name: side
    image: account.registry.snowflakecomputing.com/db/schema/repo/side:1
    readinessProbe: {port: 7102, path: /readyz}
  endpoints:
  - {name: api, port: 8080, public: true, corsSettings: {Access-Control-Allow-Origin: [https://a.example]}}
  - {name: peers, portRange: 29501-29600, protocol: TCP}
  volumes:
  - name: data
    source: stage
    uid: 10001
    gid: 10001
    stageConfig: {name: "@db.schema.stage/folder"}
  - name: disk
    source: block
    size: 100Gi
    blockConfig: {iops: 3000, throughput: 125, encryption: SNOWFLAKE_SSE, snapshotDeleteAfter: 7d}
  logExporters:
    eventTableConfig: {logLevel: INFO}
  platformMonitor:
    metricConfig: {groups: [system, status]}
  resourceManagement:
    autoScalingPolicies: {scaleUp: {anyConditions: [{}]}}
capabilities:
  securityContext: {executeAsCaller: true}
serviceRoles:
- {name: user_role, endpoints: [api]}
"#;

fn account(name: &str) -> Account {
    Account { family: Some(family(name).unwrap()), ..Account::default() }
}

/// `rule path` of each finding of this severity.
fn found(text: &str, account: &Account, severity: Severity) -> Vec<String> {
    let (findings, _) = check(text, account);
    let found = findings.iter().filter(|finding| finding.severity == severity);
    found.map(|finding| format!("{} {}", finding.rule, finding.path)).collect()
}

/// Replaces one part of the good service, and gives the findings.
fn with(from: &str, to: &str, severity: Severity) -> Vec<String> {
    assert_eq!(GOOD.matches(from).count(), 1, "{from}");
    found(&GOOD.replace(from, to), &account("GPU_NV_S"), severity)
}

#[test]
fn what_breaks_no_rule_is_accepted() {
    let (findings, needs) = check(GOOD, &account("GPU_NV_S"));
    assert_eq!(findings.iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
    let needs = needs.unwrap();
    // 1 + 0.5 CPUs; 2 + 0.5 GiB, and 0.5 for the stage's sidecar.
    assert_eq!((needs.cpus, needs.gib, needs.gpus), (1.5, 3.0, 1));
}

#[test]
fn each_error_is_found_alone_and_in_its_place() {
    let v1 = "source: \"@VOLUMES\"\n    uid: 10001\n    gid: 10001";
    let stage = "source: stage\n    uid: 10001\n    gid: 10001\n    stageConfig: {name: \"@db.schema.stage/folder\"}";
    let secret = "envVarName: HF_KEY\n      secretKeyRef: secret_string";
    let gpu_request = "memory: 2Gi, nvidia.com/gpu: 1";
    let block = "source: block\n    size: 100Gi\n    blockConfig: {iops: 3000, throughput: 125, encryption: SNOWFLAKE_SSE, \
                 snapshotDeleteAfter: 7d}";
    for (from, to, expected) in [
        (stage, v1, "stage-v1 spec.volumes[0].source"),
        ("    image: /db/schema/repo/web:1\n", "", "missing-field spec.containers[0]"),
        (
            "readinessProbe: {port: 7101,",
            "readynessProbe: {port: 7101,",
            "unknown-field spec.containers[0].readynessProbe",
        ),
        (
            "readinessProbe: {port: 7101, path",
            "readinessProbe: {port: 7101, grpc: 1, path",
            "unknown-field spec.containers[0].readinessProbe.grpc",
        ),
        ("  endpoints:\n", "  endpoint: 1\n  endpoints:\n", "unknown-field spec.endpoint"),
        ("env: {LEVEL: info}", "env: [LEVEL]", "type spec.containers[0].env"),
        ("port: 7101", "port: \"7101\"", "type spec.containers[0].readinessProbe.port"),
        ("logLevel: INFO", "logLevel: DEBUG", "value spec.logExporters.eventTableConfig.logLevel"),
        ("groups: [system, status]", "groups: [system, disk]", "value spec.platformMonitor.metricConfig.groups[1]"),
        ("- name: side", "- name: Side_1", "name spec.containers[1].name"),
        ("- name: side", "- name: web", "duplicate-name spec.containers[1].name"),
        ("name: user_role", "name: user-role", "name serviceRoles[0].name"),
        ("endpoints: [api]", "endpoints: [door]", "role serviceRoles[0].endpoints[0]"),
        ("endpoints: [api]", "endpoints: []", "role serviceRoles[0].endpoints"),
        ("image: /db/schema/repo/web:1", "image: docker.io/library/web:1", "image spec.containers[0].image"),
        ("image: /db/schema/repo/web:1", "image: /db/schema/Repo/web:1", "image spec.containers[0].image"),
        ("image: /db/schema/repo/web:1", "image: /repo/web:1", "image spec.containers[0].image"),
        ("path: /readyz}\n    volume", "path: readyz}\n    volume", "probe spec.containers[0].readinessProbe.path"),
        ("port: 7101,", "port: 7101, periodSeconds: 0,", "probe spec.containers[0].readinessProbe.periodSeconds"),
        ("port: 7101", "port: 70000", "port spec.containers[0].readinessProbe.port"),
        ("port: 7102", "port: 7101", "port-clash spec.containers[1].readinessProbe.port"),
        ("portRange: 29501-29600", "port: 8080", "port-clash spec.endpoints[1].port"),
        ("portRange: 29501-29600", "portRange: 29600-29501", "port spec.endpoints[1].portRange"),
        ("portRange: 29501-29600", "portRange: 29501-29600, port: 1", "port spec.endpoints[1].portRange"),
        ("portRange: 29501-29600, protocol: TCP", "protocol: TCP", "port spec.endpoints[1]"),
        ("portRange: 29501-29600, protocol: TCP", "portRange: 29501-29600", "protocol spec.endpoints[1].portRange"),
        ("port: 8080, public: true", "port: 8080, protocol: TCP, public: true", "protocol spec.endpoints[0].public"),
        ("[https://a.example]", "[\"*\"]", "cors spec.endpoints[0].corsSettings.Access-Control-Allow-Origin[0]"),
        (
            "mountPath: /data}",
            "mountPath: /data}\n    - {name: daten, mountPath: /more}",
            "mount spec.containers[0].volumeMounts[1].name",
        ),
        ("mountPath: /data", "mountPath: data", "mount spec.containers[0].volumeMounts[0].mountPath"),
        ("mountPath: /data", "mountPath: /disk", "mount spec.containers[0].volumeMounts[1].mountPath"),
        ("    - {name: data, mountPath: /data}\n", "", "unmounted spec.volumes[0].name"),
        ("\"@db.schema.stage/folder\"", "'@db.schema.stage'", "stage spec.volumes[0].stageConfig.name"),
        ("\"@db.schema.stage/folder\"", "\"db.schema.stage\"", "stage spec.volumes[0].stageConfig.name"),
        ("    stageConfig: {name: \"@db.schema.stage/folder\"}\n", "", "stage spec.volumes[0]"),
        ("    uid: 10001\n", "    uid: -1\n", "volume spec.volumes[0].uid"),
        ("    uid: 10001\n", "    size: 1Gi\n", "volume spec.volumes[0].size"),
        ("stage/folder\"}", "stage/folder\", metadataCache: soon}", "stage spec.volumes[0].stageConfig.metadataCache"),
        (block, "source: disk", "value spec.volumes[1].source"),
        (block, "source: local\n    stageConfig: {name: \"@db.schema.stage\"}", "volume spec.volumes[1].stageConfig"),
        ("source: block\n    size: 100Gi", "source: local", "volume spec.volumes[1].blockConfig"),
        (block, "source: memory\n    size: 10", "size spec.volumes[1].size"),
        ("    size: 100Gi\n", "", "size spec.volumes[1]"),
        ("size: 100Gi", "size: 1.5Gi", "size spec.volumes[1].size"),
        ("size: 100Gi", "size: 70000Gi", "block spec.volumes[1].size"),
        ("iops: 3000", "iops: 100", "block spec.volumes[1].blockConfig.iops"),
        ("iops: 3000", "iops: 60000", "block spec.volumes[1].blockConfig.iops"),
        ("throughput: 125", "throughput: 3000", "block spec.volumes[1].blockConfig.throughput"),
        ("snapshotDeleteAfter: 7d", "snapshotDeleteAfter: 7w", "block spec.volumes[1].blockConfig.snapshotDeleteAfter"),
        (
            "requests: {cpu: 1, memory: 2Gi",
            "requests: {cpu: 1, memory: 2",
            "unit spec.containers[0].resources.requests.memory",
        ),
        (
            "requests: {cpu: 1, memory: 2Gi",
            "requests: {cpu: 1x, memory: 2Gi",
            "unit spec.containers[0].resources.requests.cpu",
        ),
        (
            "requests: {cpu: 1, memory: 2Gi",
            "requests: {cpu: 3, memory: 2Gi",
            "limit spec.containers[0].resources.requests.cpu",
        ),
        (gpu_request, "memory: 2Gi", "gpu spec.containers[0].resources.limits.nvidia.com/gpu"),
        (gpu_request, "memory: 2Gi, nvidia.com/gpu: 0.5", "gpu spec.containers[0].resources.requests.nvidia.com/gpu"),
        (secret, "directoryPath: /s\n      envVarName: HF_KEY", "secret spec.containers[0].secrets[0].envVarName"),
        (secret, "directoryPath: s", "secret spec.containers[0].secrets[0].directoryPath"),
        (
            secret,
            "directoryPath: /s\n      secretKeyRef: password",
            "secret spec.containers[0].secrets[0].secretKeyRef",
        ),
        (secret, "envVarName: HF_KEY", "secret spec.containers[0].secrets[0].envVarName"),
        ("      envVarName: HF_KEY\n      secretKeyRef: secret_string\n", "", "secret spec.containers[0].secrets[0]"),
        (
            "{objectName: db.schema.secret}",
            "{objectName: a, objectReference: b}",
            "secret spec.containers[0].secrets[0].snowflakeSecret",
        ),
        (
            "permission: \"0640\"",
            "permission: \"0755\"",
            "session-token spec.containers[0].sessionTokenConfig.permission",
        ),
        ("permission: \"0640\"", "permission: 640", "session-token spec.containers[0].sessionTokenConfig.permission"),
        ("path: /token, permission", "permission", "session-token spec.containers[0].sessionTokenConfig.permission"),
        ("{path: /token, permission: \"0640\"}", "{}", "session-token spec.containers[0].sessionTokenConfig"),
        (
            "    sessionTokenConfig",
            "    mountSessionToken: false\n    sessionTokenConfig",
            "session-token spec.containers[0].sessionTokenConfig",
        ),
    ] {
        assert_eq!(with(from, to, Severity::Error), [expected], "{from} -> {to}");
    }
}

#[test]
fn each_warning_is_found_alone_and_in_its_place() {
    for (from, to, expected) in [
        ("repo/web:1", "repo/web", "tag spec.containers[0].image"),
        ("repo/web:1", "repo/web:latest", "tag spec.containers[0].image"),
        ("    readinessProbe: {port: 7102, path: /readyz}\n", "", "no-probe spec.containers[1].name"),
        ("port: 7102", "port: 50051", "ephemeral-port spec.containers[1].readinessProbe.port"),
        ("port: 8080", "port: 50051", "ephemeral-port spec.endpoints[0].port"),
        ("LEVEL: info", "HF_TOKEN: abc", "plain-secret spec.containers[0].env.HF_TOKEN"),
        (
            "{objectName: db.schema.secret}",
            "{objectReference: b}",
            "secret spec.containers[0].secrets[0].snowflakeSecret.objectReference",
        ),
        (
            "stage/folder\"}",
            "stage/folder\", metadataCache: 90s}",
            "metadata-cache spec.volumes[0].stageConfig.metadataCache",
        ),
        ("    - {name: disk, mountPath: /disk}\n", "", "unmounted spec.volumes[1].name"),
        ("requests: {cpu: 1, ", "requests: {", "no-request spec.containers[0].resources.limits.cpu"),
        ("limits: {cpu: 2,", "limits: {cpu: 20,", "limit spec.containers[0].resources.limits.cpu"),
        (
            "port: 8080, public: true",
            "port: 8080, public: false",
            "caller capabilities.securityContext.executeAsCaller",
        ),
    ] {
        assert_eq!(with(from, to, Severity::Warning), [expected], "{from} -> {to}");
        assert_eq!(with(from, to, Severity::Error), Vec::<String>::new(), "{from} -> {to}");
    }
    let idle = GOOD.replace(", nvidia.com/gpu: 1", "");
    assert_eq!(found(&idle, &account("GPU_NV_S"), Severity::Warning), ["idle-gpu spec.containers"]);
    let memory = GOOD.replace("source: block\n    size: 100Gi", "source: memory\n    size: 1Gi\n    uid: 1");
    let memory = memory.split("    blockConfig").next().unwrap().to_owned();
    assert_eq!(found(&memory, &Account::default(), Severity::Warning), ["volume spec.volumes[1].uid"]);
}

#[test]
fn an_instance_must_fit_a_node() {
    let two = GOOD.replace("nvidia.com/gpu: 1", "nvidia.com/gpu: 2");
    let fit = ["fit spec.containers".to_owned()];
    assert_eq!(found(&two, &account("GPU_NV_S"), Severity::Error), fit);
    assert_eq!(found(&two, &account("GPU_NV_M"), Severity::Error), Vec::<String>::new());
    let wide =
        GOOD.replace("{cpu: 1, memory: 2Gi", "{cpu: 6, memory: 2Gi").replace("{cpu: 2, memory", "{cpu: 6, memory");
    assert_eq!(found(&wide, &account("GPU_NV_S"), Severity::Error), fit);
    let deep = GOOD.replace("2Gi, nv", "28Gi, nv").replace("4Gi, nv", "28Gi, nv");
    assert_eq!(found(&deep, &account("GPU_NV_S"), Severity::Error), fit, "the sidecar counts");
    assert_eq!(found(GOOD, &account("GEN_ARM_G1_8"), Severity::Error), fit);
    let many = GOOD.replace("nvidia.com/gpu: 1", "nvidia.com/gpu: 9");
    assert_eq!(found(&many, &Account::default(), Severity::Error), fit, "no family has nine");
    assert!(family("GPU_NV_XXL").unwrap_err().contains("GPU_NV_M"));
}

#[test]
fn counts_have_bounds() {
    let items = |range: std::ops::Range<usize>, item: &dyn Fn(usize) -> String| range.map(item).collect::<String>();
    let containers = items(0..19, &|n| {
        format!(
            "  - {{name: c{n}, image: /a/b/c/d:1, readinessProbe: {{port: {}, path: /}}, resources: {{requests: {{cpu: 0.1, memory: 10Mi}}}}}}\n",
            7200 + n
        )
    });
    let text = GOOD.replace("  endpoints:\n", &format!("{containers}  endpoints:\n"));
    assert_eq!(found(&text, &account("GPU_NV_S"), Severity::Error), ["too-many spec.containers[20]"]);
    let endpoints = items(0..99, &|n| format!("  - {{name: e{n}, port: {}}}\n", 9000 + n));
    let text = GOOD.replace("  volumes:\n", &format!("{endpoints}  volumes:\n"));
    assert_eq!(found(&text, &account("GPU_NV_S"), Severity::Error), ["too-many spec.endpoints[100]"]);
    let volumes = items(0..19, &|n| format!("  - {{name: v{n}, source: local}}\n"));
    let text = GOOD.replace("  logExporters:\n", &format!("{volumes}  logExporters:\n"));
    assert_eq!(found(&text, &account("GPU_NV_S"), Severity::Error), ["too-many spec.volumes[20]"]);
    let blocks = items(0..3, &|n| format!("  - {{name: b{n}, source: block, size: 10Gi}}\n"));
    let text = GOOD.replace("  logExporters:\n", &format!("{blocks}  logExporters:\n"));
    assert_eq!(found(&text, &account("GPU_NV_S"), Severity::Error), ["too-many spec.volumes[4]"]);
    let secrets = "    - {snowflakeSecret: s, directoryPath: /s}\n".repeat(50);
    let text = GOOD.replace("    sessionTokenConfig", &format!("{secrets}    sessionTokenConfig"));
    assert_eq!(found(&text, &account("GPU_NV_S"), Severity::Error), ["too-many spec.containers[0].secrets[50]"]);
    let none = "spec: {containers: []}";
    assert_eq!(found(none, &Account::default(), Severity::Error), ["too-few spec.containers"]);
}

#[test]
fn a_job_neither_scales_nor_has_a_door() {
    let job = Account { job: true, ..account("GPU_NV_S") };
    assert_eq!(found(GOOD, &job, Severity::Error), ["job spec.resourceManagement"]);
    assert_eq!(found(GOOD, &job, Severity::Warning), ["job spec.endpoints[0].public"]);
    let silent = GOOD.replace("    readinessProbe: {port: 7102, path: /readyz}\n", "");
    assert_eq!(found(&silent, &job, Severity::Warning), ["job spec.endpoints[0].public"], "nobody waits for a job");
}

#[test]
fn all_findings_come_at_once_each_with_its_line() {
    let text = GOOD.replace("name: side", "name: Side").replace("logLevel: INFO", "logLevel: DEBUG");
    let (findings, _) = check(&text, &account("GPU_NV_S"));
    let lines: Vec<u64> = findings.iter().map(|finding| finding.line).collect();
    let line_of = |part: &str| text.lines().position(|line| line.contains(part)).unwrap() as u64 + 1;
    assert_eq!(lines, [line_of("name: Side"), line_of("DEBUG")]);
    assert!(findings.iter().all(|finding| !finding.message.is_empty() && !finding.way_out.is_empty()));
}

#[test]
fn fields_of_the_top_level_are_sent_there() {
    let text = "spec:\n  containers: [{name: a, image: /a/b/c/d:1}]\n  serviceRoles: []\n";
    let (findings, _) = check(text, &Account::default());
    let role = findings.iter().find(|finding| finding.rule == "unknown-field").unwrap();
    assert!(role.way_out.contains("top level"), "{role}");
}

#[test]
fn what_is_no_yaml_is_told_by_its_line() {
    for (text, line) in [("spec:\n  a: 1\n  a: 2\n", 3), ("spec:\n  source: @stage\n", 2), ("", 0), ("- 1\n", 1)] {
        let (findings, _) = check(text, &Account::default());
        let finding = findings.iter().next().unwrap();
        assert!(["yaml", "type", "missing-field"].contains(&finding.rule), "{text}: {finding}");
        assert!(finding.line == line || line == 0, "{text}: {finding}");
    }
    // A document that would grow without bound is refused, and soon.
    let bomb = (1..30)
        .fold("a0: &a0 [x,x]\n".to_owned(), |text, n| format!("{text}a{n}: &a{n} [*a{0},*a{0},*a{0},*a{0}]\n", n - 1));
    assert!(check(&bomb, &Account::default()).0.count(Severity::Error) > 0);
}

#[test]
fn variables_of_a_template_are_filled_in_first() {
    let text = GOOD.replace("/db/schema/repo/web:1", "{{ image | default('/db/schema/repo/web:2') }}");
    assert_eq!(found(&text, &account("GPU_NV_S"), Severity::Error), Vec::<String>::new());
    let variables = BTreeMap::from([("image".to_owned(), "web".to_owned())]);
    let account = Account { variables, ..account("GPU_NV_S") };
    assert_eq!(found(&text, &account, Severity::Error), ["image spec.containers[0].image"]);
    assert_eq!(
        found(&text.replace(" | default('/db/schema/repo/web:2')", "s"), &account, Severity::Error),
        ["variable "]
    );
}

#[test]
fn a_script_is_checked_with_its_statements() {
    let script = |replace: &[(&str, &str)]| {
        let mut text = format!(
            "-- a comment; with 'signs\nCREATE STAGE IF NOT EXISTS s ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE');\n\
             CREATE COMPUTE POOL IF NOT EXISTS p MIN_NODES = 1 MAX_NODES = 1 INSTANCE_FAMILY = GPU_NV_S;\n\
             CREATE SERVICE IF NOT EXISTS db.sch.svc IN COMPUTE POOL p FROM SPECIFICATION $${GOOD}$$ MIN_INSTANCES = 1 \
             MAX_INSTANCES = 1;\n"
        );
        for (from, to) in replace {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        let findings = check_script(&text, &Account::default());
        findings.iter().map(|finding| format!("{} {}", finding.rule, finding.line)).collect::<Vec<_>>()
    };
    let end = 4 + GOOD.lines().count();
    assert_eq!(script(&[]), Vec::<String>::new());
    assert_eq!(script(&[("SNOWFLAKE_SSE')", "SNOWFLAKE_FULL')")]), ["encryption 2"]);
    assert_eq!(script(&[("GPU_NV_S", "GPU_NV_Q")]), ["family 3"]);
    assert_eq!(script(&[("GPU_NV_S", "CPU_X64_S")]), ["fit 7"]);
    assert_eq!(script(&[("endpoints: [api]", "endpoints: [x]")]), [format!("role {}", end - 1)]);
    assert_eq!(script(&[("MIN_INSTANCES = 1", "MIN_INSTANCES = 2")]).first().unwrap(), "instances 4");
    assert_eq!(script(&[("MAX_INSTANCES = 1", "MAX_INSTANCES = 2")]), ["instances 4"], "a block volume pins the count");
    assert_eq!(script(&[("MIN_INSTANCES = 1", "AUTO_SUSPEND_SECS = 60")]), ["suspend 4", "suspend 4"]);
    assert_eq!(script(&[("db.sch.svc", "db.sch.\"my svc\"")]), ["name 4"]);
    let job = [("CREATE SERVICE IF NOT EXISTS db.sch.svc", "EXECUTE JOB SERVICE NAME = j")];
    assert!(script(&job).iter().any(|finding| finding.starts_with("job ")), "{:?}", script(&job));
}
