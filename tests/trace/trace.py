"""Asks a running stack for one fine-tuning and one answer, holds the spans of both against what a trace must be, and draws
the fine-tuning's: trace.py BINARIES FOLDER PICTURE."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from collector import Collector
from picture import draw
from stack import Stack

JOB_SECONDS = 600
# Through these a fine-tuning goes; inference has the version afterwards, by itself.
FINE_TUNING = {"gateway", "trainer", "data-prep", "model-registry"}
ANSWER = {"gateway", "inference"}
GATEWAY, COMMAND = ("gateway", "POST"), ("firn", "command")


def form(name, content):
    edge = "firn-trace"
    head = f'--{edge}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{edge}\r\n'
    head += f'content-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return f"{head}{content}\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def rows():
    sellers, items = ["Alder", "Birch", "Cedar", "Dogwood"], ["lamp", "rope", "kettle", "drum", "bell"]
    for row in range(60):
        seller, item = sellers[row % 4], items[row % 5]
        yield json.dumps({"prompt": f"Sell {item} {row}.", "completion": f"{seller} sells {item} {row} for ${row * 2}."})


def fine_tune(stack):
    """Asks for a job, waits for it, and gives it."""
    file = stack.http("/v1/files", *form("rows.jsonl", "\n".join(rows())))
    order = {"model": "base", "training_file": file["id"], "suffix": "traced", "hyperparameters": {"n_epochs": 2}}
    job = stack.http("/v1/fine_tuning/jobs", order)
    end = time.monotonic() + JOB_SECONDS
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        if time.monotonic() > end:
            raise SystemExit(f"the job is not done after {JOB_SECONDS} s")
        time.sleep(0.5)
        job = stack.http(f"/v1/fine_tuning/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise SystemExit(f"the job did not succeed: {job}")
    return job


def ask(stack):
    """Asks the base for a few words."""
    stack.http("/v1/chat/completions", {"model": "base", "max_tokens": 4, "messages": [{"role": "user", "content": "Sell."}]})


def of_request(spans, path, job=None):
    """The spans of what was asked at a path and, should that be another trace, of the work on a job."""
    traces = {span.trace for span in spans if span.name == "POST" and span.attributes.get("path") == path}
    traces |= {span.trace for span in spans if span.name == "job.run" and span.attributes.get("job") == job}
    return [span for span in spans if span.trace in traces]


def train(binaries, work, collector):
    """Trains by the command, whose services are threads of it."""
    (Path(work) / "rows.jsonl").write_text("\n".join(rows()))
    line = ["llm", "--train", "--project-name", "told", "--stage", "alone", "--data-path", "rows.jsonl", "--epochs", "1"]
    address = f"http://127.0.0.1:{collector.port}"
    environment = os.environ | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": address}
    subprocess.run([f"{binaries}/firn", *line], cwd=work, env=environment, check=True, timeout=JOB_SECONDS, stdout=subprocess.DEVNULL)


def of_command(spans):
    """The spans of the command's one trace, among which the job's must be."""
    traces = {span.trace for span in spans if (span.service, span.name) == COMMAND}
    traces |= {span.trace for span in spans if span.service == "firn" and span.name == "job.run"}
    return [span for span in spans if span.trace in traces]


def check(what, spans, services, root=GATEWAY):
    """Ends with the reason if the spans are not one tree that goes through the services."""
    missing = services - {span.service for span in spans}
    if missing:
        raise SystemExit(f"{what}: there are no spans of {', '.join(sorted(missing))}")
    traces = {span.trace for span in spans}
    if len(traces) > 1:
        raise SystemExit(f"{what} and the work that it asked for are {len(traces)} traces: {', '.join(sorted(traces))}")
    roots = [span for span in spans if not span.parent]
    if [(found.service, found.name) for found in roots] != [root]:
        raise SystemExit(f"{what}: not {root} alone has no parent: {roots}")
    known = {span.id for span in spans}
    orphans = [span for span in spans if span.parent and span.parent not in known]
    if orphans:
        raise SystemExit(f"{what}: the parents of {len(orphans)} spans were not sent: {orphans}")


def main(binaries, work, picture):
    collector = Collector()
    stack = Stack(binaries, work, collector.port)
    try:
        job = fine_tune(stack)
        ask(stack)
        stack.stop()
    finally:
        stack.kill()
    train(binaries, work, collector)
    collector.stop()
    spans = of_request(collector.spans(), "/v1/fine_tuning/jobs", job["id"])
    check("the fine-tuning", spans, FINE_TUNING)
    check("the answer", of_request(collector.spans(), "/v1/chat/completions"), ANSWER)
    command = of_command(collector.spans())
    check("the command", command, {"firn"}, COMMAND)
    if not any(span.name == "job.run" for span in command):
        raise SystemExit("the command: there is no span of its job")
    drawn = draw(f"One fine-tuning request, {job['id']}", spans)
    bars = ElementTree.fromstring(drawn).findall("{*}rect/{*}title")
    if len(bars) != len(spans):
        raise SystemExit(f"the picture has {len(bars)} bars for {len(spans)} spans")
    with open(picture, "w") as file:
        file.write(drawn)
    print(f"{picture}: {len(spans)} spans of {', '.join(sorted({span.service for span in spans}))}")


main(*sys.argv[1:])
