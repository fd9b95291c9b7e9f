"""Compiles every kernel of services/llm/src/ops/cuda/kernels, and what kernels that CubeCL writes include, with a toolkit's
NVRTC and headers, for the GPUs that Firn is made for. Needs no GPU.

  python3 compile.py TOOLKIT        a folder that deploy/docker/cuda-toolkit laid out, as images have it, or /usr/local/cuda
"""
import ctypes
import glob
import os
import sys
from concurrent.futures import ThreadPoolExecutor

ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90a"]
KERNELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../services/llm/src/ops/cuda/kernels")
# What cubecl-cpp puts on top of a kernel, by what the kernel does.
HEADERS = ["cuda/barrier", "cooperative_groups.h", "cooperative_groups/memcpy_async.h", "mma.h", "cuComplex.h"]
HEADERS += ["cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "cuda_fp6.h", "cuda_fp4.h"]
HEADS = [16, 32, 64, 96, 128, 256]


def gemms():
    for tile in (64, 128, 256):
        for left, right in ((0, 0), (0, 1), (1, 1)):
            for segments, partial in ((1, 0), (2, 0), (1, 1)):
                yield dict(TILE_N=tile, A_TRANSPOSED=left, B_TRANSPOSED=right, SEGMENTS=segments, PARTIAL=partial)
        # Gradients of what up to three layers read, and their adapters.
        for segments in (3, 4):
            yield dict(TILE_N=tile, B_TRANSPOSED=1, SEGMENTS=segments)


def flags(**values):
    """All combinations of a flag's values."""
    combinations = [{}]
    for name, choices in values.items():
        combinations = [{**one, name: choice} for one in combinations for choice in choices]
    return combinations


FEW = ["vector.cuh", "tiles.cuh", "product.cuh", "adapters.cuh", "share.cuh", "matvec.cu"]
ONE = ["vector.cuh", "norm_row.cuh", "join.cuh", "tiles.cuh", "product.cuh", "adapters.cuh", "one_row.cu"]
# Files that are put one after another, and the constants that the crate gives them.
TEXTS = [
    (["wgmma.cuh", "gemm.cu"], list(gemms())),
    (["mma.cuh", "attention.cu"], flags(HEAD_DIM=HEADS)),
    (["mma.cuh", "attention_backward.cu"], flags(HEAD_DIM=HEADS) + [dict(HEAD_DIM=64, SPLIT=1)]),
    (["mma.cuh", "wgmma.cuh", "attention_wgmma.cuh", "attention_wgmma.cu"], flags(HEAD_DIM=[64, 128])),
    (["mma.cuh", "wgmma.cuh", "attention_wgmma.cuh", "attention_wgmma_backward.cu"], flags(HEAD_DIM=[64, 128]) + flags(HEAD_DIM=[64, 128], SPLIT=[1])),
    (["vector.cuh", "tiles.cuh", "join.cuh", "paged.cu"], flags(HEAD_DIM=[64, 128, 256], FRESH=[0]) + flags(HEAD_DIM=[64, 128, 256], FRESH=[1], QK_NORM=[0, 1])),
    (FEW, [dict(BATCH=8)] + [dict(BATCH=batch, SPLITS=splits) for batch in (16, 32) for splits in (1, 2, 4) if 8 * splits <= batch]),
    (FEW, flags(WEIGHTS=[1, 3], BIAS=[0, 1], LORA=[0, 1]) + [dict(LATE=1), dict(LORA=1, RANKS=448, BATCH=32, SPLITS=4), dict(LORA=1, BATCH=16, SPLITS=2), dict(LORA=1, BATCH=32, BANDS=2, SPLITS=2, FACTOR_SPLITS=4), dict(WEIGHTS=2, GLU=1, LORA=1, BATCH=32, BANDS=2, SPLITS=2), dict(WEIGHTS=2, GLU=1, LORA=1, BATCH=32, SPLITS=2, FACTOR_SPLITS=4)] + flags(WEIGHTS=[2], GLU=[1, 2], BIAS=[0, 1], LORA=[0, 1], BATCH=[8, 32], SPLITS=[1]) + flags(WEIGHTS=[3], LORA=[1], RANKS=[16, 64], BATCH=[32], SPLITS=[1, 4], FACTOR_SPLITS=[2, 4])),
    (ONE, flags(WEIGHTS=[1, 3], BIAS=[0, 1], LORA=[0, 1]) + [dict(LATE=1), dict(STAGES=5), dict(STAGES=6, LORA=1, RANKS=448)] + flags(ROW=[1], WEIGHTS=[3], LORA=[0, 1], D=[64, 2048, 16384], ADD=[0, 1]) + flags(ROW=[1], WEIGHTS=[2], GLU=[1], LORA=[0, 1], RANKS=[64, 448], D=[896], AFTER=[0, 1]) + flags(ROW=[2], HEAD_DIM=[64, 128, 256], LORA=[0, 1])),
    (["vector.cuh", "norm_row.cuh", "decode.cu"], flags(D=[64, 896, 2048, 16384], ADD=[0, 1]) + flags(D=[640], AFTER=[1])),
    (["vector.cuh", "norm.cu"], flags(D=[64, 128, 896, 2048, 4096, 16384], RESIDUAL=[0, 1])),
    (["vector.cuh", "rope.cu"], flags(HEAD_DIM=HEADS)),
    (["vector.cuh", "glu.cu"], flags(GELU=[0, 1])),
    (["vector.cuh", "cross_entropy.cu"], [dict(THREADS=1024, CACHED_BYTES=98304)]),
    (["adamw.cu"], [{}]),
    (["vector.cuh", "elementwise.cu"], [{}]),
    (["vector.cuh", "quant.cu"], flags(DOUBLE=[0, 1])),
]


def main(toolkit):
    libraries = sorted(glob.glob(f"{toolkit}/lib/libnvrtc.so*") + glob.glob(f"{toolkit}/lib64/libnvrtc.so*"))
    if not libraries:
        sys.exit(f"{toolkit} has no lib/libnvrtc.so: lay one out with deploy/docker/cuda-toolkit")
    library = ctypes.CDLL(libraries[0])
    # As cubecl-cuda has it.
    options = [f"--include-path={toolkit}/include", "-lineinfo"]
    includes = "".join(f"#include <{header}>\n" for header in HEADERS)
    jobs = [("headers", includes + "__global__ void kernel() {}", {}, architecture) for architecture in ARCHITECTURES]
    for files, variants in TEXTS:
        text = "".join(open(os.path.join(KERNELS, file)).read() for file in files)
        # All architectures once, all constants on the newest.
        for index, defines in enumerate(variants):
            for architecture in ARCHITECTURES if index == 0 else ARCHITECTURES[-1:]:
                jobs.append((files[-1], text, defines, architecture))
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, _, defines, architecture), log in zip(jobs, pool.map(lambda job: compile_text(library, *job, options), jobs)):
            failed += log is not None
            if log is not None:
                print(f"{name} {defines} {architecture}:\n{log}")
    print(f"{len(jobs) - failed} passed, {failed} failed")
    return failed > 0


def compile_text(library, name, text, defines, architecture, options):
    """The compiler's log if it refuses or warns, else None."""
    prelude = "".join(f"#define {key} {value}\n" for key, value in defines.items())
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), (prelude + text).encode(), name.encode(), 0, None, None)
    options = [f"--gpu-architecture={architecture}", *options]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = library.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    # A warning is a mistake here as elsewhere.
    return log.value.decode() if status or "warning" in log.value.decode() else None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(os.path.abspath(sys.argv[1])))
