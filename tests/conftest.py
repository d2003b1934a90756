"""Streams and configurations that many tests share. Nothing here needs a network or a download."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_runner.cli.search_path import share_the_store
from cl_runner.config.parse import validate
from cl_runner.config.schema import Config
from cl_runner.config.versions import BASE
from cl_runner.config.weights import WEIGHTS
from cl_runner.core import Batch, TrainState, Window
from cl_runner.machine.signals import OF_TERMINALS
from cl_runner.running.evaluation import evaluate
from cl_runner.running.prepare import prepare, strategy_of
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.base import Strategy
from cl_runner.training.batches import Source
from cl_runner.training.env import Env

gc.disable()  # until all tests are there
REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"
# Linux only: elsewhere each process begins from nothing (`Spawned`).
# It forks for each line that begins a process, and the child does what the line says. Processes
# that the child spawns, as multiprocessing and joblib do it, are forked likewise: all is sent to
# them as if they were new, but what is imported here is there, and Hydra's grammars are warm.
NURSERY = """
import gc, json, logging, multiprocessing.util, os, pickle, runpy, signal, sys
gc.disable()  # as cl-run does
sys.path[:] = filter(None, sys.path)  # the current folder is where nobody looks for packages
from cl_runner.cli.app import main
from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins import importlib_resources_config_source as sources
from hydra.core.plugins import Plugins
{more}
parsed, load = {{}}, sources.ImportlibResourcesConfigSource.load_config

def loaded(self, config_path):  # of a package's files, which no test changes, each is parsed once
    key = self.path, config_path
    if key not in parsed:
        parsed[key] = pickle.dumps(load(self, config_path))
    return pickle.loads(parsed[key])

sources.ImportlibResourcesConfigSource.load_config = loaded
Plugins.instance()  # looks for them in all packages, once
with initialize_config_module("cl_runner.conf", **BASE):
    validate(compose("config", ["benchmark=split_digits"]))
os.fsync = lambda _: None  # what is written outlives no power cut
gc.freeze()

def as_new(keep):
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in {{*map(int, os.listdir("/dev/fd"))}} - {{0, 1, 2, *keep}}:
        os.dup2(nothing, number)  # not closed: their owners, which are here as well, will do it
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.root.handlers.clear()
    sys.stdin, sys.stdout, sys.stderr = (open(i, m, closefd=False) for i, m in enumerate("rww"))

def spawned(path, args, keep, env=None):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        as_new(keep)
        os.environ.update(env or {{}})
        args = [*map(os.fsdecode, args)]
        at = next(i for i, arg in enumerate(args) if arg in ("-c", "-m"))
        sys.argv = [args[at], *args[at + 2 :]]
        if args[at] == "-c":
            exec(args[at + 1], {{"__name__": "__main__"}})
        else:
            sys.modules.pop(args[at + 1], None)
            runpy.run_module(args[at + 1], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # it is closed
            pass
        finally:
            os._exit(code)

multiprocessing.util.spawnv_passfds = spawned
if joblib := sys.modules.get("joblib.externals.loky.backend.fork_exec"):
    joblib.fork_exec = lambda args, keep, env=None: spawned(args[0], args, keep, env)
for line in sys.stdin:
    order, *rest = json.loads(line)
    if order != "start":
        pid, status = os.waitpid(rest[0], os.WNOHANG if order == "poll" else 0)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    code, args, cwd, env, streams = rest
    child = os.fork()
    if not child:
        signal.alarm(300)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal's
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.setsid()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number, path in enumerate(streams):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ["cl-run", *args]
        exec(code)
        sys.exit()
    print(child, flush=True)
"""
FORKS = sys.platform == "linux"  # macOS has os.fork, which its own libraries do not survive
SHARED_DATA = REPOSITORY.parent / "shared" / "data" / "prepare"


def pytest_collection_finish() -> None:
    """From here on a search for cyclic garbage leaves out what lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 1000)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that no worker is alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name != "test_mnist.py")
    if sys.platform == "win32":
        skipped = pytest.mark.skip(reason="needs what Windows has not")
        for item in items:
            if "unix" in item.keywords:
                item.add_marker(skipped)


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals of terminals are not ignored, as they are below nohup or in a script's background."""
    before = {number: signal.getsignal(number) for number in OF_TERMINALS}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and parallel tests lose by them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes in its own process outlives no power cut; see the fixture `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _yaml_is_read_once() -> Iterator[None]:
    """A file of the package's conf/ is parsed once for all that Hydra composes in this process."""
    parsed: dict[tuple[str, str], bytes] = {}
    load = ImportlibResourcesConfigSource.load_config

    def loaded(self: ImportlibResourcesConfigSource, config_path: str) -> ConfigResult:
        key = (self.path, config_path)
        if key not in parsed:
            parsed[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImportlibResourcesConfigSource, "load_config", loaded)
        yield


@pytest.fixture(autouse=True, scope="session")
def _store_is_not_copied() -> None:
    """As `cl-run` does it."""
    share_the_store()


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the embedded digits."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the session, which all of its processes have."""
    base = tmp_path_factory.getbasetemp()  # of this process; its parent is all workers'
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def real_data(shared_folder: Path) -> Path:
    """A cache folder with real MNIST and CIFAR-10, where the copies lie beside the checkout."""
    if not SHARED_DATA.exists():
        pytest.skip("real MNIST is not here: there is no shared/data beside the checkout")
    root = shared_folder / "real"
    with FileLock(f"{root}.lock"):  # they run one after another, and what is there is not made anew
        subprocess.run([sys.executable, SHARED_DATA, root], check=True, capture_output=True)
    return root


@pytest.fixture
def _pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has what experiments start from by `model.weights=pretrained/SEED`."""
    for seed in (0, 4, 5):
        (tmp_path / f"pretrained/{seed}").mkdir(parents=True)
        (tmp_path / f"pretrained/{seed}" / WEIGHTS).touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk from now on, in order; "folder" is tmp_path."""
    if sys.platform != "linux":
        pytest.skip("which file is flushed is read from /proc")
    done: list[str] = []
    fsync, rename, remove = os.fsync, Path.replace, Path.unlink

    def name(path: Path) -> str:
        return "folder" if path == tmp_path else path.name.replace(f".{os.getpid()}.", ".")

    def flush(number: int) -> None:
        done.append(f"flush {name(Path(f'/proc/self/fd/{number}').readlink())}")
        fsync(number)

    def replace(path: Path, target: Path) -> Path:
        done.append(f"rename {name(target)}")
        return rename(path, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        there = path.exists()
        remove(path, missing_ok)
        if there:
            done.append(f"remove {name(path)}")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    return done


SHARED: list[Path] = []  # a folder of the session, where processes leave what they have composed


@pytest.fixture(autouse=True, scope="session")
def _composed_once(shared_folder: Path) -> Iterator[None]:
    """What Hydra has composed in one process of the session is there for the others."""
    SHARED.append(shared_folder / "composed")
    SHARED[0].mkdir(exist_ok=True)
    yield
    SHARED.clear()


@cache
def composed(*overrides: str) -> bytes:
    """What Hydra makes of these overrides, pickled: it is copied faster so."""
    name = hashlib.sha256(repr(overrides).encode()).hexdigest()
    kept = SHARED[0] / name if SHARED else None
    if kept and kept.exists():
        return kept.read_bytes()
    with initialize_config_module("cl_runner.conf", **BASE):
        made = pickle.dumps(compose("config", list(overrides)))
    if kept:
        begun = kept.with_name(f"{name}.{os.getpid()}")
        begun.write_bytes(made)
        os.rename(begun, kept)  # noqa: PTH104 - tests watch Path's own
    return made


class Part(NamedTuple):
    """A plain override: KEY=VALUE, or GROUP=FILE."""

    key: str
    value: bytes  # pickled
    group: bool


@cache
def part(override: str) -> Part | None:
    """None of what is not plain: it adds a key, removes one, or makes no sense."""
    parsed = OverridesParser.create().parse_override(override)
    key, group = parsed.key_or_group, (CONF / parsed.key_or_group).is_dir()
    if parsed.type != OverrideType.CHANGE or parsed.is_sweep_override():
        return None
    file = CONF / key / f"{parsed.value()}.yaml"
    if group and (not file.exists() or re.search("(?m)^defaults:|@package", file.read_text())):
        return None
    return Part(key, pickle.dumps(OmegaConf.load(file) if group else parsed.value()), group)


def composed_by_parts(*overrides: str) -> DictConfig:
    """The same, faster: Hydra puts files together once for all tests, then values are set.

    The files of groups are put in their places likewise, unless there is something for Hydra.
    """
    parts = [(override, part(override)) for override in overrides]
    alone = all(own for _, own in parts)
    late = [own for _, own in parts if own and (alone or not own.group)]
    files = [override for override, own in parts if own not in late]
    node = pickle.loads(composed(*files))
    try:
        for own in sorted(late, key=lambda own: not own.group):
            OmegaConf.update(node, own.key, pickle.loads(own.value), merge=not own.group)
    except OmegaConfBaseException:
        return pickle.loads(composed(*overrides))  # which says it in Hydra's words
    return node


@cache
def validated(*overrides: str) -> Config:
    """The typed configuration of these overrides, checked once for all tests."""
    return validate(composed_by_parts(*overrides))


@pytest.fixture(scope="session")
def composed_in_parts():
    """composed_in_parts("strategy=er", ...) -> DictConfig, not yet validated."""
    return composed_by_parts


@pytest.fixture(scope="session")
def configure(data_root: Path):
    """configure("strategy=er", ...) -> Config, as the command line composes it."""

    def function(*overrides: str, root: Path = data_root) -> Config:
        return deepcopy(validated(f"data.root={root}", "device=cpu", "threads=1", *overrides))

    return function


@pytest.fixture(scope="session")
def prepared(configure):
    """prepared("strategy=er", ...) -> (config, strategy, env), ready to train."""

    def function(*overrides: str, **keys: Path) -> tuple[Config, Strategy, Env]:
        config = configure(*overrides, **keys)
        strategy = strategy_of(config)
        return config, strategy, prepare(config, strategy)

    return function


@pytest.fixture
def mid_run(prepared):
    """mid_run(..., tasks=2) -> (strategy, env, state after 2 tasks, the batches of the next)."""

    def function(*overrides: str, tasks: int) -> tuple[Strategy, Env, TrainState, list[Batch]]:
        config, strategy, env = prepared(*overrides)
        s = initial_state(strategy, env)
        for task in env.stream[:tasks]:
            s = train_task(strategy, s, task, env)
        s = s._replace(t=torch.full_like(s.t, tasks))
        source = Source(env, s, tasks, env.stream[tasks].train, tasks, strategy)
        steps = -(-len(env.stream[tasks].train) // config.training.batch_size)
        return strategy, env, s, list(source.epoch(0, steps))

    return function


@pytest.fixture
def after_each_task(prepared):
    """after_each_task(...) -> (env, the states after each task, copied, and R[1:] of the run)."""

    def function(*overrides: str) -> tuple[Env, list[TrainState], list[list[float]]]:
        config, strategy, env = prepared(*overrides)
        s = initial_state(strategy, env)
        states, rows = [], []
        for task in env.stream:
            s = train_task(strategy, s, task, env)
            rows.append(evaluate(strategy, s, env)["test", config.scenario])
            states.append(s._replace(theta=s.theta.detach().clone()))
        return env, states, rows

    return function


@pytest.fixture
def counted_run(prepared):
    """counted_run(..., tasks=5) -> (strategy, state, env, (steps, samples) of each task)."""

    def function(
        *overrides: str, tasks: int = 5
    ) -> tuple[Strategy, TrainState, Env, list[tuple[int, int]]]:
        _, strategy, env = prepared(*overrides)
        s = initial_state(strategy, env)
        counts = []
        for task in env.stream[:tasks]:
            steps, samples = env.meter.steps, env.meter.samples
            s = train_task(strategy, s, task, env)
            counts.append((env.meter.steps - steps, env.meter.samples - samples))
        return strategy, s, env, counts

    return function


@pytest.fixture
def traced_once(monkeypatch):
    """In a test of one configuration: stacks that go on take the graph that was traced at first.

    A graph is made of the members' numbers alone, which are its inputs, and of their shapes.
    """
    graphs: dict[object, Callable[..., list[torch.Tensor]]] = {}
    trace = StackedStep.trace

    def function(self: StackedStep, own: list[torch.Tensor], spec: object) -> object:
        key = (repr(self.member.strategy), spec, *(v.shape for v in (*self.like, *own)))
        if key not in graphs:
            graphs[key] = trace(self, own, spec)
        return graphs[key]

    monkeypatch.setattr(StackedStep, "trace", function)


class Forked:
    """A process of a nursery, with what subprocess.Popen has."""

    def __init__(self, ask: Callable[..., int | None], streams: list[Path], *order: object) -> None:
        self.ask, self.streams, self.args = ask, streams, order[1]
        for path in streams:
            path.write_text("")
        self.pid = ask("start", *order, [os.devnull, *map(str, streams)])
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Its exit code; at the latest an alarm ends it."""
        if timeout >= 300 and self.returncode is None:
            self.returncode = self.ask("wait", self.pid)
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise TimeoutExpired(str(self.args), timeout)
            time.sleep(0.005)
        return self.returncode

    def said(self) -> tuple[str, str]:
        """What is on its standard output and error so far."""
        out, err = (path.read_text(encoding="utf-8") for path in self.streams)
        return out, err

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def result(self) -> CompletedProcess[str]:
        """What has become of it, once it has ended."""
        exit_code = self.wait()
        return CompletedProcess(self.args, exit_code, *self.said())

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Spawned(Forked):
    """The same, begun from nothing, for systems that cannot fork or had better not."""

    def __init__(
        self, streams: list[Path], code: str, args: list[str], cwd: str, env: dict[str, str]
    ) -> None:
        self.streams, self.args, self.returncode = streams, args, None
        whole = f"import sys\nfrom cl_runner.cli.app import main\nsys.argv[0] = 'cl-run'\n{code}"
        with streams[0].open("wb") as out, streams[1].open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", whole, *args],
                cwd=cwd,
                env=env | {"PYTHONIOENCODING": "utf-8"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self.pid = self.process.pid

    def poll(self) -> int | None:
        self.returncode = self.process.poll()
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        self.returncode = self.process.wait(timeout)
        return self.returncode

    def kill(self) -> None:
        self.process.kill()


@contextmanager
def nursery(folder: Path, more: str = "") -> Iterator[Callable[..., Forked]]:
    """A function that forks a process in which `cl-run`, and `more`, is imported already."""
    count = iter(range(10**9))

    def ask(*order: object) -> int | None:
        print(json.dumps(order), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    def start(code: str, *args: object, cwd: Path, **env: str) -> Forked:
        streams = [folder / f"{next(count)} {name}" for name in ("stdout", "stderr")]
        order = code, [*map(str, args)], str(cwd), os.environ | env
        return Forked(ask, streams, *order) if FORKS else Spawned(streams, *order)

    if not FORKS:
        yield start
        return
    command = [sys.executable, "-c", NURSERY.format(more=more)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield start


@pytest.fixture(scope="session")
def forked_started(tmp_path_factory):
    """forked_started(code, "seed=1", cwd=..., KEY="value"): a process at work that runs this code.

    Its standard input is empty. What `cl-run` imports at once is there, torch is not.
    """
    with nursery(tmp_path_factory.mktemp("forked")) as start:
        yield start


@pytest.fixture(scope="session")
def forked(forked_started):
    """The same, waited for: what the process does."""
    return lambda *args, **rest: forked_started(*args, **rest).result()


@pytest.fixture(scope="session")
def cl_run_started(tmp_path_factory):
    """cl_run_started("seed=1", cwd=..., KEY="value"): the command, at work, without its imports.

    before: code that the process runs first. test_commands.py starts the installed one, and so do
    the tests of what a process has from its very beginning.
    """
    late = (
        *(
            "cl_runner.sweeping.dispatch",
            "cl_runner.running.loop",
            "torch.fx.experimental.symbolic_shapes",
        ),
        *("cl_runner.comparing.render", "cl_runner.comparing.table", "cl_runner.comparing.verdict"),
        *("filelock", "psutil", "safetensors.torch", "scipy.special"),
    )
    if find_spec("joblib"):
        late += ("joblib.externals.loky.backend.fork_exec",)
    more = f"import {', '.join(late)}\nfrom cl_runner.data.named import _torchvision as r; r()"
    with nursery(tmp_path_factory.mktemp("cl_run"), more) as start:
        yield lambda *args, before="", **rest: start(f"{before}\nmain()", *args, **rest)


@pytest.fixture(scope="session")
def cl_run(cl_run_started):
    """The same, waited for: what the command does."""
    return lambda *args, **rest: cl_run_started(*args, **rest).result()


@pytest.fixture
def replanned():
    """replanned(strategy, s, batch, env): the batch, with what is planned for it in that state."""

    def function(strategy: Strategy, s: TrainState, batch: Batch, env: Env) -> Batch:
        noise = {name: values[None] for name, values in batch.noise.items()}
        window = Window(batch.y[None], batch.task[None], batch.index[None], noise)
        plan, _ = strategy.plan(s.memory, s.t, window, env)
        return batch._replace(plan={name: values[0] for name, values in plan.items()})

    return function


@pytest.fixture
def holding():
    """holding(s, 3): the state with a buffer that holds the first three of its samples only."""

    def function(s: TrainState, number: int) -> TrainState:
        index = s.memory["buffer_index"].clone()
        index[number:] = -1
        return s._replace(memory=s.memory | {"buffer_index": index})

    return function
