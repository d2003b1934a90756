"""benchmark.base: a common model of several slices, and what each person gains over it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from cl_runner.comparing import cli
from cl_runner.comparing.verify import verify_runs
from cl_runner.data.table import read_table
from cl_runner.errors import UserError
from cl_runner.functional.metrics import others_loss, personal, personal_gain
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.running import loop
from cl_runner.running.tasks import initial_state, train_task

USERS = ("ann", "ben", "cat", "dan", "eve")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ratings by five users: those of dan and eve go by a feature that the others do not heed."""
    path, random = tmp_path_factory.mktemp("table") / "ratings.csv", np.random.default_rng(0)
    parts = []
    for user in USERS:
        x = random.normal(size=(120, 2))
        taste = (0.0, 1.0) if user in ("dan", "eve") else (1.0, 0.0)
        liked = np.where(x @ taste > 0, "yes", "no")
        parts.append(pd.DataFrame({"user": user, "a": x[:, 0], "b": x[:, 1], "liked": liked}))
    pd.concat(parts).sample(frac=1, random_state=0).to_csv(path, index=False)
    return path


def options(table, *more: str) -> tuple[str, ...]:
    return (
        *("benchmark=table", f"data.path={table}", "benchmark.label=liked", "benchmark.slice=user"),
        *("benchmark.base=3", "strategy=naive", "training.epochs=20", "training.batch_size=16"),
        *("model.hidden_sizes=[8]", "threads=1", "verbose=false", *more),
    )


def compared(folder, *more: str) -> list[dict[str, str]]:
    """The rows of comparison.csv."""
    out = folder / "comparison.csv"
    assert cli.run([str(folder), "--out", str(out), *more]) == 0
    return read_rows(out)


# What is gained, worked by hand.

R = [
    [0.1, 0.1, 0.1],
    [0.8, 0.5, 0.6],  # the common model
    [0.7, 0.9, 0.4],
    [0.9, 0.7, 0.8],
]


def test_gain_and_loss_worked_by_hand():
    """Person 2 gains 0.4, the others lose 0.1 and 0.2; person 3 gains 0.2, others -0.1, -0.2."""
    assert personal(R) == pytest.approx(np.array([[0.4, 0.15], [0.2, -0.15]]))
    assert personal_gain(R) == pytest.approx(0.3)
    assert others_loss(R) == pytest.approx(0.0)


def test_one_task_has_no_gain():
    assert math.isnan(personal_gain([[0.1], [0.9]]))
    assert math.isnan(others_loss([[0.1], [0.9]]))


def test_a_cell_that_was_not_measured_leaves_the_gain_of_the_others():
    """With eval.tasks=seen the common model is not held against people after the next."""
    seen = [[0.1, math.nan, math.nan], [0.8, 0.5, math.nan], R[2], R[3]]
    assert personal(seen)[0, 0] == pytest.approx(0.4)
    assert math.isnan(personal_gain(seen))


# The stream.


def test_the_first_slices_are_one_task(prepared, table):
    _, _, env = prepared(*options(table))
    assert [task.name for task in env.stream] == ["ann to cat", "dan", "eve"]
    assert [len(task.train) + len(task.test) for task in env.stream] == [360, 120, 120]
    assert [len(task.test) for task in env.stream] == [72, 24, 24]
    whole = torch.cat([task.train for task in env.stream])
    assert len(whole.unique()) == len(whole) == len(env.stream.x)


def test_columns_are_standardised_by_all_of_the_common_model(prepared, table):
    _, _, env = prepared(*options(table))
    x = env.stream.x[env.stream[0].train].flatten(1)
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-5


def test_people_are_chosen_and_come_in_their_order(prepared, table):
    _, _, whole = prepared(*options(table))
    _, _, env = prepared(*options(table, "benchmark.people=[eve,dan]"))
    assert [task.name for task in env.stream] == ["ann to cat", "eve", "dan"]
    assert env.stream[1].train.tolist() == whole.stream[2].train.tolist()
    assert env.stream[2].test.tolist() == whole.stream[1].test.tolist()
    _, _, env = prepared(*options(table, "benchmark.people=[eve]"))
    assert [len(task.train) for task in env.stream] == [288, 96]


def test_the_common_model_is_the_same_whoever_follows(prepared, table):
    """So runs of one person each tell what each gains over the same model."""
    models = []
    for people in ("null", "[eve]"):
        _, strategy, env = prepared(*options(table, f"benchmark.people={people}"))
        models.append(train_task(strategy, initial_state(strategy, env), env.stream[0], env).theta)
    assert torch.equal(*models)


def test_one_slice_alone_may_be_the_base(prepared, table):
    _, _, env = prepared(*options(table, "benchmark.base=1"))
    assert [task.name for task in env.stream] == list(USERS)


def test_a_slice_too_small_to_be_tested_may_be_in_the_base(table, tmp_path, configure):
    frame = pd.read_csv(table)
    small = frame[(frame.user != "ben") | (frame.groupby("user").cumcount() < 1)]
    small.to_csv(tmp_path / "small.csv", index=False)
    config = configure(*options(tmp_path / "small.csv")).benchmark
    arrays = read_table(tmp_path / "small.csv", config)
    assert arrays.slices == USERS
    assert len(arrays.x_train) + len(arrays.x_test) == 481


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("benchmark.base=0", "benchmark.base must be at least 1, or null, got 0"),
        ("benchmark.base=5", "benchmark.base=5 leaves no slice for the tasks after the first: the"),
        ("benchmark.base=9", "benchmark.base=9 leaves no slice for the tasks after the first: the"),
        ("benchmark.num_tasks=1", "benchmark.base=3 needs benchmark.num_tasks of at least 2"),
        (
            "benchmark.num_tasks=4",
            "benchmark.num_tasks=4 is more than the 3 slices of the data wit",
        ),
        ("benchmark.people=[ann]", "benchmark.people: 'ann' is none of the slices after the first"),
        ("benchmark.people=[]", "benchmark.people must name one or more different slices"),
        ("benchmark.people=[dan,dan]", "benchmark.people must name one or more different slices"),
    ],
)
def test_bad_input_is_one_line(prepared, table, more, said):
    with pytest.raises(UserError, match=said):
        prepared(*options(table, more))


def test_what_needs_a_base_or_a_column_says_so(configure, table):
    with pytest.raises(UserError, match=r"benchmark.people=\['eve'\] needs benchmark.base=N"):
        configure(*options(table, "benchmark.base=null", "benchmark.people=[eve]"))
    with pytest.raises(UserError, match=r"benchmark.base=3 needs benchmark.slice=COLUMN"):
        configure(*options(table, "benchmark.slice=null", "benchmark.num_tasks=4"))


# Whole runs.


@pytest.mark.slow
def test_who_has_another_taste_gains_by_it(configure, table, tmp_path, capsys):
    loop.run(configure(*options(table)), tmp_path / "naive")
    R = read_matrix(tmp_path / "naive" / "accuracy_matrix.csv")
    rows = read_rows(tmp_path / "naive" / "personal.csv")
    assert [row["task_name"] for row in rows] == ["dan", "eve"]
    for p, row in enumerate(rows, 2):
        assert float(row["gain"]) == R[p, p - 1] - R[1, p - 1] > 0.2
        assert float(row["at_the_end"]) == R[3, p - 1]
    (summary,) = read_rows(tmp_path / "naive" / "summary.csv")
    assert float(summary["personal_gain"]) == pytest.approx(personal_gain(R))
    assert float(summary["others_loss"]) == pytest.approx(others_loss(R))
    assert verify_runs([str(tmp_path)]) == (1, [])
    loop.run(configure(*options(table, "strategy=frozen_features")), tmp_path / "frozen")
    compared(tmp_path, "--metric", "personal_gain")
    assert "has the highest personal gain" in " ".join(capsys.readouterr().out.split())
    write_rows(tmp_path / "naive" / "personal.csv", [rows[0], {**rows[1], "gain": 0.9}])
    assert verify_runs([str(tmp_path / "naive")])[1][0].endswith(
        "personal.csv is not what the matrix gives"
    )


def test_a_stream_without_a_base_has_no_such_columns(configure, table, tmp_path):
    config = configure(*options(table, "benchmark.base=null", "training.epochs=1"))
    loop.run(config, tmp_path)
    (summary,) = read_rows(tmp_path / "summary.csv")
    assert summary.keys().isdisjoint({"personal_gain", "others_loss", "success", "locality"})
    assert not (tmp_path / "personal.csv").exists()
    (row,) = compared(tmp_path)
    assert not [name for name in row if "personal" in name or "locality" in name]
