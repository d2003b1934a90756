"""The contract of a strategy: what each of ours promises, to be asked of one of your own.

In a test of yours:

    from cl_runner.testing import contract

    def test_halfway():
        contract("halfway", plugins=["my_strategies"])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, cached_property
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_module
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cl_runner import strategies
from cl_runner.cli.search_path import with_yaml_of_plugins
from cl_runner.config.parse import validate
from cl_runner.config.schema import Config
from cl_runner.config.versions import BASE
from cl_runner.core import Batch, TrainState
from cl_runner.errors import UserError
from cl_runner.running.prepare import prepare, strategy_of
from cl_runner.running.tasks import initial_state, restored, train_task
from cl_runner.strategies.base import Strategy
from cl_runner.training.batches import Source
from cl_runner.training.engines import recorded, stepper
from cl_runner.training.env import Env

Prepare = Callable[..., tuple[Config, Strategy, Env]]  # of overrides
TOY = (
    "benchmark.num_tasks=3",
    "benchmark.train_samples=300",  # of each task: more in all than a default buffer holds
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
)


def contract(strategy: str, overrides: Sequence[str] = (), *, plugins: Sequence[str] = ()) -> None:
    """Check that a strategy keeps what the engine, resuming and stacking build on (see CHECKS).

    strategy, overrides: as on the command line, such as `contract("halfway", ["scenario=task"])`.
    Else it is a small MLP on three tasks of the embedded digits. Nothing is downloaded, and no file
    is left. plugins: the packages that bring the strategy and its YAML.

    Raises AssertionError with the first promise that is not kept, UserError for overrides that
    cannot be, and whatever the strategy itself raises.
    """
    with TemporaryDirectory() as root:
        case = Case(strategy, overrides, composer(root, plugins), plugins)
        for promise, check in case.checks().items():
            broken = (AssertionError, RuntimeError) if promise in OF_ONE_GRAPH else AssertionError
            try:
                check(case)
            except broken as error:  # RuntimeError: torch cannot trace it, or not map it
                raise AssertionError(f"strategy={strategy}: {promise}: {error}") from error


def composer(root: str, plugins: Sequence[str]) -> Prepare:
    """prepare(*overrides) for a strategy of `plugins`; `root` is the cache of data sets."""
    named = [f"plugins=[{','.join(plugins)}]"] if plugins else []
    own = (*named, f"data.root={root}", "device=cpu", "threads=1", "verbose=false")

    @cache
    def composed(*overrides: str) -> Config:
        with initialize_config_module("cl_runner.conf", **BASE):
            return validate(compose("config", with_yaml_of_plugins([*own, *overrides])))

    def prepared(*overrides: str) -> tuple[Config, Strategy, Env]:
        config = deepcopy(composed(*overrides))
        strategy = strategy_of(config)
        return config, strategy, prepare(config, strategy)

    return prepared


class Step(NamedTuple):
    """A state in mid-run, in the live storage, the batches that come next, and a smaller one."""

    strategy: Strategy
    s: TrainState
    batches: list[Batch]
    smaller: Batch
    env: Env


class Trained(NamedTuple):
    """A run, with copies of its states: before it, and after each task."""

    strategy: Strategy
    states: list[TrainState]
    env: Env


class Case:
    """A strategy in one setting. What several checks look at is computed once."""

    def __init__(
        self, name: str, overrides: Sequence[str], prepare: Prepare, plugins: Sequence[str] = ()
    ) -> None:
        found = strategies.find(name, plugins)
        self.name, self.prepare = name, prepare
        self.supported, self.one_graph = found.scenarios, found.one_graph
        free = not any(override.startswith("scenario=") for override in overrides)
        own = () if "domain" in found.scenarios else (f"scenario={found.scenarios[0]}",)
        self.overrides = (f"strategy={name}", *overrides, *(own if free else ()))
        self.free = free and not own  # whether the benchmark's own scenario is the case's

    def checks(self) -> dict[str, Callable[[Case], None]]:
        """The checks that concern it, by what they find kept."""
        return CHECKS | (OF_ONE_GRAPH if self.one_graph else {})

    def prepared(self, *more: str) -> tuple[Strategy, Env]:
        """The strategy and the environment of a run."""
        return self.prepare(*TOY, *self.overrides, *more)[1:]

    def train(
        self, *more: str, tasks: slice = slice(None), start: TrainState | None = None
    ) -> Trained:
        """Train on some tasks, from the beginning or from a state. more: overrides."""
        strategy, env = self.prepared(*more)
        s = initial_state(strategy, env) if start is None else env.commit(start)
        states = [snapshot(s)]
        for task in env.stream[tasks]:
            s = train_task(strategy, s, task, env)
            states.append(snapshot(s))
        return Trained(strategy, states, env)

    @cached_property
    def unbroken(self) -> list[TrainState]:
        """The states of the whole run; not to be changed."""
        return self.train().states

    @cached_property
    def second_task(self) -> Step:
        """The second task's beginning, its state copied; not to be changed."""
        strategy, env = self.prepared()
        s = restored(snapshot(self.unbroken[1]), env)
        s = strategy.begin_task(s._replace(t=torch.full_like(s.t, 1)), env.stream[1], env)
        source = Source(env, s, 1, env.stream[1].train, 1, strategy)
        batches = list(source.epoch(0, 3))
        steps = -(-len(source.index) // source.size) * source.passes
        (last,) = source.epoch(0, steps, done=steps - 1)
        return Step(strategy, snapshot(s), batches, last, env)

    def step(self) -> Step:
        """The same, for a check of its own."""
        strategy, s, batches, smaller, env = self.second_task
        s = restored(snapshot(s), env)
        return Step(strategy, s, deepcopy(batches), deepcopy(smaller), env)


# States.


def snapshot(s: TrainState) -> TrainState:
    """A copy that shares no memory with the live storage."""

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: copy(v) for k, v in value.items()}
        return value.detach().clone() if isinstance(value, Tensor) else value

    return TrainState(*(copy(v) for v in s))


def leaves(s: TrainState) -> dict[str, Tensor]:
    """All tensors of a state by name. AssertionError if there is anything else in it."""
    flat: dict[str, Tensor] = {}
    for field, value in s._asdict().items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{field}.{key}": tensor for key, tensor in entries}
    other = [name for name, v in flat.items() if not isinstance(v, Tensor)]
    assert not other, f"not a tensor: {', '.join(other)}"
    return flat


def assert_same(a: TrainState, b: TrainState) -> None:
    """AssertionError unless two states are the same, bit for bit."""
    mine, other = leaves(a), leaves(b)
    assert mine.keys() == other.keys(), f"{sorted(mine)} and {sorted(other)}"
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=f"{name} differs")


def assert_near(a: Tensor, b: Tensor) -> None:
    """AssertionError unless two parameter vectors differ in their last digits at most."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# The promises of all strategies.


def check_identical(case: Case) -> None:
    """Class-incremental where the strategy supports it, because there the tasks differ most."""
    where = "class" if "class" in case.supported else case.supported[0]
    more = ("benchmark=split_digits", *([f"scenario={where}"] if case.free else []))
    first, second = (case.train(*more).states[-1] for _ in range(2))
    assert_same(first, second)


def check_seed(case: Case) -> None:
    """By the initial weights, and by what is drawn from there on, if any steps are taken."""
    other = ("benchmark.seed=0", "seed=1")
    begun = case.train(*other, tasks=slice(0)).states[0]
    assert not torch.equal(case.unbroken[0].theta, begun.theta), "the initial weights are the same"
    start = snapshot(case.unbroken[0])
    after = case.train(*other, tasks=slice(1), start=start)
    same = torch.equal(case.unbroken[1].theta, after.states[1].theta)
    assert not (same and after.env.meter.steps), "the first task ends the same"


def check_resumed(case: Case) -> None:
    """From the state after the first task."""
    _, half, *_, last = case.unbroken
    resumed = case.train(tasks=slice(1, None), start=snapshot(half)).states
    assert_same(last, resumed[-1])


def check_size(case: Case) -> None:
    """The memory is allocated at full size, so that states can be stacked."""
    first, *_, last = ({k: (v.shape, v.dtype) for k, v in leaves(s).items()} for s in case.unbroken)
    grown = sorted(k for k in first.keys() | last.keys() if first.get(k) != last.get(k))
    assert first == last, f"{', '.join(grown)} changed"


def check_functional(case: Case) -> None:
    """The fast path of the live theta against the functional one."""
    strategy, s, batches, _, env = case.step()
    functional = snapshot(s)
    with torch.no_grad():
        for batch in batches:
            functional, _ = strategy.step(functional, batch, env)
            s = env.commit(strategy.step(s, batch, env)[0])
    assert_near(s.theta.detach(), functional.theta)


def check_logits(case: Case) -> None:
    """As `eval.online` reads them: no label of the batch is in them, nor another sample."""

    def logits_of(change: Callable[[Batch], Batch]) -> Tensor | None:
        strategy, s, batches, _, env = case.step()
        with torch.no_grad():
            _, aux = strategy.step(s, change(batches[0]), env)
        return aux["logits"][: len(batches[0].y)] if "logits" in aux else None

    def other(batch: Batch) -> Batch:
        return batch._replace(x=torch.cat([batch.x[1:2], batch.x[1:]]))

    logits = logits_of(lambda batch: batch)
    without_labels = logits_of(lambda batch: batch._replace(y=batch.y.flip(0)))
    without_first = logits_of(other)
    if logits is None or without_labels is None or without_first is None:
        return  # eval.online is refused for it
    assert_near(without_labels, logits)
    assert_near(without_first[1:], logits[1:])
    assert not torch.equal(without_first[0], logits[0]), "they are not in the order of the batch"


def check_untold(case: Case) -> None:
    """With training.boundaries=none it does what it does when it is told; or it is refused."""
    strategy, env = case.prepared()
    untold = "training.boundaries=none"
    if env.stream.scenario == "task" or strategy.needs_borders(env.stream.scenario):
        try:
            case.prepared(untold)
        except UserError:
            return
        raise AssertionError("needs_borders() says why not, and it is trained all the same")
    told = case.unbroken[-1]
    assert_same(case.train(untold).states[-1]._replace(t=told.t), told)


CHECKS: dict[str, Callable[[Case], None]] = {
    "two runs are identical and hold only tensors": check_identical,
    "the seed reaches the result": check_seed,
    "resumed equals unbroken": check_resumed,
    "the state keeps its size": check_size,
    "a step's logits are those of its batch, from before it learns": check_logits,
    "what needs no borders does not use them": check_untold,
    "plain autograd and torch.func take the same step": check_functional,
}


# The promises of a strategy with `one_graph`.


def check_host(case: Case) -> None:
    """No item(), no branch on a tensor, no selection by a mask."""
    strategy, s, batches, _, env = case.step()
    with torch.no_grad(), Questions() as questions:
        strategy.step(s, batches[0], env)
    assert not questions.asked, f"on a GPU the host would wait for {', '.join(questions.asked)}"


def check_one_graph(case: Case) -> None:
    """Dynamo with fullgraph=True refuses graph breaks and branches on tensors."""
    strategy, s, batches, _, env = case.step()
    s = snapshot(s)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda s, batch: strategy.step(s, batch, env), fullgraph=True, backend="eager"
    )
    expected, _ = strategy.step(s, batches[0], env)
    actual, _ = compiled(s, batches[0])
    assert_near(actual.theta, expected.theta)


def check_recorded(case: Case) -> None:
    """What a CUDA graph replays, on tensors that stay where they are; here replayed by hand."""
    strategy, s, batches, smaller, env = case.step()
    start = snapshot(s)
    batches.insert(1, smaller)

    def run(take: Callable[..., tuple[TrainState, list[Tensor]]]) -> tuple[TrainState, Tensor]:
        s, losses = restored(snapshot(start), env), []
        with torch.no_grad():
            for i, batch in enumerate(batches):
                if i == 2:  # as a schedule does
                    s = s._replace(opt=s.opt | {"lr": s.opt["lr"] / 2})
                s, (loss,) = take(s, batch)
                losses.append(loss)
        return snapshot(s), torch.stack(losses)

    plain, losses = run(stepper(strategy, env, "eager"))
    again, others = run(recorded(stepper(strategy, env, "eager"), env, record=lambda body: body))
    assert_same(plain, again)
    assert torch.equal(losses, others), "the losses differ"


def check_stacked(case: Case) -> None:
    """Two members, stacked and mapped by vmap, against each alone."""
    strategy, s, batches, _, env = case.step()
    s = snapshot(s)
    members = [s, s._replace(theta=s.theta * 1.1)]
    alone = [strategy.step(m, b, env)[0] for m, b in zip(members, batches[:2], strict=True)]
    moving = [{k: v for k, v in b._asdict().items() if v is not None} for b in batches[:2]]
    trivial: dict[str, Any] = {k: None for k in Batch._fields if k not in moving[0]}

    def step(s: TrainState, batch: dict[str, Any]) -> TrainState:
        return strategy.step(s, Batch(**batch, **trivial), env)[0]

    stacked = torch.func.vmap(step)(*(tree_map(stack, *pair) for pair in (members, moving)))
    for i, member in enumerate(alone):
        for name, value in leaves(member).items():
            torch.testing.assert_close(
                leaves(stacked)[name][i], value, rtol=1e-4, atol=1e-6, msg=f"{name} differs"
            )


OF_ONE_GRAPH: dict[str, Callable[[Case], None]] = {
    "a step asks the host for nothing": check_host,
    "a step is one graph": check_one_graph,
    "steps recorded in place equal plain ones": check_recorded,
    "members stacked by vmap equal members alone": check_stacked,
}


def stack(*tensors: Tensor) -> Tensor:
    """Tensors of one shape along a new first dimension."""
    return torch.stack(tensors)


class Questions(TorchDispatchMode):
    """Notes the operations whose outcome, on a GPU, the host would wait for."""

    ASKING = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call an operation, and note it if it asks."""
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(v, Tensor) and v.dtype in (torch.bool, torch.uint8)
            for v in tree_leaves(args[1:2])
        )
        if name in self.ASKING or by_mask:
            self.asked.append(str(function))
        return function(*args, **(kwargs or {}))
