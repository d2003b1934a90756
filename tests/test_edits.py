"""benchmark=edits: which samples are edited, what is read of each edit, what is never trained."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cl_runner.comparing.verify import verify_runs
from cl_runner.data.kinds.edits import chosen
from cl_runner.errors import UserError
from cl_runner.functional.metrics import edit_success, edits_retained, generality, locality
from cl_runner.results import status
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.running import edits, loop
from cl_runner.running.frame import Unfit, check_edits, frame_of, named
from cl_runner.running.tasks import initial_state, length, train_task
from cl_runner.training.fit import Progress

TOY = (
    *("benchmark=edits", "benchmark.num_tasks=4", "benchmark.epochs_per_edit=3"),
    *(
        "benchmark.pool_fraction=0.3",
        "benchmark.train_samples=300",
        "training.epochs=8",
        "training.batch_size=32",
    ),
    *("model.hidden_sizes=[24]", "threads=1", "verbose=false"),
)


def decided(prepared, *options: str):
    """Strategy, environment and state after the first task, and the edits that it needs."""
    _, strategy, env = prepared(*TOY, "strategy=naive", *options)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    found = edits.decide(strategy, s, env)
    env.stream = edits.with_edits(env.stream, found)
    return strategy, env, s, found


# The stream.


def test_no_task_trains_on_test_data_and_the_pool_is_not_the_first_tasks(prepared):
    """Rows of x are the data set's training samples, which all that learns stores and trains on."""
    _, _, env = prepared(*TOY, "strategy=naive", "benchmark.validation_fraction=0.1")
    first, *others = env.stream
    pool = env.stream.pool
    held = [set(first.train.tolist()), set(first.validation.tolist()), set(pool.tolist())]
    assert [len(rows) for rows in held] == [189, 30, 81]
    assert len(set.union(*held)) == 300
    untouched = len(env.stream.x_test) - len(pool)
    assert first.test.tolist() == list(range(untouched))
    for task in others:
        assert set(task.train.tolist()) <= set(pool.tolist())
        assert task.validation.tolist() == task.train.tolist()
        images, y = env.stream.held_out("test", task)
        assert torch.equal(images, env.stream.images(task.train, task.index))
        assert torch.equal(y, env.stream.labels(task.train, task.index))


def test_the_samples_of_an_edit_are_those_at_its_places(prepared):
    _, _, env = prepared(*TOY, "strategy=naive", "benchmark.per_edit=2")
    env.stream.held_out("test", env.stream[1])  # what is kept of the tasks before is forgotten
    places = torch.tensor([[5, 3], [0, 1], [7, 9]])
    stream = chosen(env.stream, places)
    assert torch.equal(stream[1].train, env.stream.pool[[5, 3]])
    images, _ = stream.held_out("test", stream[1])
    assert torch.equal(images, stream.x[env.stream.pool[[5, 3]]])
    assert stream[0] is env.stream[0]


def test_an_edit_has_its_own_length_and_rate(prepared):
    strategy, env, s, _ = decided(prepared, "benchmark.lr_factor=0.25", "optimizer.lr=0.2")
    steps = [length(strategy, env, Progress((task.train, 0)), task.index) for task in env.stream]
    assert [plan.steps for plan in steps] == [8 * math.ceil(210 / 32), 3, 3, 3]
    assert float(s.opt["lr"]) == pytest.approx(0.2)
    s = train_task(strategy, s, env.stream[1], env)
    assert float(s.opt["lr"]) == pytest.approx(0.05)


def test_a_schedule_is_of_the_edits_rate(prepared):
    stepped = ("optimizer.schedule=step", "optimizer.milestones=[0.5]", "optimizer.decay=0.5")
    strategy, env, s, _ = decided(prepared, "optimizer.lr=0.2", *stepped)
    assert float(s.opt["lr"]) == pytest.approx(0.1)
    s = train_task(strategy, s, env.stream[1], env)
    assert float(s.opt["lr"]) == pytest.approx(0.01)


# The choice.


def test_edits_are_the_first_of_the_pool_that_the_model_gets_wrong(prepared):
    """Held against predictions one by one."""
    strategy, env, s, found = decided(prepared, "benchmark.per_edit=2")
    stream, wrong = env.stream, []
    for place, row in enumerate(stream.pool):
        x = env.inputs(stream.x[row : row + 1])
        took = int(strategy.predict(s, x, 0, env).argmax())
        if took != int(stream.y[row]):
            wrong.append((place, took))
    places, taken = (torch.tensor(own[:6]).view(3, 2) for own in zip(*wrong, strict=True))
    assert torch.equal(found.places, places)
    assert torch.equal(found.taken, taken)
    assert env.stream[3].train.tolist() == stream.pool[places[2]].tolist()


def test_another_seed_edits_other_samples(prepared):
    one, two = (decided(prepared, f"seed={seed}")[1] for seed in (0, 1))
    assert [t.train.tolist() for t in one.stream[1:]] != [t.train.tolist() for t in two.stream[1:]]
    assert torch.equal(one.stream.x, two.stream.x)  # a stack of them shares the data


def test_too_few_mistakes_are_a_failure_after_the_first_task(configure, tmp_path):
    config = configure(*TOY, "strategy=naive", "benchmark.num_tasks=60")
    said = (
        r"benchmark.num_tasks=60 with benchmark.per_edit=1 asks for 59 samples to edit, and of the "
        r"90 of the pool the model of the first task gets \d+ wrong: raise benchmark.pool_fraction"
    )
    with pytest.raises(UserError, match=said):
        loop.run(config, tmp_path)
    assert status.read(tmp_path)["state"] == "failed"
    assert not (tmp_path / "edits.csv").exists()
    assert read_matrix(tmp_path / "accuracy_matrix.csv")[1:].size
    (row,) = read_rows(tmp_path / "summary.csv")
    assert (row["status"], row["success"], row["locality"]) == ("failed", "", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("benchmark.num_tasks=1",), "benchmark.num_tasks must be at least 2: the first task, and"),
        (("benchmark.per_edit=0",), "benchmark.per_edit must be at least 1, got 0"),
        (("benchmark.epochs_per_edit=0",), "benchmark.epochs_per_edit must be at least 1, got 0"),
        (("benchmark.lr_factor=0",), "benchmark.lr_factor must be positive, got 0"),
        (("benchmark.pool_fraction=1",), r"benchmark.pool_fraction must lie in \(0, 1\), got 1"),
        (("benchmark.boundaries=fuzzy",), "benchmark.boundaries=fuzzy does not go with"),
        (("benchmark.samples_per_task=9",), "benchmark.samples_per_task has no meaning for edits"),
        (("scenario=class",), "benchmark=edits is defined for scenario=domain only, got scenario"),
        (("training.boundaries=none",), "training.boundaries=none does not go with benchmark=edit"),
        (("benchmark.num_tasks=92",), "asks for 91 samples to edit, more than the 90 of the pool"),
        (("strategy=joint",), "strategy=joint trains on all tasks at once, and those of benchmark"),
    ],
)
def test_what_cannot_be_is_told_before_training(prepared, options, said):
    with pytest.raises(UserError, match=said):
        prepared(*TOY, "strategy=naive", *options)


# What is read.


def test_the_readings_worked_by_hand():
    readings = [[1, 0, 0.9, 0.5], [1, 1, 0.8, 1.0], [0, 1, 0.7, 0.0], [1, 0, 0.6, 0.25]]
    found = [f(readings) for f in (edit_success, edits_retained, locality, generality)]
    assert found == [0.75, 0.5, 0.6, pytest.approx(1.75 / 4)]
    assert all(math.isnan(f([])) for f in (edit_success, edits_retained, locality, generality))


def test_locality_and_generality_against_predictions_one_by_one(prepared):
    strategy, env, s, found = decided(prepared)
    before = [taken(strategy, s, x, env) for x in edits.untouched(env.stream)]
    task = env.stream[1]
    s = train_task(strategy, s, task, env)
    after = edits.read(found, 1, strategy, s, env)
    now = [taken(strategy, s, x, env) for x in edits.untouched(env.stream)]
    assert 0 < float(after.locality[0]) < 1
    same = [a == b for a, b in zip(before, now, strict=True)]
    assert float(after.locality[0]) == pytest.approx(sum(same) / len(same))
    shown = edits.copies(env.stream.x[task.train], edits.deviation(env.stream), env.seed, 1)
    right = [taken(strategy, s, x, env) == int(env.stream.y[task.train]) for x in shown]
    assert float(after.generality[0]) == pytest.approx(sum(right) / len(right))
    assert after.locality[1:].isnan().all() and found.locality.isnan().all()


def taken(strategy, s, x, env) -> int:
    return int(strategy.predict(s, env.inputs(x[None]), 0, env).argmax())


def test_copies_of_an_image_are_moved_or_noisy():
    x = torch.arange(1, 19, dtype=torch.uint8).view(2, 1, 3, 3)
    found = edits.copies(x, 10.0, 0, 1).view(edits.COPIES, 2, 3, 3)
    right, left, down, up = found[:4, 0].tolist()
    assert right == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    assert left == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert down == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert up == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert found.dtype == torch.uint8
    assert torch.equal(found, edits.copies(x, 10.0, 0, 1).view_as(found))
    assert not torch.equal(found, edits.copies(x, 10.0, 1, 1).view_as(found))


def test_copies_of_a_vector_are_noisy_by_a_part_of_the_deviation():
    x = torch.zeros(1, 1, 1, 20_000)
    found = edits.copies(x, 2.0, 0, 1)
    assert found.shape == (edits.COPIES, 1, 1, 20_000)
    assert float(found.std()) == pytest.approx(edits.NOISE * 2, rel=0.01)
    assert float(edits.copies(x.to(torch.uint8) + 128, 2.0, 0, 1)[0].float().mean()) == (
        pytest.approx(128, abs=0.1)
    )


# Whole runs.


def test_the_files_of_a_run_agree(configure, tmp_path):
    options = ("strategy=naive", "eval.every=2", "benchmark.lr_factor=0.3")
    loop.run(configure(*TOY, *options), tmp_path)
    R, rows = read_matrix(tmp_path / "accuracy_matrix.csv"), read_rows(tmp_path / "edits.csv")
    assert [row["task"] for row in rows] == ["2", "3", "4"]
    assert (R[1, 1:] == 0).all()  # they are what it got wrong
    assert torch.isnan(torch.tensor(R[0, 1:])).all()  # and nobody knew them before
    assert [float(row["success"]) for row in rows] == [R[t, t - 1] for t in (2, 3, 4)]
    assert [float(row["retained"]) for row in rows] == R[4, 1:].tolist()
    assert all(json.loads(row["classes"]) != json.loads(row["taken_for"]) for row in rows)
    (row,) = read_rows(tmp_path / "summary.csv")
    assert float(row["success"]) == R.diagonal(-1)[1:].mean() > 0
    assert float(row["locality"]) == float(rows[-1]["locality"])
    assert verify_runs([str(tmp_path)]) == (1, [])
    write_rows(tmp_path / "edits.csv", [{**rows[0], "retained": 0.5}, *rows[1:]])
    assert "task 2: retained is 0.5, the matrix says" in verify_runs([str(tmp_path)])[1][0]


def test_a_guard_takes_back_the_edits_that_cost_too_much(configure, tmp_path):
    """With 0 the accuracy of the first task on its validation data never falls."""
    options = ("benchmark.validation_fraction=0.2", "guard.drop=0", "guard.every=1")
    loop.run(configure(*TOY, "strategy=naive", "benchmark.lr_factor=1", *options), tmp_path)
    R = read_matrix(tmp_path / "accuracy_matrix_validation.csv")
    assert (R[2:, 0] >= R[1, 0]).all()
    (row,) = read_rows(tmp_path / "summary.csv")
    assert int(row["rollbacks"]) > 0


# The checkpoint.


def test_a_checkpoint_holds_the_edits_and_nothing_else_is_taken_for_one(prepared):
    strategy, env, s, found = decided(prepared)
    config, _, _ = prepared(*TOY, "strategy=naive")
    frame = frame_of(config, strategy, s, env)
    tensors = {f"edits.{name}": v for name, v in found._asdict().items()}
    assert check_edits(tensors, 1, frame.edits, frame.classes) == set(tensors)
    twice, far = found.places.clone(), found.places.clone()
    twice[1], far[0] = twice[0], len(env.stream.pool)
    wrong = {
        "places must be different": {"edits.places": twice},
        "places must lie in": {"edits.places": far},
        "taken must lie in": {"edits.taken": found.taken + 10},
        "before is": {"edits.before": found.before[1:]},
        "locality must hold": {"edits.locality": found.locality.nan_to_num(1.0)},
        "generality is missing there": {},
    }
    for said, other in wrong.items():
        own = tensors | other
        if not other:
            del own["edits.generality"]
        with pytest.raises(Unfit, match=f"edits.{said}"):
            check_edits(own, 1, frame.edits, frame.classes)
    assert named(s).keys().isdisjoint(tensors)


def test_other_streams_have_none(prepared):
    config, strategy, env = prepared("benchmark=split_digits", "strategy=naive")
    assert edits.sizes(env.stream) is None
    assert frame_of(config, strategy, initial_state(strategy, env), env).edits is None
