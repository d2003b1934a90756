"""The phase before the first task, in which a network learns a pretext task without labels.

Each run has a learner of its own (`strategies.parts.pretext.Pretraining`) on a stream of one task,
the unlabelled rows; runs that are trained together are so here as well. What the network has below
its output layer when the phase is over is what `model.weights` would bring: every network that the
strategy draws begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_runner.config.schema import Adam, Config, Training
from cl_runner.core import TrainState, seed_for
from cl_runner.errors import Diverged, UserError, check
from cl_runner.machine.console import near
from cl_runner.nn.adapters import adapted
from cl_runner.nn.frozen import frozen
from cl_runner.nn.networks import build
from cl_runner.results.files import write_bytes
from cl_runner.results.names import CHECKPOINT, PRETRAINED
from cl_runner.running import together, weights
from cl_runner.running.checkpoint import checksum
from cl_runner.running.needs import Parts
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.running.weights import Tensors
from cl_runner.strategies.parts.pretext import Pretext, Pretraining, units_below_output
from cl_runner.training import engines
from cl_runner.training.batches import Source
from cl_runner.training.env import Env
from cl_runner.training.fit import plan
from cl_runner.training.flops import FlopCounter
from cl_runner.training.unlabelled import read_rows, unlabelled


class Learnt(NamedTuple):
    """What the phase leaves."""

    trunk: Tensors  # the network's tensors by name, without those of its output layer
    head: Tensor  # [H]


def comes_before(config: Config) -> bool:
    """Whether a run has such a phase."""
    return config.training.ssl != "none" and config.ssl.epochs > 0


def obstacle(config: Config, env: Env) -> str | None:
    """Why runs of several seeds cannot be stacked after such a phase; None if they can."""
    trained = all(p.requires_grad for p in env.flat.module.parameters())
    if trained or not comes_before(config):
        return None
    return "what each has learnt without labels is frozen, and is not the others'"


def check_pretext(config: Config, env: Env) -> None:
    """Raise UserError for a pretext task that data or model cannot have, and rows that do not fit.

    The strategy's own network is checked by `strategies.parts.pretext.assisted`.
    """
    if (name := config.training.ssl) == "none":
        return
    channels, height, width = env.input_shape
    check(
        name != "rotation" or height == width > 1,
        f"training.ssl=rotation turns square images; the data are {channels}x{height}x{width}: use "
        "training.ssl=masked or barlow",
    )
    new, _ = weights.configured(config, env.stream)
    units_below_output(build(new, 0), env.input_shape)
    if comes_before(config) and config.ssl.rows != "task":
        read_rows("ssl.rows", config.ssl.rows, env.stream)


def memory(config: Config, env: Env) -> Parts:
    """What the phase holds at once besides the data: what learns, beside the run's own network.

    That is a network without adapters and the head, their gradient and Adam's two slots.
    """
    new, _ = weights.configured(config, env.stream)
    network = build(new, 0)
    units = units_below_output(network, env.input_shape)
    sizes = Pretext(config.training.ssl, config.ssl).sizes(env, units)
    head = sum((a + 1) * b for a, b in pairwise(sizes))
    P = sum(p.numel() for p in network.parameters() if p.requires_grad) + head
    learns = {f"{P:,} parameters of training.ssl={config.training.ssl}": 4 * P * 4}
    return learns | {"the network that waits": env.flat.theta.nbytes}


def learner(config: Config, env: Env) -> Member:
    """What learns the pretext task of a run: a strategy, and an environment of its own."""
    own = Pretraining(name=config.training.ssl, pretext=Pretext(config.training.ssl, config.ssl))
    stream, task = env.stream, env.stream[0]
    if config.ssl.rows == "task":
        rows, of = task.samples()
        task = replace(task, train=rows, of=None if isinstance(of, int) else of)
    else:
        stream, task = unlabelled(stream, read_rows("ssl.rows", config.ssl.rows, stream), task)
    stream = replace(stream, y=torch.zeros_like(stream.y), tasks=(task,), boundaries="sharp")
    begun = base(config, env)

    def make_net(phase: Env) -> nn.Module:  # the network that a run without the phase begins with
        return own.wrap(lambda: build(begun, seed_for(config.seed, "init")), phase)

    phase = Env(
        stream=stream,
        make_net=make_net,
        precision=env.precision,
        optimizer=Adam(name="adam", lr=config.ssl.lr),
        training=Training(
            epochs=config.ssl.epochs,
            batch_size=config.ssl.batch_size,
            augment=config.training.augment,
        ),
        seed=seed_for(config.seed, "ssl"),
    )
    phase.engine, _ = engines.choose(config.engine, own.one_graph, phase)
    return Member(own, phase)


def base(config: Config, env: Env) -> weights.MakeNet:
    """What makes the configured network, with the weights it starts from, without adapters."""
    new, trained = weights.configured(config, env.stream)
    only = config.model.weights_for
    return new if trained is None else weights.starting_from(new, trained, only)


def told(config: Config, member: Member) -> str:
    """One line on what the phase sees and costs. Raises UserError for more than the budget."""
    own, env = member
    rows, _ = own.training_set(initial_state(own, env), env.stream, 0, env)
    length = plan(len(rows), env.training)
    samples = len(rows) * length.epochs
    flops = flops_of_a_step(member) * samples // min(len(rows), env.training.batch_size)
    seen = "rows of the first task" if config.ssl.rows == "task" else f"rows of {config.ssl.rows}"
    line = (
        f"training.ssl={own.name}: {len(rows):,} unlabelled {seen} are learnt from before the "
        f"stream, {length.epochs} epochs, {length.steps:,} steps, {flops:.1e} FLOPs"
    )
    for name, spent in (("samples", samples), ("flops", flops)):
        limit = getattr(config.budget, name)
        message = f"{line}: more than budget.{name}={limit}; lower ssl.epochs"
        check(limit is None or spent <= limit, message)
    return line


def flops_of_a_step(member: Member) -> int:
    """The FLOPs of the phase's first step, which is taken for it and forgotten."""
    own, env = member
    s = initial_state(own, env)
    samples = own.training_set(s, env.stream, 0, env)
    batch = next(iter(Source(env, s, 0, *samples, own).epoch(0, 1)))
    s = s._replace(theta=s.theta.detach().clone())  # not the live one: nothing moves
    with torch.no_grad(), FlopCounter() as counter:
        own.step(s, batch, env)
    return int(counter.flops)


def learn(members: Sequence[Member]) -> list[TrainState | Diverged]:
    """The learners' states after the phase, one by itself or several as one stacked state."""
    states = [initial_state(*member) for member in members]
    if len(members) > 1:
        return together.train_task(members, states, 0, StackedStep(members))
    ((own, env),) = members
    try:
        return [train_task(own, states[0], env.stream[0], env)]
    except Diverged as error:
        return [error]


def learnt(config: Config, member: Member, end: TrainState | Diverged) -> Learnt:
    """What a learner has learnt. Raises Diverged, in the words of the phase."""
    if isinstance(end, Diverged):
        raise Diverged(
            f"training.ssl={config.training.ssl}: loss or parameters became NaN or infinite before "
            "the first task; a smaller ssl.lr may help"
        )
    env = member.env
    env.commit(end)
    network = env.flat.module.get_submodule("network")
    output = weights.output_layer(network)
    trunk = {
        name: v.detach().cpu().contiguous().clone()
        for name, v in network.state_dict().items()
        if name not in output
    }
    return Learnt(trunk, end.theta.detach()[: env.flat.sizes[0]].clone())


def begin_with(config: Config, member: Member, trunk: Tensors) -> None:
    """Let a run's network, and all that its strategy draws, begin with what was learnt."""
    strategy, env = member
    make_net = adapted(weights.starting_from(base(config, env), trunk), config.adapter)
    make_net = frozen(make_net, config.model.freeze)
    env.renew(lambda env: strategy.wrap(make_net, env))


def save(out: Path, trunk: Tensors) -> None:
    """Write what was learnt, for a run that goes on, and for `model.weights`."""
    import safetensors.torch

    header = {"checksum": checksum("", trunk)}
    write_bytes(out / PRETRAINED, safetensors.torch.save(dict(trunk), header))


def load(out: Path) -> Tensors:
    """What was learnt before the first task of the run in `out`. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    file = out / PRETRAINED
    try:
        with safe_open(file, framework="pt") as content:
            trunk = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            sound = (content.metadata() or {}).get("checksum") == checksum("", trunk)
    except (OSError, SafetensorError):
        sound = False
    if not sound:
        raise UserError(
            f"{near(file)} is missing or damaged, with which this run began: remove {CHECKPOINT} "
            "beside it to start the run from the beginning"
        )
    return trunk
