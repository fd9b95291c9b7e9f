//! Starts Firn's five services as processes, from the env files that the containers use, and drives them as a user would.
//! With `FIRN_TEST_STAGE=emulated` the stages of all tests are mounted, with the rules of a stage mount.

mod work;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use self::work::Work;

/// The services, in the order in which rows go through them.
pub const SERVICES: [&str; 5] = ["data-prep", "trainer", "model-registry", "inference", "gateway"];

/// The variable, and the secret that the services share here; [`firn`] knows it.
pub const MESH_TOKEN: (&str, &str) = ("FIRN_MESH_TOKEN", "known-to-the-tests-alone");

/// Longest wait for a service to be ready.
const READY: Duration = Duration::from_secs(60);

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Path of one of the workspace's binaries. `cargo test --workspace` builds them, each for its own package's tests.
///
/// # Errors
/// It is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    // The tests lie in `target/<profile>/deps`, the binaries one folder up.
    let test = std::env::current_exe()?;
    let path = test.ancestors().nth(2).context("the test has no folder")?.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo test --workspace`", path.display());
    Ok(path)
}

/// Runs `firn` with these arguments in a folder; no test asks the public hub.
///
/// # Errors
/// It can't be started.
pub fn firn(folder: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("firn")?);
    command.args(args).env("HF_HUB_OFFLINE", "1").env(MESH_TOKEN.0, MESH_TOKEN.1);
    Ok(command.current_dir(folder).stdin(Stdio::null()).output()?)
}

/// Five processes on one stage.
pub struct Processes {
    work: Work,
    ports: BTreeMap<&'static str, [u16; 2]>,
    children: BTreeMap<&'static str, Child>,
}

impl Processes {
    /// Makes a stage with the bundled base and starts all services; each is ready.
    ///
    /// # Errors
    /// One does not start.
    pub fn start() -> Result<Self> {
        let mut ports = BTreeMap::new();
        for service in SERVICES {
            ports.insert(service, [free_port()?, free_port()?]);
        }
        let mut processes = Self { work: Work::new()?, ports, children: BTreeMap::new() };
        let output = firn(processes.work.path(), &["init", "--stage", "stage"])?;
        ensure!(output.status.success(), "firn init: {}", String::from_utf8_lossy(&output.stderr));
        for service in SERVICES {
            processes.spawn(service)?;
        }
        for service in SERVICES {
            processes.wait_ready(service)?;
        }
        Ok(processes)
    }

    /// Folder with the stage in it, and the services' logs.
    pub fn folder(&self) -> &Path {
        self.work.path()
    }

    /// gRPC address of a service; the gateway's is HTTP.
    pub fn url(&self, service: &str) -> String {
        format!("http://127.0.0.1:{}", self.ports.get(service).map_or(0, |ports| ports[0]))
    }

    /// Arguments that lead `firn` to these services.
    pub fn endpoints(&self) -> Vec<String> {
        [("data-prep", "data-prep"), ("trainer", "trainer"), ("model-registry", "registry"), ("inference", "inference")]
            .iter()
            .flat_map(|(service, flag)| [format!("--{flag}-endpoint"), self.url(service)])
            .collect()
    }

    /// Kills a service as a machine's end would: no signal that it could handle.
    ///
    /// # Errors
    /// It can't be killed.
    pub fn kill(&mut self, service: &'static str) -> Result<()> {
        let mut child = self.children.remove(service).context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts a service again and waits until it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, service: &'static str) -> Result<()> {
        self.spawn(service)?;
        self.wait_ready(service)
    }

    /// Asks all services to end, and gives each one's exit status.
    ///
    /// # Errors
    /// One does not end in time.
    pub fn stop(&mut self) -> Result<BTreeMap<&'static str, Option<i32>>> {
        let mut ends = BTreeMap::new();
        for (service, child) in &mut self.children {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
            let begin = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                ensure!(begin.elapsed() < Duration::from_secs(30), "{service} does not end");
                std::thread::sleep(Duration::from_millis(50));
            };
            ends.insert(*service, status.code());
        }
        self.children.clear();
        Ok(ends)
    }

    fn spawn(&mut self, service: &'static str) -> Result<()> {
        let log = self.work.path().join(format!("{service}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let [port, health] = self.ports.get(service).copied().context("unknown service")?;
        let mut command = Command::new(binary(&format!("firn-{service}"))?);
        let file = workspace().join(format!("deploy/env/{service}.env"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.split_once('=').with_context(|| format!("{line} is no assignment"))?;
            command.env(name, self.here(name, value, service));
        }
        let address = |port| format!("127.0.0.1:{port}");
        command.env(MESH_TOKEN.0, MESH_TOKEN.1);
        command.env(if service == "gateway" { "FIRN_HTTP" } else { "FIRN_LISTEN" }, address(port));
        command.env("FIRN_HEALTH_LISTEN", address(health)).stdout(log.try_clone()?).stderr(log);
        self.children.insert(service, command.spawn()?);
        Ok(())
    }

    /// A container's value, with this machine's folders and ports for the container's.
    fn here(&self, name: &str, value: &str, service: &str) -> String {
        let folder = self.work.path().display();
        match name {
            "FIRN_STAGE" => self.work.stage().display().to_string(),
            "FIRN_WORK_DIR" => format!("{folder}/work-{service}"),
            "FIRN_DATA_PREP_ENDPOINT" => self.url("data-prep"),
            "FIRN_TRAINER_ENDPOINT" => self.url("trainer"),
            "FIRN_REGISTRY_ENDPOINT" => self.url("model-registry"),
            "FIRN_INFERENCE_ENDPOINT" => self.url("inference"),
            _ => value.to_owned(),
        }
    }

    fn wait_ready(&mut self, service: &'static str) -> Result<()> {
        let port = self.ports.get(service).map_or(0, |ports| ports[1]);
        let begin = Instant::now();
        while begin.elapsed() < READY {
            if http(port, "GET", "/readyz", "").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            if let Some(status) = self.children.get_mut(service).context("it does not run")?.try_wait()? {
                let log = std::fs::read_to_string(self.work.path().join(format!("{service}.log")))?;
                bail!("{service} ended with {status}:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("{service} is not ready after {READY:?}")
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            // A test that failed: nothing is left to report to.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One HTTP/1.1 request on loopback; gives status and body.
///
/// # Errors
/// Nothing answers, or not HTTP.
pub fn http(port: u16, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).context("no status")?.parse()?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// A port that nobody listens on, below the range from which the system gives ports to clients: a service that is started
/// again must find its own.
fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u32> = 12_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run side by side begin at different places.
    let spread = std::process::id().wrapping_mul(97);
    for _ in PORTS {
        let at = spread.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + at)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("every port from {} to {} is taken", PORTS.start, PORTS.end)
}
