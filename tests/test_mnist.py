"""Real MNIST and CIFAR-10: the main job through the installed command, the rest by its main()."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_runner.results.matrices import read_matrix, summarise

CL_RUN = Path(sys.executable).with_name("cl-run")
pytestmark = pytest.mark.slow


def installed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What the command as it is installed does."""
    command = [CL_RUN, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def row_of(
    command: Callable[..., subprocess.CompletedProcess[str]],
    folder: Path,
    data: Path,
    *arguments: str,
) -> dict[str, str]:
    """The row of summary.csv after a run in `folder`."""
    out = folder / "out"
    fixed = ["device=cpu", "threads=1", f"data.root={data}", f"hydra.run.dir={out}"]
    done = command(*arguments, *fixed, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(" · results in out")
    with (out / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    R = read_matrix(out / "accuracy_matrix.csv")
    for name, value in summarise(R).items():
        assert float(row[name]) == value
    return row


def test_the_main_job(real_data, tmp_path):
    row = row_of(installed, tmp_path, real_data, "strategy=ewc", "benchmark=permuted_mnist")
    assert row["benchmark.num_tasks"] == "10"
    assert float(row["ACC"]) > 0.8
    assert 0.05 < float(row["FWT"]) + 0.1 < 0.15  # permutations have nothing in common: chance


@pytest.fixture(scope="module")
def ran(cl_run, configure, real_data, tmp_path_factory) -> Callable[[str], dict[str, str]]:
    """ran(experiment): its row. Experiments that compose the same configuration share a run."""
    rows: dict[str, dict[str, str]] = {}

    def function(experiment: str) -> dict[str, str]:
        config = str(configure(f"+experiment={experiment}").resolved)
        if config not in rows:
            folder = tmp_path_factory.mktemp("published")
            rows[config] = row_of(cl_run, folder, real_data, f"+experiment={experiment}")
        return rows[config]

    return function


@pytest.mark.parametrize(
    ("experiment", "column", "low", "high"),
    [
        ("buzzega2020/naive_split_class", "ACC", 0.186, 0.206),
        ("buzzega2020/naive_split_task", "task_ACC", 0.914, 0.985),
        ("hsu2018/naive_split_class", "ACC", 0.187, 0.207),
    ],
)
def test_published_cells(ran, experiment, column, low, high):
    """One seed; docs/reproduction.md has five. The bounds are those of its table."""
    assert low <= float(ran(experiment)[column]) <= high


def test_the_decoded_copy_is_all_that_is_needed_afterwards(cl_run, real_data, tmp_path):
    """What a user carries to a machine without internet: one file."""
    options = ("strategy=naive", "benchmark=split_mnist", "benchmark.train_samples=2000")
    (tmp_path / "first").mkdir()
    first = row_of(cl_run, tmp_path / "first", real_data, *options)
    carried = tmp_path / "carried"
    carried.mkdir()
    (carried / "mnist.npz").symlink_to(real_data / "mnist.npz")
    (tmp_path / "second").mkdir()
    assert row_of(cl_run, tmp_path / "second", carried, *options)["ACC"] == first["ACC"]


def test_replay_keeps_what_naive_forgets_on_split_cifar10(cl_run, real_data, tmp_path):
    """Colour images through a convolutional network with augmentation; a budget of seconds."""
    options = (
        "benchmark=split_cifar10",
        "model=cnn",
        "model.channels=[8,16]",
        "optimizer=adam",
        "training.augment=crop_flip",
        "training.iterations=75",
        "benchmark.num_tasks=2",
        "benchmark.train_samples=2000",
    )
    accuracy = {}
    for strategy in ("naive", "er"):
        (tmp_path / strategy).mkdir()
        row = row_of(cl_run, tmp_path / strategy, real_data, f"strategy={strategy}", *options)
        accuracy[strategy] = float(row["ACC"]), float(row["task_ACC"])
    assert accuracy["er"][0] > accuracy["naive"][0] + 0.03
    assert accuracy["er"][1] > accuracy["naive"][1] + 0.05
