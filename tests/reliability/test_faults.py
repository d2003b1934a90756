"""Real faults under `cl-run`: one line, exit code 2, and the next run repairs it.

Disks that are full or read-only are small tmpfs mounts in a mount namespace of the test's own, or,
where the system gives no such namespace, a limit on the size of files.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from outcomes import outcome
from PIL import Image

from cl_runner.cli import overview
from cl_runner.results import status
from cl_runner.results.files import read_rows
from cl_runner.results.names import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.unix]

CL_RUN = Path(sys.executable).with_name("cl-run")
TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=150",
    "model.hidden_sizes=[20]",
    "training.iterations=4",
    "training.batch_size=8",
    "strategy=naive",
    "verbose=false",
    "device=cpu",
    "threads=1",
)
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
RAW = [
    f"{split}-{kind}"
    for split in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]


@pytest.fixture
def toy(data_root: Path) -> tuple[str, ...]:
    return (*TOY, f"data.root={data_root}")


def call(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def told(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that the user can mend."""
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"cl-run: .+\n", result.stderr), result.stderr
    return result.stderr


# Disks. `mounted` runs shell lines where `disk` is a tmpfs of 64 KiB, and $RUN is cl-run.


@pytest.fixture
def mounted(tmp_path: Path):
    if call(*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", tmp_path).returncode:
        pytest.skip("this system lets no test mount a file system of its own")
    (tmp_path / "disk").mkdir()

    def function(*lines: str) -> subprocess.CompletedProcess[str]:
        script = "\n".join(["mount -t tmpfs -o size=64k tmpfs disk", *lines])
        environment = os.environ | {"RUN": f"{CL_RUN}"}
        return call(*NAMESPACE, "sh", "-c", script, cwd=tmp_path, env=environment)

    return function


def quoted(args: tuple[str, ...]) -> str:
    return " ".join(f"'{arg}'" for arg in args)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_run_goes_on(
    toy, mounted, cl_run, tmp_path: Path
):
    case = quoted((*toy, "model.hidden_sizes=[60]"))  # one checkpoint fits, two do not
    unbroken = cl_run(*toy, "model.hidden_sizes=[60]", "hydra.run.dir=a", cwd=tmp_path)
    assert unbroken.stderr == ""
    result = mounted(
        f"$RUN {case} hydra.run.dir=disk/a",
        "code=$?; ls -A disk/a > listing; cp -r disk/a stopped",
        "mount -o remount,size=1m disk",
        f"$RUN {case} hydra.run.dir=disk/a resume=true verbose=true || exit 7",
        "cp -r disk/a resumed; exit $code",
    )
    assert "checkpoint.safetensors: No space left on device" in told(result)
    assert "goes on in task 2" in result.stdout
    listing = (tmp_path / "listing").read_text().split()
    assert CHECKPOINT in listing and not any(".part" in name for name in listing)
    assert read_rows(tmp_path / "stopped/summary.csv")[0]["status"] == "failed"
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "a")


@pytest.mark.parametrize("mode", ["run", "sweep", "seeds"])
def test_a_disk_without_any_room_is_one_line(toy, mounted, mode):
    more = {"run": (), "sweep": ("-m", "seed=0,1"), "seeds": ("seeds=[0,1]",)}[mode]
    flags = [f for f in more if f == "-m"]
    where = f"hydra.{'sweep' if mode == 'sweep' else 'run'}.dir=disk/a"
    args = quoted((*flags, *toy, *(f for f in more if f != "-m"), where))
    room = {"run": 64, "sweep": 56, "seeds": 60}[mode]  # the sweep's own multirun.yaml fits
    result = mounted(f"dd if=/dev/zero of=disk/fill bs=1k count={room} status=none", f"$RUN {args}")
    assert "No space left on device" in told(result)


def test_a_read_only_folder_is_one_line(toy, mounted):
    for where in ("disk/new", "disk/old"):
        result = mounted(
            "mkdir disk/old; mount -o remount,ro disk", f"$RUN {quoted(toy)} hydra.run.dir={where}"
        )
        line = told(result)
        assert where in line and "Read-only file system" in line


def test_a_file_that_may_not_grow_is_one_line(toy, cl_run, tmp_path: Path):
    """RLIMIT_FSIZE: the fault of a full disk that needs no mount."""
    where = f"hydra.run.dir={tmp_path / 'a'}"
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (4096, r.RLIM_INFINITY))"
    result = cl_run(*toy, where, before=limit, cwd=tmp_path)
    assert f"cannot write {tmp_path / 'a' / CHECKPOINT}: File too large" in told(result)
    assert read_rows(tmp_path / "a/summary.csv")[0]["status"] == "failed"
    assert not list((tmp_path / "a").glob(".*")) + list((tmp_path / "a").glob(CHECKPOINT))
    assert cl_run(*toy, where, "resume=true", cwd=tmp_path).returncode == 0
    assert read_rows(tmp_path / "a/summary.csv")[0]["status"] == "complete"


def test_a_folder_removed_under_a_run_ends_it_and_under_a_sweep_its_job_only(
    toy, cl_run_started, tmp_path: Path
):
    case = (*toy, "training.iterations=400")
    for args in ((*case, "hydra.run.dir=a"), ("-m", *case, "seed=0,1", "hydra.sweep.dir=a")):
        process = cl_run_started(*args, cwd=tmp_path)
        while not (there := list((tmp_path / "a").rglob(CHECKPOINT))):
            assert process.poll() is None
            time.sleep(0.005)
        shutil.rmtree(there[0].parent)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert re.match(r"cl-run: cannot write .+: No such file or directory\n", stderr), stderr
        assert len(stderr.splitlines()) == (3 if "-m" in args else 1), stderr
    rows = read_rows(tmp_path / "a/summary.csv")
    assert sorted(row["status"] for row in rows) == ["complete", "failed"]


# The console


def printing(args: list[str], stdout: object, cwd: Path, **env: str) -> tuple[int, str]:
    """cl-run with this standard output: its exit code and what it says on standard error."""
    environment = os.environ | {"PYTHONUNBUFFERED": ""} | env
    pipes = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": subprocess.PIPE}
    done = subprocess.run(
        [CL_RUN, *args], cwd=cwd, env=environment, text=True, timeout=300, check=False, **pipes
    )
    return done.returncode, done.stderr


FULL = "cl-run: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("stdout", ["unread", "full", "ascii"])
def test_what_cannot_be_printed_fails_no_run(toy, stdout, tmp_path: Path):
    args = [*toy, "verbose=true", "hydra.run.dir=a"]
    said = ""
    if stdout == "unread":
        reader, writer = os.pipe()
        os.close(reader)
        code, stderr = printing(args, writer, tmp_path)
        os.close(writer)
    elif stdout == "full":
        with Path("/dev/full").open("w") as device:
            code, stderr = printing(args, device, tmp_path)
        said = FULL
    else:
        with (tmp_path / "stdout").open("w") as file:
            code, stderr = printing(args, file, tmp_path, PYTHONIOENCODING="ascii")
        assert "results in" in (tmp_path / "stdout").read_text()
    assert (code, stderr) == (0, said)
    assert [status.state(out) for out in overview.found(tmp_path / "a")] == ["complete"]
    assert {row["status"] for row in read_rows(tmp_path / "a/summary.csv")} == {"complete"}


STDOUT = {
    "unread": "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)",
    "full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "ascii": "sys.stdout.reconfigure(encoding='ascii', errors='strict')",
}


@pytest.mark.parametrize("mode", ["sweep", "seeds"])
@pytest.mark.parametrize("stdout", STDOUT)
def test_what_cannot_be_printed_fails_no_job_of_several(toy, cl_run, mode, stdout, tmp_path: Path):
    sweep = mode == "sweep"
    args = ["-m", *toy, "seed=0,1"] if sweep else [*toy, "seeds=[0,1]"]
    where = f"hydra.{'sweep' if sweep else 'run'}.dir=a"
    before = f"import os, sys\n{STDOUT[stdout]}"
    done = cl_run(*args, "verbose=true", where, before=before, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, FULL if stdout == "full" else "")
    assert ("results in" in done.stdout) == (stdout == "ascii")
    assert [status.state(out) for out in overview.found(tmp_path / "a")] == ["complete"] * 2
    assert {row["status"] for row in read_rows(tmp_path / "a/summary.csv")} == {"complete"}


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_closed_console_fails_nothing(toy, closed, tmp_path: Path):
    args = quoted((*toy, "verbose=true", f"hydra.run.dir={tmp_path / 'a'}"))
    assert call("sh", "-c", f"{CL_RUN} {args} {closed}").returncode == 0
    assert status.state(tmp_path / "a") == "complete"


@pytest.mark.parametrize("command", ["--help", "--version", "status a"])
def test_the_reader_of_what_hydra_prints_may_leave(command, tmp_path: Path):
    status.write(tmp_path / "a", "complete")
    reader, writer = os.pipe()
    os.close(reader)
    assert printing(command.split(), writer, tmp_path) == (0, "")
    os.close(writer)


# Data


def idx(array: np.ndarray) -> bytes:
    """An array in MNIST's file format."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture
def raw() -> dict[str, bytes]:
    """A tiny MNIST: the contents of its files."""
    rng = np.random.default_rng(0)
    labels = [np.arange(n, dtype=np.uint8) % 10 for n in (40, 20)]
    images = [rng.integers(0, 256, (len(y), 28, 28), dtype=np.uint8) for y in labels]
    contents = [images[0], labels[0], images[1], labels[1]]
    return dict(zip(RAW, map(idx, contents), strict=True))


@pytest.fixture
def server(raw: dict[str, bytes]) -> Iterator[SimpleNamespace]:
    """A web server on this machine with tiny MNIST, which hangs up after `limit` bytes."""
    files = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in raw.items()}
    state = SimpleNamespace(limit=None, requests=[])
    state.resources = [(name, hashlib.md5(data).hexdigest()) for name, data in files.items()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            state.requests.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            try:
                self.wfile.write(files[name][: state.limit])
            except OSError:  # torchvision looks for redirects and hangs up
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=web.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{web.server_port}/"
    yield state
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture
def on_mnist(cl_run_started, server: SimpleNamespace, tmp_path: Path) -> Callable[..., Any]:
    """on_mnist(root, "seed=1"): cl-run with the MNIST of the server, its cache in root."""
    elsewhere = f"""
from cl_runner.data.named import _torchvision
mnist = _torchvision().MNIST
mnist.mirrors, mnist.resources = [{server.url!r}], {server.resources!r}
"""
    own = [o for o in TOY if not o.startswith("benchmark")] + ["benchmark=split_mnist"]
    return lambda root, *args: cl_run_started(
        *own, f"data.root={root}", *args, before=elsewhere, cwd=tmp_path, no_proxy="*"
    )


@pytest.mark.slow
def test_a_download_that_is_cut_leaves_nothing_and_the_next_one_succeeds(
    on_mnist, server, tmp_path: Path
):
    data = tmp_path / "data"
    server.limit = 200
    first = on_mnist(data, "hydra.run.dir=a")
    _, stderr = first.communicate()
    assert first.returncode == 2
    assert "its download failed" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".mnist.lock"]
    assert not (tmp_path / "a").exists()

    server.limit, server.requests[:] = None, []
    processes = [on_mnist(data, f"hydra.run.dir={name}") for name in "ab"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(server.requests) == 8  # by one of the two
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"mnist.npz", ".mnist.lock"}


@pytest.mark.slow
def test_damaged_data_are_named_or_made_again(on_mnist, raw, tmp_path: Path):
    """A raw file that was cut is the user's to mend, the copy made of whole ones is not."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, data in raw.items():
        (folder / name).write_bytes(data[:-1] if name == RAW[2] else data)
    result = on_mnist(tmp_path, "hydra.run.dir=a").result()
    assert f"{folder / RAW[2]} is damaged" in told(result)
    assert not (tmp_path / "mnist.npz").exists()
    (folder / RAW[2]).write_bytes(raw[RAW[2]])
    assert on_mnist(tmp_path, "hydra.run.dir=a").wait() == 0

    copy = tmp_path / "mnist.npz"
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2])
    result = on_mnist(tmp_path, "verbose=true", "hydra.run.dir=b").result()
    assert (result.returncode, result.stderr) == (0, "")
    line = f"{copy} is damaged or not an .npz file: it is made again"
    assert result.stdout.splitlines()[0] == line
    assert line in (tmp_path / "b/cl-run.log").read_text()
    assert copy.read_bytes() == whole
    assert read_rows(tmp_path / "b/accuracies.csv") == read_rows(tmp_path / "a/accuracies.csv")


def test_a_damaged_image_is_named(toy, cl_run, tmp_path: Path):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    bad = tmp_path / "test/dog/0.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    own = [o for o in toy if not o.startswith("benchmark")]
    where = (f"data.path={tmp_path}", f"hydra.run.dir={tmp_path / 'out'}")
    result = cl_run(
        *(*own, "benchmark=split_folder", "benchmark.num_tasks=2"), *where, cwd=tmp_path
    )
    assert f"{bad} is damaged" in told(result)
    assert not (tmp_path / "out").exists()
