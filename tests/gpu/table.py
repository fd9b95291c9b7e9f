"""LoRA training of Firn and of its peers on one GPU, in turn, as a table with ratios.

  python3 table.py FIRN [ARCHITECTURE:SEQUENCE:BATCH:MODE,MODE… …]
"""
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT = ["llama32_1b:2048:8:hf,liger,hf_compile,liger_compile", "qwen25_0_5b:2048:8:hf,liger,hf_compile,liger_compile",
           "llama31_8b:4096:2:hf,liger,liger_compile"]


def last_json(command, timeout, first=False, environment=None):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(environment or {})})
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {timeout} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[0 if first else -1]) if lines else {"error": (done.stderr or "no output").strip()[-300:]}


def first_and_second(command):
    """A run that compiles its kernels, and the start of another one that finds them kept."""
    with tempfile.TemporaryDirectory() as folder:
        return [last_json([*command, "--steps", steps], 240, environment={"FIRN_KERNEL_CACHE": folder}) for steps in ("10", "1")]


def main():
    firn, runs = sys.argv[1], sys.argv[2:] or DEFAULT
    for run in runs:
        arch, seq, batch, modes = run.split(":")
        ours, again = first_and_second([firn, "bench", "train", "--arch", arch, "--seq", seq, "--batch", batch, "--rank", "16",
                                        "--device", "cuda:0", "--peak-tflops", "790", "--json"])
        speed, memory = ours.get("tokens_per_second"), ours.get("device_memory_bytes", 0) / 2**30
        text = str(ours)
        if speed:
            text = f"{speed:.0f} tokens/s, mfu {ours['mfu']:.3f}, {memory:.1f} GiB, first step {ours['first_step_seconds']:.1f} s after the start, "
            if "first_step_seconds" in again:
                text += f"{again['first_step_seconds']:.1f} s where kernels were kept (weights {again['ready_seconds']:.1f}), "
            else:
                text += f"KERNELS WERE KEPT IN VAIN: {again['error']}, "
            text += f"loss {ours['loss']:.4f} to {ours['last_loss']:.4f}, gradient {ours['grad_norm']:.4f}"
        print(f"{arch} {batch} x {seq}: firn {text}", flush=True)
        for mode in filter(None, modes.split(",")):
            peer = last_json([sys.executable, os.path.join(HERE, "peer_train.py"), "--arch", arch, "--mode", mode, "--seq", seq, "--batch", batch], 240)
            if "tokens_per_s" not in peer:
                print(f"  {mode}: {peer.get('error', peer)}"[:400], flush=True)
                continue
            text = f"  {mode}: {peer['tokens_per_s']:.0f} tokens/s, {peer['peak_reserved_gib']:.1f} GiB, loss {peer['loss_first']:.4f} to {peer['loss_last']:.4f}"
            if speed:
                text += f"; firn is {speed / peer['tokens_per_s']:.2f} x as fast in {memory / peer['peak_reserved_gib']:.2f} x the memory"
            print(text, flush=True)


if __name__ == "__main__":
    main()
