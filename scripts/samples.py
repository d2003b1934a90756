"""Generative replay on Split MNIST by each generator: accuracy, and how far samples are off.

    python scripts/samples.py --seeds 1 2 3
    python scripts/samples.py benchmark=split_digits --generators vae diffusion

Class-incremental, the protocol of van de Ven et al. 2022 (MLP 400-400, Adam, batch 128), with as
many generated samples in each step as new ones, and generators of equal hidden layers. After the
last task 5,000 images are generated. The distance of a class is Frechet's between the normal
distributions fitted to its generated and to its test images,
  |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)),
in the 32 principal components of the training images' pixels in [0, 1]. Which class a generated
image shows is judged alike for all generators: by the nearest of 5,000 training images there.
Writes results/samples.csv, a row for each generator, seed and class, and prints means.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from cl_runner.run.evaluation import evaluate
from cl_runner.run.tasks import initial_state, train_task
from cl_runner.strategies.parts.pixels import to_pixels
from cl_runner.testing import composer
from cl_runner.training.env import Env

ROOT = Path(__file__).parents[1]
CHOICES = {
    "vae": ("strategy=generative_replay",),
    "gan": ("strategy=generative_replay", "strategy.generator=gan"),
    "diffusion": ("strategy=generative_replay", "strategy.generator=diffusion"),
    "bir": ("strategy=bir",),
}
COMMON = (
    *("benchmark=split_mnist", "scenario=class", "benchmark.class_order=shuffled"),
    *("model.hidden_sizes=[400,400]", "optimizer=adam", "training.batch_size=128"),
)
SAMPLES, NEIGHBOURS, COMPONENTS = 5000, 5000, 32
CACHE = "~/.cache/cl_runner"  # as conf/config.yaml has it


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet's distance, squared, between the normal distributions fitted to a and b [n, D]."""
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(A @ B).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * root)


def distances(samples: Tensor, env: Env) -> pd.DataFrame:
    """Samples [n, C, H, W] in [0, 1] beside the test images: a row for each class."""
    train = torch.cat([task.train for task in env.stream])
    chosen = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    chosen, stream = chosen[:NEIGHBOURS], env.stream
    known, label = pixels(stream.x[chosen], env), stream.y[chosen]
    mean = known.mean(0)
    axes = torch.linalg.svd(known - mean, full_matrices=False).Vh[:COMPONENTS].T
    known, found = (known - mean) @ axes, (samples.flatten(1) - mean) @ axes
    judged = label[torch.cdist(found, known).argmin(1)]
    index = torch.cat([task.test for task in stream])
    test, truth = (pixels(stream.x_test[index], env) - mean) @ axes, stream.y_test[index]
    rows = []
    for k in range(env.num_classes):
        own = found[judged == k]
        enough = len(own) > COMPONENTS
        rows.append(
            {
                "class": k,
                "samples": len(own),
                "distance": frechet(own, test[truth == k]) if enough else None,
                "of_training_images": frechet(known[label == k], test[truth == k]),
            }
        )
    return pd.DataFrame(rows)


def pixels(images: Tensor, env: Env) -> Tensor:
    """The data set's images as pixels in [0, 1], [n, D]."""
    return to_pixels(env.stream.normalise(images), env.stream).flatten(1)


def main() -> None:
    """Train, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--generators", nargs="+", choices=CHOICES, default=["vae", "diffusion"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--iterations", type=int, default=2000, help="steps of each task")
    parser.add_argument("--data-root", default=os.environ.get("CL_RUNNER_DATA", CACHE))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "samples.csv")
    args = parser.parse_args()
    prepared, tables = composer(str(Path(args.data_root).expanduser()), []), []
    for generator in args.generators:
        for seed in args.seeds:
            own = (*CHOICES[generator], f"training.iterations={args.iterations}", f"seed={seed}")
            _, strategy, env = prepared(*COMMON, *own, *args.overrides)
            s = initial_state(strategy, env)
            for task in env.stream:
                s = train_task(strategy, s, task, env)
            (accuracies, *_) = evaluate(strategy, s, env).values()
            table = distances(strategy.samples(s, SAMPLES, env).cpu(), env)
            acc = sum(accuracies) / len(accuracies)
            flops = env.meter.flops
            print(f"{generator} seed {seed}: ACC {acc:.4f}, {flops:.3g} FLOPs\n{table}", flush=True)
            tables.append(table.assign(generator=generator, seed=seed, ACC=acc, flops=flops))
    rows = pd.concat(tables)
    rows.to_csv(args.out, index=False)
    print(rows.groupby("generator")[["ACC", "distance", "of_training_images", "flops"]].mean())


if __name__ == "__main__":
    main()
