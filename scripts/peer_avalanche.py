"""The works of benchmark_speed.py in Avalanche (avalanche-lib), as its documentation has them.

    python scripts/peer_avalanche.py W1 --data FOLDER [--threads 2]

Its own PermutedMNIST and SplitMNIST, with their default transforms and data loaders; its Naive, EWC
or Replay strategy; accuracies of all test sets before training and after each task; no loggers.
FOLDER holds MNIST in torchvision's layout (MNIST/raw), and gets it there if it does not.

What differs from the loops of lean_loops.py: the images are normalised by mean and deviation. In
W2, EWC squares the gradient of a batch, not of a sample. In W3, the buffer is filled after each
task, not during it, with an equal share of each task, so that the first task replays nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

WORKS = ("W1", "W2", "W3")
BATCH, EVAL_BATCH, TASKS = {"W1": 128, "W2": 128, "W3": 32}, 2000, {"W1": 10, "W2": 10, "W3": 5}


def import_torchvision() -> None:
    """Torchvision, also where the installed one does not fit the CPU build of torch."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision  # noqa: F401

        import_torchvision.library = library  # type: ignore[attr-defined]


def benchmark(work: str, data: Path):  # noqa: ANN201 - Avalanche's types need its import
    """The stream of tasks."""
    from avalanche.benchmarks.classic import PermutedMNIST, SplitMNIST

    if work == "W3":
        return SplitMNIST(TASKS[work], fixed_class_order=list(range(10)), dataset_root=data)
    return PermutedMNIST(TASKS[work], seed=0, dataset_root=data)


def strategy(work: str):  # noqa: ANN201 - the same
    """The network and what trains and evaluates it."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, Naive, Replay

    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    net = nn.Sequential(nn.Flatten(), *layers)
    options = {
        "model": net,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_epochs": 1,
        "train_mb_size": BATCH[work],
        "eval_mb_size": EVAL_BATCH,
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[]),
    }
    if work == "W1":
        return Naive(**options)
    if work == "W2":
        return EWC(ewc_lambda=1.0, **options)
    return Replay(mem_size=500, **options)


def parsed(doc: str, works: Iterable[str]) -> argparse.Namespace:
    """The command line of a peer; its threads are set."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("work", choices=works)
    parser.add_argument("--data", type=Path, required=True, help="the folder with MNIST/raw")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def main() -> None:
    """Run one work and print its ACC."""
    arguments = parsed(__doc__, WORKS)
    torch.manual_seed(0)
    import_torchvision()
    stream, learner = benchmark(arguments.work, arguments.data), strategy(arguments.work)
    results = learner.eval(stream.test_stream)
    for experience in stream.train_stream:
        learner.train(experience)
        results = learner.eval(stream.test_stream)
    # the mean of the tasks' accuracies; Avalanche's own stream accuracy is by sample
    rows = [v for k, v in results.items() if k.startswith("Top1_Acc_Exp")]
    print(f"ACC {sum(rows) / len(rows):.4f}")


if __name__ == "__main__":
    main()
