"""The arithmetic of a run: which kernels its matrix products use, and at what precision.

The choice follows from what the CPU is and from a probe of the kernels' error, never from a timing,
so that the same machine always computes the same bits.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path

import torch

from cl_runner.errors import check

# Largest error, as a share of |A| |B|, that still counts as float32: of these shapes, products in
# float32 come out at 5e-8 to 4e-7, those of operands rounded to bfloat16 at 4e-4 to 2e-3.
TOLERANCE = 1e-5
SHAPES = ((128, 784, 256), (256, 128, 784), (128, 256, 10), (10, 784, 100), (2000, 100, 100))


def choose(precision: str, device: torch.device) -> str:
    """Set torch up for a run on `device`; what it computes with, for the results.

    - `float32`: torch's default kernels; on a CPU those of MKL, as a rule.
    - `float32_onednn`: on a CPU, those of oneDNN, still in float32. On AMD they are up to twice as
      fast for large products; small ones of a plain MLP's steps stay MKL's (`nn.kernels`). They are
      what torch calls "medium" precision: it permits bfloat16, which oneDNN uses where the CPU has
      AMX. So their error is probed, and a CPU that fails is refused.
    - `auto`: `float32_onednn` on an AMD CPU with AVX2 that passes, else `float32`.
    - `tf32` (CUDA) and `bfloat16` (training by autocast) round more, and are never chosen
      unless asked for.
    Raises UserError where the device cannot do what was asked for.
    """
    check(
        precision != "tf32" or device.type == "cuda",
        "precision=tf32 needs a CUDA GPU; use precision=auto",
    )
    check(
        precision != "bfloat16" or device.type != "mps",
        "precision=bfloat16 was not tried on device=mps; use precision=auto",
    )
    if precision == "auto":
        fast = device.type == "cpu" and on_amd() and onednn_is_float32()
        precision = "float32_onednn" if fast else "float32"
    elif precision == "float32_onednn":
        check(
            device.type == "cpu" and onednn_is_float32(),
            "precision=float32_onednn: this device's oneDNN kernels are missing or do not compute "
            "in float32; use precision=auto",
        )
    levels = {"float32_onednn": "medium", "tf32": "high"}
    torch.set_float32_matmul_precision(levels.get(precision, "highest"))
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return precision


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees, for the next one.

    glibc hands free memory at the end of its heap back to the system, and large blocks always; to
    get it again at each step can take longer than the step. Elsewhere nothing is done.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        for parameter, size in ((-1, 2**26), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, size)


def on_amd() -> bool:
    """Whether this is an AMD CPU with AVX2, on which oneDNN's large products are faster."""
    try:
        vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        vendor = platform.processor()
    return "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() in {
        "AVX2",
        "AVX512",
    }


@cache
def onednn_is_float32() -> bool:
    """Whether the matrix products of oneDNN are there and as exact as float32 is."""
    if not torch.backends.mkldnn.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return all(error(*shape) < TOLERANCE for shape in SHAPES)
    finally:
        torch.set_float32_matmul_precision(before)


def error(m: int, k: int, n: int) -> float:
    """Largest error of a product of random matrices [m, k] and [k, n], as a share of |A| |B|.

    Of every 13th row, which tells as much and takes a tenth of the time.
    """
    generator = torch.Generator().manual_seed(m + k + n)
    a, b = (torch.randn(*shape, generator=generator) for shape in ((m, k), (k, n)))
    product, rows, columns = (a @ b)[::13], a[::13].double(), b.double()
    return float(((product - rows @ columns).abs() / (rows.abs() @ columns.abs())).max())
