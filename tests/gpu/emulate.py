"""Runs the kernels of products with adapters on a CPU, for batches of all sizes: their results beside sums in double precision, and
each row's f32 sums beside those that it has in the largest batch, which must be the same to the last bit.

  python3 emulate.py

Needs g++ 11 or later, and a minute. What it does not show: copies that are still on their way, launches that overlap, time.
"""
import os
import re
import subprocess
import sys
import tempfile

from compile import FEW, KERNELS, ONE

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "emulate")
SHAPES = {"one weight": dict(WEIGHTS=1, OUT0=72, OUT1=8, OUT2=8), "three": dict(WEIGHTS=3, RANKS=48, IN=200, OUT0=72, OUT1=40, OUT2=24),
          "gated": dict(WEIGHTS=2, GLU=1, RANKS=16, OUT0=72, OUT1=72, OUT2=8)}
# The largest batch first: the others are compared with it.
BATCHES = [dict(BATCH=32, BANDS=2, SPLITS=2, ROWS=40, FACTOR_SPLITS=4), dict(BATCH=32, SPLITS=1, ROWS=20), dict(BATCH=32, SPLITS=4, ROWS=20, FACTOR_SPLITS=4),
           dict(BATCH=16, SPLITS=1, ROWS=12), dict(BATCH=16, SPLITS=2, ROWS=12, FACTOR_SPLITS=4), dict(BATCH=8, ROWS=5), dict(BATCH=8, ROWS=7),
           *[dict(ONE=1, ROWS=1, STAGES=stages) for stages in (4, 5, 6)]]
# What stands in for assembly, and for what only a GPU's compiler knows.
STAND_INS = [
    (r"#include <cuda_bf16.h>", ""),
    (r"/// Sixteen bytes into shared memory.*?(?=/// Where sixteen bytes of a step's row lie)", ""),
    (r'asm volatile\("st\.relaxed.*?: "memory"\);', "to[0] = one, to[1] = other;"),
    (r'asm volatile\("ld\.relaxed.*?: "memory"\);', "memcpy(pair, told_at(split, row, module + m, rank, p), 16);"),
    (r'asm volatile\("bar\.sync.*?"memory"\);', "group_sync(group);"),
    (r"extern __shared__ __align__\(1024\) unsigned char shared\[\];", "unsigned char* shared = dynamic_shared;"),
    (r"__shared__(?: __align__\(16\))? ([\w:]+ (\w+)(?:\[[^;]*\])?);", r"alignas(16) static \1; forget(&\2, sizeof \2);"),
    (r"(\n    pick\(of\.results[^;]*;)", r"\1\n    unrounded[tile.module][row * tile.out + o] = GLU ? activation(result) * other : result;"),
]


def run(folder, defines):
    text = "".join(open(os.path.join(KERNELS, file)).read() for file in (ONE if defines["ONE"] else FEW) if file not in ("norm_row.cuh", "join.cuh", "tiles.cuh"))
    # GPUs before Hopper have no early launches.
    for pattern, stand_in in STAND_INS:
        text = re.sub(pattern, stand_in, text, flags=re.S)
    prelude = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    prelude += f'#include "{HERE}/cuda.h"\nstatic float unrounded[3][64 * 128];\n'
    path = os.path.join(folder, "product")
    with open(path + ".cpp", "w") as file:
        file.write(prelude + text + open(os.path.join(HERE, "products.cpp")).read())
    subprocess.run(["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-pthread", path + ".cpp", "-o", path], check=True)
    done = subprocess.run([path, path + ".sums"], capture_output=True, text=True, timeout=120, check=True)
    sums = open(path + ".sums", "rb").read()
    width = len(sums) // defines["ROWS"]
    return float(done.stdout), [sums[row * width:(row + 1) * width] for row in range(defines["ROWS"])]


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            largest = None
            for batch in BATCHES:
                defines = dict(BATCH=8, BANDS=1, SPLITS=1, LORA=1, RANKS=32, IN=1000, ONE=0, GLU=0) | shape | batch
                error, rows = run(folder, defines)
                largest = largest or rows
                same = all(row == of for row, of in zip(rows, largest))
                failed += not same or error > 2 ** -7
                print(f"{name}, {batch}: {error:.1e} from exact, {'the same bits' if same else 'OTHER BITS'}", flush=True)
    print(f"{len(SHAPES) * len(BATCHES) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
