"""Asks a running stack for one fine-tuning, and draws the request's trace: trace.py BINARIES FOLDER PICTURE."""

import json
import sys
import time

from collector import Collector
from picture import draw
from stack import Stack

JOB_SECONDS = 600
# Through these a fine-tuning goes; inference has the version afterwards, by itself.
SERVICES = {"gateway", "trainer", "data-prep", "model-registry"}


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


def of_job(spans, job):
    """The spans of the request that made the job, and of the work on it, if that is a trace of its own."""
    made = {span.trace for span in spans if span.attributes.get("path") == "/v1/fine_tuning/jobs" and span.name == "POST"}
    worked = {span.trace for span in spans if span.name == "job.run" and span.attributes.get("job") == job}
    return [span for span in spans if span.trace in made | worked], made | worked


def main(binaries, work, picture):
    collector = Collector()
    stack = Stack(binaries, work, collector.port)
    try:
        job = fine_tune(stack)
        stack.stop()
    finally:
        stack.kill()
    spans, traces = of_job(collector.spans(), job["id"])
    collector.stop()
    services = {span.service for span in spans}
    with open(picture, "w") as file:
        file.write(draw(f"One fine-tuning request, {job['id']}", spans))
    print(f"{picture}: {len(spans)} spans of {', '.join(sorted(services))}")
    missing = SERVICES - services
    if missing:
        raise SystemExit(f"there are no spans of {', '.join(sorted(missing))}")
    if len(traces) > 1:
        raise SystemExit(f"the request and the work that it asked for are {len(traces)} traces: {', '.join(traces)}")


main(*sys.argv[1:])
