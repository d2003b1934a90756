"""What is common to ncm, slda and ridge: any order of tasks is joint training, costs, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cl_runner.core import seed_for
from cl_runner.errors import UserError
from cl_runner.functional import closed_form
from cl_runner.results.files import read_rows
from cl_runner.running import loop
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task

NAMES = ("ncm", "slda", "ridge")
TOY = ("benchmark=split_digits", "scenario=class", "strategy.features=40")


def trained(prepared, *overrides: str, order: list[int] | None = None):
    """Strategy, environment and the state after the tasks, in their order or another one."""
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for t in range(env.num_tasks) if order is None else order:
        s = train_task(strategy, s, env.stream[t], env)
    return strategy, env, s


def predictions(strategy, s, env) -> torch.Tensor:
    """The classes of all test samples, task by task, without regard to their tasks."""
    seen: dict[str, list[torch.Tensor]] = {}

    def see(key: tuple[str, str], _: int, scores: torch.Tensor, __: torch.Tensor) -> None:
        seen.setdefault(key[1], []).append(scores.argmax(1))

    evaluate(strategy, s, env, see)
    return torch.cat(seen["class"])


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "strategy.input=features model.hidden_sizes=[30]"])
@pytest.mark.parametrize("name", NAMES)
def test_any_order_of_tasks_is_joint_training(prepared, name, more):
    """20 orders against one task of all classes: weights to 1e-9, and every prediction."""
    case = (f"strategy={name}", *more.split())
    strategy, env, joint = trained(prepared, *case, "benchmark.num_tasks=1")
    expected = strategy.solution(joint.memory)
    answers = predictions(strategy, joint, env)
    strategy, env, first = trained(prepared, *case)
    places = torch.cat([task.test for task in env.stream])
    for draw in range(20):
        generator = torch.Generator().manual_seed(seed_for(draw, "orders"))
        order = torch.randperm(env.num_tasks, generator=generator).tolist()
        s = initial_state(strategy, env)
        s = s._replace(theta=env.flat.commit(first.theta.detach().clone()))
        for t in order:
            s = train_task(strategy, s, env.stream[t], env)
        for own, other in zip(strategy.solution(s.memory), expected, strict=True):
            assert float((own - other).abs().max() / other[other > -1e29].abs().max()) < 1e-9
        assert torch.equal(predictions(strategy, s, env), answers[places])


def test_the_moments_are_the_sums_over_all_samples(prepared):
    """Of the features by hand, relu(V x) to 7 bits, each sample once, though passes are padded.

    What lies between two roundings may fall to either: hence a bound of some last bits.
    """
    _, env, s = trained(prepared, "strategy=ridge", "benchmark.num_tasks=2")
    rows = torch.cat([task.train for task in env.stream])
    y = env.stream.y
    x = env.inputs(env.stream.x[rows]).double().flatten(1)
    views = {k: v.double() for k, v in env.flat.views(s.theta.detach()).items()}
    h = (x @ views["random.weight"].T).relu()  # x has 13 bits there
    bit = 2.0 ** (h.amax(1, keepdim=True).log2().floor() - 6)
    h = (h / bit).round().clamp(max=127) * bit
    member = torch.nn.functional.one_hot(y[rows], 10).double()
    torch.testing.assert_close(s.memory["count"], member.sum(0))
    torch.testing.assert_close(s.memory["sum"], member.T @ h, rtol=0, atol=0.1)
    gram = (h.T @ h).tril()
    torch.testing.assert_close(s.memory["gram"].tril(), gram, rtol=0, atol=0.3)


def test_panels_of_the_gram_matrix_make_its_lower_triangle(monkeypatch):
    monkeypatch.setattr(closed_form, "PANEL", 4)
    x, y = torch.randn(30, 10), torch.arange(30) % 3
    moments = closed_form.no_moments(3, 10, torch.device("cpu"), gram=True)
    for part, own in zip(x.split(7), y.split(7), strict=True):
        moments = closed_form.add(moments, part, own)
    torch.testing.assert_close(moments["gram"].tril(), (x.double().T @ x.double()).tril())


def test_only_the_output_layer_changes(prepared):
    case = ("strategy=ridge", "strategy.input=features", "model.hidden_sizes=[12]")
    _, env, s = trained(prepared, *case, order=[])
    before = {k: v.clone() for k, v in env.flat.views(s.theta.detach()).items()}
    _, env, s = trained(prepared, *case)
    after = env.flat.views(s.theta.detach())
    moved = {name for name, v in after.items() if not torch.equal(v, before[name])}
    assert moved == {"output.weight", "output.bias"}
    assert {*after} - moved == {*("body.layers.0.weight", "body.layers.0.bias", "random.weight")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("where", "least"),
    [
        ("scenario=task", {"ncm": 0.85, "slda": 0.92, "ridge": 0.92}),
        ("benchmark=permuted_digits scenario=domain", {"ncm": 0.5, "slda": 0.7, "ridge": 0.7}),
        ("benchmark=permuted_digits scenario=task", {"ncm": 0.5, "slda": 0.7, "ridge": 0.7}),
    ],
)
def test_in_the_other_scenarios_it_does_what_it_can(prepared, name, where, least):
    """Permutations share their classes, whose means are then those of all of them."""
    two = () if where == "scenario=task" else ("benchmark.num_tasks=2",)
    strategy, env, s = trained(prepared, f"strategy={name}", *where.split(), *two)
    (own, *_) = evaluate(strategy, s, env).values()
    assert sum(own) / len(own) > least[name]


def test_classes_that_no_task_has_shown_are_never_predicted(prepared):
    for name in NAMES:
        strategy, env, s = trained(prepared, f"strategy={name}", order=[3])
        assert set(predictions(strategy, s, env).tolist()) == {6, 7}
        assert bool(s.theta.isfinite().all())


# Costs.


def test_a_task_is_passed_once_which_counts(configure, tmp_path):
    """Samples are real ones; FLOPs those of padded chunks, twice for high and low bits, and b."""
    d, D, K = 64, 40, 10
    case = ("strategy=ridge", "benchmark.num_tasks=2", "benchmark.train_samples=8")
    loop.run(configure(*TOY, *case, "training.epochs=7"), tmp_path)
    rows = read_rows(tmp_path / "costs.csv")
    assert [int(r["steps"]) for r in rows] == [0, 0, 0]
    samples = [int(r["samples"]) for r in rows[1:]]
    assert sum(samples) == 8 and all(samples)
    forward, each = 500 * 2 * 2 * d * D, 2 * K * D + 2 * D * D
    assert [
        int(r["flops"]) - forward - n * each for n, r in zip(samples, rows[1:], strict=True)
    ] == [2 * K * D] * 2
    assert {r["memory_bytes"] for r in rows} == {str(8 * (K + K * D + D * D))}
    assert {r["parameters"] for r in rows} == {str(d * D + D * K + K)}
    assert {r["buffer_bytes"] for r in rows} == {""}


def test_a_budget_of_samples_ends_the_pass(configure, tmp_path):
    case = ("strategy=slda", "benchmark.num_tasks=2", "training.batch_size=16")
    loop.run(configure(*TOY, *case, "budget.samples=100"), tmp_path)
    assert [r["samples"] for r in read_rows(tmp_path / "costs.csv")] == ["0", "48", "48"]
    (row,) = read_rows(tmp_path / "summary.csv")
    assert row["budget_stopped"] == "[1, 2]"
    loop.run(configure(*TOY, *case, "budget.samples=1"), tmp_path / "nothing")
    assert read_rows(tmp_path / "nothing" / "summary.csv")[0]["samples"] == "0"


# A network that was trained before.


@pytest.mark.slow
def test_on_the_features_of_a_network_trained_on_other_classes(configure, tmp_path):
    """Digits 0 to 4 are learnt by SGD; then all ten in closed form, on what that has left."""
    _write_first_half(tmp_path, configure)
    size = ("model.hidden_sizes=[128]", "verbose=false")
    first = (
        *("benchmark=split_npz", f"data.path={tmp_path / 'half.npz'}", "benchmark.num_tasks=1"),
        *(
            "strategy=naive",
            "training.epochs=20",
            "training.batch_size=32",
            "optimizer=adam",
            "optimizer.lr=0.003",
        ),
    )
    assert loop.run(configure(*first, *size, "checkpoint.keep=true"), tmp_path / "first") > 0.9
    base = ("benchmark=split_digits", "scenario=class", "benchmark.num_tasks=5", *size)
    accuracy = {}
    for name, more in {
        "pixels": "strategy=ncm",
        "ridge": f"strategy=ridge model.weights={tmp_path / 'first'}",
        "slda": f"strategy=slda model.weights={tmp_path / 'first'}",
        "random ridge": "strategy=ridge",
        "random slda": "strategy=slda",
    }.items():
        own = () if name == "pixels" else ("strategy.input=features", "strategy.features=0")
        accuracy[name] = loop.run(configure(*base, *more.split(), *own), tmp_path / name)
    for name in ("ridge", "slda"):
        assert accuracy[name] > accuracy["pixels"] + 0.02, accuracy
        assert accuracy[name] > accuracy[f"random {name}"], accuracy


def _write_first_half(folder, configure) -> None:
    """half.npz: the digits 0 to 4 of the embedded ones."""
    from cl_runner.running.prepare import read

    data = read(configure("benchmark=split_digits"))
    arrays = {}
    for split in ("train", "test"):
        x, y = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
        arrays |= {f"x_{split}": x[y < 5][:, 0].numpy(), f"y_{split}": y[y < 5].numpy()}
    np.savez(folder / "half.npz", **arrays)


# Refusals, each a line.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("strategy=ridge strategy.lambda=0 strategy.features=0", "of its 64 features are constant"),
        ("strategy=slda strategy.shrinkage=0 strategy.features=0", "are constant; use a positive"),
        (
            "strategy=ridge strategy.lambda=0 strategy.features=400",
            "lambda=0 leaves the system of the first task singular: it has 289 samples for 400",
        ),
        ("strategy=ncm training.augment=crop_flip", "training.augment=crop_flip has no meaning"),
        ("strategy=ncm strategy.input=features strategy.layer=3", "must lie between 1 and 2"),
        ("strategy=ncm training.boundaries=none", "training.boundaries=none does not go with"),
        ("strategy=ncm eval.online=true", "eval.online=true: strategy=ncm"),
    ],
)
def test_what_cannot_be_is_one_line_before_training(prepared, more, message):
    with pytest.raises(UserError) as refused:
        prepared(*TOY, *more.split())
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_lambda_0_is_least_squares_where_there_is_a_solution(prepared):
    case = ("strategy=ridge", "strategy.lambda=0", "strategy.features=20")
    strategy, _, s = trained(prepared, *case)
    moments = s.memory
    weights, biases = strategy.solution(moments)
    low = moments["gram"].tril()
    gram = low + low.tril(-1).T
    residual = weights @ gram + biases[:, None] * moments["sum"].sum(0) - moments["sum"]
    assert float(residual.abs().max() / gram.max()) < 1e-9


def test_weights_to_start_from_need_the_network(configure, tmp_path):
    size = ("model.hidden_sizes=[8]", "training.iterations=1", "verbose=false")
    loop.run(
        configure("benchmark=split_digits", "strategy=naive", "checkpoint.keep=true", *size),
        tmp_path / "a",
    )
    config = configure(*TOY, "strategy=ncm", f"model.weights={tmp_path / 'a'}", *size)
    with pytest.raises(UserError, match=r"model.weights has no meaning with strategy.input=pixels"):
        loop.run(config, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("random", [0, 40])
def test_features_that_are_not_finite_are_told(prepared, random):
    case = ("strategy=slda", "strategy.input=features", f"strategy.features={random}")
    _, strategy, env = prepared(*TOY, *case)
    s = initial_state(strategy, env)
    with torch.no_grad():
        env.flat.theta.fill_(1e38)
    with pytest.raises(UserError, match=r"strategy.input=features: the features of task 1 are"):
        train_task(strategy, s, env.stream[0], env)
