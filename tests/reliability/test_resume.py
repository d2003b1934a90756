"""A run that is stopped anywhere goes on and ends with the same results to the last byte.

The short form kills `cl-run` with SIGKILL once for each of nine strategies.
The long form, some three minutes, takes a number of kills to spread over them, and a seed:

    CL_RUNNER_KILLS=30 CL_RUNNER_KILL_SEED=1 python -m pytest tests/reliability -k sigkill
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from outcomes import outcome

from cl_runner import strategies
from cl_runner.cli import overview
from cl_runner.errors import Diverged, UserError
from cl_runner.machine.signals import OF_TERMINALS
from cl_runner.results import status
from cl_runner.results.files import read_rows
from cl_runner.results.names import CHECKPOINT
from cl_runner.running import checkpoint, loop, prepare
from cl_runner.running.frame import frame_of
from cl_runner.running.tasks import initial_state

pytestmark = pytest.mark.slow

CL_RUN = Path(sys.executable).with_name("cl-run")
TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=3",
    "model.hidden_sizes=[20]",
    "training.batch_size=16",
    "training.iterations=30",
    "training.epochs=1",
    "verbose=false",
)
QUICK = (*TOY, "benchmark.train_samples=150", "training.iterations=6", "training.batch_size=8")
# One of each family, in a scenario that it supports, with what keeps the extra phases short.
FAMILIES = {
    "ewc": ("strategy.overlap=true",),
    "si": ("optimizer=adam",),
    "derpp": ("strategy.replay_batch_size=16", "strategy.buffer_size=50"),
    "icarl": ("strategy.buffer_size=50",),
    "generative_replay": ("strategy.hidden_sizes=[20]", "strategy.latent_size=4"),
    "pnn": ("scenario=task",),
    "packnet": ("scenario=task",),
    "gdumb": ("strategy.epochs=8", "strategy.buffer_size=100"),
    "den": ("scenario=task", "training.iterations=10"),
}
COSTLY = {
    "gdumb": ("strategy.epochs=2",),
    "ridge": ("strategy.features=50",),
    **dict.fromkeys(("generative_replay", "bir"), ("strategy.hidden_sizes=[20]",)),
}
KILLS = int(os.environ.get("CL_RUNNER_KILLS", "9"))
KILL_SEED = int(os.environ.get("CL_RUNNER_KILL_SEED", "0"))


@pytest.fixture
def start(cl_run_started, tmp_path):
    """start(args): the command at work, with what subprocess.Popen has."""
    return lambda args: cl_run_started(*args, cwd=tmp_path)


def command(args: tuple[str, ...], root: Path) -> tuple[str, ...]:
    return (*args, f"data.root={root}", "device=cpu", "threads=1")


def saved_at(out: Path) -> tuple[int, int]:
    """Task and step of the checkpoint in a folder, (-1, 0) if there is none."""
    try:
        with (out / CHECKPOINT).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            content = json.loads(json.loads(file.read(size))["__metadata__"]["content"])
    except FileNotFoundError:
        return -1, 0
    return content["task"], content["step"] or 0


def kill_at(process: Any, out: Path, task: int, step: int, wait: float) -> bool:
    """SIGKILL once the checkpoint has come so far; False if the process was done before."""
    while saved_at(out) < (task, step) and process.poll() is None:
        time.sleep(0.001)
    time.sleep(wait)
    process.kill()
    process.communicate(timeout=60)
    return process.returncode in (-9, 1)  # the latter on Windows


def spread(kills: int) -> dict[str, int]:
    """Kills per strategy: all of them in turn."""
    names = list(FAMILIES)
    return {name: len(range(i, kills, len(names))) for i, name in enumerate(names)}


@pytest.mark.parametrize(("strategy", "kills"), spread(KILLS).items())
def test_sigkill_anywhere_changes_no_byte(configure, start, data_root, tmp_path, strategy, kills):
    draw = random.Random(f"{KILL_SEED} {strategy}")
    case = (*TOY, f"strategy={strategy}", *FAMILIES[strategy])
    loop.run(configure(*case), tmp_path / "unbroken")

    out = tmp_path / "killed"
    args = (*command(case, data_root), f"hydra.run.dir={out}", "resume=true")
    steps = 0 if strategy == "gdumb" else 10 if strategy == "den" else 30
    moments = sorted((draw.randrange(3), draw.randint(0, steps)) for _ in range(kills))
    for task, step in moments:
        process = start((*args, "checkpoint.every=0"))
        assert kill_at(process, out, task, step, draw.uniform(0, 0.005)), "done before the kill"
        assert read_rows(out / "summary.csv")[0]["status"] == "running"
    stdout, stderr = start((*args, "verbose=true")).communicate(timeout=120)
    assert re.search(r"goes on in task \d|starts from the beginning", stdout), stdout
    assert stderr == ""
    assert outcome(out) == outcome(tmp_path / "unbroken")
    assert not list(out.glob("*.safetensors")) + list(out.glob(".*"))


# The same in one process, where every moment can be visited.


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_after(monkeypatch, saves: int) -> None:
    """Let the program end right after it has written so many checkpoints."""
    save, count = checkpoint.save, iter(range(1, 10**9))

    def counted(*args):
        save(*args)
        if next(count) == saves:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", counted)


def stopped_and_resumed(configure, monkeypatch, case, saves, out: Path) -> dict[str, object]:
    config = configure(*case, "checkpoint.every=0")
    return stopped_and_resumed_as(config, monkeypatch, saves, out)


def stopped_and_resumed_as(config, monkeypatch, saves, out: Path) -> dict[str, object]:
    with monkeypatch.context() as patch:
        stop_after(patch, saves)
        with pytest.raises(Killed):
            loop.run(config, out)
    loop.run(dataclasses.replace(config, resume=True), out)
    return outcome(out)


def test_every_moment_of_a_run(configure, monkeypatch, tmp_path):
    case = (*QUICK, "strategy=ewc", "benchmark.num_tasks=2")
    loop.run(configure(*case), tmp_path / "unbroken")
    expected = outcome(tmp_path / "unbroken")
    config = configure(*case, "checkpoint.every=0")
    per_task = 1 + 6 + 1  # before the first step, after each, after the evaluation
    for saves in range(1, 2 * per_task + 1):
        out = tmp_path / str(saves)
        assert stopped_and_resumed_as(config, monkeypatch, saves, out) == expected, saves


@pytest.mark.parametrize("strategy", strategies.available())
def test_every_strategy_goes_on_in_the_middle_of_a_task(configure, monkeypatch, tmp_path, strategy):
    scenarios = strategies.find(strategy).scenarios
    scenario = "class" if "class" in scenarios else scenarios[0]
    own = (f"strategy={strategy}", f"scenario={scenario}", *COSTLY.get(strategy, ()))
    case = (*QUICK, *own)
    loop.run(configure(*case), tmp_path / "unbroken")
    idle = {"joint", "gdumb", "ncm", "ridge", "slda"}  # in the second task: no steps of its own
    saves = 3 if strategy in idle else 12  # after step 3 of the second task
    resumed = stopped_and_resumed(configure, monkeypatch, case, saves, tmp_path / "resumed")
    assert resumed == outcome(tmp_path / "unbroken")


@pytest.mark.parametrize(
    "options",
    [
        ("model.dropout=0.5", "optimizer=adamw", "optimizer.schedule=cosine"),
        ("model=reduced_resnet18", "model.width=2", "optimizer.momentum=0.9"),  # BatchNorm
        ("training.augment=crop_flip", "optimizer=adam", "optimizer.reset=true"),
        # more steps than a block of noise has, in a second epoch
        ("training.iterations=150", "benchmark.num_tasks=2", "training.batch_size=2"),
        ("benchmark.validation_fraction=0.2", "benchmark=permuted_digits"),
        ("eval.every=2",),
        ("eval.online=true", "eval.online_window=3", "eval.tasks=last:1", "eval.every=4"),
        ("eval.online=true", "training.iterations=20"),  # in the third epoch
        ("training.passes=3", "eval.online=true"),  # after the first step on a batch
        ("budget.samples=100", "optimizer.schedule=cosine", "eval.every=1"),
        ("budget.flops=6e6", "optimizer.schedule=cosine"),
        ("eval.calibration=true",),
        ("eval.features=true",),
    ],
    ids=" ".join,
)
def test_everything_that_steps_depend_on(configure, monkeypatch, tmp_path, options):
    base = [o for o in QUICK if not ("model=" in " ".join(options) and o.startswith("model."))]
    case = (*base, "strategy=derpp", *options)
    loop.run(configure(*case), tmp_path / "unbroken")
    saves = 230 if "training.iterations=150" in options else 9 if "budget" in options[0] else 13
    resumed = stopped_and_resumed(configure, monkeypatch, case, saves, tmp_path / "resumed")
    assert resumed == outcome(tmp_path / "unbroken")


def test_divergence_is_found_where_it_would_have_been(configure, monkeypatch, tmp_path):
    """The losses of the epoch under way are part of a checkpoint."""
    case = (*QUICK, "strategy=l2", "strategy.lambda=1e9")
    with pytest.raises(Diverged) as unbroken:
        loop.run(configure(*case), tmp_path / "unbroken")
    with pytest.raises(Diverged) as resumed:
        stopped_and_resumed(configure, monkeypatch, case, 8 + 5, tmp_path / "resumed")
    assert str(resumed.value) == str(unbroken.value)
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "unbroken")


def test_counts_and_seconds_add_up(configure, monkeypatch, tmp_path):
    case = (*QUICK, "strategy=naive")
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        with pytest.raises(Killed):
            loop.run(configure(*case, "checkpoint.every=0"), tmp_path)
    (before,) = read_rows(tmp_path / "summary.csv")
    time.sleep(0.5)  # between the two parts: no part of the run
    started = time.perf_counter()
    loop.run(configure(*case, "resume=true"), tmp_path)
    second = time.perf_counter() - started
    (row,) = read_rows(tmp_path / "summary.csv")
    assert row["steps"] == "18"
    assert 0 < float(row["seconds"]) - float(before["seconds"]) <= second
    assert float(row["train_seconds"]) + float(row["evaluation_seconds"]) <= float(row["seconds"])


# What a run leaves, and what resume=true says


def test_a_checkpoint_goes_when_the_run_is_complete_unless_it_is_to_be_kept(configure, tmp_path):
    loop.run(configure(*QUICK, "strategy=naive"), tmp_path / "a")
    assert not (tmp_path / "a" / CHECKPOINT).exists()
    config = configure(*QUICK, "strategy=naive", "checkpoint.keep=true")
    loop.run(config, tmp_path / "b")
    strategy = strategies.build(config.strategy)
    env = prepare.prepare(config, strategy)
    own = frame_of(config, strategy, initial_state(strategy, env), env)
    saved = checkpoint.load(tmp_path / "b", config.resolved, own)
    assert saved is not None
    assert (saved.task, saved.progress) == (3, None)


@pytest.mark.parametrize(
    ("every", "steps", "within"),
    [
        *(("null", "null", 0), ("1e9", "null", 0), ("0", "null", 7)),
        *(("null", "1", 6), ("null", "2", 3), ("1e9", "4", 1), ("null", "7", 0), ("0", "2", 7)),
    ],
)
def test_how_often_is_for_the_user_to_say(configure, monkeypatch, tmp_path, every, steps, within):
    positions = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda *args: (positions.append(args[1].progress), save(*args))
    )
    case = (*QUICK, "benchmark.num_tasks=2", "strategy=naive", f"checkpoint.every={every}")
    loop.run(configure(*case, f"checkpoint.every_steps={steps}"), tmp_path)
    assert sum(begun is not None for begun in positions) == 2 * within
    assert sum(begun is None for begun in positions) == 2


def test_nothing_to_resume_and_nothing_to_do_are_told(configure, tmp_path, capsys):
    config = configure(*QUICK, "strategy=naive", "verbose=true", "resume=true")
    first = loop.run(config, tmp_path / "run")
    assert "nothing to resume, this run starts from the beginning" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert loop.run(config, tmp_path / "run") == first
    assert capsys.readouterr().out == f"complete, nothing to do: {tmp_path / 'run'}\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_a_complete_run_of_another_configuration_is_not_taken_for_this_one(configure, tmp_path):
    loop.run(configure(*QUICK, "strategy=ewc", "strategy.lambda=5"), tmp_path)
    there = outcome(tmp_path)
    with pytest.raises(UserError) as caught:
        loop.run(configure(*QUICK, "strategy=ewc", "strategy.lambda=3", "resume=true"), tmp_path)
    message = f"{tmp_path}/config.yaml is of another configuration: strategy.lambda is 5 there and"
    assert str(caught.value) == f"{message} 3 here"
    assert outcome(tmp_path) == there


@pytest.mark.parametrize("strategy", strategies.available())
def test_a_configuration_written_and_read_is_the_same(configure, tmp_path, strategy):
    """Else a run would be refused its own folder."""
    scenario = f"scenario={strategies.find(strategy).scenarios[0]}"
    config = configure(*QUICK, f"strategy={strategy}", scenario, "optimizer=adam")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(dict(config.resolved)))
    checkpoint.check_run(tmp_path, config.resolved)
    checkpoint.check_same(tmp_path, json.loads(json.dumps(config.resolved)), config.resolved)


# The command line


LONG = (*TOY, "strategy=naive", "training.iterations=2000", "checkpoint.every_steps=1200")


@pytest.fixture(scope="module")
def unbroken_long(configure, tmp_path_factory) -> dict[str, object]:
    """What a long run leaves that nothing stops."""
    out = tmp_path_factory.mktemp("unbroken")
    loop.run(configure(*LONG), out)
    return outcome(out)


@pytest.mark.unix
@pytest.mark.parametrize(("first", "exit_code"), [(n, 128 + n) for n in OF_TERMINALS])
def test_a_signal_ends_in_a_checkpoint_and_says_how_to_go_on(
    start, unbroken_long, data_root, tmp_path, first, exit_code
):
    """Within a task: it is sent while the run takes steps after a checkpoint, long before its end.

    status.json is written after the checkpoint, and then come the steps.
    """
    out = tmp_path / "a=b\\c it's"
    where = "hydra.run.dir='" + str(out).replace("'", "\\'") + "'"
    args = (*command(LONG, data_root), where)
    moments = ((first, exit_code, 1), (signal.SIGTERM, 143, 2))  # after so many tasks
    for number, code, task in moments:
        process = start(args)
        while not (about := status.read(out)) or (about["task"], about["step"]) < (task + 1, 1200):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.05)
        sent = time.perf_counter()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert time.perf_counter() - sent < 2
        assert process.returncode == code
        hint = re.fullmatch(r"cl-run: interrupted; to go on: cl-run (resume=.*)\n", stderr)
        assert hint is not None, stderr
        assert read_rows(out / "summary.csv")[0]["status"] == "interrupted"
        assert (task, 1200) < saved_at(out) < (task, 2000), "nothing was saved by the signal"
        args = (*shlex.split(hint[1]), "verbose=true")
    stdout, stderr = start(args).communicate(timeout=120)
    assert stderr == ""
    assert re.match(r"goes on in task 3 after step \d+: ", stdout)
    assert outcome(out) == unbroken_long


@pytest.mark.unix
@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["run", "sweep"])
@pytest.mark.parametrize("moment", ["compose", "torch", "data"])
def test_a_signal_before_the_first_step_is_one_line_too(moment, mode, tmp_path):
    """A module that is being imported tells when: of Hydra's composing, of torch, of the data."""
    module = {
        "compose": "hydra._internal.core_plugins.zsh_completion",
        "torch": "torch",
        "data": "cl_runner.data.datasets",
    }[moment]
    code = f"""
import sys, threading, time
from cl_runner.cli.app import main
def tell():
    while "{module}" not in sys.modules:
        time.sleep(0.001)
    print("now", flush=True)
threading.Thread(target=tell, daemon=True).start()
sys.argv = ["cl-run", *{[*mode, *TOY, "training.iterations=1000000", f"data.root={tmp_path}"]!r}]
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "now\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 143
    assert re.fullmatch(r"cl-run: interrupted(; to go on: .*)?\n", stderr), stderr


@pytest.mark.unix
def test_a_signal_saves_what_worker_processes_run(data_root, tmp_path):
    """Many seeds of a large network, which are not stacked."""
    large = ("model.hidden_sizes=[400,400]", "training.batch_size=256")
    args = ("strategy=naive", *TOY, *large, "training.iterations=100000", "device=cpu")
    where = (f"data.root={data_root}", f"hydra.run.dir={tmp_path / 'R'}", "seeds=[0,1,2,3,4,5]")
    process = subprocess.Popen([CL_RUN, *args, *where], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("R/*/accuracy_matrix.csv")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143
    assert re.fullmatch(r"cl-run: interrupted; to go on: cl-run resume=.*\n", stderr)
    seen = [status.state(out) for out in overview.found(tmp_path / "R")]
    assert {"interrupted", "missing"} <= set(seen) <= {"interrupted", "missing", "killed"}


def test_a_damaged_checkpoint_is_one_line_and_exit_code_2(
    configure, monkeypatch, start, data_root, tmp_path
):
    out, case = tmp_path / "out", (*QUICK, "strategy=naive")
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        with pytest.raises(Killed):
            loop.run(configure(*case, "checkpoint.every=0"), out)
    path = out / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-7])
    before = {p: p.read_bytes() for p in out.iterdir()}
    process = start((*command(case, data_root), f"hydra.run.dir={out}", "resume=true"))
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert stderr == (
        f"cl-run: {path} is damaged; remove it to start this run from the beginning\n"
    )
    assert {p: p.read_bytes() for p in before} | {out / "cl-run.log": b""} == before | {
        out / "cl-run.log": b""
    }


def test_a_sweep_goes_on_where_it_was_killed(configure, start, data_root, tmp_path):
    """One job is complete, one half-done, one not begun; then there is a seed more."""
    case = (*TOY, "strategy=ewc", "checkpoint.every=0")
    out = tmp_path / "sweep"

    def sweep(seeds: str, *more: str) -> Any:
        where = (f"hydra.sweep.dir={out}", *more)
        return start(("-m", f"seed={seeds}", *command(case, data_root), *where))

    process = sweep("0,1,2")
    while not (half := list(out.glob("*seed=1*"))) or saved_at(half[0]) < (1, 5):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    (first,) = out.glob("*seed=0*")
    complete = {path: path.stat().st_mtime_ns for path in first.glob("*.csv")}
    assert [status.state(path) for path in (first, *half)] == ["complete", "killed"]

    process = sweep("0,1,2,3", "resume=true", "verbose=true")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert stdout.count("complete, nothing to do") == 1
    assert len(re.findall(r"goes on in task \d after step \d+", stdout)) == 1
    assert stdout.count("starts from the beginning") == 2
    assert {path: path.stat().st_mtime_ns for path in complete} == complete
    assert {status.state(path) for path in out.glob("*seed=*")} == {"complete"}

    for seed in range(4):
        (mine,) = out.glob(f"*seed={seed}*")
        loop.run(configure(*case, f"seed={seed}"), tmp_path / f"unbroken {seed}")
        assert outcome(mine) == outcome(tmp_path / f"unbroken {seed}")


def test_seeds_that_are_complete_are_not_run_again(configure, start, data_root, tmp_path):
    out, case = tmp_path / "out", (*QUICK, "strategy=naive", "verbose=true")
    for seeds, runs in (("[0]", 1), ("[0,1]", 2)):
        where = (f"hydra.run.dir={out}", f"seeds={seeds}", "resume=true")
        process = start((*command(case, data_root), *where))
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stderr) == (0, "")
        assert ("complete, nothing to do" in stdout) == (seeds == "[0,1]")
        assert len(read_rows(out / "summary.csv")) == runs
    loop.run(configure(*case, "seed=1", "verbose=false"), tmp_path / "alone")
    assert outcome(out / "seed=1") == outcome(tmp_path / "alone")
    overrides = list(OmegaConf.load(out / "seed=1" / "overrides.yaml"))
    assert overrides == [*command(case, data_root), "seed=1"]  # so that it can go on by itself
