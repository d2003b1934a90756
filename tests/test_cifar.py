"""The published protocols on CIFAR: each experiment in a shortened form, on made-up images.

What is tested is that the files compose, fit the data sets and run; numbers are those of
docs/reproduction.md.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cl_runner.cli import choices
from cl_runner.config.schema import Config
from cl_runner.config.weights import WEIGHTS
from cl_runner.data.datasets import Arrays
from cl_runner.errors import UserError
from cl_runner.nn.frozen import within
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run
from cl_runner.running.prepare import prepare, strategy_of
from cl_runner.training.fit import plan

EXPERIMENTS = [name for name in choices.options("experiment") if "cifar" in name]
READINGS = [name for name in EXPERIMENTS if name.endswith("_task")]
STRIDED = ("model.channels=[2,3]", "model.hidden_sizes=[5]", "optimizer.lr=0.01")
SHORT = {  # by paper: two tasks of two classes, two steps each, and a small network
    "chaudhry2019": ("model.width=1", "training.batch_size=4"),
    "buzzega2020": ("model.width=1", "strategy.buffer_size=5", "strategy.replay_batch_size=3"),
    "vandeven2022": STRIDED,
    "soutif2023": (
        *("model.width=1", "training.batch_size=4", "benchmark.samples_per_task=10"),
        *("strategy.buffer_size=5", "strategy.replay_batch_size=3"),
    ),
}
COMMON = ("benchmark.num_tasks=2", "training.iterations=2", "training.epochs=1", "verbose=false")
NAMES = tuple(map(str, range(100)))
CLASSES = "benchmark.classes=[5,31,7,2]"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with images of noise in the place of CIFAR-10 and CIFAR-100."""
    root = tmp_path_factory.mktemp("cifar")
    generator = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        y = np.arange(classes).repeat(6)
        x = generator.integers(0, 256, (len(y), 32, 32, 3), dtype=np.uint8)
        x_test, y_test = x[::3], y[::3]
        np.savez(root / f"{name}.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return root


Shortened = Callable[..., Config]


@pytest.fixture
def shortened(configure, made_up: Path, tmp_path: Path, monkeypatch) -> Shortened:
    """shortened(experiment, ...) -> its configuration; `model.weights` is a path in this folder."""
    monkeypatch.chdir(tmp_path)

    def function(name: str, *more: str) -> Config:
        classes = CLASSES if "cifar100" in name else "benchmark.classes=[5,3,7,2]"
        pretraining = name.endswith("pretraining_cifar10")
        few = ("training.epochs=2", "verbose=false") if pretraining else (*COMMON, classes)
        short = (*few, *SHORT[name.partition("/")[0]])
        return configure(f"+experiment={name}", *short, *more, root=made_up)

    return function


def pretrained(shortened: Shortened, seed: int = 0) -> Path:
    """Where the experiments of van de Ven et al. look for what they start from."""
    name = "vandeven2022/pretraining_cifar10"
    out = Path(f"pretrained/{seed}")
    run(shortened(name, f"seed={seed}", "training.batch_size=30"), out)
    return out


def test_the_experiments_are_those_of_four_papers() -> None:
    """A name that is left out of the tests below would be seen here."""
    assert len(EXPERIMENTS) == 3 + 12 + 5 + 1
    assert {name.partition("/")[0] for name in EXPERIMENTS} == set(SHORT)


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_is_of_the_run_whose_name_it_has(configure, name) -> None:
    whole = configure(f"+experiment={name.removesuffix('_task')}_class").resolved
    assert configure(f"+experiment={name}").resolved == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {*READINGS}))
def test_an_experiment_runs_in_a_shortened_form(shortened, tmp_path, name) -> None:
    if name.startswith("vandeven2022/") and "pretraining" not in name:
        pretrained(shortened)
    out = tmp_path / "out"
    run(shortened(name), out)
    with (out / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    T = 1 if "pretraining" in name else 2
    assert row["status"] == "complete" and 0 <= float(row["ACC"]) <= 1
    assert read_matrix(out / "accuracy_matrix.csv").shape == (T + 1, T)
    if name.startswith("buzzega2020/"):
        assert 0 <= float(row["task_ACC"]) <= 1


@pytest.mark.slow
def test_convolutions_of_the_pretraining_with_the_same_seed_stay(shortened, tmp_path) -> None:
    """Those of CIFAR-10, weights and statistics; what is above them is trained, and is new."""
    folders = {seed: pretrained(shortened, seed) for seed in (0, 1)}
    theirs = {seed: load_file(folder / WEIGHTS) for seed, folder in folders.items()}
    name = "vandeven2022/er_cifar100_class"
    for seed in (0, 1):
        config = shortened(name, f"seed={seed}", "checkpoint.keep=true")
        env = prepare(config, strategy_of(config))
        begun = {k: v.clone() for k, v in env.flat.module.state_dict().items()}
        run(config, tmp_path / f"{seed}")
        own = load_file(tmp_path / f"{seed}" / WEIGHTS)
        for key, value in theirs[seed].items():
            if within(key, ["convolutions", "norms"]):
                assert torch.equal(own[key], value) and torch.equal(begun[key], value), key
            else:
                assert not torch.equal(own[key], begun[key]), key
                assert value.shape != begun[key].shape or not torch.equal(value, begun[key]), key
    moved = "norms.0.running_mean"
    assert not torch.equal(theirs[0][moved], theirs[1][moved])


def test_without_the_pretraining_a_line_says_what_is_missing(shortened) -> None:
    message = "model.weights=pretrained/3: it must be the folder of a run or .*; it does not exist"
    with pytest.raises(UserError, match=message):
        shortened("vandeven2022/er_cifar100_class", "seed=3")


@pytest.mark.slow
def test_seeds_with_weights_of_their_own_are_a_sweep(cl_run, shortened, tmp_path) -> None:
    pretrained(shortened)
    name = "experiment=vandeven2022/er_cifar100_class"
    done = cl_run(name, "seeds=[0,1]", *STRIDED, cwd=tmp_path)
    assert done.returncode == 2
    assert "model.weights names others for each seed: use a sweep" in done.stderr


def cifar(classes: int) -> Arrays:
    """A data set of that many classes, an image of each."""
    x, y = torch.zeros(classes, 3, 32, 32, dtype=torch.uint8), torch.arange(classes)
    return Arrays(x, y, x, y, tuple(map(str, range(classes))))


def test_a_gem_has_seventeen_tasks_of_the_last_85_classes(configure) -> None:
    config = configure("+experiment=chaudhry2019/agem_cifar100")
    env = prepare(config, strategy_of(config), cifar(100))
    tasks = [env.stream.y[task.train].tolist() for task in env.stream]
    assert [len(classes) for classes in tasks] == [5] * 17
    assert sorted(c for classes in tasks for c in classes) == [*range(15, 100)]
    assert tasks != [[*range(first, first + 5)] for first in range(15, 100, 5)]  # shuffled
    assert env.num_classes == 85 and env.stream.scenario == "task"
    strategy = strategy_of(config)
    assert strategy.buffer_size == 13 * env.num_bins
    other = configure("+experiment=chaudhry2019/agem_cifar100", "seed=1")
    stream = prepare(other, strategy, cifar(100)).stream
    assert [stream.y[task.train].tolist() for task in stream] != tasks


def test_der_sees_two_classes_a_task_in_natural_order(configure) -> None:
    config = configure("+experiment=buzzega2020/derpp500_cifar10_class")
    env = prepare(config, strategy_of(config), cifar(10))
    assert [env.stream.y[task.train].tolist() for task in env.stream] == [
        [2 * t, 2 * t + 1] for t in range(5)
    ]
    assert env.training.augment == "crop_flip" and env.training.epochs == 50
    assert sum(p.numel() for p in env.flat.parameters) == 11_173_962  # as published


def test_soutif_takes_three_steps_on_each_of_237_batches(configure) -> None:
    config = configure("+experiment=soutif2023/er_cifar100")
    row = torch.arange(100).repeat_interleave(500)  # as many images of a class as there are
    x = torch.zeros(len(row), 3, 2, 2, dtype=torch.uint8)
    env = prepare(config, strategy_of(config), Arrays(x, row, x[:100], row[::500], NAMES))
    tasks = [env.stream.y[task.train] for task in env.stream]
    assert sorted(c for y in tasks for c in y.unique().tolist()) == [*range(100)]
    assert [len(y.unique()) for y in tasks] == [5] * 20
    for task in env.stream:
        assert plan(len(task.train), env.training).steps == 3 * 237
    assert sum(p.numel() for p in env.flat.parameters) == 1_109_240
