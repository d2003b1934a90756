"""Threads and kernels of a product by its size, and what a descent leaves to one thread."""

from __future__ import annotations

import pytest
import torch

from cl_runner.nn.flat import Flat
from cl_runner.nn.kernels import ONE_THREAD, TORCH_DEFAULT, by_size
from cl_runner.nn.networks import CNN, MLP

ALL = 3  # threads


@pytest.fixture(autouse=True)
def _threads():
    threads, level = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(ALL)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(level)


def now():
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


@pytest.mark.parametrize(
    ("size", "threads", "level"),
    [
        (ONE_THREAD, 1, "highest"),
        (ONE_THREAD + 1, ALL, "highest"),
        (TORCH_DEFAULT, ALL, "highest"),
        (TORCH_DEFAULT + 1, ALL, "medium"),
    ],
)
def test_small_products_take_one_thread_and_the_default_kernels(size, threads, level):
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(1)  # as in a descent
    with by_size(size, ALL):
        assert now() == (threads, level)
    assert now() == (1, "medium")


@pytest.mark.parametrize("level", ["highest", "high"])
def test_other_kernels_than_those_of_onednn_stay_what_they_are(level):
    torch.set_float32_matmul_precision(level)
    for size in (ONE_THREAD, TORCH_DEFAULT + 1):
        with by_size(size, ALL):
            assert now() == (1 if size == ONE_THREAD else ALL, level)


def test_without_threads_nothing_changes():
    torch.set_float32_matmul_precision("medium")
    with by_size(1, None):
        assert now() == (ALL, "medium")


def test_after_an_error_all_is_as_before():
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(RuntimeError, match="shapes"), by_size(1, ALL):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    assert now() == (ALL, "medium")


def mlp(hidden=6):
    return Flat(MLP(16, [hidden], 3, "default", 0.0))


X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_descent_by_hand_has_one_thread_and_leaves_them_all():
    flat = mlp()
    with flat.descent():
        loss = flat.call(flat.theta, X, 0).square().sum()
        assert torch.get_num_threads() == 1
        loss.backward()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == ALL
    with pytest.raises(ValueError, match="mine"), flat.descent():
        raise ValueError("mine")
    assert torch.get_num_threads() == ALL


def test_its_large_products_have_all_threads(monkeypatch):
    seen = {}
    for name in ("addmm", "mm"):
        product = getattr(torch, name)

        def counted(*args, product=product, **options):
            result = product(*args, **options)
            seen[tuple(result.shape)] = torch.get_num_threads()
            return result

        monkeypatch.setattr(torch, name, counted)
    flat, x = mlp(hidden=1024), torch.rand(512, 16)
    with flat.descent():
        flat.call(flat.theta, x, 0).square().sum().backward()
    large, small = 512 * 16 * 1024, 512 * 1024 * 3
    assert small <= ONE_THREAD < large
    assert seen == {(512, 1024): ALL, (512, 3): 1, (3, 1024): 1, (1024, 16): ALL}


@pytest.mark.parametrize("other", ["answers", "stages", "theta"])
def test_whatever_else_goes_through_the_network_has_all_threads(other):
    flat = mlp()
    asked = {
        "answers": lambda: flat.answers(flat.theta, X, 0),
        "stages": lambda: flat.call(flat.theta, X, 0, first=0, last=-1),
        "theta": lambda: flat.call(flat.theta.detach() + 1, X, 0),
    }
    with flat.descent():
        flat.call(flat.theta, X, 0)
        assert torch.get_num_threads() == 1
        asked[other]()
        assert torch.get_num_threads() == ALL
    assert torch.get_num_threads() == ALL
    asked[other]()
    assert torch.get_num_threads() == ALL


@pytest.mark.parametrize("network", ["cnn", "dropout"])
def test_a_descent_of_another_network_has_all_threads(network):
    module = CNN((1, 4, 4), [3], 5, 3) if network == "cnn" else MLP(16, [6], 3, "default", 0.5)
    flat = Flat(module)
    with flat.descent():
        flat.call(flat.theta, X, 0).sum().backward()
        assert torch.get_num_threads() == ALL
    assert torch.get_num_threads() == ALL
