"""The strategy interface. Every method has a default; together they are naive fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config.schema import SCENARIOS
from cl_runner.core import Batch, Stream, Task, TrainState, Window
from cl_runner.errors import check
from cl_runner.functional.losses import cross_entropy
from cl_runner.training.env import Env

Aux = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A continual-learning method as pure functions on the state of a run.

    The fields of a strategy are the keys of its YAML. Hot methods (`loss`, `step`, `predict`) draw
    no random numbers, do not branch on tensors and never ask the host for a value: what they need
    comes in the state, in the batch and in the uniforms they declared.
    """

    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS  # those in which the method is defined
    one_graph: ClassVar[bool] = True  # a step can be compiled, captured and stacked as one graph
    whole_sequence: ClassVar[bool] = False  # the first task's training stands for all tasks'
    regulariser: ClassVar[bool] = False  # no samples of the past, no parts of the network per task
    tells_cost: ClassVar[bool] = False  # its notes say what a step takes in units of naive's
    whole_batches: ClassVar[bool] = True  # a step passes a whole batch forward at once
    float64: ClassVar[bool] = False  # whether it computes in double precision on the run's device
    # Why training.passes > 1 does not go with it, as part of a sentence; "": several steps on a
    # batch are just that, and no memory takes its samples more than once.
    shown_once: ClassVar[str] = ""
    buffers_inputs: ClassVar[bool] = True  # a buffered sample takes the room of its input
    # Scenarios in which a task may be what a detector makes one: samples of several tasks of the
    # stream, each with its own, and an index that only counts.
    detectable: ClassVar[tuple[str, ...]] = ()
    # Names in memory that the method need not keep, since the rest tells them or a table alone
    # shows them: memory_bytes leaves them out.
    uncounted: ClassVar[tuple[str, ...]] = ()

    name: str

    # Declared once per run.

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        """The network that is trained, built from the configured one."""
        return make_net()

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the uniforms in [0, 1) that each step needs, in `batch.noise`."""
        return {}

    def plan(
        self, memory: dict[str, Tensor], t: Tensor, window: Window, env: Env
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Work out at once what W coming steps need and what depends on no network.

        A buffer's draws are such: which slots each step replays, and which samples enter.
        window: the steps' y, task and index [W, B] and noise [W, ...], without their inputs;
        t: the current task, 0-d. Returns two dictionaries: what each step finds in `batch.plan`,
        [W, ...], and those tensors of `memory`, as they will be after the W steps, from which the
        plan of the next window starts.
        """
        return {}, {}

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        """The strategy's memory before the first task, every tensor at its full size.

        Raises UserError if the fields do not fit the stream.
        """
        return {}

    def without_model(self) -> str:
        """The setting by which the configured network is not used in the run; "" if it is used."""
        return ""

    def takes_features(self) -> bool:
        """Whether the method can train on the features of frozen stages instead of the samples.

        It cannot where it looks at the samples themselves or at all layers. A method that builds a
        network of its own has to answer this itself.
        """
        return type(self).wrap is Strategy.wrap

    def notes(self, env: Env) -> Iterator[str]:
        """Lines to print before the run starts: what the user should know about it."""
        yield from ()

    def remarks(self, s: TrainState, env: Env) -> Iterator[str]:
        """Lines to print after a task: what the user should know about the state.

        A line that was printed before is not printed again.
        """
        yield from ()

    def needs_borders(self, scenario: str) -> str:
        """Why it must be told where tasks begin, as part of a sentence; "" if it need not be.

        A run without borders calls none of the once-per-task methods between its first step and its
        last, and `s.t` stays 0.
        """
        acts = any(
            getattr(type(self), name) is not getattr(Strategy, name)
            for name in ("training_set", "begin_task", "end_task")
        )
        return "it acts where a task begins or ends" if acts else ""

    def needs_tasks(self, scenario: str) -> str:
        """Why detected borders do not suffice, as part of a sentence; "" if they do."""
        if scenario in self.detectable or not self.needs_borders(scenario):
            return ""
        return f"it needs the tasks of the stream themselves where scenario={scenario}"

    # Cold: once per task. May loop, print and allocate; only what is returned persists.

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        """The samples that task t trains on: rows [n] of the training set, and their task.

        The task is one number for all rows, or a tensor [n].
        """
        of = stream[t].of
        return stream[t].train, t if of is None else of

    def batch_size(self, t: int, env: Env) -> int:
        """How many samples of the stream each step of task t takes, B."""
        return env.training.batch_size

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        """The state before a task's first step; by default as it is."""
        return s

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        """The state after a task's last step, before evaluation; by default as it is."""
        return s

    def settled(self, s: TrainState, env: Env) -> TrainState:
        """The state as it is kept for use: `predict` needs no training sample with it."""
        return s

    def pictures(self, s: TrainState, env: Env) -> dict[str, Tensor]:
        """Images to look at after a task, [n, C, H, W] in [0, 1] by name, such as samples."""
        return {}

    def tables(self, s: TrainState, env: Env) -> dict[str, list[dict[str, Any]]]:
        """Rows to write as `<name>.csv` after a task, those of the tasks before it included."""
        return {}

    # Hot: once per step.

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        """The loss, 0-d, whose gradient with respect to theta [P] the step follows.

        The second result holds the `logits` [B, K]. By default the cross-entropy over the active
        classes.
        """
        logits = env.net(theta, batch.x, batch.task)
        loss = cross_entropy(logits, batch.y, batch.active, batch.weight)
        return loss, {"logits": logits}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        """The state after one training step; the second result holds the `loss`.

        By default the gradient of `loss`, then the optimizer's step.
        """
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        return env.update(s, grad, spent=True), {**aux, "loss": loss}

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        """Logits [B, K] for inputs [B, C, H, W] of a task, in evaluation.

        Only in task-incremental learning may `task` be used.
        """
        return env.net(s.theta, x, tasks_of(x, task))


def tasks_of(x: Tensor, task: int) -> Tensor:
    """The task of each of B inputs of one task, [B]; also where B is not known yet (exporting)."""
    return x.new_full((x.shape[0],), task, dtype=torch.int64)


def without_meaning(strategy: Strategy, where: str, *names: str) -> None:
    """Refuse a value, other than the default, of fields that change nothing `where` they stand."""
    for field in fields(strategy):
        value = getattr(strategy, field.name)
        check(
            field.name not in names or value == field.default,
            f"strategy.{field.name.rstrip('_')}={value} has no meaning with {where}: leave it out",
        )
