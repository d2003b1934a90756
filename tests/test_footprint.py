"""budget.bytes: the most that a run may come to keep is known before, and refused in one line."""

from __future__ import annotations

import re

import pytest

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.running.footprint import at_most, footprint, total
from cl_runner.running.loop import run
from cl_runner.running.prepare import prepare
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "benchmark=split_digits",
    "model.hidden_sizes=[24]",
    "training.iterations=2",
    "training.batch_size=16",
    "verbose=false",
)
P = 64 * 24 + 24 + 24 * 10 + 10
SHORT = {
    "gdumb": ("strategy.epochs=1",),
    "ridge": ("strategy.features=50",),
    **dict.fromkeys(("generative_replay", "bir"), ("strategy.hidden_sizes=[20]",)),
}


def refusal(configure, *overrides: str) -> str:
    config = configure(*TOY, *overrides)
    with pytest.raises(UserError) as caught:
        prepare(config, strategies.build(config.strategy))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parameters_alone_in_closed_form(configure, prepared):
    prepared(*TOY, "strategy=naive", f"budget.bytes={4 * P}")
    assert refusal(configure, "strategy=naive", f"budget.bytes={4 * P - 1}") == (
        f"budget.bytes={4 * P - 1} is too little: strategy=naive may hold {4 * P} bytes (parameter "
        f"{4 * P}, buffer 0, memory 0); lower model.hidden_sizes"
    )


def test_importances_and_anchors_are_memory(configure):
    said = refusal(configure, "strategy=ewc", f"budget.bytes={4 * P}")
    assert f"may hold {12 * P} bytes (parameter {4 * P}, buffer 0, memory {8 * P})" in said


@pytest.mark.parametrize(
    ("strategy", "kept"), [("er", 64), ("derpp", 64 + 4 * 10), ("gdumb", 64), ("gem", 64)]
)
def test_a_buffer_counts_as_full_and_the_largest_that_fits_is_told(
    configure, prepared, strategy, kept
):
    """A digit has 64 bytes, and DER++ keeps ten logits with each; GEM's is shared by the tasks."""
    case = (f"strategy={strategy}", "strategy.buffer_size=300")
    _, own, env = prepared(*TOY, *case)
    most = at_most(own, env)
    assert most["buffer_bytes"] == 300 * kept
    limit = total(most) - 100 * kept - 7
    said = refusal(configure, *case, f"budget.bytes={limit}")
    found = re.search(r"lower strategy.buffer_size to (\d+), or model.hidden_sizes$", said)
    assert found, said
    size = int(found[1])
    case = (f"strategy={strategy}", f"budget.bytes={limit}")
    prepared(*TOY, *case, f"strategy.buffer_size={size}")
    assert "is too little" in refusal(configure, *case, f"strategy.buffer_size={size + 1}")


def test_places_per_class_are_told_by_their_key(configure, prepared):
    case = ("strategy=er", "strategy.buffer_size=null", "strategy.policy=class_balanced")
    case = (*case, "strategy.per_class=20")
    _, own, env = prepared(*TOY, *case)
    limit = total(at_most(own, env)) - 10 * 64
    said = refusal(configure, *case, f"budget.bytes={limit}")
    assert "lower strategy.per_class to 19, or model.hidden_sizes" in said


def test_where_no_buffer_fits_only_the_model_can_be_smaller(configure):
    said = refusal(configure, "strategy=er", f"budget.bytes={4 * P}")
    assert said.endswith("lower model.hidden_sizes, since no strategy.buffer_size fits")


def test_a_run_within_its_bytes_is_the_run_without_a_limit(configure, tmp_path):
    for name, limit in (("free", "null"), ("limited", "100000")):
        run(configure(*TOY, "strategy=er", f"budget.bytes={limit}"), tmp_path / name)
    one, other = (tmp_path / n / "accuracies.csv" for n in ("free", "limited"))
    assert one.read_bytes() == other.read_bytes()
    (row,) = read_rows(tmp_path / "limited" / "summary.csv")
    assert "budget_stopped" not in row  # nothing is stopped by it


@pytest.mark.slow
@pytest.mark.parametrize("strategy", strategies.available())
def test_no_run_comes_to_keep_more_than_was_told(prepared, strategy):
    scenarios = strategies.find(strategy).scenarios
    own = (f"strategy={strategy}", f"scenario={scenarios[-1]}", *SHORT.get(strategy, ()))
    small = ("strategy.buffer_size=30",) if "buffer_size" in vars(strategies.find(strategy)) else ()
    _, learner, env = prepared(*TOY, "benchmark.train_samples=60", *own, *small)
    most, s = at_most(learner, env), initial_state(learner, env)
    for task in env.stream:
        s = train_task(learner, s, task, env)
        now = footprint(learner, s, env)
        assert now.keys() == most.keys()
        assert all((now[k] is None) == (most[k] is None) for k in most)
        assert all((now[k] or 0) <= (most[k] or 0) for k in most), (now, most)
    if most["buffer_bytes"] is None:
        assert total(now) == total(most)
