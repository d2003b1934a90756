"""How far `cl-run` is from a hand-written loop: whole processes, side by side, in one run.

    python scripts/benchmark_speed.py [W1 W2 W3 W4] [--repeat 5] [--threads 2]
    python scripts/benchmark_speed.py --replay     steps of five replay methods, by hand and ours
    python scripts/benchmark_speed.py --steps      EWC and replay late in a run, Fishers in epochs
    python scripts/benchmark_speed.py --ensemble   stacked runs against single ones and processes
    python scripts/benchmark_speed.py --peers avalanche=PYTHON clarena=PYTHON
                                                   W1 and W3 in these libraries too

On a GPU: scripts/check_gpu.py.

All on real images, float32, with the kernels that `precision=auto` chooses here:
W1: permuted MNIST, naive, 10 tasks x 1 epoch, MLP 784-256-256-10, batch 128, SGD 0.1, all 10 test
    sets before training and after each task (R of 11 x 10).
W2: the same with EWC, the Fisher of all 60,000 training samples with their own labels.
W3: split MNIST, class-incremental replay, 5 tasks x 1 epoch, batch 32 + 32, reservoir of 500.
W4: split CIFAR-10, the same replay, 2 tasks of 5 classes x 1 epoch of 2,000 samples, reduced
    ResNet-18, random crops and flips of incoming and replayed samples, R of 3 x 2 on all 10,000
    test images. cl-run takes 4,000 samples of the training set at random (benchmark.train_samples):
    with seed 0, 1,998 of one task and 2,002 of the other, so 63 steps each, as the loop takes.

The loops of scripts/lean_loops.py do the same and nothing else. Both need the data set in the cache
folder (`data.root` or CL_RUNNER_DATA); the first run of `cl-run benchmark=permuted_mnist`, or of
`benchmark=split_cifar10`, puts it there. The two take turns, so that a machine whose speed drifts
does so for both; what counts is the ratio. Both wait for their threads in the same way
(GOMP_SPINCOUNT=1000, which cl-run sets for itself). With --tuned, a third takes its turns: the loop
with threads that spin, as OpenMP does by itself, which is faster on an idle machine and slower on a
busy one; W4's also with the channels of a pixel together (torch.channels_last), as cl-run has them.

A peer is run by the Python that has it, through scripts/peer_NAME.py, which takes the same command
line as lean_loops.py; it takes its turns with the others, and waits as OpenMP does by itself.
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
    "W2": f"strategy=ewc strategy.penalty=loss {FISHER} {PERMUTED} {SHARED}",
    "W3": (
        "strategy=er strategy.buffer_size=500 strategy.replay_batch_size=32 "
        f"benchmark=split_mnist training.batch_size=32 {SHARED}"
    ),
    "W4": (
        "strategy=er strategy.buffer_size=500 strategy.replay_batch_size=32 "
        "benchmark=split_cifar10 benchmark.num_tasks=2 benchmark.train_samples=4000 "
        "model=reduced_resnet18 training.augment=crop_flip training.batch_size=32 "
        "optimizer=sgd optimizer.lr=0.1 training.epochs=1 device=cpu"
    ),
}
DATA = {"W1": "mnist", "W2": "mnist", "W3": "mnist", "W4": "cifar10"}  # the file in the cache
FIRST_RUN = {"mnist": "permuted_mnist", "cifar10": "split_cifar10"}  # the benchmark that makes it
PEERS = ("avalanche", "clarena")
PEER_WORKS = ("W1", "W3")
SPINS = "1000"  # as cl-run sets it for itself


def timed(command: list[str], folder: Path, spins: str | None) -> tuple[float, float]:
    """Wall and processor seconds of a process. Raises RuntimeError if it fails.

    spins: how often its threads look before they sleep, GOMP_SPINCOUNT; None: as OpenMP likes it.
    """
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment |= {"GOMP_SPINCOUNT": spins} if spins else {}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(work: str, arguments: argparse.Namespace, level: str) -> None:
    """Run a work by hand and by cl-run in turns; print medians and ratios."""
    shared = ["--data", str(arguments.data), "--threads", str(arguments.threads)]
    lean = Path(__file__).resolve().with_name("lean_loops.py")
    commands = {
        "lean loop": [sys.executable, str(lean), work, *shared, "--precision", level],
        "cl-run": [
            *(arguments.installed, *WORKS[work].split()),
            *(f"data.root={arguments.data}", f"threads={arguments.threads}"),
        ],
    }
    if arguments.tuned:
        layout = ["--channels-last"] if work == "W4" else []
        commands["tuned loop"] = [*commands["lean loop"], *layout]
    peers = arguments.peers if work in PEER_WORKS else {}
    for name, python in peers.items():
        commands[name] = [python, str(lean.with_name(f"peer_{name}.py")), work, *shared]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeat):
            for name, command in commands.items():
                spins = SPINS if name in ("lean loop", "cl-run") else None
                seconds[name].append(timed(command, Path(folder), spins))
    for name, runs in seconds.items():
        wall, cpu = ([run[i] for run in runs] for i in (0, 1))
        print(
            f"{work} {name:10} median {statistics.median(wall):6.2f} s wall "
            f"({min(wall):.2f} to {max(wall):.2f}), {statistics.median(cpu):6.2f} s CPU, "
            f"n = {len(runs)}"
        )
    loops = [name for name in commands if name.endswith("loop")]
    shown = [*(("cl-run", loop) for loop in loops), *((name, "cl-run") for name in peers)]
    for a, b in shown:
        pairs = zip(seconds[a], seconds[b], strict=True)
        ratios = sorted(x[0] / y[0] for x, y in pairs)
        print(
            f"{work} {a} / {b}: median {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}), wall, pair by pair",
            flush=True,
        )


def peer(text: str) -> tuple[str, str]:
    """Name and Python of NAME=PYTHON."""
    name, _, python = text.partition("=")
    if name not in PEERS:
        raise argparse.ArgumentTypeError(f"{text}: known are {', '.join(PEERS)}, as NAME=PYTHON")
    found = shutil.which(Path(python).expanduser()) if python else None
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: there is no such Python")
    return name, str(Path(found).absolute())  # not resolved: its folder tells what is installed


def parsed() -> argparse.Namespace:
    """The command line, with the works to compare; ends the program where a data set is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "works", nargs="*", help="of W1 to W4 (default: all; with --peers, W1 and W3)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each")
    parser.add_argument(
        "--data",
        type=lambda text: Path(text).expanduser().resolve(),
        default=os.environ.get("CL_RUNNER_DATA", "~/.cache/cl_runner"),
        help="the folder that holds mnist.npz and cifar10.npz",
    )
    parser.add_argument(
        "--tuned", action="store_true", help="the loop once more, tuned to an idle machine"
    )
    parser.add_argument("--replay", action="store_true", help="replay steps by hand against ours")
    parser.add_argument("--steps", action="store_true", help="costs of steps and of Fishers")
    parser.add_argument("--ensemble", action="store_true", help="throughput of stacked runs")
    parser.add_argument(
        "--peers",
        nargs="+",
        type=peer,
        default=[],
        metavar="NAME=PYTHON",
        help=f"run {' and '.join(PEERS)} too, each with the Python that has it",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.works) - set(WORKS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(WORKS)}")
    arguments.peers = dict(arguments.peers)
    within = arguments.replay or arguments.steps or arguments.ensemble
    if not arguments.works and arguments.peers:
        arguments.works = list(PEER_WORKS)
    elif not arguments.works and not within:
        arguments.works = list(WORKS)
    for name in sorted({DATA[work] for work in arguments.works} | ({"mnist"} if within else set())):
        if not (arguments.data / f"{name}.npz").exists():
            advice = f"run cl-run benchmark={FIRST_RUN[name]}"
            parser.error(f"{arguments.data}/{name}.npz is missing: {advice}")
    arguments.installed = shutil.which("cl-run", path=str(Path(sys.executable).parent))
    if arguments.installed is None:
        parser.error("cl-run is not installed beside this Python")
    return arguments


def main() -> None:
    """Take turns, then print medians and ratios."""
    arguments = parsed()
    import cl_runner  # noqa: F401 - before torch, which then waits for its threads as in cl-run

    level = chosen(arguments)
    for work in arguments.works:
        compare(work, arguments, level)
    within(arguments)


def chosen(arguments: argparse.Namespace) -> str:
    """The precision of float32 matrix products that cl-run chooses here; print what is measured."""
    import torch

    from cl_runner.machine import precision

    kernels = precision.choose("auto", torch.device("cpu"))
    print(
        f"{processor()}, {arguments.threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {kernels}",
        flush=True,
    )
    return torch.get_float32_matmul_precision()


def within(arguments: argparse.Namespace) -> None:
    """What is measured in this process."""
    if not (arguments.replay or arguments.steps or arguments.ensemble):
        return
    import throughput

    data, threads, repeat = arguments.data, arguments.threads, arguments.repeat
    if arguments.replay:
        throughput.replay_costs(data, threads, repeat)
    if arguments.steps:
        throughput.step_costs(data, threads, repeat)
    if arguments.ensemble:
        throughput.stacks(data, threads, repeat, [1, 2, 4, 8, 16, 32])


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
