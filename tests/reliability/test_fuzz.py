"""Whatever is asked for or lies on the disk: a first step, or one line. Never a crash, never lies.

The short form draws the same 40 configurations each time; the long form draws as many new ones as
the variable says, and the readers get ten times as many damaged files:

    CL_RUNNER_FUZZ=500 python -m pytest tests/reliability/test_fuzz.py
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from cl_runner import strategies
from cl_runner.cli.messages import explain
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.verify import verify_runs
from cl_runner.config.outline import checked
from cl_runner.config.versions import BASE
from cl_runner.data.arrays import KEYS
from cl_runner.data.datasets import load
from cl_runner.errors import UserError
from cl_runner.results import status
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.results.names import CHECKPOINT
from cl_runner.running import checkpoint, loop, needs, prepare
from cl_runner.running.frame import frame_of
from cl_runner.running.tasks import begin_task, initial_state
from cl_runner.training.batches import Source

pytestmark = pytest.mark.slow

CL_RUN = Path(sys.executable).with_name("cl-run")
LONG = int(os.environ.get("CL_RUNNER_FUZZ", "0"))
DRAWS = settings(
    max_examples=LONG or 40,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def outcome(function: Callable[[], object]) -> tuple[int | None, str]:
    """The exit code and the line that `cl-run` would have for it."""
    try:
        function()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return explain(error)
    except (MemoryError, RuntimeError) as error:
        if message := needs.shortage(error):
            return 2, message
        raise
    return 0, ""


# Configurations


def shown(value: float) -> str:
    """A number as Hydra's grammar has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "-inf" if value < 0 else "inf"
    return repr(value)


USUAL = st.sampled_from([1, 2, 3, 4, 5, 8, 0.1, 0.25, 0.5, 0.9, 1.0, 10.0])
NUMBERS = st.one_of(
    USUAL,
    USUAL,
    st.integers(-2, 9),
    st.sampled_from([16, 40, 100, 10**6, 2**31, 2**63, -(2**63), 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
    st.sampled_from([1e-300, 1e300, 0.5, 1e-3, 0.1]),
)
WORDS = st.one_of(
    st.sampled_from(["null", "true", "false", "task", "class", "auto", "", "''", "~", "exact"]),
    st.text("abcxyz_.-/", min_size=1, max_size=6),
)
LISTS = st.lists(NUMBERS, max_size=4).map(lambda v: "[" + ",".join(map(shown, v)) + "]")
VALUES = st.one_of(USUAL.map(shown), NUMBERS.map(shown), WORDS, LISTS)
Leaves = dict[str, list[str]]
STEERING = {"resume", "seeds", "plugins", "verbose", "data.root", "device", "threads"}


def keys(node: object, prefix: str = "") -> list[str]:
    """The leaves of a configuration, with dots."""
    if not OmegaConf.is_dict(node):
        return [prefix]
    return [
        leaf for key in node for leaf in keys(node._get_node(key), f"{prefix}.{key}".strip("."))
    ]


def groups() -> dict[str, list[str]]:
    conf = Path(__file__).parents[2] / "conf"
    found = {g: sorted(f.stem for f in (conf / g).glob("*.yaml")) for g in ("model", "optimizer")}
    names = ("split", "permuted", "rotated")
    return found | {
        "benchmark": [f"{n}_digits" for n in names],
        "strategy": [*strategies.available()],
    }


@st.composite
def commands(draw: st.DrawFn, leaves: Leaves) -> list[str]:
    """Overrides: a choice of groups, a scenario, and up to four of their keys with any value."""
    args = [f"scenario={draw(st.sampled_from(['task', 'domain', 'class']))}"]
    known = list(leaves["config"])
    for group, names in groups().items():
        args.append(f"{group}={draw(st.sampled_from(names))}")
        known += leaves[args[-1]]
    if not draw(st.integers(0, 9)):
        known = [key for keys in leaves.values() for key in keys]  # of other groups as well
    for key in draw(st.lists(st.sampled_from(known), max_size=4, unique=True)):
        sign = draw(st.sampled_from(["", "", "", "++"]))
        args.append(f"{sign}{key}={draw(VALUES)}")
    return args


def first_step(args: list[str], root: Path) -> None:
    """What `cl-run` does with its arguments, up to the first step of training."""
    with initialize_config_module("cl_runner.conf", **BASE):
        node = compose("config", [f"data.root={root}", "device=cpu", "threads=1", *args])
    config = checked(node)
    strategy = strategies.build(config.strategy, config.plugins)
    env = prepare.prepare(config, strategy)
    s = initial_state(strategy, env)
    task = env.stream[0]
    s, (samples, *_) = begin_task(strategy, s, task, env)
    if len(samples[0]):
        batch = next(iter(Source(env, s, 0, *samples, strategy).epoch(0, 1)))
        with torch.no_grad():
            strategy.step(s, batch, env)


@pytest.fixture(scope="session")
def leaves() -> Leaves:
    """The keys of each choice of a group, and those outside."""
    conf = Path(__file__).parents[2] / "conf"
    found = {
        f"{group}={name}": keys(OmegaConf.load(conf / group / f"{name}.yaml"), group)
        for group, names in groups().items()
        for name in names
    }
    top = keys(OmegaConf.load(conf / "config.yaml"))
    top += keys(OmegaConf.load(conf / "training/default.yaml"), "training")
    odd = ("hydra", "defaults")
    found["config"] = [k for k in top if not k.startswith(odd) and k not in STEERING]
    return found


@pytest.mark.slow
def test_every_configuration_takes_a_step_or_is_told_in_one_line(data_root, leaves):
    taken = refused = 0

    @DRAWS
    @given(commands(leaves))
    def draw(args: list[str]) -> None:
        nonlocal taken, refused
        torch.manual_seed(0)
        code, line = outcome(lambda: first_step(args, data_root))
        assert code in (0, 2) and "\n" not in line, (args, line)
        taken, refused = taken + (code == 0), refused + (code == 2)

    draw()
    print(f"{taken} took a step, {refused} were refused")
    assert taken > 3 and refused > 3


@pytest.mark.parametrize("seed", range(max(3, LONG // 50)))
def test_the_installed_command_does_the_same(data_root, leaves, tmp_path, seed):
    draw = random.Random(seed)
    choices = [f"{g}={draw.choice(names)}" for g, names in groups().items()]
    known = [key for choice in ("config", *choices) for key in leaves[choice]]
    odd = ["-1", "0", "nan", "inf", "1e999", "[]", "[1,-1]", "abc", "null", "''", "2**31", "{a: 1}"]
    args = choices + [f"{key}={draw.choice(odd)}" for key in draw.sample(known, 1 + seed % 2)]
    quick = ("training.iterations=1", "training.batch_size=4", "benchmark.train_samples=40")
    result = subprocess.run(
        [CL_RUN, *quick, *args, f"data.root={data_root}", "threads=1", "hydra.run.dir=out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if result.returncode == 0:
        assert result.stderr == ""
        assert read_rows(tmp_path / "out/summary.csv")[0]["status"] == "complete"
    elif result.returncode == 1:  # a step was taken, and a later one diverged
        assert re.fullmatch(r"cl-run: .* NaN or infinite in task .*\n", result.stderr), args
    else:
        assert result.returncode == 2, (args, result.stderr)
        assert re.fullmatch(r"cl-run: .+\n", result.stderr), (args, result.stderr)


# Readers: files that were valid, with bytes changed, cut off or doubled


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one thing wrong with them, sometimes two."""
    for _ in range(draw.choice([1, 1, 2])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at : at + draw.randint(1, 40)] + data[at:]
        elif kind == 2:
            data = data[:at] + draw.randbytes(draw.randint(1, 8)) + data[at + 1 :]
        elif data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    return data


def attack(
    file: Path,
    read: Callable[[], object],
    same: Callable[[object, object], bool] | None,
    n: int,
    least: int = 1,
) -> None:
    """Read damaged versions of a file: each is refused in one line, or gives what the whole gave.

    same: how to compare; None where the format has nothing that tells a changed bit.
    """
    whole, expected = file.read_bytes(), read()
    refused = 0
    for seed in range(n):
        draw = random.Random(f"{file.name} {seed}")
        file.write_bytes(data := damaged(whole, draw))
        found: list[object] = []
        code, line = outcome(lambda found=found: found.append(read()))
        assert code in (0, 2) and "\n" not in line, (seed, line)
        refused += code == 2
        if found and same is not None and data != whole:
            assert same(found[0], expected), f"seed {seed}: damage was taken for data"
    file.write_bytes(whole)
    assert refused >= least


FILES = 10 * LONG or 300


def equal_arrays(a: object, b: object) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a[4] == b[4]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, save):
    draw = np.random.default_rng(0)
    arrays = {
        **{
            f"x_{s}": draw.integers(0, 256, (n, 6, 6), np.uint8)
            for s, n in (("train", 30), ("test", 9))
        },
        **{f"y_{s}": np.arange(n) % 3 for s, n in (("train", 30), ("test", 9))},
    }
    save(tmp_path / "own.npz", **{key: arrays[key] for key in KEYS})
    attack(
        tmp_path / "own.npz",
        lambda: load("npz", tmp_path, tmp_path / "own.npz"),
        equal_arrays,
        FILES,
    )


def test_damaged_copy_of_a_data_set_is_made_again(data_root, tmp_path):
    whole = (data_root / "digits.npz") if (data_root / "digits.npz").exists() else None
    load("digits", tmp_path, None)
    file = tmp_path / "digits.npz"
    data, expected = file.read_bytes(), load("digits", tmp_path, None)
    assert whole is None or whole.read_bytes() == data
    again = 0
    for seed in range(FILES // 10):
        told: list[str] = []
        file.write_bytes(damaged(data, random.Random(f"digits {seed}")))
        found: list[object] = []
        code, line = outcome(
            lambda found=found, told=told: found.append(load("digits", tmp_path, None, told.append))
        )
        # Refused is what is readable, but something else: it is never overwritten.
        assert code in (0, 2) and "\n" not in line, (seed, line)
        assert all(equal_arrays(arrays, expected) for arrays in found), seed
        if told:
            again += 1
            assert file.read_bytes() == data
    assert again > FILES // 30


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_damaged_images(tmp_path, suffix):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / f"0.{suffix}")
    # Only PNG has checksums, and of its chunks not all are needed.
    attack(
        tmp_path / f"test/dog/0.{suffix}", lambda: load("folder", tmp_path, tmp_path), None, FILES
    )


@pytest.fixture
def run_folder(configure, tmp_path):
    config = configure(
        "benchmark=split_digits", "benchmark.num_tasks=2", "training.iterations=1",
        "model.hidden_sizes=[4]", "verbose=false", "checkpoint.keep=true", "strategy=er",
        "strategy.buffer_size=10",
    )  # fmt: skip
    loop.run(config, tmp_path)
    return config, tmp_path


def test_damaged_tables(run_folder):
    _, out = run_folder
    for name, read in (
        ("accuracy_matrix.csv", lambda: read_matrix(out / "accuracy_matrix.csv")),
        ("summary.csv", lambda: read_runs([str(out)])),
        ("summary.csv", lambda: status.finished(out)),
        ("summary.csv", lambda: verify_runs([str(out)])),
        ("accuracies.csv", lambda: verify_runs([str(out)])),
        ("config.yaml", lambda: verify_runs([str(out)])),
    ):
        attack(out / name, read, None, FILES // 3, least=0)


def test_damaged_checkpoints(run_folder):
    config, out = run_folder

    def same(a: object, b: object) -> bool:
        there, here = checkpoint.to_tensors(a), checkpoint.to_tensors(b)
        equal = all(torch.equal(there[k], here[k]) for k in here)
        return there.keys() == here.keys() and equal and a.counts == b.counts and a.task == b.task

    strategy = strategies.build(config.strategy)
    env = prepare.prepare(config, strategy)
    own = frame_of(config, strategy, initial_state(strategy, env), env)
    file = out / CHECKPOINT
    attack(file, lambda: checkpoint.load(out, config.resolved, own), same, FILES // 3)


def test_damaged_configurations(run_folder):
    config, out = run_folder
    attack(
        out / "config.yaml", lambda: checkpoint.check_run(out, config.resolved), None, FILES // 3
    )
