"""The memory that a run needs is known before it is allocated, and never overestimated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.machine import ram
from cl_runner.machine import ram as free_memory
from cl_runner.nn.networks import factory
from cl_runner.running import loop, needs, pretraining

CL_RUN = Path(sys.executable).with_name("cl-run")
DIGITS = ("benchmark=split_digits", "benchmark.num_tasks=2", "training.batch_size=8")

# A run in a process of its own: what it was estimated to need, and what its peak grew by.
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
MEASURED = """
import json, sys
from pathlib import Path
from hydra import compose, initialize_config_module
from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from cl_runner.running import loop, needs

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    (high,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return high

def run(*overrides):
    with initialize_config_module("cl_runner.conf", **BASE):
        config = validate(compose("config", [*overrides, "verbose=false", "threads=1"]))
    loop.run(config, Path(sys.argv[1]) / str(len(overrides)))

needed = []
require = needs.require
needs.require = lambda parts, free: (needed.append(sum(parts.values())), require(parts, free))
run(*sys.argv[3:], "training.iterations=1", "model.hidden_sizes=[8]")  # imports, caches, threads
before = peak()
run(*sys.argv[3:], *json.loads(sys.argv[2]))
print(json.dumps([needed[-1], peak() - before]))
sys.exit()
"""


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["strategy=ewc", "strategy.fisher_samples=40", "optimizer=adam",
         "model.hidden_sizes=[3000,3000]", "training.iterations=3"],
        ["strategy=naive", "model.hidden_sizes=[4000,3000]", "training.iterations=2"],
        ["strategy=si", "optimizer.momentum=0.9", "model.hidden_sizes=[4000,3000]",
         "training.iterations=2"],
        ["strategy=naive", "training.batch_size=600", "model.hidden_sizes=[50000]",
         "training.iterations=1"],
        ["strategy=pnn", "scenario=task", "model.hidden_sizes=[2000,2000]",
         "training.iterations=2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_estimate_is_below_the_measured_peak_and_near_it(args, data_root, tmp_path, cl_run):
    base = [*DIGITS, f"data.root={data_root}", "device=cpu"]
    result = cl_run(tmp_path, json.dumps(args), *base, before=MEASURED, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    needed, grown = json.loads(result.stdout.splitlines()[-1])
    assert needed <= grown + 2**20, (needed / 1e6, grown / 1e6)
    assert grown <= 3 * needed, (needed / 1e6, grown / 1e6)


@LINUX
@pytest.mark.parametrize(
    "args",
    [
        ("model.hidden_sizes=[100000,100000,100000]", "optimizer=adam"),
        ("strategy=separate", "scenario=task", "model.hidden_sizes=[300000,300000]"),
        ("model=resnet18", "model.width=20000", "benchmark=split_digits"),
        ("model=cnn", "model.channels=[400000,400000]"),
    ],
    ids=" ".join,
)
def test_a_giant_network_is_refused_before_it_is_allocated(prepared, args):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        prepared(*DIGITS, *args)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    pattern = (
        r"not enough memory: at least [\d.e+]+ GB are needed \(.* parameters.*\) and .*B are free: "
    )
    assert re.match(pattern, str(caught.value)), caught.value
    assert "lower model.hidden_sizes" in str(caught.value)


def test_what_a_strategy_keeps_counts(prepared):
    _, _, env = prepared(*DIGITS, "strategy=naive")
    P = len(env.flat.theta)
    for strategy, vectors in (("naive", 0), ("l2", 1), ("ewc", 2)):
        _, own, env = prepared(*DIGITS, f"strategy={strategy}")
        ((what, n),) = needs.of_strategy(own, env).items()
        assert (what, n // (3 * 4 * P)) == (f"strategy={strategy}", vectors)
    for optimizer, slots in (("sgd", 0), ("adam", 2)):
        config, _, env = prepared(*DIGITS, f"optimizer={optimizer}")
        ((what, n),) = needs.of_parameters(config, env.flat.module, env.device).items()
        assert what == f"{P:,} parameters"
        # theta, its gradient, the slots; a checkpoint holds all but the gradient, twice
        assert n // P == 4 * (3 * (1 + slots) + 1)


def test_what_learns_before_the_stream_counts(prepared, monkeypatch):
    """The network and the head, with gradient and two slots, beside the network of the run."""
    ssl = (*DIGITS, "strategy=naive", "model.hidden_sizes=[8]", "training.ssl=masked")
    config, _, env = prepared(*ssl, "ssl.hidden_sizes=[16]")
    P, head = 64 * 8 + 8 + 8 * 10 + 10, (8 + 1) * 16 + (16 + 1) * 64
    assert sum(pretraining.memory(config, env).values()) == 16 * (P + head) + 4 * P
    monkeypatch.setattr(ram, "available", lambda _: 20_000_000)
    with pytest.raises(UserError, match=r"parameters of training.ssl=masked.* are free"):
        prepared(*ssl, "ssl.hidden_sizes=[50000]")
    prepared(*ssl, "ssl.hidden_sizes=[16]")


def test_exactly_enough_is_enough():
    needs.require({"a": 5, "b": 6}, 11)
    needs.require({"a": 5, "b": 6}, None)
    with pytest.raises(UserError, match=r"at least 1\.1e-05 MB are needed"):
        needs.require({"a": 5, "b": 6}, 10)


@pytest.mark.parametrize("strategy", strategies.available())
def test_the_sketch_of_a_network_draws_no_random_number_and_has_its_size(prepared, strategy):
    scenario = strategies.find(strategy).scenarios[0]
    config, own, env = prepared(*DIGITS, f"strategy={strategy}", f"scenario={scenario}")
    before = torch.random.get_rng_state()
    make_net = factory(config.model, env.input_shape, env.num_classes)
    (part,) = needs.of_network(config, own, env, make_net, free=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert part == f"{len(env.flat.theta):,} parameters"


@pytest.mark.slow
def test_an_estimate_imports_nothing_that_is_slow(data_root):
    """Without storage some operations are done by way of sympy."""
    code = """
import sys
from conftest import composed_by_parts  # faster than Hydra
from cl_runner import strategies
from cl_runner.config.parse import validate
from cl_runner.running.prepare import prepare
assert "sympy" not in sys.modules
names = [(name, "mlp") for name in strategies.available()]
for name, model in [*names, ("ewc", "cnn"), ("ewc", "resnet18"), ("ewc", "resnet32")]:
    args = [f"strategy={name}", f"model={model}", f"scenario={strategies.find(name).scenarios[0]}"]
    config = validate(composed_by_parts(*args, "device=cpu", "data.root=" + sys.argv[1]))
    prepare(config, strategies.build(config.strategy))
    assert "sympy" not in sys.modules, args
"""
    command = [sys.executable, "-c", code, data_root]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parent)


# What there is


@pytest.mark.parametrize(
    ("name", "own", "outer", "expected"),
    [
        ("0::/job/step", "1000", "max", 1000 - 600 + 300 + 7),
        ("0::/job/step", "max", "900", 900 - 600 + 300 + 7),
        ("0::/job/step", "1000", "900", 900 - 600 + 300 + 7),
        ("0::/job/step", "max", "max", None),
        ("0::/../elsewhere", "max", "800", None),
        ("4:memory:/job/step", "1000", str(2**63), 1000 - 600 + 300 + 7),
        ("4:cpu:/job/step", "1000", "900", None),
    ],
)
def test_the_limits_of_control_groups(tmp_path, name, own, outer, expected):
    """Version 2 (0::) and version 1; usage 600, of which 300 is page cache; 7 of swap."""
    one = name.startswith("4")
    top = tmp_path / "memory" if one else tmp_path
    for folder, limit in ((top / "job/step", own), (top / "job", outer)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ("memory.limit_in_bytes" if one else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if one else "memory.current")).write_text("600\n")
        key = "total_" if one else ""
        (folder / "memory.stat").write_text(
            f"anon 300\n{key}active_file 100\n{key}inactive_file 200\n"
        )
    (tmp_path / "membership").write_text(f"1:name=systemd:/\n{name}\n")
    assert ram.in_groups(tmp_path, tmp_path / "membership", 7) == expected


def test_a_system_without_control_groups_sets_no_limit(tmp_path):
    assert ram.in_groups(tmp_path, tmp_path / "none", 0) is None


def test_what_is_free_is_the_least_of_machine_groups_and_ulimit(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=7))
    for groups, limit, least in ((None, None, 1007), (900, None, 900), (900, 800, 800)):
        monkeypatch.setattr(free_memory, "in_groups", lambda *_, groups=groups: groups)
        monkeypatch.setattr(free_memory, "address_space", lambda limit=limit: limit)
        assert ram.available(torch.device("cpu")) == least


@LINUX
@pytest.mark.slow
def test_ulimit_is_respected_and_told_in_one_line(data_root, tmp_path):
    """RLIMIT_AS, a limit that a test may set: what fits the machine is refused within it."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, resource.RLIM_INFINITY))

    args = (*DIGITS, "model.hidden_sizes=[15000,15000]", "optimizer=adam", "verbose=false")
    result = subprocess.run(
        [CL_RUN, *args, "threads=1", f"data.root={data_root}", f"hydra.run.dir={tmp_path / 'a'}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    line = r"cl-run: not enough memory: at least .*B for 226,.* parameters,.*B are free: lower.*\n"
    assert re.fullmatch(line, result.stderr), result.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("sizes", ["[4611686018427387904]", "[1099511627776,1099511627776]"])
def test_a_network_whose_size_overflows_is_no_bug(configure, tmp_path, sizes):
    config = configure("benchmark=split_digits", f"model.hidden_sizes={sizes}")
    with pytest.raises(UserError, match=r"not enough memory: lower model\.hidden_sizes"):
        loop.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (ImportError("libgomp.so.1: cannot allocate memory in static TLS block"), False),
        (ValueError("cannot allocate"), False),
    ],
    ids=str,
)
def test_which_errors_say_that_memory_is_exhausted(error, lacks):
    assert (needs.shortage(error) is not None) == lacks
