"""A task's steps, taken as a run takes them and watched from outside: how long they take and why.

What watches is an Observer of `run.tasks`: it is called between the steps, and waits for the GPU
only where a stretch of steps begins or ends.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from cl_runner.core import TrainState
from cl_runner.errors import Diverged
from cl_runner.running import together
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import Member, Observer, initial_state, train_task
from cl_runner.training import engines
from cl_runner.training.env import Env
from cl_runner.training.fit import AfterStep, Steps
from cl_runner.training.flops import FORMULAS


class Plan(NamedTuple):
    """How many steps of a task are watched for what, one stretch after another."""

    warm: int
    windows: int  # stretches of which the time is taken
    window: int  # steps of each
    traced: int = 0  # steps whose launches are counted; 0: none
    watched: int = 0  # steps in which the host must wait for nothing

    counted: bool = False  # whether the operations of one more are counted

    @property
    def steps(self) -> int:
        """In all; the last is followed by the epoch's end, where the host may wait."""
        timed = self.warm + self.windows * self.window
        return timed + self.counted + self.traced + self.watched + 1


# What torch says of one; it also says, once, that it may not see them all.
WAIT = "called a synchronizing CUDA operation"
LAUNCHES = (  # the host's calls, by the beginnings of their names
    *("cudaLaunch", "cuLaunch", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
)
FIRST = Plan(warm=5, windows=0, window=1)  # on the task before the one that is watched


@dataclass
class Course:
    """What was seen of a task's steps."""

    first: float = 0.0  # seconds from the task's beginning to the end of its first step
    ready: float = 0.0  # to the end of its third, by when a step is compiled or recorded
    again: float = 0.0  # the same on the task after it
    window: int = 1
    seconds: list[float] = field(default_factory=list)  # of the stretches
    products: Products | None = None  # of a step that is executed operation by operation
    vectors: int = 0  # bytes that a step reads and writes besides: parameters, what is like them
    launches: dict[str, float] = field(default_factory=dict)  # per step, by name
    waits: list[str] = field(default_factory=list)  # where the host waited
    steps: int = 0  # in which it might have

    @property
    def micros(self) -> list[float]:
        """Microseconds per step, of each stretch."""
        return [1e6 * seconds / self.window for seconds in self.seconds]


class Products(TorchDispatchMode):
    """The matrix products and convolutions of what is executed meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0  # bytes: of each operand and result, once
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
            there = tree_flatten((args, out))[0]
            self.bytes += sum(v.nbytes for v in there if isinstance(v, Tensor))
            self.calls.append((func, *tree_map_only(Tensor, like, (args, kwargs))))
        return out

    def again(self) -> None:
        """The same products of other numbers, and nothing else."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def like(x: Tensor) -> Tensor:
    """Random numbers in a tensor of the same shape and layout."""
    new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return new.normal_() if new.is_floating_point() else new.zero_()


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, if it is at work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds of a clock, at which the GPU has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def host_waits(device: torch.device, found: list[str]) -> Iterator[None]:
    """Note where the host waits for the GPU meanwhile; on a CPU nothing can be seen."""
    cuda = device.type == "cuda"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in caught if WAIT in str(w.message)]


@contextmanager
def counting(course: Course, steps: int, device: torch.device) -> Iterator[None]:
    """Count what is launched in so many steps; on a CPU, which operations are called."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    names = LAUNCHES if cuda else ("aten::",)
    with profile(activities=kinds) as trace:
        yield
        now(device)
    events = trace.key_averages()
    course.launches = {e.key: e.count / steps for e in events if e.key.startswith(names)}


def watch(plan: Plan, course: Course, device: torch.device, begun: float) -> Iterator[None]:
    """Resumed before the first step of a task and after each, it notes what the plan asks for."""

    def steps(number: int) -> Iterator[None]:
        yield from (None for _ in range(number))

    yield
    course.first = now(device) - begun
    yield from steps(2)
    course.ready = now(device) - begun
    yield from steps(plan.warm - 3)
    for _ in range(plan.windows):
        began = now(device)
        yield from steps(plan.window)
        course.seconds.append(now(device) - began)
    if plan.counted:
        course.products = Products()
        with course.products:
            yield
    if plan.traced:
        with counting(course, plan.traced, device):
            yield from steps(plan.traced)
    if plan.watched:
        course.steps = plan.watched
        with host_waits(device, course.waits):
            yield from steps(plan.watched)
    while True:
        yield


def observed(plan: Plan, course: Course, device: torch.device, begun: float) -> Observer:
    """What `train_task` calls for it."""

    @contextmanager
    def observe(_: Steps) -> Iterator[AfterStep]:
        course.window = plan.window
        watching = watch(plan, course, device, begun)
        yield lambda _: next(watching)
        watching.close()

    return observe


def in_a_graph(body: Callable[[], None]) -> Callable[[], None]:
    """What does again what a body does on the GPU, as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()
        body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay


def by_hand(body: Callable[[], None]) -> Callable[[], None]:
    """A recorder for a machine without a GPU: what a body does is done again."""
    return body


def rehearsed(member: Member, plan: Plan) -> Course:
    """`alone` with recorded steps on a machine without a GPU, prepared with engine=eager."""
    member.env.engine = "graph"
    with patch.object(engines, "cuda_graph", by_hand):
        return alone(member, plan)


def alone(member: Member, plan: Plan) -> Course:
    """The steps of a run on its second task, after a few on the first."""
    strategy, env = member
    s = initial_state(strategy, env)
    courses = []
    for task, own in zip(env.stream[:2], (FIRST, plan), strict=True):
        lasting(env, own.steps)
        course, begun = Course(), now(env.device)
        observe = observed(own, course, env.device, begun)
        s = train_task(strategy, s, task, env, observe=observe)
        courses.append(course)
    before, found = courses
    found.first, found.ready, found.again = before.first, before.ready, found.ready
    found.vectors = vectors(s)
    return found


def stacked(members: Sequence[Member], plan: Plan) -> Course:
    """The steps of several runs as one stacked state, on the first task."""
    first = members[0].env
    for m in members:
        lasting(m.env, plan.steps)
    step = StackedStep(members, None if first.device.type == "cuda" else by_hand)
    course, begun = Course(), now(first.device)
    states = [initial_state(*m) for m in members]
    observe = observed(plan, course, first.device, begun)
    ends = together.train_task(members, states, 0, step, observe=observe)
    for end in ends:
        if isinstance(end, Diverged):
            raise end
    return course


def lasting(env: Env, steps: int) -> None:
    """Let the next task take so many steps."""
    env.training = dataclasses.replace(env.training, iterations=steps)


def vectors(s: TrainState) -> int:
    """Bytes that a step moves at least besides its products: gradient, theta, slots, importances.

    The gradient is read, theta and what the optimizer keeps of it are read and written, and what
    the memory holds of the same length is read.
    """
    P = s.theta.numel()
    slots = sum(v.nbytes for v in s.opt.values() if v.numel() == P)
    kept = sum(v.nbytes for v in s.memory.values() if v.numel() and v.numel() % P == 0)
    return 3 * s.theta.nbytes + 2 * slots + kept
