"""representation.csv: similarity by its formula, probes by hand, what they tell."""

from __future__ import annotations

from itertools import groupby
from types import SimpleNamespace

import pytest
import torch

from cl_runner import strategies
from cl_runner.config.identity import config_hash
from cl_runner.errors import UserError
from cl_runner.functional.similarity import centred_gram, cka
from cl_runner.results.files import read_rows
from cl_runner.running import checkpoint, loop, representation
from cl_runner.running.frame import Unfit, check_tensors, frame_of
from cl_runner.running.prepare import prepare
from cl_runner.running.representation import ROW, features, measured
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    *("benchmark=split_digits", "scenario=class", "model.hidden_sizes=[30,20]"),
    *("training.batch_size=32", "verbose=false"),
)


def test_cka_is_its_formula():
    """|Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features, in whichever rotation and scale."""
    x, y = torch.randn(40, 5).double() + 2, torch.randn(40, 8).double()
    a, b = x - x.mean(0), y - y.mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert cka(centred_gram(x), centred_gram(y)) == pytest.approx(float(expected))
    rotation = torch.linalg.qr(torch.randn(5, 5).double()).Q
    assert cka(centred_gram(x), centred_gram(3 * x @ rotation + 1)) == pytest.approx(1)
    assert expected < 0.5


def test_features_remember_what_the_output_layer_forgets(configure, tmp_path):
    """Naive fine-tuning in class-incremental learning: what is lost is lost in the output layer."""
    config = configure(*TOY, "strategy=naive", "eval.features=true", "model.hidden_sizes=[256]")
    assert loop.run(config, tmp_path) < 0.25
    rows = read_rows(tmp_path / "representation.csv")
    last = [float(row["probe"]) for row in rows if row["after_task"] == "5"]
    assert sum(last) / len(last) > 0.9
    own = [row["CKA"] for row in rows if row["task"] == row["after_task"]]
    assert [float(value) for value in own] == pytest.approx([1] * 5)
    first = [float(row["CKA"]) for row in rows if row["task"] == "1"]
    assert 0.3 < first[-1] < first[1] < 1


def test_a_row_for_each_layer_and_each_task_so_far(configure, tmp_path):
    run = configure(*TOY, "strategy=naive", "eval.features=true", "training.iterations=1")
    loop.run(run, tmp_path)
    rows = read_rows(tmp_path / "representation.csv")
    assert tuple(rows[0]) == ROW
    for after, group in groupby(rows, lambda row: int(row["after_task"])):
        places = [(int(row["task"]), int(row["layer"])) for row in group]
        assert places == [(task, layer) for task in range(1, after + 1) for layer in (1, 2)]


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_probes_by_least_squares_with_a_penalty(prepared, scenario):
    """Of one layer, by torch's solver on the augmented rows; the CKA by the features then kept."""
    _, strategy, env = prepared(*TOY, "strategy=naive", f"scenario={scenario}")
    grams: representation.Grams = {}
    s = initial_state(strategy, env)
    for task in env.stream[:2]:
        s = train_task(strategy, s, task, env)
        rows = measured(task.index + 1, s, range(5), grams, env)
    first = env.stream[0]

    def of(index: torch.Tensor, images: torch.Tensor | None = None) -> torch.Tensor:
        x = env.inputs(env.stream.images(index, 0) if images is None else images)
        return torch.cat([part[1] for part in features(s, x, 0, env)]).double()

    def solved(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = of(rows), env.stream.y[rows]
        target = torch.nn.functional.one_hot(y, 10).double()
        a, b = x - x.mean(0), target - target.mean(0)
        strength = representation.STRENGTH * a.square().sum(0).mean()
        a = torch.cat([a, strength.sqrt() * torch.eye(a.shape[1]).double()])
        b = torch.cat([b, torch.zeros(x.shape[1], 10).double()])
        weights = torch.linalg.lstsq(a, b).solution
        return weights, target.mean(0) - x.mean(0) @ weights

    images, y = env.stream.held_out("test", first)
    (row,) = (r for r in rows if (r["task"], r["layer"]) == (1, 2))
    both = torch.cat([task.train for task in env.stream[:2]])
    for name, train in (("probe", both), ("own_probe", first.train)):
        weights, biases = solved(train)
        scores = of(y, images) @ weights + biases
        seen = torch.zeros(10, dtype=torch.bool)
        seen[: 4 if name == "probe" and scenario == "class" else 2] = True
        answers = scores.masked_fill(~seen, float("-inf")).argmax(1)
        assert row[name] == pytest.approx(float((answers == y).double().mean()))


def test_wide_layers_are_looked_at_by_some_of_their_units(prepared, monkeypatch):
    monkeypatch.setattr(representation, "WIDEST", 7)
    _, strategy, env = prepared(*TOY, "strategy=naive")
    s = initial_state(strategy, env)
    x = env.inputs(env.stream.x[:5])
    (few,), (again,) = (list(features(s, x, 0, env)) for _ in range(2))
    assert [part.shape for part in few] == [(5, 7), (5, 7)]
    assert all(torch.equal(a, b) for a, b in zip(few, again, strict=True))


def test_features_that_do_not_vary_have_no_similarity(prepared):
    _, strategy, env = prepared(*TOY, "strategy=naive")
    s = initial_state(strategy, env)
    s = env.commit(s._replace(theta=torch.zeros_like(s.theta)))
    rows = measured(1, s, range(5), {}, env)
    assert [row["CKA"] for row in rows] == [None, None]
    assert all(0 < row["probe"] < 1 for row in rows)


def test_off_it_is_no_part_of_a_run(configure, tmp_path):
    off, on = (configure(*TOY, f"eval.features={flag}") for flag in ("false", "true"))
    assert "features" not in off.resolved["eval"] and on.resolved["eval"]["features"] is True
    assert config_hash(off.resolved) != config_hash(on.resolved)
    small = (*TOY, "strategy=naive", "training.iterations=1")
    for name, flag in (("off", "false"), ("on", "true")):
        loop.run(configure(*small, f"eval.features={flag}"), tmp_path / name)
    assert not (tmp_path / "off" / "representation.csv").exists()
    one, other = (read_rows(tmp_path / name / "summary.csv")[0] for name in ("off", "on"))
    assert "eval.features" not in one and other["eval.features"] == "True"
    assert int(other["evaluation_flops"]) > int(one["evaluation_flops"])
    assert one["flops"] == other["flops"]
    files = [(tmp_path / name / "accuracies.csv").read_bytes() for name in ("off", "on")]
    assert files[0] == files[1]


def test_what_a_checkpoint_keeps_of_it_is_looked_at(configure, tmp_path):
    case = (*TOY, "strategy=naive", "eval.features=true", "training.iterations=1")
    config = configure(*case, "checkpoint.keep=true")
    loop.run(config, tmp_path)
    strategy = strategies.build(config.strategy)
    env = prepare(config, strategy)
    frame = frame_of(config, strategy, initial_state(strategy, env), env)
    saved = checkpoint.load(tmp_path, config.resolved, frame)
    assert saved is not None and saved.grams is not None and saved.grams.keys() == {*"01234"}
    content = {"task": 5, "step": None, "label": None, "guard": None}
    tensors = checkpoint.to_tensors(saved)
    check_tensors(tensors, content, frame)
    for wrong in (None, torch.zeros(2, 3, 3), tensors["features.0"].double()):
        changed = {k: v for k, v in tensors.items() if k != "features.0"}
        changed |= {} if wrong is None else {"features.0": wrong}
        with pytest.raises(Unfit, match=r"features.0 must be float32 \[2, 71, 71\]"):
            check_tensors(changed, content, frame)
    with pytest.raises(Unfit, match=r"features.5 is no tensor of such a run"):
        check_tensors(tensors | {"features.5": tensors["features.0"]}, content, frame)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("strategy=generative_replay", "eval.features=true needs the activations between"),
        ("strategy=ridge strategy.features=0", "eval.features=true needs a network with a hidden"),
    ],
)
def test_a_network_without_layers_to_show_is_refused(prepared, more, message):
    with pytest.raises(UserError, match=message) as refused:
        prepared(*TOY, "eval.features=true", *more.split())
    assert "\n" not in str(refused.value)


def test_any_other_module_is_refused():
    env = SimpleNamespace(flat=SimpleNamespace(module=torch.nn.Linear(2, 2)))
    with pytest.raises(UserError, match=r"which it does not show: it is no cl_runner.nn.networks"):
        representation.check_shown(env)
