"""Generative replay on Split MNIST by each generator: accuracy, and how far samples are off.

    python scripts/samples.py                           train, measure, write
    python scripts/samples.py --seeds 1 --out FILE      a part of it, or something else
    python scripts/samples.py --from FILE FILE          such parts, instead of running

Class-incremental, the protocol of van de Ven et al. 2022 (MLP 400-400, Adam, batch 128), with as
many generated samples in each step as new ones, and generators of equal hidden layers. After the
last task 5,000 images are generated. The distance of a class is Frechet's between the normal
distributions fitted to its generated and to its test images,
  |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)),
in the 32 principal components of the training images' pixels in [0, 1]. Which class a generated
image shows is judged alike for all generators: by the nearest of 5,000 training images there.
Writes results/samples.csv, a row for each generator, seed and class, and the table in
docs/reproduction.md between its two markers; with --out the rows alone.
"""

from __future__ import annotations

import argparse
import math
import os
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from reproduce import ROOT, into_page
from torch import Tensor

from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.parts.pixels import to_pixels
from cl_runner.testing import composer
from cl_runner.training.env import Env

MARKERS = ("<!-- samples: made by scripts/samples.py -->", "<!-- end of samples -->")
RESULTS = ROOT / "results" / "samples.csv"
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


def markdown(rows: pd.DataFrame) -> str:
    """The page's table: a column for each generator; means over seeds, ACC with its deviation."""
    names = list(dict.fromkeys(rows.generator))
    runs = rows.groupby(["generator", "seed"])[["ACC", "flops"]].first().groupby("generator")
    mean, deviation = runs.mean(), runs.ACC.std()
    spread = deviation.map(lambda sd: "" if math.isnan(sd) else f" ± {sd:.4f}")
    acc = [f"{mean.ACC[name]:.4f}{spread[name]}" for name in names]
    by_class = rows.pivot_table("distance", "class", "generator")
    train = rows.groupby("class").of_training_images.mean()
    lines = [
        f"| | {' | '.join(names)} | training images |",
        "|---|" + "---|" * (len(names) + 1),
        f"| ACC (n = {rows.seed.nunique()}) | {' | '.join(acc)} | |",
        f"| TFLOPs | {numbers(mean.flops[names] / 1e12)} | |",
        f"| distance, mean of classes | {numbers(by_class[names].mean())} | {train.mean():.1f} |",
    ]
    for k, own in by_class.iterrows():
        lines.append(f"| of class {k} | {numbers(own[names])} | {train[k]:.1f} |")
    return "\n".join(lines)


def numbers(values: pd.Series) -> str:
    """The cells of a row."""
    return " | ".join(f"{value:.1f}" for value in values)


def measured(args: argparse.Namespace) -> pd.DataFrame:
    """The rows of the runs that the command line asks for."""
    prepared, tables = composer(str(Path(args.data_root).expanduser()), []), []
    for generator, seed in product(args.generators, args.seeds):
        own = (*CHOICES[generator], f"training.iterations={args.iterations}", f"seed={seed}")
        _, strategy, env = prepared(*COMMON, *own, *args.overrides)
        s = initial_state(strategy, env)
        for task in env.stream:
            s = train_task(strategy, s, task, env)
        (accuracies, *_) = evaluate(strategy, s, env).values()
        table = distances(strategy.samples(s, SAMPLES, env).cpu(), env)
        acc = sum(accuracies) / len(accuracies)
        tables.append(table.assign(generator=generator, seed=seed, ACC=acc, flops=env.meter.flops))
        print(f"{generator} seed {seed}: ACC {acc:.4f}\n{table}", flush=True)
    return pd.concat(tables)


def main() -> None:
    """Train, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--generators", nargs="+", choices=CHOICES, default=["vae", "diffusion"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=500, help="steps of each task")
    parser.add_argument("--data-root", default=os.environ.get("CL_RUNNER_DATA", CACHE))
    parser.add_argument("--out", type=Path, help="where to write the rows, and no table")
    parser.add_argument("--from", dest="parts", nargs="+", type=Path, help="rows written before")
    args = parser.parse_args()
    rows = pd.concat(map(pd.read_csv, args.parts)) if args.parts else measured(args)
    rows = rows.sort_values(["generator", "seed", "class"], ascending=[False, True, True])
    rows.to_csv(args.out or RESULTS, index=False)
    print(markdown(rows))
    if args.out is None:
        into_page(MARKERS, markdown(rows))


if __name__ == "__main__":
    main()
