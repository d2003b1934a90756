"""Every strategy's deployed model predicts what the run's evaluation saw."""

from __future__ import annotations

import os

import pytest
import torch

from cl_runner import strategies
from cl_runner.exporting.formats import needed, quiet
from cl_runner.exporting.load import load_model
from cl_runner.results.files import read_rows
from cl_runner.running.loop import run
from cl_runner.running.prepare import prepare, strategy_of

TINY = (
    *("benchmark=split_digits", "benchmark.num_tasks=5", "benchmark.train_samples=150"),
    *("model.hidden_sizes=[12]", "training.epochs=1", "training.batch_size=16"),
    "checkpoint.keep=true",
)
QUICK = {
    "bir": ("strategy.hidden_sizes=[20]", "strategy.latent_size=5"),
    "gdumb": ("strategy.epochs=2",),
    "mer": ("benchmark.train_samples=40",),
}
ALL = os.environ.get("CL_RUNNER_EXPORT") == "1"  # in every scenario: two minutes more
CASES = [
    pytest.param(name, scenario, id=f"{name} {scenario}")
    for name in strategies.available()
    for scenario in strategies.find(name).scenarios[0 if ALL else -1 :]
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_it_predicts_what_the_run_saw(configure, tmp_path, name, scenario):
    own = f"strategy={name}", f"scenario={scenario}", *QUICK.get(name, ())
    config = configure(*TINY, *own)
    run(config, tmp_path)
    stream = prepare(config, strategy_of(config)).stream
    measured = read_rows(tmp_path / "accuracy_matrix.csv")[-1]
    for task in stream:
        model = load_model(tmp_path, task=task.index + 1 if scenario == "task" else None)
        x, y = stream.held_out("test", task)
        probabilities = model(x)
        assert probabilities.sum(1).allclose(probabilities.new_ones(len(x)))
        first = task.classes[0] if scenario == "task" else 0
        hits = (probabilities.argmax(1) + first == y).sum()
        accuracy = float(measured[f"task_{task.index + 1}"])
        assert float(hits / len(y)) == pytest.approx(accuracy, abs=1e-6)
    with quiet(), torch.no_grad():
        module = needed(model)
        assert torch.allclose(module(x), probabilities, rtol=0, atol=1e-6)
    calls = [node.target for node in module.graph.nodes if node.op == "call_function"]
    own = {call.namespace for call in calls if isinstance(call, torch._ops.OpOverload)}
    assert own == {"aten"}  # whoever loads it has these
