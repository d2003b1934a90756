"""A few tiny runs whose models the tests export; trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cl_runner.core import Stream
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run
from cl_runner.running.prepare import prepare, read, strategy_of

TINY = (
    *("benchmark=split_digits", "benchmark.train_samples=300", "model.hidden_sizes=[16]"),
    *("training.epochs=3", "training.batch_size=16", "checkpoint.keep=true"),
)
RUNS = {
    # Class means, BatchNorm, dropout, and all that is done to an image before the network.
    "images": (
        *TINY,
        *("strategy=icarl", "strategy.buffer_size=40", "model.norm=batch", "model.dropout=0.3"),
        *("benchmark.resize=12", "benchmark.pad_to=16", "benchmark.mean=[0.3]"),
        *("benchmark.std=[0.4]", "optimizer.lr=0.5"),
    ),
    # A network for each task within one, by masks; convolutions.
    "tasks": (
        *TINY[:2],
        *TINY[3:],
        *("strategy=packnet", "scenario=task", "model=cnn", "model.channels=[4]"),
        "model.hidden_size=8",
    ),
    # Numbers of a table.
    "table": (
        *("benchmark=split_letter", "benchmark.num_tasks=2", "benchmark.train_samples=800"),
        *TINY[2:],
        *("strategy=slda",),
    ),
    # On features that are computed once; grey images that are shown in three channels.
    "features": (
        *TINY[:2],
        *TINY[3:],
        *("strategy=icarl", "strategy.buffer_size=40", "model=cnn", "model.channels=[4]"),
        *("model.hidden_size=16", "model.freeze=all_but_head", "model.cache_features=true"),
        *("benchmark.resize=12", "benchmark.mean=[0.1,0.2,0.3]", "benchmark.std=[0.5,0.4,0.3]"),
    ),
    # Adapters, and tasks that turn the images.
    "adapters": (
        *("benchmark=rotated_digits", "benchmark.num_tasks=2", *TINY[1:]),
        *("strategy=naive", "adapter=lora", "adapter.rank=2", "benchmark.pad_to=10"),
    ),
}


class Trained(NamedTuple):
    """A complete run."""

    folder: Path
    stream: Stream
    given: Tensor  # [M, C, H, W] the test images as the data set has them

    def test(self, task: int) -> tuple[Tensor, Tensor]:
        """A task's images, as they are handed to a model, and their outputs [n]."""
        shown, y = self.stream.held_out("test", self.stream[task])
        changed = self.stream.transform is not None
        return shown if changed else self.given[self.stream[task].test], y

    def accuracies(self) -> list[float]:
        """The run's accuracy on each task at its end."""
        return read_matrix(self.folder / "accuracy_matrix.csv")[-1].tolist()

    def reached(self, models: list[Any]) -> list[float]:
        """The accuracy of a model for each task; a column is a class of the task, or of all."""
        found = []
        for task, model in zip(self.stream, models, strict=True):
            x, y = self.test(task.index)
            x = x if x.shape[2] > 1 else x[:, 0, 0]
            columns = torch.as_tensor(model(x)).argmax(1)
            own = torch.tensor(task.classes) if self.stream.scenario == "task" else None
            found.append(float(((columns if own is None else own[columns]) == y).double().mean()))
        return found


@pytest.fixture(scope="session")
def trained(configure, tmp_path_factory):
    """trained("images"): one of RUNS, which no test may change."""
    made: dict[str, Trained] = {}

    def function(name: str) -> Trained:
        if name not in made:
            config, folder = configure(*RUNS[name]), tmp_path_factory.mktemp(name)
            run(config, folder, RUNS[name])
            own = [o for o in RUNS[name] if "cache_features" not in o]
            on_images = configure(*own, "model.cache_features=false")
            stream = prepare(on_images, strategy_of(config)).stream
            raw = read(configure(*(o for o in own if "resize" not in o)))
            made[name] = Trained(folder, stream, raw.x_test)
        return made[name]

    return function
