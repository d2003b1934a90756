"""The works of benchmark_speed.py as one would write them by hand, and nothing else.

    python scripts/lean_loops.py W1 --data FOLDER [--threads 2] [--precision medium]

nn.Module and autograd; no configuration, no files but the data set, no library but torch and numpy.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RATE, CHUNK, LAMBDA = 0.1, 2000, 1.0


def load(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST: images [N, 784] uint8 and labels [N], of training and test."""
    with np.load(data / "mnist.npz") as arrays:
        x, y, x_test, y_test = (
            torch.from_numpy(arrays[k]) for k in ("x_train", "y_train", "x_test", "y_test")
        )
    return x.flatten(1), y.long(), x_test.flatten(1), y_test.long()


def pixels(x: Tensor) -> Tensor:
    """The network's input."""
    return x.float().mul_(1 / 255)


def mlp(*sizes: int) -> torch.nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[torch.nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@torch.no_grad()
def evaluate(net: torch.nn.Module, tests: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Accuracy on each test set."""
    return [
        sum(
            int((net(pixels(part)).argmax(1) == target).sum())
            for part, target in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
        )
        / len(x)
        for x, y in tests
    ]


def descend(net: torch.nn.Module, loss: Tensor) -> None:
    """A step of gradient descent."""
    net.zero_grad()
    loss.backward()
    parameters = list(net.parameters())
    with torch.no_grad():
        torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-RATE)


def permuted(data: Path, *, ewc: bool) -> list[float]:
    """W1, or W2: ten permutations of MNIST, one epoch each, batch 128."""
    x, y, x_test, y_test = load(data)
    net = mlp(784, 256, 256, 10)
    orders = [torch.randperm(784) for _ in range(10)]
    tests = [(x_test[:, order], y_test) for order in orders]
    past: list[tuple[torch.nn.Parameter, Tensor, Tensor]] = []  # with anchor and Fisher
    rows = [evaluate(net, tests)]
    for order in orders:
        shown = x[:, order]
        for index in torch.randperm(len(x)).split(128):
            loss = F.cross_entropy(net(pixels(shown[index])), y[index])
            for p, anchor, fisher in past:
                loss = loss + 0.5 * LAMBDA * (fisher * (p - anchor).square()).sum()
            descend(net, loss)
        if ewc:
            past = consolidate(net, past, squared_gradients(net, shown, y))
        rows.append(evaluate(net, tests))
    return rows[-1]


@torch.no_grad()
def squared_gradients(net: torch.nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """Mean over all samples of the squared gradient of -log p(y), per parameter."""
    linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    sums = [torch.zeros_like(p) for p in net.parameters()]
    for part, target in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        inputs = [pixels(part)]
        for layer in linear[:-1]:
            inputs.append(layer(inputs[-1]).relu_())
        delta = linear[-1](inputs[-1]).softmax(1)
        delta[torch.arange(len(target)), target] -= 1
        for i in reversed(range(len(linear))):
            squared = delta.square()
            sums[2 * i].addmm_(squared.T, inputs[i].square())
            sums[2 * i + 1] += squared.sum(0)
            if i:
                delta = (delta @ linear[i].weight) * (inputs[i] > 0)
    return [s / len(x) for s in sums]


@torch.no_grad()
def consolidate(
    net: torch.nn.Module,
    past: list[tuple[torch.nn.Parameter, Tensor, Tensor]],
    new: list[Tensor],
) -> list[tuple[torch.nn.Parameter, Tensor, Tensor]]:
    """The sum of the penalties as one: F the sum of the Fishers, the anchor their mean by F."""
    parameters = list(net.parameters())
    if not past:
        return [(p, p.clone(), f) for p, f in zip(parameters, new, strict=True)]
    merged = []
    for (p, anchor, old), f in zip(past, new, strict=True):
        total = old + f
        share = torch.where(total > 0, f / total, 1.0)
        merged.append((p, torch.lerp(anchor, p, share), total))
    return merged


def replay(data: Path) -> list[float]:
    """W3: split MNIST, class-incremental, one epoch, batch 32 + 32 from a reservoir of 500."""
    x, y, x_test, y_test = load(data)
    net = mlp(784, 256, 256, 10)
    rows_of = [torch.cat([(y == c).nonzero()[:, 0] for c in (2 * t, 2 * t + 1)]) for t in range(5)]
    chosen = [(y_test // 2) == t for t in range(5)]
    tests = [(x_test[c], y_test[c]) for c in chosen]
    held, seen = torch.empty(500, dtype=torch.int64), 0
    rows = [evaluate(net, tests)]
    for task in rows_of:
        for index in task[torch.randperm(len(task))].split(32):
            old = held[torch.randperm(min(seen, 500))[:32]]
            both = torch.cat([index, old])
            descend(net, F.cross_entropy(net(pixels(x[both])), y[both]))
            count = torch.arange(seen, seen + len(index))
            slot = torch.where(
                count < 500, count, (torch.rand(len(index)) * (count + 1)).long().clamp_max(count)
            )
            kept = slot < 500
            held[slot[kept]] = index[kept]
            seen += len(index)
        rows.append(evaluate(net, tests))
    return rows[-1]


def main() -> None:
    """Run one work and print its ACC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("W1", "W2", "W3"))
    parser.add_argument("--data", type=Path, required=True, help="the folder with mnist.npz")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="highest", help="of float32 matrix products")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.precision)
    torch.manual_seed(0)
    if arguments.work == "W3":
        row = replay(arguments.data)
    else:
        row = permuted(arguments.data, ewc=arguments.work == "W2")
    print(f"ACC {sum(row) / len(row):.4f}")


if __name__ == "__main__":
    main()
