"""How steps are executed: the choice of the engine, compiling, and recording."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest
import torch

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state, restored, train_task
from cl_runner.testing import assert_same, leaves, snapshot
from cl_runner.training import engines
from cl_runner.training.batches import Source
from cl_runner.training.engines import Recording, choose, functional, recorded, settle, stepper


def test_auto_says_why(prepared):
    _, strategy, env = prepared()
    assert choose("auto", strategy.one_graph, env) == ("eager", "CUDA graphs need a GPU")
    assert choose("auto", one_graph=False, env=env)[1] == "a step of this strategy is not one graph"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("engine=graph",), "engine=graph: CUDA graphs need a GPU"),
        (("engine=compile", "strategy=gem"), "not one graph"),
        (("engine=fast",), "engine must be one of"),
    ],
)
def test_what_cannot_be_done_is_refused(prepared, overrides, says):
    with pytest.raises(UserError, match=says):
        prepared(*overrides, "device=cpu", "benchmark.train_samples=50")


def test_values_that_are_other_targets_change_places():
    a, b, c = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor(0.0)
    settle([a, b, c], [b, a, a[1]])
    assert a.tolist() == [3, 4]
    assert b.tolist() == [1, 2]
    assert c.item() == 2


def test_a_recording_that_computes_something_else_is_refused():
    state, inputs = [torch.zeros(2)], [torch.ones(2)]

    def function(state, inputs):
        return [state[0] + inputs[0]], [inputs[0].sum()]

    def forgetful(_):
        return lambda: None

    with pytest.raises(UserError, match="computes something else"):
        Recording(function, state, inputs, forgetful)
    right = Recording(function, state, inputs, lambda body: body)
    assert state[0].tolist() == [0, 0]
    (found,) = right([torch.full((2,), 3.0)])
    assert found.item() == 6
    assert state[0].tolist() == [3, 3]


MOVING = {
    "resnet": ("benchmark=split_digits", "model=reduced_resnet18", "model.width=2"),
    "mlp": ("model.hidden_sizes=[24]", "model.norm=batch", "model.dropout=0.5"),
}


@pytest.mark.parametrize("model", MOVING.values(), ids=MOVING)
def test_a_step_as_a_function_moves_what_the_step_itself_moves(prepared, model):
    """BatchNorm's statistics, by the very masks of dropout; and nothing of the network's."""
    case = ("strategy=er", "benchmark.train_samples=400", "training.batch_size=16", *model)
    _, strategy, env = prepared(*case)
    s = snapshot(initial_state(strategy, env))
    source = Source(env, s, 0, *strategy.training_set(s, env.stream, 0, env), strategy)
    torch.compiler.reset()
    step = torch.compile(
        lambda s, batch: functional(strategy, s, batch, env)[0], backend="eager", fullgraph=True
    )
    live, take = restored(s, env), stepper(strategy, env, "eager")
    with torch.no_grad():
        for batch in source.epoch(0, 3):
            before = snapshot(live)
            after = step(snapshot(live), batch)
            assert_same(before, snapshot(live))
            live, _ = take(live, batch)
            for name, value in leaves(snapshot(live)).items():
                found = leaves(after)[name]
                torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6, msg=name)
            moved = [k for k, v in live.buffers.items() if not torch.equal(v, before.buffers[k])]
            assert moved == list(live.buffers)


RESIDUAL = ("benchmark=split_digits", "model=reduced_resnet18", "model.width=2")
RECORDED = {
    "augmented": ("strategy=derpp", "training.augment=crop_flip", *RESIDUAL),
    "mixed": ("strategy=er", "precision=bfloat16", *RESIDUAL),
    "annealed": ("strategy=er", "optimizer=adam", "optimizer.schedule=cosine"),
    "dropout": ("strategy=naive", "model.dropout=0.3", "model.norm=batch", "eval.online=true"),
    "detected": ("strategy=er", "training.boundaries=detected"),
}


NAMES = [  # gdumb takes its steps when a task ends
    n for n in strategies.available() if strategies.find(n).one_graph and n != "gdumb"
]
LESS = {"mer": ("training.batch_size=3", "training.iterations=9", "benchmark.train_samples=10")}
EACH = [
    (
        *(f"strategy={name}", f"scenario={strategies.find(name).scenarios[0]}"),
        *("model.hidden_sizes=[9]", *LESS.get(name, ())),
    )
    for name in NAMES
]


@pytest.mark.parametrize("case", [*RECORDED.values(), *EACH], ids=[*RECORDED, *NAMES])
def test_a_run_records_each_shape_of_batch_once_for_all_tasks(prepared, monkeypatch, case):
    """As on a GPU, but that here a step itself is what repeats it: the same to the bit."""
    records: list[object] = []
    sizes: list[int] = []

    class Sizes:
        def begin(self, task, epochs, steps):
            pass

        def step(self, epoch, samples, loss):
            sizes.append(samples)

    monkeypatch.setattr(engines, "cuda_graph", lambda body: records.append(body) or body)
    ends = []
    for engine in ("eager", "graph"):
        toy = ("benchmark.num_tasks=3", "benchmark.train_samples=130", "training.epochs=2")
        _, strategy, env = prepared(*toy, "training.batch_size=32", *case)
        env.engine, env.meter.displays = engine, [Sizes()]  # a CPU is refused graphs
        s = initial_state(strategy, env)
        for task in env.stream:
            s = train_task(strategy, s, task, env)
        ends.append((snapshot(s), env.meter.steps, env.meter.flops))
    (plain, *counts), (replayed, *others) = ends
    assert_same(plain, replayed)
    assert counts == others
    assert len(records) == len(set(sizes))


def test_recordings_end_with_their_run(configure, tmp_path, monkeypatch):
    """So the next job of a sweep finds the memory of a GPU free."""
    networks = []

    def record(step, env, recorder):
        networks.append(weakref.ref(env.flat))
        return recorded(step, env, recorder)

    class Recording:  # as a CUDA graph, it keeps no function that knows of it
        def __init__(self, function, state, inputs, record):
            self.function, self.state = function, state

        def __call__(self, inputs):
            after, results = self.function(self.state, inputs)
            settle(self.state, after)
            return results

    monkeypatch.setattr(engines, "recorded", record)
    monkeypatch.setattr(engines, "Recording", Recording)
    monkeypatch.setattr(engines, "choose", lambda *_: ("graph", "asked for"))
    gc.disable()
    try:
        run(configure("benchmark.train_samples=60", "verbose=false"), tmp_path)
        assert [network() for network in networks] == [None]
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("more", [(), ("model.norm=batch", "model.dropout=0.3")])
def test_compiled_steps_reach_what_plain_ones_do(configure, tmp_path, more):
    case = (
        *more,
        *("strategy=er", "strategy.replay_batch_size=8", "training.batch_size=8"),
        *("benchmark.num_tasks=2", "benchmark.train_samples=320", "verbose=false"),
        "eval.online=true",
    )  # batches of one size: each shape is compiled
    for engine in ("eager", "compile"):
        run(configure(*case, f"engine={engine}"), tmp_path / engine)
    plain, fast = (read_matrix(tmp_path / e / "accuracy_matrix.csv") for e in ("eager", "compile"))
    assert abs(plain - fast).max() < 0.02
    assert read_rows(tmp_path / "compile" / "summary.csv")[0]["used_engine"] == "compile"
    own, theirs = (read_rows(tmp_path / e / "online.csv") for e in ("eager", "compile"))
    pairs = zip(own, theirs, strict=True)
    assert max(abs(float(a["accuracy"]) - float(b["accuracy"])) for a, b in pairs) < 0.02
