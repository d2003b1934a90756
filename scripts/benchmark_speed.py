"""How far `cl-run` is from a hand-written loop: whole processes, side by side, in one run.

    python scripts/benchmark_speed.py [W1 W2 W3] [--repeat 3] [--threads 2]
    python scripts/benchmark_speed.py --steps      EWC and replay late in a run, Fishers in epochs
    python scripts/benchmark_speed.py --ensemble   stacked runs against single ones and processes
    python scripts/benchmark_speed.py --peers [PYTHON]  the works in Avalanche too
    python scripts/benchmark_speed.py --gpu        steps and launches by engine, stacks of 1 to 256

All on real MNIST, float32, with the kernels that `precision=auto` chooses here:
W1: permuted MNIST, naive, 10 tasks x 1 epoch, MLP 784-256-256-10, batch 128, SGD 0.1, all 10 test
    sets before training and after each task (R of 11 x 10).
W2: the same with EWC, the Fisher of all 60,000 training samples with their own labels.
W3: split MNIST, class-incremental replay, 5 tasks x 1 epoch, batch 32 + 32, reservoir of 500.

The loops of scripts/lean_loops.py do the same and nothing else. Both need MNIST in the cache folder
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

SHARED = "model.hidden_sizes=[256,256] optimizer=sgd optimizer.lr=0.1 training.epochs=1 device=cpu"
PERMUTED = "benchmark=permuted_mnist benchmark.num_tasks=10 training.batch_size=128"
FISHER = "strategy.lambda=1 strategy.fisher_labels=true strategy.fisher_samples=null"
WORKS = {
    "W1": f"strategy=naive {PERMUTED} {SHARED}",
    "W2": f"strategy=ewc {FISHER} {PERMUTED} {SHARED}",
    "W3": (
        "strategy=er strategy.buffer_size=500 strategy.replay_batch_size=32 "
        f"benchmark=split_mnist training.batch_size=32 {SHARED}"
    ),
}


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


def compare(work: str, arguments: argparse.Namespace, installed: str, level: str) -> None:
    """Run a work by hand and by cl-run in turns; print medians and ratios."""
    threads = str(arguments.threads)
    commands = {
        "lean loop": [
            *(sys.executable, str(Path(__file__).resolve().with_name("lean_loops.py")), work),
            *("--data", str(arguments.data), "--threads", threads, "--precision", level),
        ],
        "cl-run": [
            *(installed, *WORKS[work].split()),
            *(f"data.root={arguments.data}", f"threads={threads}"),
        ],
    }
    if arguments.peers:
        script = str(Path(__file__).resolve().with_name("peer_avalanche.py"))
        peer = [arguments.peers, script, work, "--data", str(arguments.data), "--threads", threads]
        commands["Avalanche"] = peer
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeat):
            for name, command in commands.items():
                seconds[name].append(timed(command, Path(folder)))
    for name, runs in seconds.items():
        wall, cpu = ([run[i] for run in runs] for i in (0, 1))
        print(
            f"{work} {name:10} median {statistics.median(wall):6.2f} s wall "
            f"({min(wall):.2f} to {max(wall):.2f}), {statistics.median(cpu):6.2f} s CPU, "
            f"n = {len(runs)}"
        )
    for other in ("lean loop", "Avalanche") if arguments.peers else ("lean loop",):
        pairs = zip(seconds["cl-run"], seconds[other], strict=True)
        ratios = sorted(ours[0] / theirs[0] for ours, theirs in pairs)
        print(
            f"{work} cl-run / {other}: median {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}), wall, pair by pair",
            flush=True,
        )


def main() -> None:
    """Take turns, then print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("works", nargs="*", help="of W1, W2 and W3 (default: all)")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each")
    parser.add_argument(
        "--data",
        type=lambda text: Path(text).expanduser().resolve(),
        default=os.environ.get("CL_RUNNER_DATA", "~/.cache/cl_runner"),
        help="the folder that holds mnist.npz",
    )
    parser.add_argument("--steps", action="store_true", help="costs of steps and of Fishers")
    parser.add_argument("--ensemble", action="store_true", help="throughput of stacked runs")
    parser.add_argument("--gpu", action="store_true", help="the same on a GPU")
    parser.add_argument(
        "--peers",
        nargs="?",
        const=sys.executable,
        metavar="PYTHON",
        help="run Avalanche too, with the Python that has avalanche-lib (default: this one)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.works) - set(WORKS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(WORKS)}")
    if not (arguments.data / "mnist.npz").exists():
        parser.error(f"{arguments.data}/mnist.npz is missing: run cl-run benchmark=permuted_mnist")
    installed = shutil.which("cl-run", path=str(Path(sys.executable).parent))
    if installed is None:
        parser.error("cl-run is not installed beside this Python")
    import torch

    from cl_runner.machine import precision as kernels

    precision = kernels.choose("auto", torch.device("cpu"))
    level = torch.get_float32_matmul_precision()
    print(
        f"{processor()}, {arguments.threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {precision}",
        flush=True,
    )
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no usable CUDA GPU")
    within = arguments.steps or arguments.ensemble or arguments.gpu
    for work in arguments.works or ([] if within else WORKS):
        compare(work, arguments, installed, level)
    if within:
        import throughput

        if arguments.steps:
            throughput.step_costs(arguments.data, arguments.threads, arguments.repeat)
        if arguments.ensemble:
            sizes = [1, 2, 4, 8, 16, 32]
            throughput.stacks(arguments.data, arguments.threads, arguments.repeat, "cpu", sizes)
        if arguments.gpu:
            throughput.gpu(arguments.data, arguments.repeat)


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
