"""Run the golden runs, and rewrite tests/golden/ with what they give.

    python scripts/golden.py            all
    python scripts/golden.py ewc gpm    some

A golden run is a seeded run on embedded digits whose accuracy matrix is kept, as `cl-run` wrote it,
in tests/golden/NAME.csv; weights.csv holds, per run, the sum and the norm of the trained weights,
which change where an accuracy does not. tests/test_golden.py runs them again: a refactoring changes
none of them. Whoever changes them on purpose says why in the commit.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
WEIGHTS, MACHINE = "weights.csv", "machine.txt"
COMMON = (
    *("seed=3", "device=cpu", "precision=float32", "engine=eager", "threads=1", "verbose=false"),
    *("benchmark.num_tasks=3", "model.hidden_sizes=[32,32]", "training.batch_size=32"),
    *("training.epochs=4", "checkpoint.keep=true", "resume=false"),
)
CLASS, TASK, DOMAIN = (
    ("benchmark=split_digits", "scenario=class", "optimizer=adam", "optimizer.lr=0.005"),
    ("benchmark=split_digits", "scenario=task", "optimizer=sgd", "optimizer.lr=0.2"),
    ("benchmark=permuted_digits", "scenario=domain", "optimizer=sgd", "optimizer.lr=0.2"),
)
RUNS: dict[str, tuple[str, ...]] = {
    "naive": DOMAIN,
    "ewc": (*DOMAIN, "strategy.lambda=10", "strategy.penalty=loss"),
    "si": DOMAIN,
    "mas": DOMAIN,
    "gpm": DOMAIN,
    "er": (*CLASS, "strategy.buffer_size=60"),
    "derpp": (*CLASS, "strategy.buffer_size=60"),
    "agem": (*DOMAIN, "strategy.buffer_size=60"),
    "icarl": (*CLASS, "strategy.buffer_size=60"),
    "generative_replay": (
        *CLASS,
        "training.epochs=12",
        "strategy.hidden_sizes=[32]",
        "strategy.latent_size=8",
    ),
    "packnet": TASK,
}


class Result(NamedTuple):
    """What is kept of a run."""

    matrix: str  # accuracy_matrix.csv, whole
    weights: tuple[float, float]  # sum and norm of theta, in float64


def run(name: str, root: Path) -> Result:
    """The golden run of a strategy. root: where data are kept, and a folder for the run is made."""
    from cl_runner.config.parse import validate
    from cl_runner.config.versions import BASE
    from cl_runner.running.loop import run as train

    overrides = (f"strategy={name}", f"data.root={root}", *COMMON, *RUNS[name])
    with initialize_config_module("cl_runner.conf", **BASE):
        config = validate(compose("config", list(overrides)))
    with tempfile.TemporaryDirectory(dir=root) as folder:
        out = Path(folder)
        train(config, out)
        theta = load_file(out / "checkpoint.safetensors")["theta"].double()
        matrix = (out / "accuracy_matrix.csv").read_text(encoding="utf-8")
    return Result(matrix, (float(theta.sum()), float(theta.norm())))


def machine() -> str:
    """What decides the last bits of a run: torch, its libraries' code path, and the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "?")
    path = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {path}, MKL {torch.backends.mkl.is_available()}, {model}\n"


def read_weights() -> dict[str, tuple[float, float]]:
    """Sum and norm of the weights of each run that is kept."""
    with (FOLDER / WEIGHTS).open(encoding="utf-8", newline="") as file:
        return {r["run"]: (float(r["sum"]), float(r["norm"])) for r in csv.DictReader(file)}


def write(results: dict[str, Result]) -> None:
    """Keep these results, and those of the other runs as they are."""
    FOLDER.mkdir(exist_ok=True)
    weights = read_weights() if (FOLDER / WEIGHTS).exists() else {}
    for name, result in results.items():
        (FOLDER / f"{name}.csv").write_text(result.matrix, encoding="utf-8")
        weights[name] = result.weights
    rows = [f"{name},{total!r},{norm!r}\n" for name, (total, norm) in sorted(weights.items())]
    (FOLDER / WEIGHTS).write_text("".join(["run,sum,norm\n", *rows]), encoding="utf-8")
    (FOLDER / MACHINE).write_text(machine(), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and rewrite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", choices=[*RUNS, []], help="default: all")
    names = parser.parse_args(arguments).runs or list(RUNS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        write({name: run(name, Path(root)) for name in names})


if __name__ == "__main__":
    main()
