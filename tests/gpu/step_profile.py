"""Where the time of a step goes: each kernel of the last step alone, by NVIDIA's ncu, which comes with CUDA's toolkit.

  python3 step_profile.py FIRN train --arch llama31_8b --seq 4096 --batch 2
  python3 step_profile.py FIRN infer --arch llama32_1b --seq 512 --batch 32 --adapters 8

The rest of the line goes to `firn bench`. A kernel's time is that of one that begins when the one before has ended, so the sum is more
than the step takes where kernels overlap.
"""
import collections
import csv
import os
import shutil
import subprocess
import sys

# The last kernel of a step, and arguments for as few steps as there must be.
KINDS = {"train": ("adamw", ["--steps", "1"]), "infer": ("argmax", ["--steps", "4"])}
# Groups that take less are one line.
LEAST = 0.005


def step_of(rows, last):
    """Kernels, as (name, grid, seconds), after the last but one that ends a step, to the one that ends the last."""
    kernels = [(row["Kernel Name"], row["Grid Size"].replace(", ", " × ").strip("()"), 1e-9 * float(row["Metric Value"].replace(",", "")))
               for row in rows]
    ends = [at for at, (name, _, _) in enumerate(kernels) if name == last]
    if len(ends) < 2:
        raise SystemExit(f"{len(ends)} steps ended with {last} among {len(kernels)} kernels: two are needed")
    return kernels[ends[-2] + 1:ends[-1] + 1]


def table(kernels):
    groups = collections.defaultdict(list)
    for name, grid, seconds in kernels:
        groups[name, grid].append(seconds)
    whole = sum(seconds for _, _, seconds in kernels)
    yield f"{len(kernels)} kernels, {1e3 * whole:.2f} ms"
    rest = 0.0
    for (name, grid), times in sorted(groups.items(), key=lambda group: -sum(group[1])):
        total = sum(times)
        if total < LEAST * whole:
            rest += total
            continue
        yield f"{100 * total / whole:5.1f} %  {1e3 * total:9.3f} ms  {len(times):5} × {1e6 * total / len(times):9.1f} µs  {name} ({grid})"
    yield f"{100 * rest / whole:5.1f} %  {1e3 * rest:9.3f} ms  others"


def main():
    if len(sys.argv) < 3 or sys.argv[2] not in KINDS:
        raise SystemExit(__doc__)
    firn, kind, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
    ncu = shutil.which("ncu") or os.path.join(os.environ.get("CUDA_PATH", "/usr/local/cuda"), "bin", "ncu")
    last, steps = KINDS[kind]
    command = [ncu, "--graph-profiling", "node", "--cache-control", "none", "--clock-control", "none", "--metrics", "gpu__time_duration.sum",
               "--print-units", "base", "--csv", firn, "bench", kind, *arguments, *steps, "--device", "cuda:0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{' '.join(command)}: {(done.stdout + done.stderr).strip()[-600:]}")
    for line in table(step_of(csv.DictReader(lines), last)):
        print(line)


if __name__ == "__main__":
    main()
