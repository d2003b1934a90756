"""How much memory a run needs at least, and how much there is: told before it is allocated.

The estimate is a lower bound, made of what every run holds at once: a run that fits is never
refused. What is found out later (see `shortage`) is told in the same words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cl_runner.config.schema import Config, Eval
from cl_runner.core import Stream
from cl_runner.data.datasets import Arrays
from cl_runner.errors import check, exhausted
from cl_runner.machine.ram import available, size
from cl_runner.nn.network import Network
from cl_runner.nn.networks import activation_shapes, example, in_evaluation
from cl_runner.running.evaluation import evaluation_chunk
from cl_runner.strategies.base import Strategy
from cl_runner.training import optim
from cl_runner.training.env import Env
from cl_runner.training.flops import FlopCounter

log = logging.getLogger(__name__)
Parts = dict[str, int]  # bytes, by what they are for
STATE_COPIES = 8  # of a stacked member's state at once: old, new, gradients, temporaries
REMEDY = (
    "lower model.hidden_sizes, training.batch_size, strategy.buffer_size, benchmark.num_tasks, "
    "benchmark.resize or benchmark.pad_to"
)


class Sketch(TorchFunctionMode):
    """Leaves out `normal_`, which without storage only imports sympy, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, or what stands for it."""
        return args[0] if func is torch.Tensor.normal_ else func(*args, **(kwargs or {}))


def of_network(
    config: Config,
    strategy: Strategy,
    env: Env,
    make_net: Callable[[], nn.Module],
    free: int | None,
) -> Parts:
    """Of the network that is about to be made: theta, its gradient, optimizer, checkpoints.

    Empty where the configured network is so small that no strategy makes it too large: to make a
    strategy's network without storage may take seconds.
    """
    try:
        with torch.device("meta"), Sketch():
            net = make_net()
        parts = of_parameters(config, net, env.device)
        if free is None or sum(parts.values()) * env.num_tasks < free / 100:
            return {}
        with torch.device("meta"), Sketch():
            net = strategy.wrap(make_net, env)
    except RuntimeError as error:  # of a model or strategy of the user's that depends on values
        log.info("memory is not estimated before the network is made: %s", error)
        return {}
    return of_parameters(config, net, env.device)


def of_activations(config: Config, strategy: Strategy, env: Env) -> Parts:
    """Two neighbouring layers of an evaluation chunk; in training, what backward needs of a batch.

    Empty for networks that are more than stages one after another.
    """
    stream, net = env.stream, env.flat.module
    if not isinstance(net, Network):
        return {}
    shapes = (stream.input_shape, *activation_shapes(net, stream.input_shape))
    units = [torch.Size(shape).numel() for shape in shapes]  # of one sample, by layer
    largest = max(a + b for a, b in pairwise(units))
    shown = min(evaluation_chunk(env), max(len(task.test) for task in stream)) * largest * 4
    batch = min(config.training.batch_size, max(len(task.train) for task in stream))
    width = 2 if config.precision == "bfloat16" else 4
    trained = batch * sum(units[:-1]) * width if strategy.whole_batches else 0
    return {"activations": max(shown, trained)}


def of_parameters(config: Config, net: nn.Module, device: torch.device) -> Parts:
    """Of the trained network `net`: theta, its gradient, the optimizer's slots; checkpoints."""
    P = sum(p.numel() for p in net.parameters() if p.requires_grad)
    slots = sum(v.ndim for v in optim.init(config.optimizer, torch.empty(0)).values())  # 0-d, [P]
    return {f"{P:,} parameters": 4 * P * ((1 + slots) * saved(device) + 1)}


def of_strategy(strategy: Strategy, env: Env) -> Parts:
    """Of the strategy's memory.

    Of what it holds only vectors as long as theta count (importances, anchors, old networks): a
    buffer is allocated at full size, but what no sample fills is never touched until it is saved.
    """
    sizes = [(v.nbytes, v.shape) for v in strategy.init(env.flat.theta, env).values()]
    held = sum(n for n, shape in sizes if shape == env.flat.theta.shape)
    copies = (saved(env.device) - 1) * sum(n for n, _ in sizes)
    return {f"strategy={strategy.name}": held + copies}


def saved(device: torch.device) -> int:
    """How often the state lies in the device's memory while a checkpoint is written."""
    return 3 if device.type == "cpu" else 1  # itself, a copy, and the bytes of the file


def of_data(stream: Stream, arrays: Arrays | None, evaluation: Eval) -> Parts:
    """Of the data set, and of the test images as the tasks that are evaluated at once show them."""
    T, sizes = len(stream), [len(task.test) for task in stream]
    at_once = (evaluation.shown(done, T) for done in range(T + 1))
    most = max(sum(sizes[tasks.start : tasks.stop]) for tasks in at_once)
    shown = most * stream.x_test[0].nbytes
    return {"data": shown + sum(v.nbytes for v in arrays[:4]) if arrays else shown}


def require(parts: Mapping[str, int], free: int | None) -> None:
    """Raise UserError if there is less than the sum of the parts."""
    needed = sum(parts.values())
    listed = ", ".join(
        f"{size(v)} for {k}" for k, v in sorted(parts.items(), key=lambda part: -part[1])
    )
    have = "" if free is None else f" and {size(free)} are free"
    message = f"not enough memory: at least {size(needed)} are needed ({listed}){have}: {REMEDY}"
    check(free is None or needed <= free, message)


def shortage(error: BaseException) -> str | None:
    """What to tell if an error means that memory is exhausted; None if it does not."""
    return f"not enough memory: {REMEDY}" if exhausted(error) else None


def step_flops(env: Env) -> int:
    """About the FLOPs of a step: 3 x batch size x those of a sample's way through the network."""
    network = env.flat.module
    with FlopCounter() as counter:
        in_evaluation(network, *example(network, env.input_shape))
    flops: int = 3 * env.training.batch_size * counter.flops
    return flops


def fitting(strategy: Strategy, env: Env, evaluation: Eval) -> int:
    """How many stacked members fit into half of the memory that is free."""
    memory = strategy.init(env.flat.theta, env)
    state = 4 * env.flat.theta.nbytes + sum(v.nbytes for v in memory.values())
    (shown,) = of_data(env.stream, None, evaluation).values()
    step = 4 * env.training.batch_size * sum(env.activations)
    free = available(env.device)
    return 2**16 if free is None else max(1, int(free / 2 / (STATE_COPIES * state + shown + step)))
