"""The five services as processes, with the environments that the containers have."""

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

SERVICES = ["data-prep", "trainer", "model-registry", "inference", "gateway"]
ENVIRONMENTS = Path(__file__).parent.parent.parent / "deploy" / "env"
READY_SECONDS = 120
STOP_SECONDS = 40


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Stack:
    """Starts them on a stage with the bundled base; each is ready. Their spans go to the collector's port."""

    def __init__(self, binaries, work, collector_port):
        self.work = Path(work)
        self.processes = {}
        self._ports = {service: (_free_port(), _free_port()) for service in SERVICES}
        subprocess.run([f"{binaries}/firn", "init", "--stage", "stage"], cwd=work, check=True, timeout=60)
        for service in SERVICES:
            log = open(self.work / f"{service}.log", "w")
            environment = self._environment(service) | {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector_port}",
            }
            self.processes[service] = subprocess.Popen(
                [f"{binaries}/firn-{service}"], env=environment, stdout=log, stderr=log
            )
        for service in SERVICES:
            self._wait_ready(service)

    def _environment(self, service):
        port, health = self._ports[service]
        here = {
            "FIRN_STAGE": str(self.work / "stage"),
            "FIRN_WORK_DIR": str(self.work / f"work-{service}"),
            "FIRN_LISTEN": f"127.0.0.1:{port}",
            "FIRN_HTTP": f"127.0.0.1:{port}",
            "FIRN_HEALTH_LISTEN": f"127.0.0.1:{health}",
            "FIRN_DATA_PREP_ENDPOINT": self._url("data-prep"),
            "FIRN_TRAINER_ENDPOINT": self._url("trainer"),
            "FIRN_REGISTRY_ENDPOINT": self._url("model-registry"),
            "FIRN_INFERENCE_ENDPOINT": self._url("inference"),
        }
        lines = (ENVIRONMENTS / f"{service}.env").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        return {name: here.get(name, value) for name, value in given.items()}

    def _url(self, service):
        return f"http://127.0.0.1:{self._ports[service][0]}"

    def _wait_ready(self, service):
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self.processes[service].poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[service][1]}/readyz", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"{service} is not ready:\n{(self.work / f'{service}.log').read_text()}")

    def http(self, path, body=None, content_type="application/json"):
        """A request to the gateway; gives the answer's JSON."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self._url("gateway") + path, data, {"content-type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.code} {error.read().decode()}") from error

    def stop(self):
        """Asks all to end, which also sends their last spans."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for service, process in self.processes.items():
            status = process.wait(STOP_SECONDS)
            if status:
                raise SystemExit(f"{service} ended with {status}:\n{(self.work / f'{service}.log').read_text()}")

    def kill(self):
        for process in self.processes.values():
            process.kill()
            process.wait(5)
