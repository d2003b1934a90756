"""What Windows does otherwise: the guards one by one, and whole programs that find it so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from cl_runner.machine import locks, ram, reading, systems
from cl_runner.results import status

REPOSITORY = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Windows is emulated by way of /proc")
TINY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=60"),
    *("training.iterations=6", "training.batch_size=8", "model.hidden_sizes=[8]"),
    *("threads=1", "device=cpu", "checkpoint.every_steps=2"),
)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "WINDOWS", True)


def busy(times: int) -> Callable[[Path, Path], Path]:
    """A rename that fails so many times, as on Windows while somebody reads the file."""
    rename, left = Path.replace, iter(range(times))

    def replace(source: Path, target: Path) -> Path:
        if next(left, None) is not None:
            raise PermissionError(13, "Permission denied")
        return rename(source, target)

    return replace


@pytest.mark.usefixtures("windows")
def test_a_file_that_is_read_is_replaced_once_it_is_closed(monkeypatch, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(Path, "replace", busy(2))
    systems.replace(tmp_path / "a", tmp_path / "b")
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("on_windows", [True, False])
def test_a_file_that_is_never_closed_is_an_error(monkeypatch, tmp_path, on_windows):
    monkeypatch.setattr(systems, "WINDOWS", on_windows)
    monkeypatch.setattr(systems, "PATIENCE", 0.02)
    tried: list[Path] = []

    def replace(source: Path, _: Path) -> None:
        tried.append(source)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(PermissionError):
        systems.replace(tmp_path / "a", tmp_path / "b")
    assert (len(tried) > 1) is on_windows


def test_a_pool_has_no_more_processes_than_windows_can_wait_for(monkeypatch):
    assert systems.workers(80) == 80
    monkeypatch.setattr(systems, "WINDOWS", True)
    assert [systems.workers(n) for n in (4, 80)] == [4, 61]


@pytest.mark.usefixtures("windows")
def test_nobody_is_ended_who_could_only_be_asked_elsewhere(monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("on Windows this ends the process"))
    systems.ask_to_stop(os.getpid())


def test_a_process_that_is_gone_need_not_be_asked():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    systems.ask_to_stop(child.pid)


@pytest.mark.parametrize(
    ("on_windows", "number", "done"),
    [
        (False, signal.SIGINT, ["signal 2"]),
        (False, signal.SIGTERM, ["signal 15"]),
        (True, signal.SIGINT, []),
        (True, signal.SIGTERM, ["ended"]),
    ],
)
def test_ctrl_c_is_handed_on_where_the_console_does_not(monkeypatch, on_windows, number, done):
    class Process:
        told: ClassVar[list[str]] = []

        def send_signal(self, number: int) -> None:
            self.told.append(f"signal {int(number)}")

        def terminate(self) -> None:
            self.told.append("ended")

    Process.told = []
    monkeypatch.setattr(systems, "WINDOWS", on_windows)
    systems.hand_on(Process(), number)
    assert Process.told == done


@pytest.mark.parametrize("on_windows", [True, False])
def test_a_thread_stops_the_main_one(monkeypatch, on_windows):
    monkeypatch.setattr(systems, "WINDOWS", on_windows)
    if on_windows:
        monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("that would be the end"))
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        thread = threading.Thread(target=systems.stop_oneself)
        thread.start()
        thread.join()
        time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]


@pytest.mark.usefixtures("heeded")
def test_between_two_runs_a_worker_on_windows_lets_ctrl_c_pass(monkeypatch):
    """It does not ignore it: within a run it is what asks it to save."""
    monkeypatch.setattr(systems, "WINDOWS", True)
    systems.leave_to_the_parent([signal.SIGINT])
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(systems, "WINDOWS", False)
    systems.leave_to_the_parent([signal.SIGINT])
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_lock_is_removed_after_its_release_where_it_cannot_be_before(monkeypatch, tmp_path):
    unlink, held = Path.unlink, []

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == locks.LOCK and not held:
            held.append(path)
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(systems, "WINDOWS", True)
    monkeypatch.setattr(Path, "unlink", refused)
    with locks.locked(tmp_path / "run"):
        assert (tmp_path / "run" / locks.LOCK).exists()
    assert held and not (tmp_path / "run").exists()


def test_a_folder_is_no_regular_file_on_windows_either(monkeypatch, tmp_path):
    def refused(path: Path, *_: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(reading.UserError, match="is no regular file"):
        reading.regular(tmp_path)
    with pytest.raises(PermissionError):
        reading.regular(tmp_path / "file")


def started(folder: Path, *command: object, **env: str) -> subprocess.Popen[str]:
    """A program that finds Windows, in a group of its own."""
    own = {
        "LIKE_WINDOWS": str(folder),
        "PYTHONPATH": str(REPOSITORY / "tests" / "like_windows"),
        "CL_RUNNER_DATA": str(folder / "data"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | own | env,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def ended(folder: Path, *command: object, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of such a program."""
    with started(folder, *command, **env) as process:
        said = process.communicate(timeout=300)
    return (process.returncode, *said)


CHECKS = """
import os
from pathlib import Path
assert hasattr(os, "getuid")
names = {"__name__": "cl_runner.x"}
exec("import os, signal, sys; from pathlib import Path", names)
assert not hasattr(names["os"], "getuid") and not hasattr(names["signal"], "SIGHUP")
assert names["sys"].platform == "win32" and names["sys"].argv == ["-c"]
def refused(what, error, number):
    try:
        exec(what, names)
    except error as caught:
        return caught.errno == number
    return False
try:
    exec("import fcntl", names)
    raise SystemExit("fcntl is there")
except ModuleNotFoundError:
    pass
Path("open").touch()
with open("open") as file:
    assert refused("Path('open').unlink()", PermissionError, 13)
    Path("other").touch()
    assert refused("Path('other').replace('open')", PermissionError, 13)
Path("other").replace("open")
assert refused("os.open('.', os.O_RDONLY)", PermissionError, 13)
assert refused("Path('/proc/self/status').read_text()", FileNotFoundError, 2)
for name in ("a:b", "nul.csv", "ends.", "a?"):
    assert refused(f"Path('{name}').touch()", OSError, 22), name
    assert refused(f"Path('{name}').mkdir()", OSError, 22), name
assert refused(f"Path('{200 * 'x'}').touch()", FileNotFoundError, 2)
"""


@LINUX
def test_what_stands_for_windows_refuses_what_windows_does(tmp_path):
    assert ended(tmp_path, "-c", CHECKS) == (0, "", "")


@LINUX
@pytest.mark.slow
def test_every_module_is_imported_without_the_names_of_unix(tmp_path):
    files = [p for n in ("cl_runner", "hydra_plugins") for p in (REPOSITORY / n).rglob("*.py")]
    names = {".".join(p.relative_to(REPOSITORY).with_suffix("").parts) for p in files}
    modules = sorted(name.removesuffix(".__init__") for name in names if "__main__" not in name)
    lines = [
        *(f"import {name}" for name in modules),
        "import torch",
        "from cl_runner.machine import cores_and_gpus, ram, signals, systems",
        "assert systems.WINDOWS",
        "with signals.stoppable() as stop: assert stop.asked is None",
        "assert signals.PREEMPTION is None and len(signals.NUMBERS) == 3",
        "cpu = torch.device('cpu')",
        "assert ram.available(cpu) > 0 and ram.peak_memory(cpu) > 2**20",
        "assert ram.address_space() is None",
        "assert cores_and_gpus.cores() > 0 and cores_and_gpus.lock_folder().is_dir()",
    ]
    assert len(modules) > 100
    assert ended(tmp_path, "-c", "\n".join(lines)) == (0, "", "")


@LINUX
@pytest.mark.slow
def test_a_sweep_is_interrupted_resumed_and_compared(tmp_path):
    sweep = ("-m", "cl_runner", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep")
    code, _, stderr = ended(tmp_path, *sweep, LIKE_WINDOWS_CTRL_C="checkpoint.safetensors")
    where = f"hydra.sweep.dir={tmp_path}/sweep"
    hint = f"cl-run: interrupted; to go on: the same command with {where} resume=true\n"
    assert (code, stderr) == (130, hint)
    states = [status.state(out) for out in status.found(tmp_path / "sweep")]
    assert sorted(states) == ["interrupted", "missing"]
    code, stdout, stderr = ended(tmp_path, *sweep, "resume=true")
    assert (code, stderr) == (0, "")
    (log,) = tmp_path.glob("sweep/seed=0*/cl-run.log")
    assert "goes on in task 1 after step " in log.read_text(encoding="utf-8")
    assert "2 runs · results in sweep/summary.csv" in stdout
    compare = ("-m", "cl_runner.comparing", "sweep", "--html", "page.html")
    code, stdout, stderr = ended(tmp_path, *compare)
    assert (code, stderr) == (0, "written to comparison.csv\nreport in page.html\n")
    assert not list(tmp_path.rglob(locks.LOCK))
    assert not list(tmp_path.rglob("*.part"))


@LINUX
@pytest.mark.slow
def test_ctrl_c_reaches_the_workers_by_itself_and_they_save(tmp_path):
    large = ("model.hidden_sizes=[400,400]", "training.iterations=100000", "checkpoint.every=null")
    many = ("strategy=naive", *TINY, *large, "seeds=[0,1]", "hydra.run.dir=run")
    with started(tmp_path, "-m", "cl_runner", *many) as process:
        while len(list(tmp_path.glob("run/*/accuracy_matrix.csv"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as the console does
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == f"cl-run: interrupted; to go on: cl-run resume={tmp_path}/run\n"
    seen = {status.state(out) for out in status.found(tmp_path / "run")}
    assert "interrupted" in seen and seen <= {
        "interrupted",
        "killed",
    }  # the latter for want of cores


def test_what_the_memory_took_at_most_is_told_by_windows_itself(monkeypatch, tmp_path):
    import psutil
    import torch

    class Process:
        def memory_info(self) -> object:
            return type("Info", (), {"peak_wset": 12345})()

    monkeypatch.setattr(ram, "STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil, "Process", Process)
    assert ram.peak_memory(torch.device("cpu")) == 12345


@pytest.mark.parametrize(("platform", "bytes_"), [("darwin", 7), ("freebsd", 7 * 1024)])
def test_what_the_memory_took_at_most_is_in_bytes_on_macos(monkeypatch, tmp_path, platform, bytes_):
    import resource

    import torch

    monkeypatch.setattr(ram, "STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", platform)
    usage = type("Usage", (), {"ru_maxrss": 7})()
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert ram.peak_memory(torch.device("cpu")) == bytes_
