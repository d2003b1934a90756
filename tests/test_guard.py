"""The guard: when it fires, what a task then ends with, and that it changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cl_runner.comparing.verify import verify_runs
from cl_runner.config.schema import Guard
from cl_runner.core import TrainState
from cl_runner.errors import Diverged, UserError
from cl_runner.results.columns import of_guard
from cl_runner.results.files import read_rows, write_rows
from cl_runner.running import checkpoint, guard, record
from cl_runner.running.frame import frame_of, named
from cl_runner.running.guard import Backtest, ended, looked_back, row_of
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state

TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=3",
    "benchmark.validation_fraction=0.2",
    "model.hidden_sizes=[24]",
    "training.iterations=12",
    "training.batch_size=16",
    "verbose=false",
)
ON = ("guard.drop=0.05", "guard.every=2")


# When it fires: worked by hand. Two old tasks, of which the first was better after the second.

NAN = float("nan")
R = np.array(
    [
        [0.1, 0.1, 0.1],
        [0.8, 0.2, 0.1],
        [0.9, 0.7, 0.3],
        [NAN, NAN, NAN],
    ]
)


def a_state(value: int) -> TrainState:
    theta = torch.full((3,), float(value), requires_grad=True)
    return TrainState(theta, {"bn": torch.ones(1)}, {"lr": torch.tensor(0.1)}, {}, torch.tensor(2))


def after(*rows: tuple[float, float, float], **keys: object) -> Backtest:
    """What is known after looks at steps 0, 2, 4, ... of a task that began at step 10."""
    seen, own = Backtest(10, -1), Guard(**{"drop": 0.05, **keys})
    for i, row in enumerate(rows):
        seen = looked_back(seen, own, R, row, a_state(i), 10 + 2 * i)
    return seen


def test_the_reference_is_the_best_since_a_task_was_learnt():
    """0.9 after the second task; not 0.1 of the untrained network, nor 0.8."""
    seen = after((0.9, 0.7, 0.3), (0.84, 0.7, 0.4))
    assert (seen.old_task, seen.reference, seen.accuracy) == (0, 0.9, 0.84)
    assert (seen.fired, seen.looks, seen.looked) == (2, 2, 12)
    assert after((0.9, 0.7, 0.3), (0.85, 0.7, 0.4)).fired is None  # by the drop, not by more


def test_the_worst_fall_is_kept_though_the_task_recovers():
    seen = after((0.9, 0.7, 0.3), (0.9, 0.66, 0.4), (0.88, 0.7, 0.5))
    assert (seen.old_task, seen.reference, seen.accuracy, seen.fired) == (
        1,
        0.7,
        0.66,
        None,
    )
    row = row_of(seen, Guard(drop=0.05), 2, 17)
    assert row == {
        "task": 3,
        "looks": 3,
        "old_task": 2,
        "reference": 0.7,
        "accuracy": 0.66,
        "step": None,
        "action": None,
        "kept_step": 7,
    }
    assert of_guard([row]) == {"worst_drop": pytest.approx(0.04), "rollbacks": 0}


def test_what_had_fallen_before_is_no_fault_of_this_task(monkeypatch):
    """It may stay where it was when the task began; lower it may not go."""
    low = R.copy()
    low[2, 0] = 0.5
    monkeypatch.setitem(globals(), "R", low)
    seen = after((0.5, 0.7, 0.3), (0.5, 0.7, 0.9))
    assert (seen.fired, seen.old_task) == (None, None)
    assert row_of(seen, Guard(drop=0.05), 2, 12)["accuracy"] is None
    seen = after((0.5, 0.7, 0.3), (0.49, 0.7, 0.9))
    assert (seen.fired, seen.reference, seen.accuracy) == (2, 0.8, 0.49)


def test_the_best_step_is_the_last_of_the_highest_means_within_the_bound():
    rows = (0.9, 0.7, 0.3), (0.9, 0.7, 0.6), (0.88, 0.72, 0.6), (0.9, 0.7, 0.5), (0.2, 0.7, 0.99)
    seen = after(*rows)
    assert (seen.fired, seen.kept, seen.best) == (8, 4, pytest.approx(2.2 / 3))
    assert seen.state is not None and not seen.state.theta.requires_grad
    assert torch.equal(seen.state.theta, torch.full((3,), 2.0))  # the look at step 4
    assert row_of(seen, Guard(drop=0.05), 2, 18)["kept_step"] == 4


def test_the_state_before_the_task_is_there_though_it_breaks_the_bound():
    seen = after((0.2, 0.7, 0.3))
    assert (seen.fired, seen.kept) == (0, 0)
    assert seen.state is not None


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_only_a_rollback_holds_a_second_state(action):
    seen = after((0.9, 0.7, 0.3), (0.2, 0.7, 0.4), (0.1, 0.7, 0.4), action=action)
    assert seen.state is None
    assert (seen.fired, seen.accuracy, seen.looks) == (
        2,
        0.1,
        3,
    )  # still the first time
    assert ended(seen, Guard(drop=0.05, action=action)) == (action == "stop")
    assert row_of(seen, Guard(drop=0.05, action=action), 2, 14)["kept_step"] == 4


def test_a_copy_shares_no_memory():
    s = a_state(1)
    held = guard.copied(s)
    with torch.no_grad():
        s.theta.zero_()
        s.buffers["bn"].zero_()
    assert held.theta.sum() == 3 and held.buffers["bn"] == 1


def test_by_default_a_look_takes_no_more_samples_than_the_steps_before_it(prepared):
    config, _, env = prepared(*TOY, "strategy=naive", "guard.drop=0.05")
    sizes = [len(task.validation) for task in env.stream]
    assert guard.every(config, env.stream, 1) == -(-(sizes[0] + sizes[1]) // 16) > 1
    assert guard.every(config, env.stream, 2) == -(-sum(sizes) // 16)
    config, _, env = prepared(*TOY, "strategy=naive", "guard.drop=0.05", "eval.every=7")
    assert guard.every(config, env.stream, 2) == 7
    config, _, env = prepared(*TOY, "strategy=naive", *ON, "eval.every=7")
    assert guard.every(config, env.stream, 2) == 2


def test_it_needs_validation_data(configure):
    said = r"guard.drop needs validation data, such as benchmark.validation_fraction=0.1"
    with pytest.raises(UserError, match=said):
        configure("guard.drop=0.05")
    configure("guard.every=3")  # nothing is asked of it


# Whole runs.


def kept(configure, prepared, out, *options: str) -> TrainState:
    """A run in `out`; its last state."""
    config = configure(*TOY, *options, "checkpoint.keep=true")
    run(config, out)
    _, strategy, env = prepared(*TOY, *options)
    frame = frame_of(config, strategy, initial_state(strategy, env), env)
    saved = checkpoint.load(out, config.resolved, frame)
    assert saved is not None
    return saved.state


def test_naive_on_digits_is_caught_within_a_hundred_steps(configure, tmp_path, capsys):
    options = ("training.iterations=300", "benchmark.num_tasks=2", "strategy=naive")
    run(configure(*TOY, *options, "guard.drop=0.05", "verbose=true"), tmp_path)
    (row,) = read_rows(tmp_path / "guard.csv")
    assert row["action"] == "rollback"
    assert 0 <= int(row["kept_step"]) < int(row["step"]) <= 100
    (summary,) = read_rows(tmp_path / "summary.csv")
    assert (summary["status"], summary["rollbacks"]) == ("complete", "1")
    drop = float(row["reference"]) - float(row["accuracy"])
    assert float(summary["worst_drop"]) == drop > 0.05
    assert int(summary["steps"]) == 300 + int(row["step"])
    line = (
        f"task 2: task 1 fell from {float(row['reference']):.3f} to {float(row['accuracy']):.3f} "
        f"on its validation data at step {row['step']}, more than guard.drop=0.05: it goes back to "
        f"step {row['kept_step']}\n"
    )
    assert line in capsys.readouterr().out
    assert verify_runs([str(tmp_path)]) == (1, [])
    R = read_rows(tmp_path / "accuracy_matrix_validation.csv")
    assert float(R[2]["task_1"]) >= float(R[1]["task_1"]) - 0.05


@pytest.mark.parametrize(
    "options",
    [
        ("strategy=er", "strategy.buffer_size=20", "optimizer.momentum=0.9", "guard.drop=0.05"),
        ("strategy=naive", "optimizer=adam", "optimizer.lr=0.02", "guard.drop=0.05"),
        pytest.param(
            ("strategy=ewc", "model=reduced_resnet18", "model.width=2", "guard.drop=0.15"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["buffer and momentum", "adam", "BatchNorm"],
)
def test_all_of_the_state_goes_back(configure, tmp_path, monkeypatch, options):
    """To what an unguarded run has at that step: weights, statistics, slots and memory."""
    toy = [o for o in TOY if "model=" not in " ".join(options) or not o.startswith("model.")]
    base = (*toy, *options, "benchmark.num_tasks=2", "checkpoint.every=0")
    seen: dict[str, dict[tuple[int, int | None], dict[str, torch.Tensor]]] = {}
    save = checkpoint.save

    def noted(out, saved, config) -> None:
        at = saved.task, None if saved.progress is None else saved.progress.step
        seen.setdefault(out.name, {})[at] = {
            name: v.detach().clone() for name, v in named(saved.state).items()
        }
        save(out, saved, config)

    monkeypatch.setattr(checkpoint, "save", noted)
    run(configure(*base, "guard.drop=null"), tmp_path / "free")
    run(configure(*base, "guard.every=1"), tmp_path / "guarded")
    (row,) = read_rows(tmp_path / "guarded" / "guard.csv")
    step, back = int(row["step"]), int(row["kept_step"])
    assert 0 < back < step < 12, row
    free, guarded = seen["free"], seen["guarded"]
    for i in range(step):
        assert same(free[1, i], guarded[1, i])
    assert same(guarded[1, step], free[1, back])
    assert not same(free[1, step], free[1, back])
    after = {k: v for k, v in guarded[2, None].items() if not k.startswith("memory.")}
    assert same(after, {k: free[1, back][k] for k in after})  # and EWC's end_task is taken


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(v, b[name]) for name, v in a.items())


@pytest.mark.parametrize("options", [(), ("eval.every=4",), ("budget.samples=300",)])
def test_where_it_never_fires_nothing_else_changes(configure, prepared, tmp_path, options):
    case = ("strategy=er", "strategy.buffer_size=20", *options)
    guarded = kept(configure, prepared, tmp_path / "guarded", *case, *ON, "guard.drop=0.999")
    free = kept(configure, prepared, tmp_path / "free", *case)
    assert same(named(guarded), named(free))
    for path in (tmp_path / "free").glob("accurac*.csv"):
        assert path.read_bytes() == (tmp_path / "guarded" / path.name).read_bytes(), path
    assert not (tmp_path / "free" / "guard.csv").exists()
    one, other = (read_rows(tmp_path / n / "summary.csv")[0] for n in ("guarded", "free"))
    assert one.keys() - other.keys() == {"worst_drop", "rollbacks"}
    assert one["rollbacks"] == "0" and 0 <= float(one["worst_drop"]) < 0.999
    own = {"worst_drop", "rollbacks", "evaluation_flops", "config_hash"}
    own |= {"guard.drop", "guard.every", "peak_memory_bytes"}
    for name in other.keys() - own:
        assert "seconds" in name or one[name] == other[name], name


def test_what_is_only_told_trains_as_without(configure, prepared, tmp_path):
    warned = kept(configure, prepared, tmp_path / "a", "strategy=naive", *ON, "guard.action=warn")
    free = kept(configure, prepared, tmp_path / "b", "strategy=naive")
    assert same(named(warned), named(free))
    rows = read_rows(tmp_path / "a" / "guard.csv")
    assert [row["action"] for row in rows] == ["warn", "warn"]
    assert [row["kept_step"] for row in rows] == ["12", "12"]
    assert read_rows(tmp_path / "a" / "summary.csv")[0]["rollbacks"] == "0"


def test_a_task_that_is_stopped_keeps_its_steps(configure, prepared, tmp_path):
    case = ("strategy=naive", "benchmark.num_tasks=2")
    stopped = kept(configure, prepared, tmp_path / "a", *case, *ON, "guard.action=stop")
    (row,) = read_rows(tmp_path / "a" / "guard.csv")
    assert 0 < int(row["step"]) == int(row["kept_step"]) < 12
    steps = (0, 12, int(row["step"]))
    assert [int(r["steps"]) for r in read_rows(tmp_path / "a" / "costs.csv")] == [*steps]
    R = read_rows(tmp_path / "a" / "accuracy_matrix_validation.csv")
    assert float(R[2]["task_1"]) == float(row["accuracy"])
    back = kept(configure, prepared, tmp_path / "b", *case, *ON)
    assert not torch.equal(stopped.theta, back.theta)


def test_a_task_whose_steps_end_between_two_looks_is_looked_at(configure, tmp_path):
    """Here the first look would be after its last step."""
    run(configure(*TOY, "strategy=naive", "guard.drop=0.05", "guard.every=1000"), tmp_path)
    rows = read_rows(tmp_path / "guard.csv")
    assert [(r["looks"], r["step"], r["kept_step"]) for r in rows] == [("2", "12", "0")] * 2


def test_a_budget_ends_a_task_as_ever_and_its_state_is_looked_at(configure, tmp_path):
    case = ("strategy=naive", f"budget.samples={3 * 16 * 3}", "guard.drop=0.05", "guard.every=100")
    run(configure(*TOY, *case), tmp_path)
    (row,) = read_rows(tmp_path / "summary.csv")
    assert row["budget_stopped"] == "[1, 2, 3]"
    rows = read_rows(tmp_path / "guard.csv")
    assert {r["step"] or r["kept_step"] for r in rows} == {"3"}


def test_only_validation_data_are_looked_at_and_paid_as_evaluation(
    configure, tmp_path, monkeypatch
):
    asked, evaluate = [], record.evaluate

    def noted(*args, only=None, **keys):
        asked.extend([only] if only else [])
        return evaluate(*args, only=only, **keys)

    monkeypatch.setattr(record, "evaluate", noted)
    config = configure(*TOY, "strategy=naive", *ON, "guard.drop=0.999")
    run(config, tmp_path / "a")
    looked = [[(split, task.index) for split, task in only] for only in asked]
    one, two = ([("validation", i) for i in range(n)] for n in (2, 3))
    assert looked == [one] * 7 + [two] * 7  # steps 0, 2, .. 12 of the tasks with old ones
    run(configure(*TOY, "strategy=naive"), tmp_path / "b")
    a, b = (read_rows(tmp_path / n / "costs.csv") for n in "ab")
    sizes = [len(task.validation) for _, task in asked[-1]]
    forward = 2 * 64 * 24 + 2 * 24 * 10
    more = [
        int(x["evaluation_flops"]) - int(y["evaluation_flops"]) for x, y in zip(a, b, strict=True)
    ]
    assert more == [0, 0, 7 * sum(sizes[:2]) * forward, 7 * sum(sizes) * forward]
    assert [x["flops"] for x in a] == [y["flops"] for y in b]


def test_a_look_that_is_due_with_an_evaluation_is_that(configure, tmp_path, monkeypatch):
    asked, evaluate = [], record.evaluate

    def noted(*args, only=None, **keys):
        asked.append(only)
        return evaluate(*args, only=only, **keys)

    monkeypatch.setattr(record, "evaluate", noted)
    run(configure(*TOY, "strategy=naive", "guard.drop=0.999", "eval.every=6"), tmp_path)
    assert sum(only is not None for only in asked) == 2  # at the beginning of both
    assert [r["looks"] for r in read_rows(tmp_path / "guard.csv")] == ["3", "3"]


def test_what_was_measured_within_a_task_stays_but_where_it_ends(configure, tmp_path):
    case = (*TOY, "strategy=naive", "benchmark.num_tasks=2", "eval.every=2", "guard.drop=0.05")
    for action in ("rollback", "stop"):
        run(configure(*case, f"guard.action={action}"), tmp_path / action)
        (row,) = read_rows(tmp_path / action / "guard.csv")
        rows = read_rows(tmp_path / action / "accuracies.csv")
        steps = {int(r["step"]) for r in rows if r["after_task"] == "1"}
        last = {int(row["step"])} if action == "stop" else set()
        assert steps == {*range(0, int(row["step"]) + 1, 2)} - last


def test_a_run_that_becomes_infinite_fails_as_ever(configure, tmp_path):
    case = (*TOY, "strategy=l2", "strategy.lambda=1e9")
    with pytest.raises(Diverged, match="in task 2"):
        run(configure(*case, "guard.drop=0.9", "guard.action=warn", "guard.every=1"), tmp_path)


def test_verify_sees_a_summary_that_says_otherwise(configure, tmp_path):
    run(configure(*TOY, "strategy=naive", *ON), tmp_path)
    path = tmp_path / "summary.csv"
    (row,) = read_rows(path)
    write_rows(path, [row | {"worst_drop": 0.01, "rollbacks": 0}])
    said = "\n".join(verify_runs([str(tmp_path)])[1])
    assert "guard.csv gives worst_drop" in said and "guard.csv gives rollbacks 2" in said
