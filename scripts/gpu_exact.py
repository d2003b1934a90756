"""The part `exact` of check_gpu.py: the CPU's numbers, the same bits twice and after SIGKILL."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_report import Context, Piece, Settings

from cl_runner.config.versions import BASE
from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows
from cl_runner.results.names import CHECKPOINT

if TYPE_CHECKING:
    from torch import Tensor

    from cl_runner.running.tasks import Member

# Runs on the embedded digits, which need no data. With float32, since the CPU's is held against it.
DIGITS = "precision=float32 verbose=false training.epochs=1"
MLP = f"{DIGITS} benchmark=permuted_digits model.hidden_sizes=[100,100]"
RESNET = f"{DIGITS} benchmark=split_digits model=reduced_resnet18 training.augment=crop_flip"
RUNS = {
    "ewc, MLP": f"strategy=ewc {MLP} benchmark.num_tasks=3 training.batch_size=32",
    "derpp, MLP": f"strategy=derpp {MLP} benchmark.num_tasks=3 training.batch_size=10",
    "er, ResNet": (
        f"strategy=er {RESNET} benchmark.num_tasks=2 optimizer.lr=0.01 training.batch_size=32"
    ),
}
TINY = "benchmark.train_samples=60 training.batch_size=16"
THETA, ACCURACY = 1e-3, 0.02  # largest differences between devices, or stacked and alone
STACKED = ("ewc, MLP", "derpp, MLP")
# Steps of a task, and of them before the first checkpoint: enough are left to be killed among them.
MANY = "training.iterations=3000 checkpoint.every_steps=500"
FEW = "training.iterations=80 checkpoint.every_steps=20 benchmark.num_tasks=2"


def pieces(settings: Settings) -> list[Piece]:
    """By value: a run that is killed, the same bits twice, the CPU's numbers, stacks."""
    seconds = 3 if settings.tiny else 20
    found = [Piece("resumed after SIGKILL", 3 * seconds, killed)]
    runs = ("er, ResNet",) if settings.tiny else tuple(RUNS)
    found += [
        Piece(f"{run}: twice, and on the CPU", seconds, partial(twice, run=run)) for run in runs
    ]
    stacks = STACKED[1:] if settings.tiny else STACKED
    found += [Piece(f"{run}: stacked", seconds, partial(stacked, run=run)) for run in stacks]
    return found


def overrides_of(context: Context, run: str) -> list[str]:
    """Those of one of RUNS."""
    tiny = f"{TINY}{' model.width=2' if 'ResNet' in run else ''}".split()
    own = [f"data.root={context.settings.out / 'data'}", *RUNS[run].split()]
    return [*own, *(tiny if context.settings.tiny else ())]


def members(context: Context, run: str, device: str, seeds: int = 1) -> list[Member]:
    """Runs that differ in their seeds, ready to train."""
    from hydra import compose, initialize_config_module

    from cl_runner.config.parse import validate
    from cl_runner.running.prepare import prepare, strategy_of
    from cl_runner.running.tasks import Member

    with initialize_config_module("cl_runner.conf", **BASE):
        node = compose("config", [*overrides_of(context, run), f"device={device}"])
    found = []
    for seed in range(seeds):
        node.seed = seed
        config = validate(node)
        strategy = strategy_of(config)
        found.append(Member(strategy, prepare(config, strategy)))
    return found


def trained(member: Member) -> tuple[Tensor, list[float]]:
    """Theta [P] on the CPU after all tasks, and the accuracies."""
    from cl_runner.running.evaluation import evaluate
    from cl_runner.running.tasks import initial_state, train_task

    s = initial_state(*member)
    for task in member.env.stream:
        s = train_task(member.strategy, s, task, member.env)
    rows = evaluate(member.strategy, s, member.env)
    return s.theta.detach().cpu().clone(), [value for row in rows.values() for value in row]


def twice(context: Context, run: str) -> None:
    """The same run twice on the device, and once on the CPU."""
    device = context.settings.device
    own, again = (trained(members(context, run, device)[0]) for _ in range(2))
    same(context, f"{run}: twice the same bits", own, again)
    other = trained(members(context, run, "cpu")[0])
    differences(context, f"{run}: {device} against CPU", [(own, other)])


def same(context: Context, name: str, a: Any, b: Any) -> None:
    """A row: two runs must have come to the same, to the last bit."""
    import torch

    equal = torch.equal(a[0], b[0]) and a[1] == b[1]
    bar, state = "the same bits", "" if equal else "failed"
    off = float((a[0] - b[0]).abs().max())
    context.emit(name, off, "theta", bar=bar, met=equal, state=state, message=f"{off:.3g} apart")


def differences(context: Context, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Rows: how far runs are apart, pair by pair, which must be rounding; the largest of them."""
    thetas = [float((a[0] - b[0]).abs().max()) for a, b in pairs]
    accuracies = [abs(x - y) for a, b in pairs for x, y in zip(a[1], b[1], strict=True)]
    for what, values, most in (("theta", thetas, THETA), ("accuracy", accuracies, ACCURACY)):
        own, bar = max(values), f"at most {most:g}"
        context.emit(f"{name}, {what}", own, "", bar=bar, met=own <= most)


def stacked(context: Context, run: str) -> None:
    """Three seeds as one stacked state, against each alone."""
    from cl_runner.running.evaluation import evaluate
    from cl_runner.running.stacked import StackedStep
    from cl_runner.running.tasks import initial_state
    from cl_runner.running.together import train_task

    device, seeds = context.settings.device, 2 if context.settings.tiny else 3
    runs = members(context, run, device, seeds)
    states = [initial_state(*m) for m in runs]
    step = StackedStep(runs)
    for t in range(runs[0].env.num_tasks):
        states = [_finite(s) for s in train_task(runs, states, t, step)]
    ends = []
    for m, s in zip(runs, states, strict=True):
        rows = evaluate(m.strategy, m.env.commit(s), m.env)
        ends.append((s.theta.detach().cpu().clone(), [v for row in rows.values() for v in row]))
    alone = [trained(m) for m in members(context, run, device, seeds)]
    name = f"{run}: {seeds} stacked against alone"
    differences(context, name, list(zip(ends, alone, strict=True)))


def _finite(end: Any) -> Any:
    """The state, where it is one. Raises what it is instead."""
    if isinstance(end, Exception):
        raise end
    return end


# By the command.


def killed(context: Context) -> None:
    """A run that is killed after its first checkpoint ends with the bits of one that is not."""
    folder = context.settings.out / "exact"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    many = FEW if context.settings.tiny else MANY
    own = [
        *overrides_of(context, "derpp, MLP"),
        *many.split(),
        *(f"device={context.settings.device}", "checkpoint.every=null", "checkpoint.keep=true"),
    ]
    command(context, *own, f"hydra.run.dir={folder / 'whole'}")
    kill(context, folder / "killed", own)
    if (folder / "killed" / "weights.safetensors").exists():
        raise RuntimeError("the run was complete before it was killed")
    command(context, f"resume={folder / 'killed'}")
    differing = [
        name for name in outcome(folder / "whole") if not equal(folder, name, "whole", "killed")
    ]
    state, bar = "failed" if differing else "", "the same bytes"
    message = f"differ: {', '.join(differing)}" if differing else "weights and all CSV files"
    number, met = len(differing), not differing
    context.emit(
        "resumed after SIGKILL, files that differ",
        number,
        bar=bar,
        met=met,
        state=state,
        message=message,
    )
    shutil.rmtree(folder, ignore_errors=True)


def outcome(out: Path) -> list[str]:
    """The names of the files that a run must leave like any other of its configuration."""
    return ["weights.safetensors", *sorted(path.name for path in out.glob("*.csv"))]


def equal(folder: Path, name: str, a: str, b: str) -> bool:
    """Whether two runs have left the same file, but for what follows from the clock."""
    one, other = folder / a / name, folder / b / name
    if not (one.exists() and other.exists()):
        return False
    if not name.endswith(".csv"):
        return one.read_bytes() == other.read_bytes()
    return _told(one) == _told(other)


def _told(path: Path) -> list[dict[str, str]]:
    """The cells of a CSV file that follow from the configuration alone."""
    return [{k: v for k, v in row.items() if reproducible(k)} for row in read_rows(path)]


def kill(context: Context, out: Path, overrides: list[str]) -> None:
    """Begin a run, and kill it with SIGKILL as soon as its first checkpoint is there."""
    running = subprocess.Popen(
        [sys.executable, "-m", "cl_runner", *overrides, f"hydra.run.dir={out}"],
        cwd=context.settings.out,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / CHECKPOINT).exists():
        if running.poll() is not None:
            raise RuntimeError(f"it ended without a checkpoint: {running.communicate()[1][-200:]}")
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.communicate()


def command(context: Context, *overrides: str) -> None:
    """`python -m cl_runner` with these overrides. Raises RuntimeError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "cl_runner", *overrides],
        cwd=context.settings.out,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-250:]}")
