"""What every strategy promises, checked for all that are found."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cl_runner import strategies
from cl_runner.core import Batch, TrainState
from cl_runner.run.evaluation import evaluate
from cl_runner.run.tasks import initial_state, restored, train_task
from cl_runner.training.batches import Source
from cl_runner.training.engines import recorded, stepper

pytestmark = pytest.mark.slow

TOY = (
    "benchmark.num_tasks=3",
    "benchmark.train_samples=300",  # of each task: more in all than a default buffer holds
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
)
PER_CLASS = "strategy.buffer_size=null strategy.per_class=5"
VARIANTS = {
    "cls_er": ("scenario=task strategy.stable_rate=0.5",),
    "derpp": (f"strategy.policy=class_balanced {PER_CLASS}",),
    "icarl": (f"{PER_CLASS} strategy.temperature=2",),
    "er_ewc": ("strategy.policy=class_balanced", "strategy.penalty=loss"),
    "expandable_head": ("strategy.new_units=imprinted",),
    "rwalk": ("strategy.interval=2", "strategy.penalty=loss"),
    "agem": ("strategy.policy=ring", "strategy.policy=class_balanced"),
    "den": ("strategy.tau=100 strategy.phase_epochs=1",),
    "gem": ("scenario=task strategy.margin=0",),
    "gpm": ("scenario=task strategy.threshold=[1.0]",),
    "ogd": ("scenario=task", "strategy.logits=all strategy.directions=50"),
    "ewc": ("strategy.mode=online", "strategy.penalty=proximal", "strategy.fisher_labels=sampled"),
    "der": (
        "strategy.policy=class_balanced",
        "strategy.policy=ring",
        "strategy.policy=herding",
    ),
    "lwf": ("scenario=task", "strategy.warm_up=5 strategy.weight=fixed"),
    "imm": ("strategy.merge=mean scenario=task",),
    "si": ("strategy.gradient=total strategy.penalty=loss",),
    "mas": ("strategy.penalty=loss strategy.lambda=0.01",),
    "generative_replay": (
        "strategy.generator=gan strategy.critic_steps=2 strategy.hidden_sizes=[50]",
        "strategy.labels=distillation scenario=task strategy.replay_batch_size=9",
    ),
    "hat": ("model.hidden_sizes=[24,12] training.iterations=7",),
    "packnet": ("strategy.retrain_epochs=0",),
    "pnn": ("strategy.adapter_size=5 model.hidden_sizes=[24,12]",),
    "soft_sharing": ("strategy.penalty=proximal",),
    "mir": ("scenario=task strategy.policy=ring",),
    "latent_replay": ("scenario=task strategy.policy=class_balanced",),
    "er": (
        "strategy.policy=ring",
        "strategy.policy=class_balanced strategy.weighting=task_share",
        "strategy.policy=herding",
        f"strategy.policy=herding {PER_CLASS}",
        f"strategy.policy=ring {PER_CLASS}",
    ),
}


COSTLY = {"gdumb": ("strategy.epochs=2",)}  # what keeps a toy run short


def somewhere(name: str) -> tuple[str, ...]:
    """Where to run a strategy that does not support the toy benchmark's own scenario."""
    supported = strategies.find(name).scenarios
    scenario = () if "domain" in supported else (f"scenario={supported[0]}",)
    return (*scenario, *COSTLY.get(name, ()))


CASES = [
    pytest.param(
        (f"strategy={name}", *somewhere(name), *variant.split()), id=f"{name} {variant}".strip()
    )
    for name in strategies.available()
    for variant in ("", *VARIANTS.get(name, ()))
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A strategy and its settings: of the module, so that the tests of a case follow each other."""
    return request.param


def snapshot(s: TrainState) -> TrainState:
    """A copy that shares no memory with the live storage."""

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: copy(v) for k, v in value.items()}
        return value.detach().clone()

    return TrainState(*(copy(v) for v in s))


def leaves(s: TrainState) -> dict[str, Tensor]:
    """All tensors of a state by name. Fails if there is anything else in it."""
    flat: dict[str, Tensor] = {}
    for field, value in s._asdict().items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{field}.{key}": tensor for key, tensor in entries}
    assert all(isinstance(v, Tensor) for v in flat.values()), flat
    return flat


def assert_same(a: TrainState, b: TrainState) -> None:
    mine, other = leaves(a), leaves(b)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


def stack(*tensors: Tensor) -> Tensor:
    return torch.stack(tensors)


def train(prepared, case, tasks: slice = slice(None), start: TrainState | None = None):
    """The strategy and the environment of a run, and copies of its states: before, after a task."""
    _, strategy, env = prepared(*TOY, *case)
    s = initial_state(strategy, env) if start is None else env.commit(start)
    states = [snapshot(s)]
    for task in env.stream[tasks]:
        s = train_task(strategy, s, task, env)
        states.append(snapshot(s))
    return strategy, states, env


@pytest.fixture(scope="module")
def unbroken(prepared, case) -> list[TrainState]:
    """The states of a case's run, which are kept: not to be changed."""
    return train(prepared, case)[1]


@pytest.fixture(scope="module")
def second_task(prepared, case, unbroken) -> tuple[Any, TrainState, list[Batch], Any]:
    """A state in mid-run and the next batches; kept, too: a test takes a copy, `a_step`."""
    _, strategy, env = prepared(*TOY, *case)
    s = restored(snapshot(unbroken[1]), env)
    s = strategy.begin_task(s._replace(t=torch.full_like(s.t, 1)), env.stream[1], env)
    source = Source(env, s, 1, env.stream[1].train, 1, strategy)
    return strategy, snapshot(s), list(source.epoch(0, 3)), env


@pytest.fixture
def a_step(second_task) -> tuple[Any, TrainState, list[Batch], Any]:
    """The state in the live storage, and the next batches."""
    strategy, s, batches, env = second_task
    return strategy, restored(snapshot(s), env), deepcopy(batches), env


def scenario_of(case: tuple[str, ...]) -> str:
    """Class-incremental where the strategy supports it, because there the tasks differ most."""
    supported = strategies.find(case[0].removeprefix("strategy=")).scenarios
    return "class" if "class" in supported else supported[0]


def test_two_runs_are_identical_and_hold_only_tensors(prepared, case):
    if not any(override.startswith("scenario=") for override in case):
        case = (*case, f"scenario={scenario_of(case)}")
    case = (*case, "benchmark=split_digits")
    _, first, _ = train(prepared, case)
    _, second, _ = train(prepared, case)
    assert_same(first[-1], second[-1])


def test_the_seed_reaches_the_result(prepared, case, unbroken):
    """By the initial weights, and by what is drawn from there on."""
    case = (*case, "benchmark.seed=0", "seed=1")
    _, (other,), _ = train(prepared, case, slice(0))
    assert not torch.equal(unbroken[0].theta, other.theta)
    _, (_, other), _ = train(prepared, case, slice(1), snapshot(unbroken[0]))
    assert not torch.equal(unbroken[1].theta, other.theta)


def test_resumed_equals_unbroken_and_the_state_keeps_its_size(prepared, case, unbroken):
    first, half, *_, last = unbroken
    sizes = {k: (v.shape, v.dtype) for k, v in leaves(first).items()}
    assert {k: (v.shape, v.dtype) for k, v in leaves(last).items()} == sizes
    _, resumed, _ = train(prepared, case, slice(1, None), snapshot(half))
    assert_same(last, resumed[-1])


def test_plain_autograd_and_torch_func_take_the_same_step(a_step):
    """The fast path of the live theta against the functional one."""
    strategy, s, batches, env = a_step
    functional = snapshot(s)
    with torch.no_grad():
        for batch in batches:
            expected, _ = strategy.step(functional, batch, env)
            functional = expected
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    torch.testing.assert_close(s.theta.detach(), functional.theta, rtol=1e-5, atol=1e-6)


def skip_unless_one_graph(case: tuple[str, ...]) -> None:
    name = case[0].removeprefix("strategy=")
    if not strategies.find(name).one_graph:
        pytest.skip(f"a step of {name} is not one graph; its docstring says why")


def test_the_step_is_one_graph(case, a_step):
    """Dynamo with fullgraph=True refuses graph breaks and branches on tensors."""
    skip_unless_one_graph(case)
    strategy, s, batches, env = a_step
    with torch.no_grad(), Questions() as questions:
        strategy.step(s, batches[0], env)
    assert not questions.asked, "the host would wait for the device"
    torch.compiler.reset()
    s = snapshot(s)
    compiled = torch.compile(
        lambda s, batch: strategy.step(s, batch, env), fullgraph=True, backend="eager"
    )
    expected, _ = strategy.step(s, batches[0], env)
    actual, _ = compiled(s, batches[0])
    torch.testing.assert_close(actual.theta, expected.theta, rtol=1e-5, atol=1e-6)


class Questions(TorchDispatchMode):
    """Notes the operations whose outcome, on a GPU, the host would wait for."""

    ASKING = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(v, Tensor) and v.dtype in (torch.bool, torch.uint8)
            for v in tree_leaves(args[1:2])
        )
        if name in self.ASKING or by_mask:
            self.asked.append(str(function))
        return function(*args, **(kwargs or {}))


def test_questions_are_noticed():
    x = torch.arange(3.0)
    for question in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x[0]), x.nonzero):
        with Questions() as questions:
            question()
        assert questions.asked


def test_steps_recorded_in_place_equal_plain_ones(case, a_step):
    """What a CUDA graph replays, on tensors that stay where they are; here replayed by hand."""
    skip_unless_one_graph(case)
    ends = []
    strategy, s, batches, env = a_step
    start = snapshot(s)
    batches.insert(1, smaller(batches[0]))
    for engine in ("eager", "graph"):
        s = restored(snapshot(start), env)
        take = stepper(strategy, env, "eager")
        if engine == "graph":
            take = recorded(take, env, record=lambda body: body)
        losses = []
        with torch.no_grad():
            for i, batch in enumerate(batches):
                if i == 2:  # as a schedule does
                    s = s._replace(opt=s.opt | {"lr": s.opt["lr"] / 2})
                s, loss = take(s, batch)
                losses.append(loss)
        ends.append((snapshot(s), torch.stack(losses)))
    assert_same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def smaller(batch: Batch) -> Batch:
    """A batch without its last samples, as the last of an epoch may be; the noise stays whole."""
    return Batch(*(v[:5] if isinstance(v, Tensor) else v for v in batch))


def test_members_stacked_by_vmap_equal_members_alone(case, a_step):
    skip_unless_one_graph(case)
    strategy, s, batches, env = a_step
    s = snapshot(s)
    members = [s, s._replace(theta=s.theta * 1.1)]
    alone = [strategy.step(m, b, env)[0] for m, b in zip(members, batches[:2], strict=True)]
    moving = [{k: v for k, v in b._asdict().items() if v is not None} for b in batches[:2]]
    fixed = {k: None for k in Batch._fields if k not in moving[0]}  # trivial, so not stacked

    def step(s: TrainState, batch: dict[str, Any]) -> TrainState:
        return strategy.step(s, Batch(**batch, **fixed), env)[0]

    stacked = torch.func.vmap(step)(tree_map(stack, *members), tree_map(stack, *moving))
    for i, member in enumerate(alone):
        for name, value in leaves(member).items():
            torch.testing.assert_close(
                leaves(stacked)[name][i], value, rtol=1e-4, atol=1e-6, msg=name
            )


FIRST_TASK_IS_NAIVE = [
    ("strategy=rwalk",),
    ("strategy=ewc",),
    ("strategy=ewc", "strategy.penalty=proximal"),
    ("strategy=l2",),
    ("strategy=cumulative",),
    ("strategy=agem",),
    ("strategy=gem",),
    ("strategy=ogd",),
    ("strategy=gpm",),
    ("strategy=latent_replay",),
]


@pytest.mark.parametrize("case", FIRST_TASK_IS_NAIVE, ids=" ".join)
def test_the_first_task_equals_naive(prepared, case):
    _, (_, naive), _ = train(prepared, ("strategy=naive",), slice(0, 1))
    _, (_, s), _ = train(prepared, case, slice(0, 1))
    torch.testing.assert_close(s.theta, naive.theta, rtol=1e-5, atol=1e-6)


LEARN = ("training.epochs=15", "benchmark.train_samples=900", "model.hidden_sizes=[64]")
CLAIMS = [
    # strategy, where its paper claims less forgetting, by how much ACC here exceeds naive's
    (("strategy=ewc", "strategy.lambda=30"), ("benchmark=permuted_digits",), 0.05),
    (
        ("strategy=ewc", "strategy.lambda=30", "strategy.penalty=proximal"),
        ("benchmark=permuted_digits",),
        0.05,
    ),
    (("strategy=l2", "strategy.lambda=0.1"), ("benchmark=permuted_digits",), 0.02),
    (("strategy=er", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (
        ("strategy=er", "strategy.buffer_size=100", "strategy.policy=ring"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (
        ("strategy=er", "strategy.buffer_size=100", "strategy.policy=class_balanced"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (
        ("strategy=er", "strategy.buffer_size=100", "strategy.policy=herding"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (("strategy=icarl", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (
        ("strategy=gdumb", "strategy.buffer_size=100", "strategy.epochs=40"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (("strategy=der", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (("strategy=derpp", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (("strategy=er_ace", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (("strategy=mir", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (
        ("strategy=mer", "strategy.buffer_size=100"),
        ("benchmark=split_digits", "training.epochs=1"),
        0.3,
    ),
    (("strategy=latent_replay", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.2),
    (("strategy=si",), ("benchmark=permuted_digits",), 0.05),
    (("strategy=mas",), ("benchmark=permuted_digits",), 0.05),
    (
        ("strategy=lwf",),
        ("benchmark=split_digits", "scenario=task", "benchmark.num_tasks=5"),
        0.01,
    ),
    (("strategy=imm",), ("benchmark=permuted_digits",), 0.03),
    (("strategy=imm", "strategy.merge=mean"), ("benchmark=split_digits", "scenario=task"), 0.0),
    (("strategy=agem", "strategy.buffer_size=100"), ("benchmark=permuted_digits",), 0.1),
    (("strategy=gem", "strategy.buffer_size=100"), ("benchmark=permuted_digits",), 0.1),
    (("strategy=gem", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (("strategy=ogd",), ("benchmark=permuted_digits",), 0.08),
    (("strategy=gpm",), ("benchmark=permuted_digits",), 0.1),
    (("strategy=rwalk",), ("benchmark=permuted_digits",), 0.05),
    (("strategy=er_ewc", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (
        ("strategy=cls_er", "strategy.buffer_size=100", "strategy.replay_batch_size=16"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (
        ("strategy=generative_replay", "strategy.hidden_sizes=[100]", "strategy.latent_size=20"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (
        (
            "strategy=generative_replay",
            "strategy.generator=gan",
            "strategy.critic_steps=1",
            "strategy.hidden_sizes=[50]",
            "strategy.latent_size=10",
            "strategy.generator_lr=3e-3",
            "training.batch_size=32",
        ),
        ("benchmark=split_digits",),
        0.2,
    ),
    (
        ("strategy=den",),
        ("benchmark=split_digits", "scenario=task", "benchmark.num_tasks=5", "optimizer.lr=0.3"),
        0.01,
    ),
    (("strategy=cumulative",), ("benchmark=split_digits",), 0.5),
    (("strategy=pnn",), ("benchmark=rotated_digits", "scenario=task", "optimizer=adam"), 0.03),
    (
        ("strategy=soft_sharing",),
        ("benchmark=rotated_digits", "scenario=task", "optimizer=adam"),
        0.04,
    ),
    *(
        (
            (f"strategy={name}",),
            (
                "benchmark=permuted_digits",
                "scenario=task",
                "benchmark.num_tasks=4",
                "model.hidden_sizes=[128,128]",
                "optimizer=adam",
                "optimizer.lr=0.01",
                "training.batch_size=32",
                "training.epochs=8",
            ),
            margin,
        )
        for name, margin in (("xdg", 0.05), ("hat", 0.05), ("packnet", 0.08))
    ),
    (("strategy=joint",), ("benchmark=split_digits",), 0.5),
]


@cache
def mean_accuracy(prepared, case: tuple[str, ...]) -> float:
    strategy, (*_, s), env = train(prepared, (*LEARN, *case))
    (own, *_) = evaluate(strategy, env.commit(s), env).values()
    return sum(own) / len(own)


@pytest.mark.parametrize(
    ("claim", "where", "margin"), CLAIMS, ids=[" ".join(c + w) for c, w, _ in CLAIMS]
)
def test_it_keeps_more_than_naive_where_its_paper_claims_so(prepared, claim, where, margin):
    naive = mean_accuracy(prepared, (*where, "strategy=naive"))
    assert mean_accuracy(prepared, (*where, *claim)) > naive + margin
