"""The choice of kernels: by the CPU and by their error."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.machine import precision
from cl_runner.machine import precision as kernels
from cl_runner.results.matrices import read_accuracies
from cl_runner.running.loop import run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision()
    precision.onednn_is_float32.cache_clear()
    yield
    precision.onednn_is_float32.cache_clear()
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("amd", "exact", "expected"),
    [
        (True, True, "float32_onednn"),
        (True, False, "float32"),
        (False, True, "float32"),
    ],
)
def test_auto_follows_the_cpu_and_the_error(monkeypatch, amd, exact, expected):
    monkeypatch.setattr(kernels, "on_amd", lambda: amd)
    monkeypatch.setattr(kernels, "onednn_is_float32", lambda: exact)
    assert precision.choose("auto", CPU) == expected
    level = {"float32_onednn": "medium", "float32": "highest"}[expected]
    assert torch.get_float32_matmul_precision() == level


def test_the_probe_tells_bfloat16_from_float32(monkeypatch):
    assert all(precision.error(*shape) < precision.TOLERANCE / 5 for shape in precision.SHAPES)
    matmul = torch.Tensor.__matmul__

    def rounding(a, b):
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert all(precision.error(*shape) > precision.TOLERANCE * 5 for shape in precision.SHAPES)
    assert not precision.onednn_is_float32()
    with pytest.raises(UserError, match="precision=float32_onednn"):
        precision.choose("float32_onednn", CPU)


def test_the_probe_leaves_torch_as_it_was():
    torch.set_float32_matmul_precision("high")
    precision.onednn_is_float32()
    assert torch.get_float32_matmul_precision() == "high"


def test_tf32_is_for_gpus():
    with pytest.raises(UserError, match="precision=tf32 needs a CUDA GPU"):
        precision.choose("tf32", CPU)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_choice_is_in_the_summary(configure, tmp_path, precision):
    options = ("strategy=ewc", "benchmark=split_digits", "benchmark.num_tasks=2")
    run(configure(*options, "training.epochs=2", f"precision={precision}"), tmp_path)
    header, row = (tmp_path / "summary.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=False))["precision"] == precision
    assert f",{precision}," in row.split("complete")[1]
    assert read_accuracies(tmp_path / "accuracies.csv").accuracy.max() > 0.5


def test_bfloat16_rounds_the_logits_of_float32(prepared):
    _, _, env = prepared("strategy=naive", "precision=float32")
    _, _, mixed = prepared("strategy=naive", "precision=bfloat16")
    x = torch.rand(50, *env.input_shape, generator=torch.Generator().manual_seed(0))
    task = torch.zeros(50, dtype=torch.int64)
    exact, rounded = (e.net(e.flat.theta, x, task) for e in (env, mixed))
    assert rounded.dtype == torch.float32
    assert 1e-5 < (exact - rounded).abs().max() < 0.05


FAULTS = """
import resource, torch
from cl_runner.machine import precision as kernels
def step():
    parts = [torch.ones(2**18) for _ in range(8)]  # of 1 MiB each
    del parts
def faults():
    for _ in range(20):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20
before = faults()
kernels.keep_freed_memory()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.slow
def test_what_a_step_frees_is_not_faulted_in_again():
    command = [sys.executable, "-c", FAULTS]
    # Where glibc moves this threshold by itself, what it hands back depends on the heap's shape.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    before, after = map(float, out.stdout.split())
    assert before > 500  # pages of 4 KiB: nearly all of the 8 MiB, each time
    assert after < 20
