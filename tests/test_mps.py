"""device=mps, Apple's GPUs: what is refused there; where there is one, steps against the CPU's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.functional.buffers import below
from cl_runner.machine.energy import reader
from cl_runner.machine.precision import choose
from cl_runner.running.evaluation import evaluate
from cl_runner.running.loop import run
from cl_runner.running.prepare import choose_device, lacking
from cl_runner.running.tasks import initial_state, train_task

THERE = torch.backends.mps.is_available()
TOY = (
    "benchmark.num_tasks=2",
    "benchmark.train_samples=60",
    "model.hidden_sizes=[12]",
    "training.batch_size=20",
    "training.epochs=1",
    "precision=float32",
)
SHORT = {
    "bir": ("strategy.hidden_sizes=[20]", "strategy.latent_size=4"),
    "gdumb": ("strategy.epochs=2",),
    "generative_replay": ("strategy.hidden_sizes=[20]",),
    "la_maml": ("strategy.inner_steps=2",),
    "ridge": ("strategy.features=50",),
    "mer": ("training.batch_size=2", "benchmark.train_samples=20", "strategy.buffer_size=20"),
}
REFUSED = ("adam_nscl", "bic", "fromp", "gem", "gpm", "ncm", "owm", "ridge", "slda")
# Where float64 is computed on the host, whatever the device: beside the steps, by Python's rules.
ON_THE_HOST = ("buffers.greedy", "precision.error", "boundaries.")


def case_of(name: str) -> tuple[str, ...]:
    supported = strategies.find(name).scenarios
    scenario = "domain" if "domain" in supported else supported[0]
    return (f"strategy={name}", f"scenario={scenario}", *SHORT.get(name, ()))


def train(prepared, *overrides: str) -> tuple[Tensor, dict]:
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return s.theta.detach().clone().cpu(), evaluate(strategy, s, env)


class Doubles(TorchDispatchMode):
    """Where tensors of float64 are made meanwhile, as file.function."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = (v for v in tree_flatten(out)[0] if isinstance(v, Tensor))
        if any(v.dtype == torch.float64 for v in there):
            self.places.update(list(self.inner())[-1:])
        return out

    @staticmethod
    def inner() -> Iterator[str]:
        """The functions of the package that are being called."""
        for frame in traceback.extract_stack():
            _, package, file = frame.filename.rpartition("/cl_runner/")
            if package and not file.startswith(("training/flops", "training/meter")):
                yield f"{file.rpartition('/')[2].removesuffix('.py')}.{frame.name}"


@pytest.mark.slow
def test_strategies_say_whether_they_compute_in_float64(prepared):
    """By what each does in a short run; MPS has none."""
    found = set()
    for name in strategies.available():
        with Doubles() as doubles:
            train(prepared, *case_of(name), "device=cpu")
        if [place for place in doubles.places if not place.startswith(ON_THE_HOST)]:
            found.add(name)
    assert found == set(REFUSED)


def test_what_needs_float64_is_refused(prepared, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    says = "computes in float64, which device=mps has not; use device=cpu"
    assert {n for n in strategies.available() if strategies.find(n).float64} == set(REFUSED)
    for name in REFUSED:
        with pytest.raises(UserError, match=f"^strategy={name} {says}$"):
            prepared(*TOY, *case_of(name), "device=mps")
    cases = {
        "strategy.curvature=kron": ("strategy=ewc", "strategy.curvature=kron"),
        "eval.calibration=true": ("strategy=naive", "eval.calibration=true"),
        "eval.features=true": ("strategy=naive", "eval.features=true"),
        "benchmark=edits": ("strategy=naive", "benchmark=edits"),
    }
    for what, case in cases.items():
        toy = [o for o in TOY if "edits" not in what or not o.startswith("benchmark.")]
        with pytest.raises(UserError, match=f"^{what} {says}$"):
            prepared(*toy, *case, "device=mps")
    with pytest.raises(UserError, match="precision=bfloat16 was not tried on device=mps"):
        choose("bfloat16", torch.device("mps"))


def test_auto_never_takes_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("mps") == torch.device("mps")


@pytest.mark.skipif(THERE, reason="there is an Apple GPU here")
def test_without_one_a_run_ends_before_it_begins(configure, tmp_path):
    config = configure(*TOY, "strategy=naive", "device=mps")
    says = "device=mps: torch finds no Apple GPU; use device=cpu or device=auto"
    with pytest.raises(UserError, match=f"^{says}$"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_its_energy_is_never_guessed():
    assert reader(torch.device("mps")) is None
    assert reader(torch.device("mps"), watts=20.0).spent(2) == 40


def test_an_operation_that_torch_lacks_is_told_in_a_line():
    error = NotImplementedError("The operator 'aten::x' is not there.\n If you want. More")
    assert "mps: torch lacks an operation" in lacking(error, "mps")
    assert "aten::x" in lacking(error, "mps")
    assert lacking(error, "cpu") is None
    assert lacking(RuntimeError("x"), "mps") is None


def test_whole_numbers_tell_what_float64_would():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(100_000, generator=generator)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    for n in (torch.arange(1, 100_001), torch.tensor(3), torch.tensor(2**27 - 1)):
        assert torch.equal(below(uniform, n), (uniform.double() * n).long())


@pytest.mark.skipif(not THERE, reason="there is no Apple GPU here")
@pytest.mark.parametrize("name", [n for n in strategies.available() if n not in REFUSED])
def test_an_apple_gpu_trains_as_a_cpu_does(prepared, name):
    theta, rows = train(prepared, *case_of(name), "device=mps")
    expected, _ = train(prepared, *case_of(name), "device=cpu")
    torch.testing.assert_close(theta, expected, rtol=1e-2, atol=1e-3)
    assert all(0 <= value <= 1 for row in rows.values() for value in row)
