"""Predict, then learn: what the steps' own predictions say of the stream."""

from __future__ import annotations

import weakref
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cl_runner.comparing.verify import verify_runs
from cl_runner.core import generator_for
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows, write_rows
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies import available, find
from cl_runner.training import online
from cl_runner.training.batches import Source
from cl_runner.training.engines import recorded, stepper, told
from cl_runner.training.env import Env
from cl_runner.training.online import Counted, Predictions

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "model.hidden_sizes=[16]"),
    *("training.batch_size=16", "training.epochs=1", "benchmark.train_samples=200"),
    *("verbose=false", "eval.online=true"),
)
CPU = torch.device("cpu")


def rows_of(out: Path) -> list[list[str]]:
    return [list(row.values()) for row in read_rows(out / "online.csv")]


def counts_of(out: Path) -> list[tuple[int, int, int, int]]:
    """task, step, samples, hits"""
    return [tuple(map(int, row[:4])) for row in rows_of(out)]  # type: ignore[misc]


def by_hand(env: Env, window: int, lr: float) -> list[tuple[int, int, int, int]]:
    """The loop that everybody would write, with torch's own modules and plain SGD."""
    net, stream, found = deepcopy(env.flat.module), env.stream, []
    size = env.training.batch_size
    for task in stream:
        generator = generator_for(CPU, env.seed, "order", task.index, 0)
        shuffled = task.train[torch.randperm(len(task.train), generator=generator)]
        batches = shuffled.split(size)
        for at in range(0, len(batches), window):
            samples = hits = 0
            for index in batches[at : at + window]:
                x = stream.normalise(stream.images(index, task.index))
                y = stream.labels(index, task.index)
                logits = net(x, task.index)
                hits += int((logits.argmax(1) == y).sum())  # before the update
                samples += len(y)
                grads = torch.autograd.grad(F.cross_entropy(logits, y), list(net.parameters()))
                with torch.no_grad():
                    for p, g in zip(net.parameters(), grads, strict=True):
                        p.sub_(lr * g)
            last = min(at + window, len(batches))
            found.append((task.index + 1, last, samples, hits))
    return found


@pytest.mark.parametrize("benchmark", ["split_digits", "permuted_digits"])
def test_it_is_what_a_loop_by_hand_counts(prepared, configure, tmp_path, benchmark):
    case = (*TOY, f"benchmark={benchmark}", "strategy=naive", "eval.online_window=2")
    case = (*case, "optimizer.lr=0.5")
    _, _, env = prepared(*case)
    config = configure(*case)
    expected = by_hand(env, 2, config.optimizer.lr)
    run(config, tmp_path)
    assert counts_of(tmp_path) == expected
    assert expected[0][3] < max(hits for *_, hits in expected)  # something is learnt
    rows = read_rows(tmp_path / "online.csv")
    assert [float(r["accuracy"]) for r in rows] == [k / n for _, _, n, k in expected]
    (summary,) = read_rows(tmp_path / "summary.csv")
    samples, hits = (sum(row[i] for row in expected) for i in (2, 3))
    assert float(summary["online_accuracy"]) == hits / samples


def test_without_a_window_a_task_has_one_row(configure, tmp_path):
    run(configure(*TOY, "strategy=naive", "eval.online_window=3"), tmp_path / "windows")
    run(configure(*TOY, "strategy=naive"), tmp_path / "whole")
    parts, whole = counts_of(tmp_path / "windows"), counts_of(tmp_path / "whole")
    assert [row[0] for row in whole] == [1, 2, 3]
    for task, last, samples, hits in whole:
        own = [row for row in parts if row[0] == task]
        assert [row[1] for row in own] == [*range(3, last, 3), last]
        assert (sum(r[2] for r in own), sum(r[3] for r in own)) == (samples, hits)


def test_it_changes_nothing_else_and_costs_no_file_where_it_is_off(configure, tmp_path):
    case = ("strategy=er", "strategy.buffer_size=50", "training.epochs=2")
    run(configure(*TOY, *case), tmp_path / "on")
    run(configure(*TOY, *case, "eval.online=false"), tmp_path / "off")
    on, off = tmp_path / "on", tmp_path / "off"
    assert {p.name for p in on.iterdir()} - {p.name for p in off.iterdir()} == {"online.csv"}
    for name in ("accuracy_matrix.csv", "accuracies.csv"):
        assert (on / name).read_bytes() == (off / name).read_bytes()
    (row,) = read_rows(off / "summary.csv")
    assert "online_accuracy" not in row


def test_only_the_first_epoch_counts(configure, tmp_path):
    """From then on a sample has been learnt from."""
    for epochs in (1, 3):
        run(configure(*TOY, "strategy=naive", f"training.epochs={epochs}"), tmp_path / str(epochs))
    once, thrice = (counts_of(tmp_path / str(epochs)) for epochs in (1, 3))
    assert once[0] == thrice[0]  # the first epoch of the first task is the same
    assert [row[1:3] for row in once] == [row[1:3] for row in thrice]


def test_iterations_may_end_within_the_first_epoch(configure, tmp_path):
    run(configure(*TOY, "strategy=naive", "training.iterations=3"), tmp_path)
    assert [row[:3] for row in counts_of(tmp_path)] == [(t, 3, 48) for t in (1, 2, 3)]


@pytest.mark.parametrize("strategy", ["cumulative", "icarl"])
def test_samples_of_earlier_tasks_do_not_count(prepared, configure, tmp_path, strategy):
    """They train on those again, shuffled among the new ones."""
    case = (*TOY, f"strategy={strategy}", "eval.online_window=1")
    _, _, env = prepared(*case)
    run(configure(*case), tmp_path)
    counts = counts_of(tmp_path)
    for task in env.stream:
        own = [row for row in counts if row[0] == task.index + 1]
        assert sum(row[2] for row in own) == len(task.train)
        assert all(row[3] <= row[2] for row in own)
        old = len(own) > -(-len(task.train) // 16)
        assert old == (task.index > 0)  # more steps than its own samples fill


@pytest.mark.parametrize("boundaries", ["fuzzy", "random"])
def test_of_a_stream_that_repeats_its_samples_each_counts_once(
    prepared, configure, tmp_path, boundaries
):
    case = (*TOY, "strategy=naive", f"benchmark.boundaries={boundaries}", "training.epochs=2")
    _, _, env = prepared(*case)
    run(configure(*case), tmp_path)
    seen: set[tuple[int, int]] = set()
    for task, row in zip(env.stream, counts_of(tmp_path), strict=True):
        shown = set(zip(task.train.tolist(), task.of.tolist(), strict=True))
        assert row[2] == len(shown - seen) < len(task.train)
        seen |= shown


def test_joint_training_sees_the_stream_shuffled(configure, tmp_path):
    run(configure(*TOY, "strategy=joint"), tmp_path)
    assert [row[:3] for row in counts_of(tmp_path)] == [(1, 13, 200)]


def test_predictions_are_over_all_outputs_and_in_task_il_over_the_tasks_own(configure, tmp_path):
    """As evaluation reads them: another task's classes are the answer, until these are learnt."""
    for scenario in ("class", "task"):
        case = (*TOY, "strategy=naive", f"scenario={scenario}", "eval.online_window=1")
        run(configure(*case, "optimizer.lr=0.5"), tmp_path / scenario)
    first = {
        scenario: [row for row in counts_of(tmp_path / scenario) if row[1] == 1][1:]
        for scenario in ("class", "task")
    }
    assert [row[3] for row in first["class"]] == [0, 0]
    assert all(row[3] > 0 for row in first["task"])


# Some are refused; the network of hat also takes how hard its attention is, and that of vcl what is
# drawn of its weights.
REFUSED = ("mer", "la_maml", "gdumb", "scr", "ncm", "slda", "ridge")
NAMES = [name for name in available() if name not in (*REFUSED, "hat", "vcl")]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_counted_is_what_the_network_was_before_the_step(prepared, name):
    """Of the batch, whatever a strategy trains on besides; by torch.func, at a copy of theta."""
    scenarios = [s for s in ("class", "task", "domain") if s in find(name).scenarios]
    _, strategy, env = prepared(
        *TOY, f"strategy={name}", f"scenario={scenarios[0]}", "benchmark=split_digits"
    )
    s = initial_state(strategy, env)
    s = train_task(strategy, s, env.stream[0], env)
    s = s._replace(t=torch.ones_like(s.t))
    s = strategy.begin_task(s, env.stream[1], env)
    samples = strategy.training_set(s, env.stream, 1, env)
    if not len(samples[0]):
        samples = (env.stream[1].train, 1)  # joint's second task
    batch = next(iter(Source(env, s, 1, *samples, strategy).epoch(0, 1)))
    s = env.commit(s)
    before = s.theta.detach().clone()
    with torch.no_grad():
        logits = env.net(before, batch.x, s.t if name == "pnn" else batch.task)
        if name in ("supsup", "piggyback"):  # theta is what their masks are of
            logits = strategy.predict(s, batch.x, 1, env)
        if scenarios[0] == "task":
            logits = logits.masked_fill(~env.own_classes[batch.task], float("-inf"))
        _, aux = strategy.step(s, batch, env)
        _, told_logits = told(aux, batch, online=True)
    read = Predictions(env.stream)
    read.add(told_logits, batch.active)
    (predictions,) = read.all()
    assert predictions.dtype == torch.int64
    assert torch.equal(predictions, logits.argmax(1))


LOGITS = torch.randint(0, 3, (3, 75, 4), generator=torch.Generator().manual_seed(1)).float()
OWN = torch.arange(4).expand(3, 75, 4) // 2 == (torch.arange(75) // 8 % 2)[:, None]


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("dims", [2, 3], ids=["alone", "stacked"])
@pytest.mark.parametrize("steps", [1, 3, 4, 100])
def test_steps_that_are_read_together_predict_as_each_by_itself(
    prepared, monkeypatch, scenario, dims, steps
):
    """With equal logits among them, and at the end fewer steps than are read at once.

    Ten steps, the last of three samples in the place of eight; a run goes on after the fifth.
    """
    _, _, env = prepared(*TOY, f"scenario={scenario}")
    logits, own = (v if dims == 3 else v[0] for v in (LOGITS, OWN))
    parts = [v.split(8, -2) for v in (logits, own)]
    scores = logits if scenario == "class" else logits.masked_fill(~own, float("-inf"))
    stepwise = torch.cat([v.argmax(-1) for v in scores.split(8, -2)], -1)
    monkeypatch.setattr(online, "READ", steps * parts[0][0].clone().untyped_storage().nbytes())
    found = Predictions(env.stream)
    for i, (v, active) in enumerate(zip(*parts, strict=True)):
        if i == 5:
            found = Predictions(env.stream, found.all())
        found.add(v.clone(), active)
    assert torch.equal(torch.cat(found.all(), -1), stepwise)
    assert found.logits == found.active == []


def test_the_logits_of_replayed_samples_count_as_held(prepared, monkeypatch):
    """A part of a tensor keeps all of it."""
    _, _, env = prepared(*TOY)
    monkeypatch.setattr(online, "READ", 3 * 40 * 4 * 4)
    found = Predictions(env.stream)
    for step in range(5):
        found.add(torch.zeros(40, 4)[:8], None)
        assert len(found.logits) == (step + 1) % 3


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_how_many_steps_are_read_at_once_changes_no_byte(
    configure, monkeypatch, tmp_path, scenario
):
    """Tasks of replay whose last batches are smaller."""
    case = (*TOY, "strategy=er", "strategy.buffer_size=30", f"scenario={scenario}")
    case = (*case, "eval.online_window=2", "training.epochs=2")
    for read in (1, 6000, 2**18):
        monkeypatch.setattr(online, "READ", read)
        run(configure(*case), tmp_path / str(read))
    one, *others = (tmp_path / str(read) / "online.csv" for read in (1, 6000, 2**18))
    assert any(int(row["samples"]) % 16 for row in read_rows(one))
    assert all(other.read_bytes() == one.read_bytes() for other in others)


def test_logits_that_are_kept_keep_no_graph(prepared):
    for name in ("naive", "er"):  # all rows, and the first ones
        _, strategy, env = prepared(*TOY, f"strategy={name}")
        s = initial_state(strategy, env)
        batch = next(iter(Source(env, s, 0, env.stream[0].train, 0, strategy).epoch(0, 1)))
        with torch.no_grad():
            _, aux = strategy.step(s, batch, env)
            assert aux["logits"].grad_fn is not None
            graph = weakref.ref(aux["logits"].grad_fn)
            _, logits = told(aux, batch, online=True)
        del aux
        assert graph() is None and logits.shape == (16, 10)


def test_recorded_steps_tell_the_same(prepared):
    """What a CUDA graph replays; here replayed by hand."""
    found = []
    for record in (False, True):
        _, strategy, env = prepared(*TOY, "strategy=er", "strategy.buffer_size=20")
        s = initial_state(strategy, env)
        plain = stepper(strategy, env, "eager", online=True)
        take = recorded(plain, env, record=lambda body: body) if record else plain
        batches = Source(env, s, 0, env.stream[0].train, 0, strategy).epoch(0, 4)
        own = []
        with torch.no_grad():
            for batch in batches:
                s, (_, predictions) = take(s, batch)
                own.append(predictions)
        found.append(torch.cat(own))
    assert torch.equal(*found)


@pytest.mark.parametrize("strategy", REFUSED)
def test_a_strategy_that_predicts_no_batch_says_so_before_training(configure, tmp_path, strategy):
    with pytest.raises(UserError) as caught:
        run(configure(*TOY, f"strategy={strategy}"), tmp_path / "run")
    assert str(caught.value).startswith(f"eval.online=true: strategy={strategy} predicts no batch")
    assert not (tmp_path / "run").exists()


def test_a_step_without_logits_is_told(prepared):
    _, _, env = prepared(*TOY, "strategy=naive")
    batch = env.gather(env.stream[0].train[:4], 0, torch.tensor(0))
    with pytest.raises(UserError, match=r"tells no logits, in aux\['logits'\]"):
        told({"loss": torch.tensor(0.0)}, batch, online=True)


def test_rows_are_windows_of_steps():
    steps = [Counted(4, 1), Counted(4, 2), Counted(1, 1)]
    assert online.rows(2, steps, None) == [online.row(2, 3, 9, 4)]
    assert online.rows(2, steps, 2) == [online.row(2, 2, 8, 3), online.row(2, 3, 1, 1)]
    assert online.rows(2, [], None) == []
    assert online.row(1, 5, 0, 0)["accuracy"] is None  # old samples only: nothing to count


def test_a_lie_in_the_table_is_found(configure, tmp_path):
    run(configure(*TOY, "strategy=naive"), tmp_path)
    assert verify_runs([str(tmp_path)]) == (1, [])
    rows = read_rows(tmp_path / "online.csv")
    write_rows(tmp_path / "online.csv", [rows[0] | {"accuracy": "0.99"}, *rows[1:]])
    assert "row 1" in verify_runs([str(tmp_path)])[1][0]
    write_rows(tmp_path / "online.csv", rows[:2])
    assert "online_accuracy" in verify_runs([str(tmp_path)])[1][0]
