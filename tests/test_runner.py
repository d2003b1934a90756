"""A run as a whole: the files that it leaves, whatever happens."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cl_runner import strategies
from cl_runner.comparing.verify import verify_runs
from cl_runner.config.weights import WEIGHTS
from cl_runner.errors import Diverged, UserError
from cl_runner.results import status
from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.matrices import read_accuracies, read_matrix, summarise
from cl_runner.results.names import CHECKPOINT, MODEL, MODEL_MEMORY
from cl_runner.running import loop, messages, prepare, record
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state

TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=3",
    "model.hidden_sizes=[24]",
    "training.epochs=2",
    "verbose=false",
)
FILES = {
    "accuracies.csv",
    "accuracy_matrix.csv",
    "accuracy_matrix_task.csv",
    "config.yaml",
    "costs.csv",
    "overrides.yaml",
    "status.json",
    "summary.csv",
}


def summary(out: Path) -> dict[str, str]:
    with (out / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.slow
def test_the_files_agree_with_each_other(configure, tmp_path):
    config = configure(*TOY, "strategy=ewc", "strategy.lambda=3", "seed=5")
    result = run(config, tmp_path / "run", ["seed=5"])
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES

    row = summary(tmp_path / "run")
    tidy = read_accuracies(tmp_path / "run" / "accuracies.csv")
    assert list(tidy.columns) == ["after_task", "eval_task", "reading", "split", "accuracy"]
    assert len(tidy) == 2 * 4 * 3
    for reading, name, prefix in (
        ("class", "accuracy_matrix.csv", ""),
        ("task", "accuracy_matrix_task.csv", "task_"),
    ):
        R = read_matrix(tmp_path / "run" / name)
        assert R.shape == (4, 3)
        wide = tidy[tidy.reading == reading].pivot(
            index="after_task", columns="eval_task", values="accuracy"
        )
        assert (wide.to_numpy() == R).all()
        for metric, value in summarise(R).items():
            assert float(row[prefix + metric]) == value
    assert result == float(row["ACC"])
    assert row["status"] == "complete"
    assert (row["benchmark"], row["scenario"], row["strategy"]) == ("split_digits", "class", "ewc")
    assert (row["seed"], row["strategy.lambda"], row["benchmark.num_tasks"]) == ("5", "3", "3")
    assert row["intransigence"] == "" and row["buffer_samples"] == ""  # not measured: empty, not 0
    stream = prepare.prepare(config, strategies.build(config.strategy)).stream
    assert int(row["samples"]) == 2 * len(stream.x)
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").strategy["lambda"] == 3
    assert list(OmegaConf.load(tmp_path / "run" / "overrides.yaml")) == ["seed=5"]


@pytest.mark.parametrize("strategy", ["naive", "ewc", "er"])
def test_the_same_command_gives_the_same_bytes(configure, tmp_path, strategy):
    config = configure(*TOY, f"strategy={strategy}")
    for name in ("a", "b"):
        run(config, tmp_path / name)
        torch.rand(7)  # whatever happens between two jobs of one process
    for file in FILES - {"summary.csv", "costs.csv", "status.json"}:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    for file in ("summary.csv", "costs.csv"):
        a, b = (reproduced(tmp_path / name / file) for name in ("a", "b"))
        assert a == b and len(a[0]) >= 8


def reproduced(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if reproducible(k)} for row in read_rows(path)]


@pytest.mark.parametrize(
    "case",
    [
        ("strategy=der", "strategy.buffer_size=50"),
        (
            "strategy=naive",
            "model.dropout=0.5",
            "optimizer=adam",
            "benchmark.validation_fraction=0.2",
        ),
        ("strategy=icarl",),
    ],
    ids=" ".join,
)
def test_looking_within_tasks_changes_nothing(configure, tmp_path, case):
    """Every cell of the run is as without; what is measured beside it shows in the metrics."""
    toy = (*TOY, *case, "training.iterations=7", "training.batch_size=16")
    run(configure(*toy), tmp_path / "plain")
    run(configure(*toy, "eval.every=3"), tmp_path / "looking")
    plain, looking = (
        read_rows(tmp_path / name / "accuracies.csv") for name in ("plain", "looking")
    )
    ends = [row for row in looking if row["step"] == "0"]
    ends = [{k: v for k, v in row.items() if k != "step"} for row in ends]
    assert ends == plain
    positions = list(dict.fromkeys((row["after_task"], row["step"]) for row in looking))
    within = [(i, s) for i in "012" for s in "036"]  # of 7 steps
    assert positions == [*within, ("3", "0")]

    row, before = summary(tmp_path / "looking"), summary(tmp_path / "plain")
    other = {"eval.every", "evaluation_flops", "config_hash"}
    same = [k for k in before if reproducible(k) and k not in other]
    assert [row[k] for k in same] == [before[k] for k in same] and "flops" in same
    costs = read_rows(tmp_path / "looking" / "costs.csv")
    untrained, *others = (int(cost["evaluation_flops"]) for cost in costs)
    assert others == 3 * [3 * untrained]  # two within and one after each

    def worst(task: str) -> float:
        """The lowest accuracy in the class-incremental reading after the task's end."""
        own = [r for r in looking if (r["reading"], r["split"]) == ("class", "test")]
        own = [r for r in own if r["eval_task"] == task]
        return min(float(r["accuracy"]) for r in own if (r["after_task"], r["step"]) > (task, "0"))

    assert float(row["min_ACC"]) == pytest.approx((worst("1") + worst("2")) / 2)
    assert verify_runs([str(tmp_path / "looking")]) == (1, [])


def test_a_metric_of_the_evaluations_within_tasks_is_verified(configure, tmp_path):
    run(configure(*TOY, "strategy=naive", "eval.every=3"), tmp_path)
    write_rows(tmp_path / "summary.csv", [summary(tmp_path) | {"min_ACC": "0.123"}])
    (_, lines) = verify_runs([str(tmp_path)])
    assert len(lines) == 1 and "min_ACC is 0.123" in lines[0]


def test_calibration_and_confusion_agree_with_the_accuracies(configure, tmp_path):
    toy = (*TOY, "strategy=er", "benchmark.validation_fraction=0.2")
    run(configure(*toy), tmp_path / "plain")
    run(configure(*toy, "eval.calibration=true"), tmp_path / "run")
    for name in ("accuracies.csv", "accuracy_matrix.csv"):
        plain, own = (tmp_path / folder / name for folder in ("plain", "run"))
        assert plain.read_bytes() == own.read_bytes()
    accuracies = read_rows(tmp_path / "run" / "accuracies.csv")
    scores = read_rows(tmp_path / "run" / "calibration.csv")
    keys = ("after_task", "eval_task", "reading", "split")
    assert sorted([r[k] for k in keys] for r in scores) == sorted(
        [r[k] for k in keys] for r in accuracies
    )
    trained = [r for r in scores if (r["after_task"], r["eval_task"]) == ("3", "3")]
    untrained = [r for r in scores if (r["after_task"], r["eval_task"]) == ("0", "3")]
    for r, before in zip(trained, untrained, strict=True):
        if r["reading"] == "task":
            assert 0 < float(r["NLL"]) < float(before["NLL"])

    confusion = read_rows(tmp_path / "run" / "confusion.csv")
    assert {r["after_task"] for r in confusion} == {"1", "2", "3"}
    stream = prepare.prepare(configure(*toy), strategies.build({"name": "er"})).stream
    sizes = {str(t.index + 1): len(t.test) for t in stream}
    for reading in ("class", "task"):
        own = [r for r in confusion if (r["reading"], r["split"]) == (reading, "test")]
        for after in ("1", "2", "3"):
            cells = [r for r in own if r["after_task"] == after]
            seen = [n for t, n in sizes.items() if t <= after]
            assert sum(int(r["count"]) for r in cells) == sum(seen)
            hits = sum(int(r["count"]) for r in cells if r["class"] == r["predicted"])
            at = [r for r in accuracies if (r["after_task"], r["reading"]) == (after, reading)]
            at = [r for r in at if r["split"] == "test" and r["eval_task"] <= after]
            expected = sum(float(r["accuracy"]) * sizes[r["eval_task"]] for r in at)
            assert hits == pytest.approx(expected)


def test_a_look_after_the_last_step_is_that_after_the_task(configure, tmp_path):
    run(configure(*TOY, "strategy=naive", "training.iterations=6", "eval.every=3"), tmp_path)
    steps = {row["step"] for row in read_rows(tmp_path / "accuracies.csv")}
    assert steps == {"0", "3"}


def test_the_stream_has_a_seed_of_its_own(configure):
    """benchmark.seed fixes the permutations while the run's seed varies everything else."""
    first, second, moved = (
        configure("benchmark=permuted_digits", *TOY[1:], *seeds)
        for seeds in (("seed=1",), ("seed=2", "benchmark.seed=1"), ("seed=1", "benchmark.seed=2"))
    )
    streams = [
        prepare.prepare(c, strategies.build(c.strategy)).stream for c in (first, second, moved)
    ]
    shown = [s.held_out("test", s[1])[0] for s in streams]
    assert torch.equal(shown[0], shown[1]) and not torch.equal(shown[0], shown[2])


def test_memory_is_reported(configure, tmp_path):
    run(configure(*TOY, "strategy=er", "strategy.buffer_size=50"), tmp_path / "er")
    row = summary(tmp_path / "er")
    P = 64 * 24 + 24 + 24 * 10 + 10
    assert int(row["parameters"]) == P and int(row["parameter_bytes"]) == 4 * P
    assert row["buffer_samples"] == "50" and row["buffer_bytes"] == str(50 * 64)
    run(configure(*TOY, "strategy=ewc"), tmp_path / "ewc")
    assert int(summary(tmp_path / "ewc")["memory_bytes"]) == 2 * 4 * P  # Fisher and anchor


def test_the_logits_in_a_buffer_are_counted(configure, tmp_path):
    """A sample is 64 bytes; its 10 logits are 40 more, which are no samples."""
    run(configure(*TOY, "strategy=der", "strategy.buffer_size=50"), tmp_path)
    row = summary(tmp_path)
    seen = 8 * 10  # how many of each class came by
    assert (row["buffer_bytes"], row["memory_bytes"]) == (str(50 * (64 + 10 * 4)), str(seen))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("hat", lambda _: 4 * 24 + 2 * 8),  # the claim on each unit, and two counts of steps
        ("pnn", lambda _: 0),
        ("den", lambda P: 8 * (24 + 2 * 20) + 4 * P),  # units' stamps, weights before the task
        ("packnet", lambda P: 2 * P),  # each weight's owner
        ("supsup", lambda P: 3 * P),  # a mask for each of three tasks
        ("piggyback", lambda P: 3 * P + 4 * P),  # and the backbone
        ("lwf", lambda P: 4 * P + 8),  # the old network, and a count of steps
        ("frozen_features", lambda _: 0),
        ("soft_sharing", lambda _: 0),
    ],
)
def test_memory_that_follows_from_the_rest_is_not_counted(prepared, strategy, expected):
    toy = ("benchmark=split_digits", "benchmark.num_tasks=3", "model.hidden_sizes=[24]")
    _, own, env = prepared(*toy, f"strategy={strategy}", "scenario=task")
    s = initial_state(own, env)
    assert set(own.uncounted) <= set(s.memory)
    held = record.footprint(own, s, env)
    assert held["memory_bytes"] == expected(len(s.theta))


def test_divergence_keeps_what_was_measured(configure, tmp_path):
    config = configure(*TOY, "strategy=l2", "strategy.lambda=1e9")
    with pytest.raises(Diverged, match=r"in task 2 at step \d+"):
        run(config, tmp_path)
    row = summary(tmp_path)
    assert row["status"] == "failed" and row["ACC"] == ""
    R = read_matrix(tmp_path / "accuracy_matrix.csv")
    assert (R[:2] >= 0).all() and bool((R[2:] != R[2:]).all())
    assert set(read_accuracies(tmp_path / "accuracies.csv").after_task) == {0, 1}


def test_a_checkpoint_goes_when_completeness_is_on_the_disk(configure, tmp_path, disk):
    config = configure(*TOY, "strategy=naive", "training.iterations=1")
    prepare.read(config)  # the data are a file, too
    disk.clear()
    run(config, tmp_path)
    last = ["rename status.json", "flush folder", f"remove {CHECKPOINT}"]
    assert disk[-3:] == last
    at = [i for i, what in enumerate(disk) if what.startswith("rename ")]
    assert all(disk[i + 1] == "flush folder" and disk[i - 1].endswith(".part") for i in at)
    above = [f"flush {path.name}" for path in tmp_path.parents]
    assert disk[: len(above)] == above  # Hydra makes the folder, nobody flushes it


@pytest.mark.parametrize("keep", ["true", "false"])
def test_what_a_kill_left_of_a_complete_run_is_removed(configure, tmp_path, keep):
    """Between the last status.json and the end of the checkpoint there is a moment."""
    config = configure(*TOY, "strategy=naive", "training.iterations=1", f"checkpoint.keep={keep}")
    expected = run(config, tmp_path)
    for name in (CHECKPOINT, ".status.json.4711.part", ".users.part"):
        (tmp_path / name).write_text("left")
    assert run(dataclasses.replace(config, resume=True), tmp_path) == expected
    kept = {CHECKPOINT, WEIGHTS, MODEL, MODEL_MEMORY} if keep == "true" else set()
    left = FILES | {".users.part"} | kept
    assert {path.name for path in tmp_path.iterdir()} == left


class Unwritable(io.TextIOWrapper):
    """Standard output of which nobody reads anything."""

    def __init__(self, error: OSError) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_that_nothing_can_be_printed_fails_no_run(configure, tmp_path, monkeypatch, code):
    monkeypatch.setattr(sys, "stdout", Unwritable(OSError(code, os.strerror(code))))
    config = configure(
        *TOY[:-1], "strategy=ewc", "training.iterations=1", "strategy.fisher_samples=5"
    )
    assert 0 <= run(config, tmp_path) <= 1
    assert status.state(tmp_path) == summary(tmp_path)["status"] == "complete"


def test_a_signal_after_the_last_status_leaves_the_run_complete(configure, tmp_path, monkeypatch):
    tell = record.RunFiles.write_status

    def interrupted(self: record.RunFiles, state: str) -> None:
        tell(self, state)
        if state == "complete":
            raise KeyboardInterrupt

    monkeypatch.setattr(record.RunFiles, "write_status", interrupted)
    config = configure(*TOY, "strategy=naive", "training.iterations=1")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    assert status.state(tmp_path) == summary(tmp_path)["status"] == "complete"


def test_the_log_has_a_short_line_for_each_task(configure, tmp_path, caplog):
    caplog.set_level("INFO")
    run(configure(*TOY, "strategy=naive", "benchmark.num_tasks=10"), tmp_path)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("after task")]
    R = read_matrix(tmp_path / "accuracy_matrix.csv")
    means = [R[0].mean(), *(R[k, :k].mean() for k in range(1, 11))]
    assert told == [f"after task {k}: mean accuracy {mean:.4f}" for k, mean in enumerate(means)]


def test_interruption_keeps_what_was_measured(configure, tmp_path, monkeypatch):
    train_task = loop.train_task

    def interrupt(strategy, s, task, *args, **kwargs):
        if task.index == 1:
            raise KeyboardInterrupt
        return train_task(strategy, s, task, *args, **kwargs)

    monkeypatch.setattr(loop, "train_task", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(configure(*TOY, "strategy=naive"), tmp_path)
    assert summary(tmp_path)["status"] == "interrupted"
    assert (read_matrix(tmp_path / "accuracy_matrix.csv")[:2] >= 0).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("benchmark.num_tasks=11",), "benchmark.num_tasks=11 is more than the 10 classes"),
        (("strategy.lambda=-1",), "strategy.lambda must be at least 0, got -1.0"),
        (("device=cuda",), "device=cuda: torch finds no usable CUDA GPU"),
        (("benchmark=split_npz",), "data.path"),
        (("benchmark=rotated_digits", "training.augment=crop_flip"), "training.augment"),
        (("benchmark.mean=[0.5,0.5]", "benchmark.std=[1,1]"), "benchmark.std must hold 1"),
        (("benchmark.pad_to=4",), "benchmark.pad_to=4"),
        (("model.hidden_sizes=[2000000000]",), "not enough memory"),
        (("threads=100000000",), "threads must lie between 1 and 1024"),
        (("strategy.lambda=inf",), "strategy.lambda must be finite"),
        (("optimizer.lr=nan",), "optimizer.lr must be finite"),
        (("benchmark.seed=-5",), "benchmark.seed must be at least 0"),
        (
            ("model.hidden_sizes=100",),
            "model.hidden_sizes must be a list of int, such as 'model.hidden_sizes=[100]', got 100",
        ),
        (("seed=null",), "seed must be int, got None"),
        (("data.root=",), "data.root must not be empty"),
        (("model=cnn", "model.channels=[2,2,2,2]"), "model.channels"),
        (("benchmark.train_samples=3",), "has no training samples"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(configure, tmp_path, overrides, message):
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    base = () if overrides[0].startswith(("model=", "benchmark=")) else TOY
    with pytest.raises(UserError) as caught:
        run(configure(*base, "strategy=ewc", *overrides), tmp_path / "run")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_too_small_for_batchnorm_is_told_in_one_line(prepared):
    model = ("model=resnet18", "model.width=2", "training.batch_size=1")
    _, strategy, env = prepared("strategy=naive", "benchmark=split_digits", *model)
    with pytest.raises(UserError, match=r"task 1 has a batch of 1 sample, too small for BatchNorm"):
        loop.train_task(strategy, initial_state(strategy, env), env.stream[0], env)


def test_a_full_disk_or_a_folder_that_cannot_be_written_is_told_in_one_line(configure, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot write") as caught:
        run(configure(*TOY, "strategy=naive"), tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_threads_of_one_job_are_not_those_of_the_next(configure, tmp_path):
    before = torch.get_num_threads()
    try:
        for threads, used in (("2", 2), ("null", prepare.DEFAULT_THREADS)):
            run(configure(*TOY, "strategy=naive", f"threads={threads}"), tmp_path / threads)
            assert summary(tmp_path / threads)["used_threads"] == str(used)
    finally:
        torch.set_num_threads(before)


def test_validation_accuracy_is_what_a_search_gets(configure, tmp_path):
    config = configure(*TOY, "strategy=naive", "benchmark.validation_fraction=0.3")
    result = run(config, tmp_path)
    row = summary(tmp_path)
    assert result == float(row["validation_ACC"]) != float(row["ACC"])
    R = read_matrix(tmp_path / "accuracy_matrix_validation.csv")
    assert float(R[-1].mean()) == result


def test_the_console_ends_with_table_metrics_and_folder(configure, tmp_path, capsys):
    run(configure(*TOY[:-1], "strategy=naive"), tmp_path / "run")
    *table, names, own, task, folder = capsys.readouterr().out.strip().splitlines()
    R = read_matrix(tmp_path / "run" / "accuracy_matrix.csv")
    assert len(table) == 5
    assert table[-1].split() == ["3", *(f"{v:.3f}".removeprefix("0") for v in R[-1])]
    assert names.split()[:3] == ["reading", "ACC", "forgetting"]
    assert own.split()[:2] == ["class-IL", f"{R[-1].mean():.4f}"]
    assert task.startswith("task-IL") and str(tmp_path / "run") in folder
    assert all(len(line) <= 80 for line in (*table, names, own, task))


def test_your_own_arrays_need_no_code(configure, tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    y = np.repeat(np.array([3, 5, 7, 9]), 40)
    x = rng.normal(size=(160, 6)).astype(np.float32) + 4 * np.eye(10)[y][:, [3, 5, 7, 9, 0, 1]]
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = configure(
        "benchmark=split_npz",
        "benchmark.num_tasks=2",
        f"data.path={tmp_path / 'mine.npz'}",
        "strategy=joint",
        "training.epochs=30",
        "training.batch_size=16",
        "verbose=false",
    )
    assert run(config, tmp_path / "run") > 0.9


@pytest.mark.parametrize("strategy", strategies.available())
def test_a_pure_regulariser_in_class_il_is_told_its_bounds(prepared, strategy):
    expected = {"l2", "ewc", "si", "mas", "rwalk", "lwf", "imm", "vcl"}
    for scenario in strategies.find(strategy).scenarios:
        _, own, env = prepared(
            "benchmark=split_digits", f"strategy={strategy}", f"scenario={scenario}"
        )
        lines = [line for line in messages.notes(own, env) if "regulariser" in line]
        assert bool(lines) == (strategy in expected and scenario == "class")
        assert all(f"strategy={name}" in line for line in lines for name in ("naive", "joint"))


def test_the_note_is_in_the_log_and_on_the_console(configure, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    base = ("benchmark=split_digits", "strategy=ewc", "training.iterations=1", "verbose=true")
    config = configure(*base, "strategy.fisher_samples=5", "benchmark.num_tasks=2")
    run(config, tmp_path / "a")
    assert capsys.readouterr().out.startswith("strategy=ewc is a pure regulariser: ")
    assert sum("pure regulariser" in r.getMessage() for r in caplog.records) == 1
    one = configure(*base, "strategy.fisher_samples=5", "benchmark.num_tasks=1")
    run(one, tmp_path / "b")
    assert "regulariser" not in capsys.readouterr().out


def test_jobs_say_a_line_each_and_their_notes_once(configure, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    messages.say_once.cache_clear()
    base = ("benchmark=split_digits", "strategy=ewc", "training.iterations=1", "verbose=true")
    config = configure(*base, "strategy.fisher_samples=5", "benchmark.num_tasks=2")
    for job in ("job 1 of 2", "job 2 of 2"):
        run(config, tmp_path / job, job=job)
    note, *lines = capsys.readouterr().out.splitlines()
    assert "pure regulariser" in note
    assert caplog.text.count("pure regulariser") == 2
    words = r"ACC \d\.\d{3}, forgetting -?\d\.\d{3} · \d+\.\d s"
    assert len(lines) == 2
    for i, line in enumerate(lines, 1):
        assert re.fullmatch(f"job {i} of 2 · {words}", line)


CHECKOUT = Path(__file__).parents[1]


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="this is no checkout")
def test_the_commit_of_a_checkout_is_known():
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?", str(record.commit()))
