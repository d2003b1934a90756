"""Runs that differ only in seed, learning rate and a strategy's numbers, trained as one.

The members' states are stacked along a new first dimension [M, ...]. A step is the strategy's own,
mapped over the members by vmap and traced once into a graph of plain tensor operations, so that
what is paid per step is M members' arithmetic and one program's overhead. What happens between
tasks, and evaluation, is done member by member, by the code of single runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from copy import copy as shallow
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from cl_runner.core import Batch, TrainState
from cl_runner.errors import UserError
from cl_runner.running.stacked_graph import Layout, by_layer
from cl_runner.running.tasks import Member
from cl_runner.strategies.base import Strategy
from cl_runner.training.engines import (
    Leaves,
    Recorder,
    Recording,
    copy,
    cuda_graph,
    functional,
    shown,
    told,
)
from cl_runner.training.env import Env
from cl_runner.training.flops import FlopCounter

Hyper = dict[str, Tensor]  # the strategy's numbers that differ, 0-d each; stacked: [M]


def obstacle(members: Sequence[Member]) -> str | None:
    """Why these runs cannot be stacked; None if they can. They share all but seed and numbers."""
    first = members[0]
    if not first.strategy.one_graph:
        return f"a step of strategy={first.strategy.name} is not one graph"
    if first.env.watch is not None:
        return "training.boundaries=detected finds the borders of each run at other steps"
    if first.env.stochastic:
        return "the model draws random numbers of its own within the step"
    if fixed_by_seed(first.env):
        return "fixed parts of the network are drawn from the seed"
    for t in range(first.env.num_tasks):
        if len({len(m.env.stream[t].train) for m in members}) > 1:
            return f"task {t + 1} has a different number of samples in each"
    return None


def fixed_by_seed(env: Env) -> bool:
    """Whether parts of the network that are not trained would be others with another seed."""
    if all(p.requires_grad for p in env.flat.module.parameters()):
        return False
    another = shallow(env)
    another.seed = env.seed + 1
    pairs = zip(env.flat.module.parameters(), another.network().parameters(), strict=True)
    return any(not (p.requires_grad or torch.equal(p, other)) for p, other in pairs)


def hyper_parameters(members: Sequence[Member]) -> Hyper:
    """The fields of the strategies that differ among members, [M] each. All must be numbers."""
    first = members[0].strategy
    found = {}
    for field in dataclasses.fields(first):
        values = [getattr(m.strategy, field.name) for m in members]
        if any(v != values[0] for v in values):
            if not all(isinstance(v, float) for v in values):
                raise UserError(f"strategy.{field.name.rstrip('_')} differs and is not a number")
            found[field.name] = torch.tensor(values, device=members[0].env.device)
    return found


def stack(states: Sequence[Any]) -> Any:
    """Trees of tensors of the same shapes as one of tensors [M, ...]."""
    return tree_map(lambda *v: torch.stack([x.detach() for x in v]), *states)


def unstack(stacked: TrainState, members: int) -> list[TrainState]:
    """The members' states."""
    return [tree_map(lambda v, i=i: v[i].clone(), stacked) for i in range(members)]


def with_tables(env: Env, own: dict[str, Tensor]) -> Env:
    """The environment with a member's tables in the place of the first member's."""
    env = shallow(env)
    env.layout = torch.contiguous_format  # vmap knows no other
    env.stream = dataclasses.replace(env.stream, tables=own)
    return env


def with_numbers(strategy: Strategy, numbers: Hyper) -> Strategy:
    """The strategy with its numbers replaced by tensors; `__post_init__` is skipped on purpose."""
    changed = shallow(strategy)
    for name, value in numbers.items():
        object.__setattr__(changed, name, value)
    return changed


class StackedStep:
    """A step of all members: vmapped, and traced into one graph for each shape of batch.

    On a GPU that is recorded as a CUDA graph, unless `engine=eager`.
    """

    def __init__(self, members: Sequence[Member], record: Recorder | None = None) -> None:
        self.member = members[0]
        self.record = cuda_graph if self.member.env.engine == "graph" else record
        self.recordings: dict[Any, Recording] = {}
        self.parts: Leaves = []
        self.layout = Layout(self.member.env.flat.sizes)
        self.tables = stack([dict(m.env.stream.tables) for m in members])
        self.hyper = hyper_parameters(members)
        self.graphs: dict[Any, Callable[..., list[Tensor]]] = {}
        self.known: dict[Any, int] = {}  # FLOPs of a member's step, as the keys of graphs
        self.members = len(members)
        self.flops = 0  # of a member in the last step

    def begin(self, s: TrainState) -> None:
        """Take the states [M, ...] to go on from."""
        self.like, self.spec = tree_flatten(s)
        (self.rate,) = (i for i, v in enumerate(self.like) if v is s.opt["lr"])
        parts = self.layout.cut(self.like)
        before = self.layout.cut(self.like[: self.rate])
        self.rate = len(before)  # where the learning rates are among the parts
        if self.recordings and [v.shape for v in parts] == [v.shape for v in self.parts]:
            copy(self.parts, parts)
        else:
            self.parts, self.recordings = parts, {}  # they are bound to the parts

    def __call__(self, batch: dict[str, Any]) -> Leaves:
        """Take a step on raw batches [M, B, ...]: the losses [M] and what else is `told`."""
        own, spec = tree_flatten((batch, self.tables, self.hyper))
        key = (str(spec), *(v.shape for v in own))  # old versions of torch have no hash of it
        if key not in self.graphs:
            self.graphs[key] = self.trace(own, spec)
        graph, inputs = self.graphs[key], self.layout.cut(own)
        if key not in self.known:  # on copies, for what is counted is no part of a recording
            with FlopCounter() as counter:
                graph(*(v.clone() for v in self.parts), *inputs)
            self.known[key] = counter.flops // self.members
        self.flops = self.known[key]
        n = len(self.parts)
        if self.record is None:
            results = graph(*self.parts, *inputs)
            self.parts = results[:n]
            return results[n:]

        def function(parts: Leaves, inputs: Leaves) -> tuple[Leaves, Leaves]:
            results = graph(*parts, *inputs)
            return results[:n], results[n:]

        if key not in self.recordings:
            self.recordings[key] = Recording(function, self.parts, inputs, self.record)
        return self.recordings[key](inputs)

    def states(self) -> TrainState:
        """The states [M, ...] as they are now."""
        leaves = self.layout.join(self.parts, self.like)
        s: TrainState = tree_unflatten(leaves, self.spec)
        return s

    def set_rates(self, rates: Tensor) -> None:
        """Change the learning rates [M]."""
        copy([self.parts[self.rate]], [rates])

    def trace(self, own: list[Tensor], spec: Any) -> Callable[..., list[Tensor]]:
        """The step as a graph of tensor operations, without autograd and vmap."""
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx

        def one(s: TrainState, raw: dict[str, Any], table: dict[str, Tensor], hyper: Hyper) -> Any:
            env = with_tables(self.member.env, table)
            batch = shown(Batch(**{"active": None, "weight": None} | raw), env)
            s, aux = functional(with_numbers(self.member.strategy, hyper), s, batch, env)
            return s, told(aux, batch, online=env.online)

        def step(*flat: Tensor) -> list[Tensor]:
            n = len(self.like)
            s = tree_unflatten(list(flat[:n]), self.spec)
            s, results = torch.func.vmap(one)(s, *tree_unflatten(list(flat[n:]), spec))
            return [*tree_flatten(s)[0], *results]

        # The shapes of all nodes are noted in one mode; without it each node gets one of its own,
        # which takes a third of the time.
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            graph = make_fx(step)(*self.like, *own)
        graph.graph.eliminate_dead_code()
        return by_layer(graph, self.layout)
