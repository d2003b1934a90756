"""How many threads of a CPU a matrix product takes, and which kernels: by its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Multiply-adds up to which one thread is done in about 0.1 ms, as long as it takes to wake others
# and to wait for them.
ONE_THREAD = 2**22
# And up to which MKL's kernels are faster as a rule than oneDNN's, which prepare themselves at each
# call: up to 8 times on an AMD CPU (Zen 4). For larger products oneDNN's are, up to twice.
TORCH_DEFAULT = 2**24


@contextmanager
def by_size(size: int, threads: int | None) -> Iterator[None]:
    """Around a product of `size` multiply-adds, for which there are so many `threads`.

    A small one takes one of them, and torch's default kernels where the run's are oneDNN's, which
    torch calls "medium" precision (see `machine.precision`). Afterwards all is as before. threads
    None: nothing is changed, as on a GPU.
    """
    if threads is None:
        yield
        return
    before, level = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1 if size <= ONE_THREAD else threads)
    if level == "medium" and size <= TORCH_DEFAULT:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(level)
