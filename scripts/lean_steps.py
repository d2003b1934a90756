"""Steps of five replay methods as one would write them by hand, and nothing else.

Split MNIST, class-incremental: MLP 784-256-256-10, batch 32, 32 replayed, a reservoir of 500, SGD
0.1. nn.Module and autograd, no library but torch and numpy. What each step computes is what the
strategy of that name says of itself: the same losses, the same number of forward and backward
passes. throughput.py lets them take turns with the steps of cl_runner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from lean_loops import RATE, REPLAYED, SLOTS, by_classes, descend, load, mlp, pixels, slots
from torch import Tensor

ALPHA, BETA, BATCH, TASKS = 0.5, 0.5, 32, 5


class Learner:
    """The network, the training set, and a buffer of its rows with the logits of their time."""

    def __init__(self, data: Path) -> None:
        self.x, self.y = load(data)[:2]
        self.tasks = by_classes(self.y, TASKS)
        self.net = mlp(784, 256, 256, 10)
        self.seen = 0
        self.rows = torch.empty(SLOTS, dtype=torch.int64)
        self.task_of = torch.empty(SLOTS, dtype=torch.int64)
        self.logits = torch.empty(SLOTS, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of training rows."""
        logits: Tensor = self.net(pixels(self.x[rows]))
        return logits

    def draw(self) -> Tensor:
        """Slots of the buffer, without replacement."""
        return torch.randperm(min(self.seen, SLOTS))[:REPLAYED]

    def remember(self, rows: Tensor, task: int, logits: Tensor | None = None) -> None:
        """Offer a batch to the reservoir."""
        slot = slots(self.seen, len(rows))
        kept = slot < SLOTS
        slot = slot[kept]
        self.rows[slot] = rows[kept]
        self.task_of[slot] = task
        if logits is not None:
            self.logits[slot] = logits[kept]
        self.seen += len(rows)


Step = Callable[[Learner, Tensor, int], None]  # rows of the batch, and their task


def er(learner: Learner, new: Tensor, task: int) -> None:
    """Cross-entropy of the batch and the replayed samples as one."""
    both = torch.cat([new, learner.rows[learner.draw()]])
    descend(learner.net, F.cross_entropy(learner.forward(both), learner.y[both]))
    learner.remember(new, task)


def er_ace(learner: Learner, new: Tensor, task: int) -> None:
    """That of the batch over its own classes, plus that of the replayed samples over all."""
    both = torch.cat([new, learner.rows[learner.draw()]])
    logits, y = learner.forward(both), learner.y[both]
    B = len(new)
    absent = torch.ones(logits.shape[1], dtype=torch.bool)
    absent[y[:B]] = False
    loss = F.cross_entropy(logits[:B].masked_fill(absent, float("-inf")), y[:B])
    if len(both) > B:
        loss = loss + F.cross_entropy(logits[B:], y[B:])
    descend(learner.net, loss)
    learner.remember(new, task)


def der(learner: Learner, new: Tensor, task: int, *, labels: bool = False) -> None:
    """Cross-entropy of the batch, plus the distance to the logits that the buffer holds.

    labels: DER++, that is plus the cross-entropy of a second draw.
    """
    logits = learner.forward(new)
    loss = F.cross_entropy(logits, learner.y[new])
    if learner.seen:
        slot = learner.draw()
        old = learner.forward(learner.rows[slot])
        loss = loss + ALPHA * F.mse_loss(old, learner.logits[slot])
    if learner.seen and labels:
        rows = learner.rows[learner.draw()]
        loss = loss + BETA * F.cross_entropy(learner.forward(rows), learner.y[rows])
    descend(learner.net, loss)
    learner.remember(new, task, logits.detach())


def derpp(learner: Learner, new: Tensor, task: int) -> None:
    """DER with labels."""
    der(learner, new, task, labels=True)


def agem(learner: Learner, new: Tensor, task: int) -> None:
    """The gradient of the batch, projected where it would raise the loss on previous tasks."""
    parameters = list(learner.net.parameters())

    def gradient(rows: Tensor) -> list[Tensor]:
        loss = F.cross_entropy(learner.forward(rows), learner.y[rows])
        return list(torch.autograd.grad(loss, parameters))

    g = gradient(new)
    past = (learner.task_of[: learner.seen] < task).nonzero()[:, 0]
    if len(past):
        slot = past[torch.randperm(len(past))[:REPLAYED]]
        g_ref = gradient(learner.rows[slot])
        product = dot(g, g_ref)
        if product < 0:
            torch._foreach_add_(g, g_ref, alpha=-float(product / dot(g_ref, g_ref)))
    with torch.no_grad():
        torch._foreach_add_(parameters, g, alpha=-RATE)
    learner.remember(new, task)


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The dot product of two gradients."""
    return torch.stack([(p * q).sum() for p, q in zip(a, b, strict=True)]).sum()


STEPS: dict[str, Step] = {"er": er, "er_ace": er_ace, "der": der, "derpp": derpp, "agem": agem}


def batches(rows: Tensor) -> Iterator[Tensor]:
    """An epoch of full batches, in a random order."""
    shuffled = rows[torch.randperm(len(rows))]
    yield from shuffled[: len(rows) // BATCH * BATCH].split(BATCH)


def alone(name: str, data: Path, task: int, steps: int, before: int) -> Callable[[], float]:
    """Turns of so many steps on a task, in seconds, after `before` steps on each task before it."""
    learner, step = Learner(data), STEPS[name]
    for t in range(task):
        for rows, _ in zip(batches(learner.tasks[t]), range(before), strict=False):
            step(learner, rows, t)
    epoch: Iterator[Tensor] = iter(())

    def turn() -> float:
        nonlocal epoch
        taken, begun = 0, time.perf_counter()
        while taken < steps:
            for rows in epoch:
                step(learner, rows, task)
                taken += 1
                if taken == steps:
                    break
            else:
                epoch = batches(learner.tasks[task])
        return time.perf_counter() - begun

    return turn
