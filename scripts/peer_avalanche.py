"""The works of benchmark_speed.py in Avalanche (avalanche-lib), as its documentation has them.

    python scripts/peer_avalanche.py W1 --data FOLDER [--threads 2]

Its own replay samples after each task rather than during it, and its EWC squares the gradient of a
batch, not of a sample; the rest is the same work.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

WORKS = ("W1", "W2", "W3")


def import_avalanche() -> None:
    """Avalanche, also where the installed torchvision does not fit the CPU build of torch."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision  # noqa: F401

        import_avalanche.library = library  # type: ignore[attr-defined]
    import avalanche  # noqa: F401


def tensors(data: Path) -> tuple[torch.Tensor, ...]:
    """MNIST as float images [N, 784] and labels [N]."""
    with np.load(data / "mnist.npz") as arrays:
        x, y, x_test, y_test = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    return (
        torch.from_numpy(x).flatten(1).float().div_(255),
        torch.from_numpy(y).long(),
        torch.from_numpy(x_test).flatten(1).float().div_(255),
        torch.from_numpy(y_test).long(),
    )


def benchmark(work: str, data: Path):  # noqa: ANN201 - Avalanche's types need its import
    """The stream: tensors in memory, no images to decode."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.benchmarks.utils.utils import as_avalanche_dataset  # noqa: F401
    from torch.utils.data import TensorDataset

    x, y, x_test, y_test = tensors(data)

    def dataset(images: torch.Tensor, labels: torch.Tensor):  # noqa: ANN202
        plain = TensorDataset(images, labels)
        plain.targets = labels.tolist()
        return as_classification_dataset(plain)

    train, test = [], []
    for t in range(5 if work == "W3" else 10):
        if work == "W3":
            parts = [
                (x[y // 2 == t], y[y // 2 == t]),
                (x_test[y_test // 2 == t], y_test[y_test // 2 == t]),
            ]
        else:
            order = torch.randperm(784)
            parts = [(x[:, order], y), (x_test[:, order], y_test)]
        train.append(dataset(*parts[0]))
        test.append(dataset(*parts[1]))
    return benchmark_from_datasets(train=train, test=test)


def main() -> None:
    """Run one work and print its ACC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--data", type=Path, required=True, help="the folder with mnist.npz")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    import_avalanche()
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, Naive, Replay

    net = nn.Sequential(
        *(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    options = {
        "model": net,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_epochs": 1,
        "train_mb_size": 32 if arguments.work == "W3" else 128,
        "eval_mb_size": 2000,
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[]),
    }
    if arguments.work == "W1":
        strategy = Naive(**options)
    elif arguments.work == "W2":
        strategy = EWC(ewc_lambda=1.0, **options)
    else:
        strategy = Replay(mem_size=500, **options)
    stream = benchmark(arguments.work, arguments.data)
    results = strategy.eval(stream.test_stream)
    for experience in stream.train_stream:
        strategy.train(experience)
        results = strategy.eval(stream.test_stream)
    (acc,) = (v for k, v in results.items() if k.startswith("Top1_Acc_Stream"))
    print(f"ACC {acc:.4f}")


if __name__ == "__main__":
    main()
