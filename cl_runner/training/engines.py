"""How the hot step is executed: operation by operation, compiled, or recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from cl_runner.core import Batch, TrainState, Window
from cl_runner.errors import UserError, check
from cl_runner.training.env import Env

Leaves = list[Tensor]
Memory = dict[str, Tensor]
Inputs = list[Any]  # tensors, and None
Names = tuple[tuple[str, ...], tuple[str, ...]]
Function = Callable[[Leaves, Inputs], tuple[Sequence[Tensor], Leaves]]
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
# -> the committed state, and the loss, 0-d; online also the batch's logits [B, K]
Step = Callable[[TrainState, Batch], tuple[TrainState, Leaves]]
AUGMENT, DROPOUT = "augment", "dropout"  # their names among a batch's noise
WARM_UP = 3  # steps before a recording: libraries set themselves up in the first ones


class Learner(Protocol):
    """Anything with a `step`: a strategy, or an extra phase of one."""

    def batch_size(self, t: int, env: Env) -> int: ...
    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]: ...
    def plan(
        self, memory: Memory, t: Tensor, window: Window, env: Env
    ) -> tuple[Memory, Memory]: ...
    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, dict[str, Any]]: ...


def choose(engine: str, one_graph: bool, env: Env) -> tuple[str, str]:
    """The engine that `engine=` means here, and why: eager | compile | graph.

    `auto` is `graph` on a GPU where the step can be recorded, else `eager`: on a CPU a graph saves
    nothing, and compiling takes longer than it gains. Raises UserError where the step cannot be
    executed as asked.
    """
    if engine == "eager":
        return engine, "asked for"
    reason = None
    if not one_graph:
        reason = "a step of this strategy is not one graph"
    elif env.stochastic:
        reason = "the model draws random numbers of its own within the step"
    elif env.device.type != "cuda" and engine != "compile":
        reason = "CUDA graphs need a GPU"
    if engine == "auto":
        return ("graph", "a step is one graph") if reason is None else ("eager", reason)
    check(reason is None, f"engine={engine}: {reason}; use engine=auto or engine=eager")
    return engine, "asked for"


def stepper(
    learner: Learner, env: Env, engine: str, *, online: bool = False, raw: bool = False
) -> Step:
    """The function that executes the learner's steps.

    What is compiled or recorded lives as long as the network's storage: a run's tasks share it.
    online: the steps also tell the logits of their batches (see `told`). raw: their batches hold
    images as the stream has them, which the step itself makes into inputs (`shown`).
    """

    def eager(s: TrainState, batch: Batch) -> tuple[TrainState, Leaves]:
        batch = shown(batch, env) if raw else batch
        with env.flat.drawing(batch.noise.get(DROPOUT)):
            s, aux = learner.step(s, batch, env)
        return env.commit(s), told(aux, batch, online=online)

    def pure(s: TrainState, batch: Batch) -> tuple[TrainState, Leaves]:
        batch = shown(batch, env) if raw else batch
        s, aux = functional(learner, s, batch, env)
        return s, told(aux, batch, online=online)

    if engine == "eager":
        return eager
    made: dict[Any, Step] = env.flat.steps
    key = (engine, id(learner), online, raw)  # a step that is kept here keeps its learner
    if key not in made:
        made[key] = recorded(eager, env, cuda_graph) if engine == "graph" else compiled(pure, env)
    return made[key]


def shown(batch: Batch, env: Env) -> Batch:
    """A batch of raw images as one of the network's inputs: augmented, if the run is, and scaled.

    By the uniforms of noise["augment"], of which there are as many as in the largest batch.
    """
    uniforms = batch.noise.get(AUGMENT)
    own = None if uniforms is None else uniforms[: batch.y.shape[0]]
    return batch._replace(x=env.inputs(batch.x, own))


def told(aux: Mapping[str, Any], batch: Batch, *, online: bool) -> Leaves:
    """What is read of a step besides the state: its loss and, online, its batch's logits [B, K].

    The logits are those that the loss was computed from, of before the update (see
    `online.Predictions`). Raises UserError for a step that tells none.
    """
    if not online:
        return [aux["loss"]]
    if "logits" not in aux:
        raise UserError("eval.online=true: the strategy's step tells no logits, in aux['logits']")
    logits, size = aux["logits"].detach(), batch.y.shape[0]  # without the graph of the step
    # Those of replayed samples come after the batch's. A slice takes nearly as long as an argmax.
    return [aux["loss"], logits if logits.shape[0] == size else logits[:size]]


def functional(
    learner: Learner, s: TrainState, batch: Batch, env: Env
) -> tuple[TrainState, dict[str, Any]]:
    """The learner's step as a function of the state, BatchNorm's statistics included.

    It changes no memory of the state or the network: what it has moved is in the state it gives.
    """
    drawing = env.flat.drawing(batch.noise.get(DROPOUT))
    with env.flat.standing_in(s.theta, s.buffers) as moved, drawing:
        s, aux = learner.step(s._replace(buffers=moved), batch, env)
    return s._replace(buffers=moved), aux


def compiled(pure: Step, env: Env) -> Step:
    """The compiled step (torch.compile), which takes a copy of the live state."""
    function = torch.compile(pure, fullgraph=True, dynamic=False)

    def step(s: TrainState, batch: Batch) -> tuple[TrainState, Leaves]:
        after, results = function(s._replace(theta=s.theta.detach()), batch)
        return env.commit(after), results

    return step


def recorded(step: Step, env: Env, record: Recorder) -> Step:
    """The step recorded for each shape of batch, on a state whose tensors stay where they are.

    record: makes of a body, which takes no argument, what repeats it (`cuda_graph`).
    """
    places: dict[Any, Leaves] = {}  # where states of a form and shapes stay
    recordings: dict[Any, Recording] = {}
    last: tuple[Any, TrainState, Leaves] | None = None  # where the last step has left the state
    env.flat.stay()

    def placed(s: TrainState) -> tuple[Any, TrainState, Leaves]:
        given, form = tree_flatten(s)
        key = (str(form), *(v.shape for v in given))
        if key not in places:
            live = {id(v) for v in (env.flat.theta, *env.flat.buffers.values())}
            places[key] = [v if id(v) in live else v.clone() for v in given]
        settle(places[key], given)  # which a strategy may have given other names between tasks
        return key, tree_unflatten(places[key], form), places[key]

    def take(s: TrainState, batch: Batch) -> tuple[TrainState, Leaves]:
        nonlocal last
        if last is None or s is not last[1]:
            last = placed(s)
        place, state, leaves = last
        inputs, names = leaves_of(batch)

        def function(_: Leaves, inputs: Inputs) -> tuple[Leaves, Leaves]:
            after, results = step(state, batch_of(inputs, names))
            return tree_flatten(after)[0], results

        key = (place, names, *(None if v is None else v.shape for v in inputs))
        if key not in recordings:
            recordings[key] = Recording(function, leaves, inputs, record)
        return state, recordings[key](inputs)

    return take


def leaves_of(batch: Batch) -> tuple[Inputs, Names]:
    """A batch's tensors, and the names of those of noise and plan; in a third of pytree's time."""
    names = tuple(batch.noise), tuple(batch.plan)
    return [*batch[:-2], *batch.noise.values(), *batch.plan.values()], names


def batch_of(leaves: Inputs, names: Names) -> Batch:
    """The batch whose tensors `leaves_of` gave."""
    x, y, task, active, weight, index, *drawn = leaves
    noise, plan = names
    of_noise = dict(zip(noise, drawn, strict=False))
    of_plan = dict(zip(plan, drawn[len(noise) :], strict=True))
    return Batch(x, y, task, active, weight, index, of_noise, of_plan)


class Recording:
    """f(state, inputs) -> (new state, results), recorded once; it changes `state` in place."""

    def __init__(self, function: Function, state: Leaves, inputs: Inputs, record: Recorder) -> None:
        self.inputs = [v.clone() if isinstance(v, Tensor) else v for v in inputs]
        self.groups: dict[torch.dtype, list[int]] = {}  # which of them are of a type
        for i, v in enumerate(self.inputs):
            if isinstance(v, Tensor):
                self.groups.setdefault(v.dtype, []).append(i)
        before = [v.detach().clone() for v in state]
        after, results = function(state, self.inputs)  # once by itself, for comparison
        settle(state, after)
        self.results = [v.clone() for v in results]
        expected = [v.detach().clone() for v in (*state, *self.results)]

        def body() -> None:
            after, results = function(state, self.inputs)
            settle(state, after)
            copy(self.results, results)

        copy(state, before)
        self.replay = record(body)
        copy(state, before)
        self.replay()
        for actual, wanted in zip((*state, *self.results), expected, strict=True):
            if not torch.allclose(actual.detach(), wanted, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise UserError(
                    "engine=graph: the recorded step computes something else than the step itself "
                    "(please report it); use engine=eager"
                )
        copy(state, before)

    def __call__(self, inputs: Inputs) -> Leaves:
        """Take the step on these inputs and return its results."""
        for own in self.groups.values():  # few launches
            torch._foreach_copy_([self.inputs[i] for i in own], [inputs[i] for i in own])
        self.replay()
        return [v.clone() for v in self.results]


def copy(targets: Leaves, values: Sequence[Tensor]) -> None:
    """Copy values into the targets that are other tensors than theirs, leaf by leaf."""
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            if target is not value:
                target.copy_(value)


def settle(targets: Leaves, values: Sequence[Tensor]) -> None:
    """`copy` for values that may be other targets, or views of them."""
    storages = {v.untyped_storage().data_ptr() for v in targets}
    apart = [
        v.clone() if v is not t and v.untyped_storage().data_ptr() in storages else v
        for t, v in zip(targets, values, strict=True)
    ]
    copy(targets, apart)


def cuda_graph(body: Callable[[], None]) -> Callable[[], None]:
    """Record what `body` does on the GPU, after it has been done a few times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    replay: Callable[[], None] = graph.replay
    return replay
