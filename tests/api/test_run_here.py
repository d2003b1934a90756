"""`cl.run`: what the command does, in a process that stays as it was."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.version import VersionBase

import cl_runner as cl
from cl_runner.cli.in_process import OF_HYDRA
from cl_runner.config.versions import NEW
from cl_runner.machine.signals import Interrupted
from cl_runner.strategies.base import Strategy

MATRIX = "accuracy_matrix.csv"


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = (
        "import sys, cl_runner as cl\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'hydra', 'numpy', 'scipy', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert set(cl.__all__) <= set(dir(cl))\n"
        "assert cl.UserError.__module__ == 'cl_runner.errors'\n"
        "assert not heavy & set(sys.modules)\n"
        "assert callable(cl.run)\n"
        "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert all(getattr(cl, name) is not None for name in cl.__all__)\n"
        "assert 'torch' not in sys.modules\n"
        "import cl_runner.version\n"
        "assert cl.__version__ == cl_runner.version.__version__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        cl.runs  # noqa: B018


def test_a_run_is_what_the_command_makes(small, cl_run, tmp_path, capsys):
    """The same bytes; the network is kept besides, in a folder of the caller's choice."""
    args = (*small, "strategy=er", "strategy.buffer_size=20", "seed=3")
    told = cl_run(*args, "hydra.run.dir=there", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    out = tmp_path / "it's here, [a=b]"
    run = cl.run(*small, strategy="er", strategy__buffer_size=20, seed=np.int64(3), out=out)
    assert run.folder == out and run.status == "complete"
    for name in (MATRIX, "accuracies.csv"):
        assert (out / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert run.summary.config_hash == cl.load_runs(tmp_path / "there")[0].summary.config_hash
    assert (out / "weights.safetensors").exists()
    assert not (tmp_path / "there/weights.safetensors").exists()
    assert "task 1: classes" in (out / "cl-run.log").read_text()
    assert capsys.readouterr() == ("", "")


def test_the_folder_is_the_commands_own_choice(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = "checkpoint.keep=false"
    first, second = (cl.run(*small, "strategy=naive", kept, seed=1) for _ in range(2))
    assert first.folder != second.folder
    assert first.folder.parent.parent == tmp_path / "outputs"
    assert "strategy=naive" in first.folder.name and "keep" not in first.folder.name
    assert not (first.folder / "weights.safetensors").exists()
    assert (first.folder / MATRIX).read_bytes() == (second.folder / MATRIX).read_bytes()


def state_of_the_process() -> list[object]:
    root, own = logging.getLogger(), logging.getLogger("cl_runner")
    return [
        {kind: Singleton._instances.get(kind) for kind in OF_HYDRA},
        *(root.handlers[:], root.level, own.handlers[:], own.level, own.propagate, own.disabled),
        logging.root.manager.disable,
        {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        *(sys.argv[:], random.getstate(), torch.get_rng_state().tolist()),
        *(np.random.get_state()[1].tolist(), np.random.get_state()[2]),  # noqa: NPY002
        *(torch.get_num_threads(), torch.get_float32_matmul_precision()),
        torch.are_deterministic_algorithms_enabled(),
    ]


OTHER = {} if NEW else {"version_base": "1.2"}  # than ours


def test_the_process_is_as_it_was(small, tmp_path):
    """Also one that uses Hydra itself; and after a run, and after a mistake."""
    torch.set_float32_matmul_precision("high")
    try:
        with initialize_config_module("cl_runner.conf", job_name="mine", **OTHER):
            before = state_of_the_process()
            cl.run(*small, "strategy=naive", out=tmp_path / "run")
            assert state_of_the_process() == before
            with pytest.raises(cl.UserError):
                cl.run(*small, strategy="naiv")
            with pytest.raises(cl.Diverged):
                cl.run(*small, strategy="naive", optimizer__lr=1e30, out=tmp_path / "diverged")
            assert state_of_the_process() == before
            assert GlobalHydra.instance().is_initialized()
            assert NEW or VersionBase.instance().getbase().minor == 2
            assert HydraConfig not in Singleton._instances or HydraConfig.instance().cfg is None
    finally:
        torch.set_float32_matmul_precision("highest")
    assert cl.load_runs(tmp_path / "diverged")[0].status == "failed"


def test_the_callers_log_gets_what_it_asked_for(small, tmp_path, caplog):
    """What the run says about itself is in its file; a warning goes to both."""
    seen = []

    class Told(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())
            logging.getLogger("cl_runner.mine").warning("careful") if len(seen) < 1 else None

    handler = Told()
    logging.getLogger().addHandler(handler)
    try:
        cl.run(*small, strategy="naive", out=tmp_path / "quiet")
        assert seen == []
        with caplog.at_level(logging.INFO):
            cl.run(*small, strategy="naive", out=tmp_path / "told")
        assert any("task 1" in text for text in seen)
    finally:
        logging.getLogger().removeHandler(handler)
    files = [(tmp_path / name / "cl-run.log").read_text() for name in ("quiet", "told")]
    assert all("task 2: classes" in text for text in files)


@pytest.mark.parametrize(
    "args",
    [
        ["strategy=ewcc"],
        ["training.epoch=3"],
        ["seed=many"],
        ["training.epochs=[2"],
        ["optimizer.lr=-1"],
        ["strategy=ewc,", "er"],
        ["strategy=nearest", "plugins=[no_such_package]"],
        ["resume=nowhere"],
    ],
)
def test_a_mistake_is_the_commands_own_line(args, cl_run, tmp_path, monkeypatch):
    """And it leaves nothing behind."""
    told = cl_run(*args, cwd=tmp_path)
    assert told.returncode == 2
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cl.UserError) as caught:
        cl.run(*args)
    assert f"cl-run: {caught.value}\n" == told.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "keys", "line"),
    [
        (["strategy=ewc,er"], {}, "strategy=ewc,er is several values: a sweep, .*cl.sweep"),
        ([], {"seed": [0, 1]}, "seed must be int, got .*cl.sweep"),
        ([], {"seeds": [0, 1]}, "are several runs: write cl.sweep"),
        (["seeds=[0,1]"], {}, "are several runs: write cl.sweep"),
        (["-m"], {}, "-m is a flag of the command"),
        ([3], {}, "write settings as text or as keywords, not 3"),
        (
            [],
            {"training.epochs": 2},
            "write training__epochs=..., or the text 'training.epochs=...'",
        ),
        ([], {"training__epochs": object()}, "training.epochs must be None, bool, a number"),
        (["hydra.run.dir=a"], {"out": "b"}, "out=b and hydra.run.dir=a: keep one"),
        ([], {"out": "${oc.env:HOME}"}, "for its own"),
        ([], {"resume": True}, "resume=True needs out=FOLDER"),
        ([], {"resume": "a", "out": "b"}, "resume=a goes on in that folder"),
    ],
)
def test_what_only_python_can_get_wrong(args, keys, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cl.UserError, match=line):
        cl.run(*args, **keys)


def test_a_folder_that_holds_a_run_is_not_written_to(small, four):
    with pytest.raises(cl.UserError, match=r"already holds .*resume=true goes on"):
        cl.run(*small, strategy="naive", out=four / "naive0")
    again = cl.run(*small, strategy="naive", seed=0, out=four / "naive0", resume=True)
    assert again.status == "complete"


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_leaves_a_run_that_goes_on(small, four, tmp_path, monkeypatch, capsys):
    """In the middle of the second task; it ends with the bytes of the run that was not stopped."""
    args = {"strategy": "naive", "seed": 0, "out": tmp_path / "run"}
    steps = []
    step = Strategy.step

    def interrupted(self, *rest):
        steps.append(1)
        if len(steps) == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self, *rest)

    before = state_of_the_process()
    with monkeypatch.context() as patch:
        patch.setattr(Strategy, "step", interrupted)
        with pytest.raises(Interrupted):
            cl.run(*small, **args)
    assert state_of_the_process() == before
    assert f"to go on: cl.run(resume='{args['out']}')" in capsys.readouterr().err
    (left,) = cl.load_runs(args["out"])
    assert left.status == "interrupted" and len(steps) == 6
    for more in ({"resume": True, **args}, {"resume": args["out"]}):
        whole = cl.run(*(small if "out" in more else ()), **more)
        assert whole.status == "complete"
        assert (whole.folder / MATRIX).read_bytes() == (four / "naive0" / MATRIX).read_bytes()


def test_pictures_of_a_run_leave_matplotlib_as_it_is(small, tmp_path):
    mpl = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    before = mpl.get_backend()
    mpl.use("svg")
    try:
        cl.run(*small, strategy="naive", plots=True, out=tmp_path / "run")
        assert mpl.get_backend() == "svg" and mpl.rcParams["font.size"] == 10
    finally:
        mpl.use(before)
    assert list((tmp_path / "run/pictures").glob("*.png"))


def test_outside_the_main_thread_no_signal_is_touched(small, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a handler was set"))
    found = []
    thread = threading.Thread(
        target=lambda: found.append(cl.run(*small, strategy="naive", out=tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert found[0].status == "complete"


def test_packages_of_the_callers_own(small, tmp_path, monkeypatch):
    package = tmp_path / "lib_of_mine"
    (package / "conf/strategy").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "plain.py").write_text(
        "from dataclasses import dataclass\n"
        "from cl_runner.strategies.base import Strategy\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Plain(Strategy):\n"
        '    """Naive under another name."""\n\n'
        '    name: str = "plain"\n'
    )
    (package / "conf/strategy/plain.yaml").write_text("name: plain\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        run = cl.run(*small, strategy="plain", plugins=["lib_of_mine"], out=tmp_path / "run")
    finally:
        for name in [m for m in sys.modules if m.partition(".")[0] == "lib_of_mine"]:
            del sys.modules[name]
    assert run.summary.strategy == "plain"


def test_a_bug_has_its_own_traceback(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Strategy, "step", lambda *_: 1 / 0)
    with pytest.raises(Exception, match=r"a bug in cl_runner.*ZeroDivisionError") as caught:
        cl.run(*small, strategy="naive", out=tmp_path / "run")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert cl.load_runs(tmp_path / "run")[0].status == "failed"
