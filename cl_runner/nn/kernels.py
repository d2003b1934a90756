"""How many threads of a CPU a matrix product takes, and which kernels: by its size."""

from __future__ import annotations

from types import TracebackType

import torch

# Multiply-adds up to which one thread is done in about 0.1 ms, as long as it takes to wake others
# and to wait for them.
ONE_THREAD = 2**22
# And up to which MKL's kernels are faster as a rule than oneDNN's, which prepare themselves at each
# call: up to 8 times on an AMD CPU (Zen 4). For larger products oneDNN's are, up to twice.
TORCH_DEFAULT = 2**24


class by_size:  # noqa: N801 - used as a statement
    """Around a product of `size` multiply-adds, for which there are so many `threads`.

    A small one takes one of them, and torch's default kernels where the run's are oneDNN's (see
    `machine.precision`). threads None: nothing is changed, as on a GPU.
    """

    __slots__ = ("before", "level", "size", "threads")

    def __init__(self, size: int, threads: int | None) -> None:
        self.size, self.threads = size, threads

    def __enter__(self) -> None:
        if self.threads is None:
            return
        self.before, self.level = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_num_threads(1 if self.size <= ONE_THREAD else self.threads)
        if self.level == "medium" and self.size <= TORCH_DEFAULT:
            torch.set_float32_matmul_precision("highest")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.before)
            torch.set_float32_matmul_precision(self.level)
