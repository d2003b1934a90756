"""What is known of a stream before it is trained on, read from its configuration and its data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cl_runner.advising.tables import Row
from cl_runner.config.schema import Config

# What changes from task to task, by benchmark.kind.
CHANGES = {
    "split": "classes",
    "sequence": "classes",
    "permuted": "inputs",
    "rotated": "inputs",
    "conditions": "inputs",
    "label_permuted": "labels",
    "random_labels": "labels",
    "edits": "drift",
}
DRIFT = "drift"  # of slices, whose classes stay: what the world changes
# Training samples, classes, numbers of an input, largest class for one of the smallest.
NAMED = {
    "digits": (1442, 10, 64, 1.05),
    "mnist": (60000, 10, 784, 1.24),
    "fashion_mnist": (60000, 10, 784, 1.0),
    "cifar10": (50000, 10, 3072, 1.0),
    "cifar100": (50000, 100, 3072, 1.0),
    "letter": (16000, 26, 16, 1.1),
}
EVERY_CLASS = ("permuted", "rotated", "conditions", "label_permuted", "random_labels")


def of_config(config: Config) -> Row | None:
    """The features of a stream over a named data set; None if its data must be read for them."""
    own: Any = config.benchmark
    plain = own.imbalance is None and own.resize is None and own.pad_to is None
    if own.dataset not in NAMED or own.kind not in ("split", *EVERY_CLASS) or not plain:
        return None
    total, classes, size, spread = NAMED[own.dataset]
    number = own.train_samples or round(own.train_fraction * total)
    number -= round(own.validation_fraction * number)
    tasks = own.num_tasks if own.num_tasks is not None else len(own.conditions)
    if own.kind == "split":
        used = classes if own.classes is None else len(own.classes)
        per_task, each = [used / tasks] * tasks, number * used / classes / tasks
    else:
        used, per_task, each = classes, [classes] * tasks, float(number)
    return described(
        config,
        tasks=tasks,
        classes=used,
        per_task=per_task,
        samples=[min(each, own.samples_per_task or each)] * tasks,
        input_size=size,
        images=own.dataset != "letter",
        spread=spread,
        new_classes=False,
    )


def of_stream(config: Config, stream: Any) -> Row:
    """The features of a stream that was built (core.Stream), without its name."""
    tasks = [task.classes for task in stream]
    samples = [len(task.samples()[0]) for task in stream]
    image = stream.x[0]
    largest = int(stream.y.max()) + 1
    counts = sum(stream.y[task.samples()[0]].bincount(minlength=largest) for task in stream)
    counts = [int(n) for n in counts if n]  # of each class that is trained
    return described(
        config,
        tasks=len(tasks),
        classes=len(counts),
        per_task=[len(classes) for classes in tasks],
        samples=samples,
        input_size=image.numel(),
        images=not image.is_floating_point() or min(image.shape[1:]) > 1,
        spread=max(counts) / min(counts),
        new_classes=len({task.names for task in stream}) > 1,
    )


def described(
    config: Config,
    *,
    tasks: int,
    classes: int,
    per_task: Sequence[float],
    samples: Sequence[float],
    input_size: int,
    images: bool,
    spread: float,
    new_classes: bool,
) -> Row:
    """The features of a stream from its counts.

    per_task, samples: classes and training samples of each task. spread: training samples of the
    largest class for one of the smallest. new_classes: whether tasks of slices differ in classes.
    """
    kind, training = config.benchmark.kind, config.training
    size = sum(samples) / len(samples)
    epochs = training.epochs or config.benchmark.default_epochs
    steps = training.iterations or epochs * math.ceil(size / training.batch_size)
    slices = "classes" if new_classes else DRIFT
    return {
        "scenario": config.scenario,
        "kind": kind,
        "data": config.benchmark.dataset,
        "change": CHANGES.get(kind, slices),
        "boundaries": config.benchmark.boundaries,
        "images": int(images),
        "num_tasks": tasks,
        "classes": classes,
        "classes_per_task": round(sum(per_task) / len(per_task), 2),
        "samples_per_task": round(size, 1),
        "input_size": input_size,
        "largest_to_smallest_class": round(spread, 2),
        "steps_per_task": steps,
    }
