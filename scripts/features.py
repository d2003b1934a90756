"""What an epoch costs on features that are computed once, against an MLP's and one on images.

An epoch of naive fine-tuning on one task of noise, steps alone, in turn: on features of a frozen
backbone, of an MLP without hidden layers on vectors of the same width, and of the same run on
images (model.cache_features=false). Median and range of the ratios, turn by turn.

    python scripts/features.py [--turns 5] [--samples 512] [--size 32]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from hydra import compose, initialize_config_module

from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from cl_runner.running.prepare import prepare, strategy_of
from cl_runner.running.tasks import Member, begin_task, initial_state, length
from cl_runner.training.fit import Alone, take_steps

COMMON = (
    *("benchmark=split_npz", "benchmark.num_tasks=1", "strategy=naive", "scenario=class"),
    *("optimizer.lr=0.01", "verbose=false", "device=cpu", "threads=1"),
)
FROZEN = ("model=torchvision", "model.arch=resnet18", "model.freeze=all_but_head")


def noise(file: Path, samples: int, shape: tuple[int, ...]) -> Path:
    """A file of noise in ten classes: images of bytes, or vectors of floats."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (samples, *shape), dtype=np.uint8)
    x = x if len(shape) > 1 else x.astype(np.float32) / 255
    y = np.arange(samples) % 10
    np.savez(file, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    return file


def member(root: Path, *overrides: str) -> Member:
    """A run, ready to be trained."""
    with initialize_config_module("cl_runner.conf", **BASE):
        config = validate(compose("config", [f"data.root={root}", *COMMON, *overrides]))
    strategy = strategy_of(config)
    return Member(strategy, prepare(config, strategy))


def seconds(own: Member, epochs: int) -> float:
    """What an epoch's steps take."""
    strategy, env = own
    s, progress = begin_task(strategy, initial_state(strategy, env), env.stream[0], env)
    alone = Alone(s, env, strategy, progress, 0)
    plan = length(strategy, env, progress, 0)
    began = time.perf_counter()
    take_steps(alone, plan, 0, None)
    return (time.perf_counter() - began) / epochs


def main() -> None:
    """Measure, and print a row for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, n = Path(folder), options.samples
        images = noise(root / "images.npz", n, (options.size, options.size, 3))
        vectors = noise(root / "vectors.npz", n, (512,))
        for size in (10, 128):
            batch = f"training.batch_size={size}"
            many = ("training.epochs=20", batch)
            on = member(root, f"data.path={images}", *FROZEN, *many, "model.cache_features=true")
            mlp = member(root, f"data.path={vectors}", "model.hidden_sizes=[]", *many)
            off = member(root, f"data.path={images}", *FROZEN, batch, "model.cache_features=false")
            assert on.env.flat.theta.shape == mlp.env.flat.theta.shape == off.env.flat.theta.shape
            for warm in (on, mlp):
                seconds(warm, 20)
            turns = [
                (seconds(on, 20), seconds(mlp, 20), seconds(off, 1)) for _ in range(options.turns)
            ]
            to_mlp = [features / plain for features, plain, _ in turns]
            to_images = [whole / features for features, _, whole in turns]
            print(
                f"batch {size}: on features / MLP on vectors {told(to_mlp)}, "
                f"on images / on features {told(to_images)}"
            )
    print(f"torch {torch.__version__}, one thread, {options.turns} turns")


def told(ratios: list[float]) -> str:
    """Median and range."""
    return f"{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"


if __name__ == "__main__":
    main()
