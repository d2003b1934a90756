"""The works of benchmark_speed.py as one would write them by hand, and nothing else.

    python scripts/lean_loops.py W1 --data FOLDER [--threads 2] [--precision medium]
                                 [--channels-last]

nn.Module and autograd; no configuration, no files but the data set, no library but torch and numpy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, CHUNK, LAMBDA = 0.1, 2000, 1.0
SLOTS, REPLAYED = 500, 32  # of the buffer; drawn per step
CIFAR_CHUNK = 100  # images per forward pass in evaluation; 500 take a third longer on a CPU
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)  # of CIFAR-10, per channel
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
PADDING = 4  # pixels on each side, before a random crop
Tests = list[tuple[Tensor, Tensor]]  # images and labels of each task


def arrays(file: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images uint8 and labels [N], of training and test."""
    with np.load(file) as held:
        x, y, x_test, y_test = (
            torch.from_numpy(held[k]) for k in ("x_train", "y_train", "x_test", "y_test")
        )
    return x, y.long(), x_test, y_test.long()


def load(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST: images [N, 784] uint8 and labels [N], of training and test."""
    x, y, x_test, y_test = arrays(data / "mnist.npz")
    return x.flatten(1), y, x_test.flatten(1), y_test


def pixels(x: Tensor) -> Tensor:
    """The network's input."""
    return x.float().mul_(1 / 255)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def evaluate(
    net: nn.Module,
    tests: Tests,
    inputs: Callable[[Tensor], Tensor] = pixels,
    chunk: int = CHUNK,
) -> list[float]:
    """Accuracy on each test set."""
    net.eval()
    row = [
        sum(
            int((net(inputs(part)).argmax(1) == target).sum())
            for part, target in zip(x.split(chunk), y.split(chunk), strict=True)
        )
        / len(x)
        for x, y in tests
    ]
    net.train()
    return row


def descend(net: nn.Module, loss: Tensor) -> None:
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
    past: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # with anchor and Fisher
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
def squared_gradients(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """Mean over all samples of the squared gradient of -log p(y), per parameter."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
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
    net: nn.Module,
    past: list[tuple[nn.Parameter, Tensor, Tensor]],
    new: list[Tensor],
) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
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


def slots(seen: int, count: int) -> Tensor:
    """The slots [count] that the next samples of a stream take in a reservoir; SLOTS: none."""
    n = torch.arange(seen, seen + count)
    drawn = (torch.rand(count) * (n + 1)).long().minimum(n)
    return torch.where(n < SLOTS, n, drawn).clamp_max(SLOTS)


def replay(
    net: nn.Module,
    inputs: Callable[[Tensor], Tensor],
    y: Tensor,
    tasks: list[Tensor],
    accuracies: Callable[[], list[float]],
) -> list[float]:
    """One epoch of each task, batch 32 + 32 from a reservoir of 500.

    inputs: what the network sees of training rows; tasks: their rows; accuracies: a row of R.
    """
    held, seen = torch.empty(SLOTS, dtype=torch.int64), 0
    rows = [accuracies()]
    for task in tasks:
        for index in task[torch.randperm(len(task))].split(32):
            old = held[torch.randperm(min(seen, SLOTS))[:REPLAYED]]
            both = torch.cat([index, old])
            descend(net, F.cross_entropy(net(inputs(both)), y[both]))
            slot = slots(seen, len(index))
            kept = slot < SLOTS
            held[slot[kept]] = index[kept]
            seen += len(index)
        rows.append(accuracies())
    return rows[-1]


def split_mnist(data: Path) -> list[float]:
    """W3: five tasks of two classes, class-incremental."""
    x, y, x_test, y_test = load(data)
    net = mlp(784, 256, 256, 10)
    tests = [(x_test[y_test // 2 == t], y_test[y_test // 2 == t]) for t in range(5)]
    return replay(
        *(net, lambda rows: pixels(x[rows]), y, by_classes(y, 5)), lambda: evaluate(net, tests)
    )


def by_classes(y: Tensor, tasks: int) -> list[Tensor]:
    """The rows of each task: the classes in their order, the same number for each."""
    return [(y // (10 // tasks) == t).nonzero()[:, 0] for t in range(tasks)]


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet18(width: int, outputs: int) -> nn.Sequential:
    """For images of 32x32: a stem of 3x3, four stages of two blocks, mean over the pixels."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU())
    inputs = width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            layers.append(Block(inputs, width << stage, stride))
            inputs = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def normalised(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The network's input from images of CIFAR-10."""
    return x.float().div_(255).sub_(MEAN).div_(STD).contiguous(memory_format=layout)


def cropped(x: Tensor) -> Tensor:
    """Images [B, C, 32, 32], each shifted by up to 4 pixels and mirrored with probability 1/2."""
    B, _, height, width = x.shape
    windows = F.pad(x, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * PADDING + 1, (2, B))
    x = windows[torch.arange(B), :, down, right]
    return torch.where(torch.rand(B, 1, 1, 1) < 0.5, x.flip(3), x)


def split_cifar10(data: Path, layout: torch.memory_format) -> list[float]:
    """W4: two tasks of five classes, class-incremental, 2,000 training samples of each."""

    def inputs(images: Tensor) -> Tensor:
        return normalised(images, layout)

    x, y, x_test, y_test = arrays(data / "cifar10.npz")
    x, x_test = (images.permute(0, 3, 1, 2).contiguous() for images in (x, x_test))
    net = resnet18(20, 10)
    net.to(memory_format=layout)  # type: ignore[call-overload]
    tests = [(x_test[y_test // 5 == t], y_test[y_test // 5 == t]) for t in range(2)]
    tasks = [rows[torch.randperm(len(rows))[:2000]] for rows in by_classes(y, 2)]
    return replay(
        *(net, lambda rows: inputs(cropped(x[rows])), y, tasks),
        lambda: evaluate(net, tests, inputs, CIFAR_CHUNK),
    )


def main() -> None:
    """Run one work and print its ACC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("W1", "W2", "W3", "W4"))
    parser.add_argument("--data", type=Path, required=True, help="the folder with the .npz files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="highest", help="of float32 matrix products")
    parser.add_argument("--channels-last", action="store_true", help="the layout of W4's images")
    arguments = parser.parse_args()
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.precision)
    torch.manual_seed(0)
    works: dict[str, Callable[[Path], list[float]]] = {
        "W1": lambda data: permuted(data, ewc=False),
        "W2": lambda data: permuted(data, ewc=True),
        "W3": split_mnist,
        "W4": lambda data: split_cifar10(data, layout),
    }
    row = works[arguments.work](arguments.data)
    print(f"ACC {sum(row) / len(row):.4f}")


if __name__ == "__main__":
    main()
