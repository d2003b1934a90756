"""How far `cl-run` is from a hand-written loop: whole processes, side by side, in one run.

    python scripts/benchmark_speed.py [--repeat 3] [--threads 2]

Work W1: permuted MNIST, naive, 10 tasks x 1 epoch, MLP 784-256-256-10, batch 128, SGD 0.1, all 10
test sets before training and after each task (R of 11 x 10), float32. The lean loop does the same
and nothing else: no configuration, no files but the data set. Both need MNIST in the cache folder
(`data.root` or CL_RUNNER_DATA); the first run of `cl-run benchmark=permuted_mnist` puts it there.
The two take turns, so that a machine whose speed drifts does so for both; what counts is the ratio.
Both wait for their threads in the same way (GOMP_SPINCOUNT=1000, which cl-run sets for itself).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS, BATCH, RATE, CHUNK = 10, 128, 0.1, 2000


def lean(data: Path, threads: int) -> None:
    """W1 as one would write it by hand, with nn.Module, autograd and torch.optim."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with np.load(data / "mnist.npz") as arrays:
        x, y, x_test, y_test = (
            torch.from_numpy(arrays[k]) for k in ("x_train", "y_train", "x_test", "y_test")
        )
    x, x_test, y, y_test = x.flatten(1), x_test.flatten(1), y.long(), y_test.long()
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )
    optimizer = torch.optim.SGD(net.parameters(), RATE, fused=True)
    orders = [torch.randperm(784) for _ in range(TASKS)]
    tests = [x_test[:, order] for order in orders]

    @torch.no_grad()
    def evaluate() -> list[float]:
        return [
            sum(
                int((net(part.float().mul_(1 / 255)).argmax(1) == target).sum())
                for part, target in zip(test.split(CHUNK), y_test.split(CHUNK), strict=True)
            )
            / len(test)
            for test in tests
        ]

    rows = [evaluate()]
    for order in orders:
        shown = x[:, order]
        for index in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(shown[index].float().mul_(1 / 255)), y[index])
            loss.backward()
            optimizer.step()
        rows.append(evaluate())
    print(f"ACC {sum(rows[-1]) / TASKS:.4f}")


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of a process. Raises RuntimeError if it fails."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"GOMP_SPINCOUNT": "1000"}  # as cl-run sets it for itself
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Take turns, then print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each")
    parser.add_argument(
        "--data",
        type=lambda text: Path(text).expanduser().resolve(),
        default=os.environ.get("CL_RUNNER_DATA", "~/.cache/cl_runner"),
        help="the folder that holds mnist.npz",
    )
    parser.add_argument("--lean", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lean:
        lean(arguments.data, arguments.threads)
        return
    if not (arguments.data / "mnist.npz").exists():
        parser.error(f"{arguments.data}/mnist.npz is missing: run cl-run benchmark=permuted_mnist")
    installed = shutil.which("cl-run", path=str(Path(sys.executable).parent))
    if installed is None:
        parser.error("cl-run is not installed beside this Python")
    shared = ["--data", str(arguments.data), "--threads", str(arguments.threads)]
    works = {
        "lean loop": [sys.executable, str(Path(__file__).resolve()), "--lean", *shared],
        "cl-run": [
            installed,
            *("strategy=naive", "benchmark=permuted_mnist", "model.hidden_sizes=[256,256]"),
            *(f"benchmark.num_tasks={TASKS}", "training.epochs=1", f"training.batch_size={BATCH}"),
            *("optimizer=sgd", f"optimizer.lr={RATE}", "device=cpu"),
            *(f"data.root={arguments.data}", f"threads={arguments.threads}"),
        ],
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeat):
            for name, command in works.items():
                seconds[name].append(timed(command, Path(folder)))
    print(f"{processor()}, {arguments.threads} threads, Python {platform.python_version()}")
    for name, runs in seconds.items():
        wall, cpu = ([run[i] for run in runs] for i in (0, 1))
        print(
            f"W1 {name:10} median {statistics.median(wall):6.2f} s wall "
            f"({min(wall):.2f} to {max(wall):.2f}), {statistics.median(cpu):6.2f} s CPU, "
            f"n = {len(runs)}"
        )
    pairs = zip(seconds["cl-run"], seconds["lean loop"], strict=True)
    ratios = sorted(ours[0] / theirs[0] for ours, theirs in pairs)
    print(
        f"W1 cl-run / lean loop: median {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}), wall, pair by pair"
    )


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
