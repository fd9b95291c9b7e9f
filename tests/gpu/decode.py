"""Greedy decoding of Firn and of Hugging Face transformers on one GPU, in turn, with ratios and shares of the memory's ceiling.

  python3 decode.py FIRN [ARCHITECTURE:BATCH:CASE,CASE… …]
"""
import os
import subprocess
import sys

from peer_infer import step_bytes
from peer_train import ARCHS
from table import HERE, last_json

PROMPT, NEW = 512, 128
DEFAULT = ["llama32_1b:1:eager,compile", "llama32_1b:32:eager,compile", "llama31_8b:1:compile", "llama31_8b:32:eager,compile"]
# What copies reach of a GPU's memory bandwidth, TB/s.
BANDWIDTH = {"H200": 4.3, "H100": 3.0, "A100": 1.75}


def bandwidth():
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True).stdout
    return next((rate for card, rate in BANDWIDTH.items() if card in name), None)


def firn(binary, arch, batch, adapters):
    return last_json([binary, "bench", "infer", "--arch", arch, "--seq", str(PROMPT), "--steps", str(NEW), "--batch", str(batch),
                      "--adapters", str(adapters), "--device", "cuda:0", "--json"], 200)


def main():
    binary, runs = sys.argv[1], sys.argv[2:] or DEFAULT
    rate = bandwidth()
    for run in runs:
        arch, batch, cases = run.split(":")
        batch = int(batch)
        ours = firn(binary, arch, batch, 0)
        speed = ours.get("tokens_per_second")
        if not speed:
            print(f"{arch}, batch {batch}: firn {ours}", flush=True)
            continue
        text = f"{speed:.0f} tokens/s, {1e3 * ours['median_step_seconds']:.2f} ms a step, {ours['device_memory_bytes'] / 2**30:.1f} GiB"
        if rate:
            weights, cache = step_bytes(ARCHS[arch], batch, PROMPT + NEW / 2, 2)
            text += f", {100 * speed * (weights + cache) / (batch * rate * 1e12):.0f} % of what {rate} TB/s allow"
        if ours["unrecorded"]:
            text += f"; NOT RECORDED: {ours['unrecorded']}"
        print(f"{arch}, batch {batch}: firn {text}", flush=True)
        mixed = min(batch, 8)
        adapted = firn(binary, arch, batch, mixed)
        if "tokens_per_second" in adapted:
            slower = 100 * (speed / adapted["tokens_per_second"] - 1)
            print(f"  {mixed} adapters: {adapted['tokens_per_second']:.0f} tokens/s, a step takes {slower:.1f} % longer", flush=True)
        else:
            print(f"  {mixed} adapters: {adapted}", flush=True)
        for case in filter(None, cases.split(",")):
            peer = last_json([sys.executable, os.path.join(HERE, "peer_infer.py"), "--arch", arch, "--batches", str(batch),
                              "--prompt", str(PROMPT), "--new", str(NEW), "--cases", case, "--reps", "2"], 240, first=True)
            if "tokens_per_s" in peer:
                print(f"  transformers, {case}: {peer['tokens_per_s']:.0f} tokens/s; firn is {speed / peer['tokens_per_s']:.2f} x as fast", flush=True)
            else:
                print(f"  transformers, {case}: {peer.get('error', peer)}"[:400], flush=True)


if __name__ == "__main__":
    main()
