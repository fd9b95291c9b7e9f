"""Trains on a GPU, through the command line, what PEFT trained on tests/fixtures, and compares the losses.

  python3 fixtures.py FIRN FOLDER [DEVICE…]      needs numpy and safetensors
"""
import json
import os
import subprocess
import sys
import tempfile

from safetensors.numpy import load_file

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]
# Largest difference of a step's loss, nats, and of its gradient's norm, relative. On a GPU f32 products round their inputs to
# 19 bits (TF32), bf16 to 8 bits of mantissa.
BOUNDS = {"cuda:0:f32": (5e-3, 2e-2), "cuda:0": (3e-2, 1e-1)}


def steps(firn, fixture, adapter, rows, device, flags):
    with tempfile.TemporaryDirectory() as work:
        with open(os.path.join(work, "rows.jsonl"), "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        command = [firn, "llm", "--train", "--project-name", "out", "--data-path", "rows.jsonl", "--json", "--model", fixture,
                   "--adapter", os.path.join(fixture, adapter), "--no-shuffle", "--packing", "none", "--scheduler", "constant",
                   "--warmup-ratio", "0", "--weight-decay", "0.01", "--device", device, *flags]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return [line for line in lines if "grad_norm" in line]


def main():
    firn, folder = os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2])
    failed = 0
    for device, (loss_bound, norm_bound) in BOUNDS.items():
        if sys.argv[3:] and device not in sys.argv[3:]:
            continue
        for family in FAMILIES:
            fixture = os.path.join(folder, family)
            golden = json.load(open(os.path.join(fixture, "golden.json")))
            tensors = {name: t.reshape(-1, t.shape[-1]) for name, t in load_file(os.path.join(fixture, "golden.safetensors")).items()}
            rows = [{"input_ids": ids.tolist(), "labels": [i if m == 1 else -100 for i, m in zip(ids.tolist(), mask.tolist())]}
                    for ids, mask in zip(tensors["sft_ids"], tensors["sft_mask"])]
            found = steps(firn, fixture, "adapter_init", rows, device, ["--epochs", "1", "--batch-size", "2", "--lr", "2e-3"])
            expected = golden["sft"]
            loss = max(abs(a["loss"] - b) for a, b in zip(found, expected["losses"]))
            norm = max(abs(a["grad_norm"] / b - 1) for a, b in zip(found, expected["grad_norms"]))
            prompt = next(i for i, bit in enumerate(tensors["dpo_mask"][0]) if bit != 0)
            pairs = [{"prompt_ids": c[:prompt].tolist(), "chosen_ids": c[prompt:].tolist(), "rejected_ids": r[prompt:].tolist()}
                     for c, r in zip(tensors["dpo_chosen"], tensors["dpo_rejected"])]
            flags = ["--trainer", "dpo", "--epochs", "5", "--batch-size", "4", "--lr", "5e-4", "--max-grad-norm", "0"]
            dpo = steps(firn, fixture, "adapter_final", pairs, device, flags)
            preference = max(abs(a["loss"] - b["loss"]) for a, b in zip(dpo, golden["dpo"]["steps"]))
            whole = len(found) == len(expected["losses"]) and len(dpo) == len(golden["dpo"]["steps"])
            good = whole and loss <= loss_bound and norm <= norm_bound and preference <= loss_bound
            failed += not good
            print(f"{'ok  ' if good else 'FAIL'} {family} on {device}: SFT loss within {loss:.1e}, norm {norm:.1e}, DPO loss {preference:.1e}", flush=True)
    print(f"{failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
