"""What a run tells TensorBoard, MLflow and Weights & Biases; and that none of them can fail it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cl_runner.config import loggers as schema
from cl_runner.config.identity import config_hash
from cl_runner.core import TrainState
from cl_runner.errors import Diverged, UserError
from cl_runner.results import files
from cl_runner.results.matrices import read_matrix
from cl_runner.results.names import LOGGERS, OVERRIDES
from cl_runner.running import loop
from cl_runner.running.loggers import switch, tensorboard, wandb
from cl_runner.running.loggers.library import STEPS, TASKS
from cl_runner.sweeping import folders
from cl_runner.sweeping.dispatch import run_all
from cl_runner.sweeping.job import Job

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "strategy=er", "strategy.buffer_size=20"),
    *("model.hidden_sizes=[8]", "training.batch_size=8", "training.iterations=60"),
    *("precision=float32", "verbose=false", "threads=1", "device=cpu"),
)
ALL = ("tensorboard", "mlflow", "wandb")
HERE = [name for name in ALL if schema.installed(name)]


def needs(*names: str) -> None:
    for name in names:
        if not all(map(schema.installed, schema.LOGGERS[name].modules)):
            pytest.skip(f"{name} is not installed")


class Recorder:
    """A library that keeps what it is told."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.told, self.abouts, self.ends = fails, [], [], []
        self.files: list[str] = []

    def library(self) -> Any:
        names = ("check_place", "begin", "measured", "kept", "ended")
        return SimpleNamespace(**{name: getattr(self, name) for name in names})

    def check_place(self, settings: Any, out: Path) -> None:
        pass

    def begin(self, settings: Any, about: Any) -> tuple[Any, str]:
        self.fail("begin")
        self.abouts.append(about)
        return about.name, about.known or "name0"

    def measured(self, handle: Any, axis: str, points: Any) -> None:
        self.fail("measured")
        self.told += [(handle, axis, step, values) for step, values in points]

    def kept(self, handle: Any, out: Path, there: list[Path]) -> None:
        self.fail("kept")
        self.files += [path.relative_to(out).as_posix() for path in there]

    def ended(self, handle: Any, state: str) -> None:
        self.fail("ended")
        self.ends.append(state)

    def fail(self, where: str) -> None:
        if where == self.fails:
            raise RuntimeError(f"{where}:\nno more")

    def rows(self, axis: str, name: str, handle: str | None = None) -> list[tuple[int, float]]:
        return [
            (step, values[name])
            for own, at, step, values in self.told
            if at == axis and name in values and handle in (None, own)
        ]


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """Stands for TensorBoard."""
    own = Recorder()
    monkeypatch.setitem(switch.LIBRARIES, "tensorboard", own.library())
    return own


@pytest.fixture
def logged(configure):
    needs("tensorboard")
    return lambda *more: configure(*TOY, "logger=tensorboard", *more)


# The configuration.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["logger=wandb", "logger.wandb.mode=on"], "must be one of offline, online, disabled"),
        (["logger=wandb", "logger.wandb.project=''"], "logger.wandb.project must not be empty"),
        (["logger=wandb", "logger.wandb.project=a/b"], "must be without /"),
        (["logger=wandb", "logger.wandb.dir=''"], "must be a folder, or null"),
        (["logger=mlflow", "logger.mlflow.tracking_uri=a.db"], "must be a URI, such as sqlite"),
        (["logger=mlflow", "logger.mlflow.experiment=' '"], "experiment must not be empty"),
        (["logger=tensorboard", "logger.tensorboard.dir=''"], "must be a folder, or null"),
        (
            ["logger=tensorboard", "+logger.tensorboard.color=1"],
            "unknown key logger.tensorboard.co",
        ),
        (["+logger.visdom.port=1"], "logger must be one of tensorboard, mlflow, wandb"),
        (["logger=tensorboard", "logger.tensorboard=1"], "must be a group of keys"),
    ],
)
def test_a_wrong_value_is_told_in_a_line(configure, given, message):
    needs(*ALL)
    with pytest.raises(UserError, match=re.escape(message)):
        configure(*TOY, *given)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_installed_is_told_with_what_to_install(monkeypatch, name):
    monkeypatch.setattr(schema, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=re.escape(f"pip install 'cl_runner[{name}]'")):
        schema.LOGGERS[name]()


def test_a_folder_of_a_librarys_name_is_no_library(monkeypatch, tmp_path):
    (tmp_path / "wandb_of_somebody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_spec("wandb_of_somebody") is not None
    assert not schema.installed("wandb_of_somebody")


def test_a_logger_makes_no_other_run(configure, logged):
    plain, own = configure(*TOY), logged("logger.tensorboard.dir=/tmp/a")
    assert plain.logger == {}
    assert config_hash(own.resolved) == config_hash(plain.resolved)
    assert own.resolved == plain.resolved


def test_neither_does_it_change_a_jobs_folder(cl_run, tmp_path):
    needs("tensorboard")
    common = ("-m", *TOY, f"data.root={tmp_path}", "training.iterations=2", "seed=0")
    for args in (("hydra.sweep.dir=a",), ("hydra.sweep.dir=b", "logger=tensorboard")):
        assert cl_run(*common, *args, cwd=tmp_path).returncode == 0
    result = cl_run(*common, "hydra.sweep.dir=c", "logger=none,tensorboard", cwd=tmp_path)
    assert result.returncode == 2 and "are one job" in result.stderr
    one, other = (json.loads((tmp_path / name / "jobs.json").read_text()) for name in "ab")
    assert one.keys() == other.keys()
    assert list((tmp_path / "b").glob("*/tensorboard/events*"))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("tensorboard", "logger.tensorboard.dir=file/x", "logger.tensorboard.dir=file/x: cannot"),
        ("wandb", "logger.wandb.dir=file/x", "logger.wandb.dir=file/x: cannot write"),
        ("mlflow", "logger.mlflow.tracking_uri=sqlite:///file/x.db", "file/x.db: cannot write"),
        ("mlflow", "logger.mlflow.tracking_uri=sqlite:///file", "is no database of SQLite"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_mistake(cl_run, tmp_path, name, given, message):
    needs(name)
    (tmp_path / "file").write_text("somebody's letters, and no database")
    args = (*TOY, f"data.root={tmp_path}", "hydra.run.dir=out", f"logger={name}", given)
    result = cl_run(*args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("cl-run: logger.") and message in line
    assert not (tmp_path / "out").exists()


def test_below_one_folder_of_many_runs_each_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = SimpleNamespace(dir="tb")
    assert tensorboard.folder(own, tmp_path / "multirun/a/seed=0") == Path("tb/multirun/a/seed=0")
    assert tensorboard.folder(own, Path("/elsewhere/b")) == Path("tb/elsewhere/b")


# What is told.


def test_what_is_told_is_what_the_files_say(logged, recorder, tmp_path):
    loop.run(logged("eval.every=25"), tmp_path / "own")
    (about,) = recorder.abouts
    assert (about.name, about.group, about.known) == ("own", tmp_path.name, None)
    assert about.config["strategy.buffer_size"] == 20 and about.config["used_device"] == "cpu"
    R = read_matrix(tmp_path / "own/accuracy_matrix.csv")
    for j in range(3):
        assert recorder.rows(TASKS, f"accuracy/task_{j + 1}") == [(i, R[i, j]) for i in range(4)]
    means = [(k, pytest.approx(R[k, :k].mean())) for k in (1, 2, 3)]
    assert recorder.rows(TASKS, "metrics/ACC") == means
    (row,) = files.read_rows(tmp_path / "own/summary.csv")
    for name in ("forgetting", "BWT", "FWT", "task_ACC", "min_ACC", "average_anytime_accuracy"):
        assert recorder.rows(TASKS, f"metrics/{name}")[-1] == (3, float(row[name]))
    assert [step for step, _ in recorder.rows(TASKS, "metrics/BWT")] == [2, 3]  # none of one task
    costs = files.read_rows(tmp_path / "own/costs.csv")
    assert recorder.rows(TASKS, "costs/flops") == [(i, float(costs[i]["flops"])) for i in range(4)]
    within = recorder.rows(STEPS, "within/task_2")
    assert [step for step, _ in within] == [25, 50, 85, 110, 145, 170]
    told = files.read_rows(tmp_path / "own/accuracies.csv")
    there = [
        float(r["accuracy"])
        for r in told
        if (r["eval_task"], r["reading"], r["split"]) == ("2", "class", "test") and r["step"] != "0"
    ]
    assert [value for _, value in within] == there
    assert recorder.ends == ["complete"]
    assert {"config.yaml", "summary.csv", "accuracies.csv", "status.json"} <= {*recorder.files}
    assert {LOGGERS, "checkpoint.safetensors"}.isdisjoint(recorder.files)


def test_the_loss_told_is_the_mean_of_the_steps_losses(logged, recorder, monkeypatch, tmp_path):
    from cl_runner.training.meter import Meter

    seen: list[float] = []
    count = Meter.step

    def step(self: Meter, epoch: int, samples: int, loss: Any) -> None:
        seen.append(float(loss))
        count(self, epoch, samples, loss)

    monkeypatch.setattr(Meter, "step", step)
    loop.run(logged(), tmp_path / "own")
    ends = [50, 60, 100, 120, 150, 180]  # every fifty steps, and the end of each task
    means = [np.mean(seen[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert recorder.rows(STEPS, "train/loss") == [
        (end, pytest.approx(mean)) for end, mean in zip(ends, means, strict=True)
    ]


def test_runs_of_a_stack_tell_of_themselves(logged, recorder, tmp_path):
    """Each its own matrix, its own losses, and with a name of its own."""
    jobs = [Job(logged(f"seed={seed}"), tmp_path / f"seed={seed}", ()) for seed in (0, 1)]
    run_all(jobs)
    (row,) = files.read_rows(tmp_path / "seed=0/summary.csv")
    assert row["stacked_members"] == "2"
    losses = []
    for seed in (0, 1):
        name = f"seed={seed}"
        R = read_matrix(tmp_path / name / "accuracy_matrix.csv")
        assert recorder.rows(TASKS, "accuracy/task_1", name) == [(i, R[i, 0]) for i in range(4)]
        losses.append(recorder.rows(STEPS, "train/loss", name))
        assert len(losses[-1]) == 6
        alone = Recorder()
        switch.LIBRARIES["tensorboard"] = alone.library()
        loop.run(logged(f"seed={seed}"), tmp_path / "alone" / name)
        switch.LIBRARIES["tensorboard"] = recorder.library()
        for own, other in zip(losses[-1], alone.rows(STEPS, "train/loss"), strict=True):
            assert own == (other[0], pytest.approx(other[1], rel=1e-3))
    assert losses[0] != losses[1]
    assert recorder.ends == ["complete", "complete"]


def test_a_run_that_diverges_or_is_stopped_says_so(logged, recorder, monkeypatch, tmp_path):
    with pytest.raises(Diverged):
        loop.run(logged("optimizer.lr=1e30"), tmp_path / "own")
    assert recorder.ends == ["failed"] and "status.json" in recorder.files
    recorder.files.clear()

    def stopped(*_: Any) -> TrainState:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_task", stopped)
    with pytest.raises(KeyboardInterrupt):
        loop.run(logged(), tmp_path / "other")
    assert recorder.ends == ["failed", "interrupted"] and not recorder.files


def test_a_run_that_goes_on_is_the_same_one_there(logged, recorder, monkeypatch, tmp_path):
    train = loop.train_task

    def stopped(*args: Any) -> TrainState:
        if args[2].index == 2:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(loop, "train_task", stopped)
    with pytest.raises(KeyboardInterrupt):
        loop.run(logged(), tmp_path / "own")
    monkeypatch.setattr(loop, "train_task", train)
    assert json.loads((tmp_path / "own" / LOGGERS).read_text()) == {"tensorboard": "name0"}
    loop.run(logged("resume=true"), tmp_path / "own")
    assert [about.known for about in recorder.abouts] == [None, "name0"]
    assert [step for step, _ in recorder.rows(TASKS, "accuracy/task_1")] == [0, 1, 2, 3]
    assert recorder.ends == ["interrupted", "complete"]


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"tensorboard": 3}', '{"tensorboard": "../a"}', '{"visdom": "a"}']
)
def test_a_name_that_is_none_of_ours_is_not_used(tmp_path, content):
    (tmp_path / LOGGERS).write_text(content)
    assert switch.names_in(tmp_path) == {}


def test_one_that_goes_on_without_its_loggers_says_so(configure, tmp_path, capsys):
    (tmp_path / LOGGERS).write_text('{"mlflow": "a0"}')
    switch.Switch(configure(*TOY, "resume=true", "verbose=true"), tmp_path).begin({})
    told = "this run was logged before: logger=[mlflow] would go on with it\n"
    assert capsys.readouterr().out == told


def test_how_to_go_on_names_the_loggers(monkeypatch, tmp_path):
    (tmp_path / OVERRIDES).touch()
    monkeypatch.setattr(folders, "sweeps", [])
    monkeypatch.setattr(folders, "runs", [tmp_path])
    given = ["logger=[mlflow,wandb]", "seed=1", "logger.wandb.mode=online"]
    monkeypatch.setattr(sys, "argv", ["cl-run", *given])
    again = folders.how_to_go_on().removeprefix("; to go on: cl-run ")
    assert shlex.split(again) == [f"resume={tmp_path}", given[0], given[2]]


# What fails.


@pytest.mark.parametrize("where", ["begin", "measured", "kept", "ended"])
def test_a_logger_that_fails_fails_no_run(configure, logged, monkeypatch, tmp_path, capsys, where):
    own = Recorder(fails=where)
    monkeypatch.setitem(switch.LIBRARIES, "tensorboard", own.library())
    acc = loop.run(logged("verbose=true"), tmp_path / "own")
    line = f"logger=tensorboard failed and is switched off: {where}: no more\n"
    assert capsys.readouterr().out.count(line) == 1
    assert acc == loop.run(configure(*TOY, "verbose=true"), tmp_path / "other")
    for name in (
        "accuracies.csv",
        "accuracy_matrix.csv",
        "accuracy_matrix_task.csv",
        "config.yaml",
    ):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert len(own.told) == {"begin": 0, "measured": 0}.get(where, 10)
    assert not list((tmp_path / "other").glob("*logger*"))


def test_the_others_go_on(configure, recorder, monkeypatch, tmp_path):
    needs("tensorboard", "mlflow")
    monkeypatch.setitem(switch.LIBRARIES, "mlflow", Recorder(fails="measured").library())
    loop.run(configure(*TOY, "logger=[mlflow,tensorboard]"), tmp_path)
    assert len(recorder.rows(TASKS, "accuracy/task_1")) == 4 and recorder.ends == ["complete"]


def test_ctrl_c_within_a_logger_is_no_failure_of_it(logged, monkeypatch, tmp_path):
    own = Recorder()
    library = own.library()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    library.measured = interrupted
    monkeypatch.setitem(switch.LIBRARIES, "tensorboard", library)
    with pytest.raises(KeyboardInterrupt):
        loop.run(logged(), tmp_path)
    assert own.ends == ["interrupted"]


def test_nobody_is_asked_for_a_key(monkeypatch):
    monkeypatch.setattr(sys, "stdin", before := SimpleNamespace(isatty=lambda: True))
    with wandb.nobody_to_ask():
        assert not sys.stdin.isatty()
    assert sys.stdin is before


def test_copies_of_a_runs_files_are_no_runs(tmp_path):
    run = "0123456789abcdef" * 2
    for place in (
        *(f"a/mlartifacts/{run}/artifacts", "a/wandb/offline-run-20260102_030405-ab12/files"),
        *("a/wandb/latest-run/files", "a", "run-1/files", "artifacts"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "summary.csv").touch()
    found = [
        path.parent.relative_to(tmp_path).as_posix() for path in files.below(tmp_path, "*.csv")
    ]
    assert sorted(found) == ["a", "artifacts", "run-1/files"]


# The libraries themselves, with stores of their own. They warn of what is theirs, so they are read
# in a process without our filter.

READ = """
import json, struct, sys
from pathlib import Path
root, found = Path(sys.argv[1]), {}
for name in sys.argv[2:]:
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        for folder in sorted(root.rglob("tensorboard")):
            events = EventAccumulator(str(folder))
            events.Reload()
            tags, points = events.Tags(), events.Scalars
            found[str(folder.parent.relative_to(root))] = {
                "scalars": {t: [[e.step, e.value] for e in points(t)] for t in tags["scalars"]},
                "tensors": tags["tensors"], "images": tags["images"]}
    if name == "mlflow":
        from mlflow.tracking import MlflowClient
        (file,) = root.rglob("mlruns.db")
        client = MlflowClient(f"sqlite:///{file}")
        (e,) = [e for e in client.search_experiments() if e.name == "cl_runner"]
        for r in client.search_runs([e.experiment_id]):
            id = r.info.run_id
            found[r.info.run_name] = {
                "status": r.info.status, "tags": r.data.tags, "params": r.data.params, "id": id,
                "scalars": {k: [[m.step, m.value] for m in client.get_metric_history(id, k)]
                            for k in r.data.metrics},
                "files": [f.path for f in client.list_artifacts(id)]}
    if name == "wandb":
        from wandb.proto import wandb_internal_pb2 as pb
        for path in sorted(root.rglob("*.wandb")):
            if path.parent.is_symlink():
                continue
            data, at, part = path.read_bytes(), 7, b""
            own = found.setdefault(str(path.relative_to(root)), {"history": [], "files": []})
            assert data[:4] == b":W&B"
            while at + 7 <= len(data):  # LevelDB's log: parts of records in blocks of 32 KiB
                left = 32768 - at % 32768
                _, size, kind = struct.unpack("<IHB", data[at : at + 7])
                if left < 7 or kind == 0:
                    at += left
                    continue
                part += data[at + 7 : at + 7 + size]
                at += 7 + size
                if kind in (1, 4):
                    record, part = pb.Record.FromString(part), b""
                    match record.WhichOneof("record_type"):
                        case "run":
                            own |= {"id": record.run.run_id, "name": record.run.display_name,
                                    "project": record.run.project, "group": record.run.run_group}
                        case "history":
                            items = record.history.item
                            own["history"].append(
                                {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
                        case "files":
                            own["files"] += [f.path for f in record.files.files]
                        case "exit":
                            own["exit"] = record.exit.exit_code
print(json.dumps(found))
"""


def read(root: Path, *names: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, root, *names], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


STOPPED = """
import os
from cl_runner.running import record
noted = record.RunFiles.note_saved

def note_saved(self, task, progress):
    noted(self, task, progress)
    if task == 2:
        os.kill(os.getpid(), 9)

record.RunFiles.note_saved = note_saved
"""
STEP = ("benchmark.num_tasks=3", "training.iterations=5", "eval.every=2", "verbose=true")
KEPT = {"config.yaml", "summary.csv", "accuracies.csv", "status.json"}


@pytest.mark.slow
def test_a_run_that_was_killed_is_one_run_in_every_store(cl_run, tmp_path):
    """All that is there of the one before the kill; Weights & Biases lacks its last seconds."""
    if not HERE:
        pytest.skip(f"none of {', '.join(ALL)} is installed")
    logger = f"logger=[{','.join(HERE)}]"
    args = (*TOY, *STEP, f"data.root={tmp_path}", "hydra.run.dir=own", logger)
    result = cl_run(*args, before=STOPPED, cwd=tmp_path)
    assert result.returncode == -9, result.stderr
    pictures = find_spec("matplotlib") is not None
    result = cl_run("resume=own", logger, *(["plots=true"] if pictures else ()), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "switched off" not in result.stdout
    R = read_matrix(tmp_path / "own/accuracy_matrix.csv")
    rows = {
        f"accuracy/task_{j + 1}": [[i, pytest.approx(R[i, j])] for i in range(4)] for j in range(3)
    }
    for name in HERE:
        found = read(tmp_path, name)
        if name == "wandb":
            first, own = found.values()
            assert first.get("id", own["id"]) == own["id"]
            assert (own["name"], own["project"], own["exit"]) == ("own", "cl_runner", 0)
            assert {*own["files"]} >= KEPT
            told = [row for row in own["history"] if "metrics/ACC" in row]
            assert [[r["after_task"], r["accuracy/task_1"]] for r in told] == rows[
                "accuracy/task_1"
            ][3:]
            continue
        (own,) = found.values()
        scalars = own["scalars"]
        assert {key: scalars[key] for key in rows} == rows
        assert [step for step, _ in scalars["within/task_1"]] == [2, 4, 7, 9, 12, 14]
        assert [step for step, _ in scalars["train/loss"]] == [5, 10, 15]
        if name == "tensorboard":
            assert {t.partition("/")[0] for t in own["tensors"]} >= {"configuration", "status"}
            assert not pictures or any(image.startswith("pictures/") for image in own["images"])
        else:
            assert (own["status"], own["tags"]["status"]) == ("FINISHED", "complete")
            assert own["params"]["strategy.buffer_size"] == "20"
            assert {*own["files"]} >= KEPT
            assert not pictures or "pictures" in own["files"]
    assert cl_run("status", "own", cwd=tmp_path).stdout.splitlines()[-1] == "1 jobs: 1 complete"


@pytest.mark.slow
def test_processes_of_a_sweep_share_a_store(cl_run, tmp_path):
    """Too large for a stack; both make the tables of the database at once."""
    needs("mlflow")
    large = ("model.hidden_sizes=[800,800]", "training.batch_size=64", "training.iterations=1")
    args = (*TOY, *large, f"data.root={tmp_path}", "hydra.run.dir=own", "logger=mlflow")
    result = cl_run(*args, "seeds=[0,1]", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = read(tmp_path, "mlflow")
    assert {(name, own["status"]) for name, own in found.items()} == {
        ("seed=0", "FINISHED"),
        ("seed=1", "FINISHED"),
    }
    assert all(len(own["scalars"]["metrics/ACC"]) == 3 for own in found.values())
