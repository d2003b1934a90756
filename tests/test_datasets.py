"""Data sets: the decoded copy, torchvision's files, downloads from a local server, own data."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock  # noqa: F401  (imported before `read_only` changes the user)
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from cl_runner.data import datasets
from cl_runner.data.datasets import Arrays, load
from cl_runner.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
PREPARE = REPOSITORY.parent / "shared" / "data" / "prepare"
RAW = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte") + (
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
Decoded = dict[str, NDArray[Any]]


def fails(dataset: str, root: Path, path: Path | None = None) -> str:
    """The message of the UserError that load raises; always one line."""
    with pytest.raises(UserError) as caught:
        load(dataset, root, path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def sample(*shape: int, classes: int = 10, n: int = 20, m: int = 10) -> Decoded:
    """Random images of the given shape, labels 0 .. classes - 1."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_train": np.arange(n, dtype=np.uint8) % classes,
        "x_test": rng.integers(0, 256, (m, *shape), dtype=np.uint8),
        "y_test": np.arange(m, dtype=np.uint8) % classes,
    }


def idx(array: NDArray[np.uint8]) -> bytes:
    """The array in MNIST's file format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def lay_out(root: Path, arrays: Decoded, folder: str = "MNIST") -> Path:
    """Write the arrays as torchvision keeps MNIST; the folder of the files."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, array in zip(RAW, arrays.values(), strict=True):
        (raw / name).write_bytes(idx(array))
    return raw


def assert_same(result: Arrays, arrays: Decoded) -> None:
    """The result holds the arrays' grey images and labels, unchanged and in their order."""
    for key, array in arrays.items():
        tensor = getattr(result, key)
        expected = torch.from_numpy(array)
        if key[0] == "x":
            assert tensor.dtype == torch.uint8
            assert tensor.is_contiguous()
            assert torch.equal(tensor, expected[:, None])
        else:
            assert tensor.dtype == torch.int64
            assert tensor.tolist() == array.tolist()


# The network -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is resolved and no connection made, except to this machine."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if address[0] != "127.0.0.1":
            raise OSError("network is switched off")
        connect(self, address)

    def resolve(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(-3, "name resolution is switched off")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def tv(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchvision.datasets; its progress bar would write into the test's output."""
    module = datasets._torchvision()
    monkeypatch.setattr(module.utils, "tqdm", lambda **_: _Bar())
    return module


class _Bar:
    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, _: int) -> None: ...


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """A web server on this machine: serves `files`, cut to `limit` bytes, and lists `requests`.

    `gate` is called before each answer.
    """
    state = SimpleNamespace(files={}, limit=None, requests=[], gate=lambda: None)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            state.requests.append(name)
            state.gate()
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.files[name])))
            self.end_headers()
            try:
                self.wfile.write(state.files[name][: state.limit])
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


def served_mnist(server: SimpleNamespace, arrays: Decoded) -> list[tuple[str, str]]:
    """Put the arrays on the server as MNIST's archives; their names and MD5 sums."""
    for name, array in zip(RAW, arrays.values(), strict=True):
        server.files[f"{name}.gz"] = gzip.compress(idx(array), mtime=0)
    return [(name, hashlib.md5(data).hexdigest()) for name, data in server.files.items()]


@pytest.fixture
def mnist(
    tv: Any, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> tuple[SimpleNamespace, Decoded]:
    """A tiny MNIST on the local server: the server, and what it serves."""
    arrays = sample(28, 28)
    monkeypatch.setattr(tv.MNIST, "resources", served_mnist(server, arrays))
    monkeypatch.setattr(tv.MNIST, "mirrors", [server.url])
    return server, arrays


@pytest.fixture
def read_only() -> Iterator[Callable[[], Path]]:
    """Call it for a folder, and again once it is filled: from then on nobody can write there."""
    root = Path(tempfile.mkdtemp())  # not tmp_path, which other users may not enter
    user = os.geteuid()

    def close() -> Path:
        if any(root.iterdir()) or close.called:  # type: ignore[attr-defined]
            for folder in (root, *(f for f in root.rglob("*") if f.is_dir())):
                folder.chmod(0o555)
            if user == 0:  # root may write everywhere
                os.seteuid(65534)
        close.called = True  # type: ignore[attr-defined]
        return root

    close.called = False  # type: ignore[attr-defined]
    yield close
    os.seteuid(user)
    for folder in (root, *(f for f in root.rglob("*") if f.is_dir())):
        folder.chmod(0o755)
    shutil.rmtree(root)
