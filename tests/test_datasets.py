"""Data sets: the decoded copy, torchvision's files, downloads from a local server, own data."""

import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from cl_runner.config import libraries
from cl_runner.data import named, npz
from cl_runner.data.arrays import KEYS
from cl_runner.data.datasets import Arrays, load
from cl_runner.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
PREPARE = REPOSITORY.parent / "shared" / "data" / "prepare"
RAW = [
    f"{split}-{kind}"
    for split in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]
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


def save(file: Path | io.BytesIO, arrays: Decoded) -> None:
    """Write an .npz file."""
    np.savez(file, **arrays)  # type: ignore[arg-type]  # no key is allow_pickle


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

    def resolve(host: str, port: Any, *_: Any, **__: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(-3, "name resolution is switched off")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def tv(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchvision.datasets; its progress bar would write into the test's output."""
    module = named._torchvision()
    monkeypatch.setattr(module.utils, "tqdm", lambda **_: nullcontext(SimpleNamespace(update=int)))
    return module


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
def cifar(
    tv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Path, Decoded]]:
    """Makes a tiny CIFAR-10 or CIFAR-100: its archive, known to torchvision, and its arrays."""

    def make(dataset: str) -> tuple[Path, Decoded]:
        cls = getattr(tv, dataset.upper())
        key = "labels" if dataset == "cifar10" else "fine_labels"
        arrays = sample(32, 32, 3, n=4 * len(cls.train_list), m=3)
        flat = {
            k: a.transpose(0, 3, 1, 2).reshape(-1, 3072) for k, a in arrays.items() if k[0] == "x"
        }
        contents = {}
        for i, (name, _) in enumerate(cls.train_list):
            rows = slice(4 * i, 4 * i + 4)
            contents[name] = {"data": flat["x_train"][rows], key: arrays["y_train"][rows].tolist()}
        contents[cls.test_list[0][0]] = {"data": flat["x_test"], key: arrays["y_test"].tolist()}
        contents[cls.meta["filename"]] = {cls.meta["key"]: ["a", "b"]}
        source = tmp_path / "source"
        source.mkdir()
        archive = source / cls.filename
        sums = {}
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in contents.items():
                data = pickle.dumps(content, protocol=2)
                sums[name] = hashlib.md5(data).hexdigest()
                info = tarfile.TarInfo(f"{cls.base_folder}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        for files in ("train_list", "test_list"):
            known = [[name, sums[name]] for name, _ in getattr(cls, files)]
            monkeypatch.setattr(cls, files, known)
        monkeypatch.setattr(cls, "meta", cls.meta | {"md5": sums[cls.meta["filename"]]})
        monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        return archive, arrays

    return make


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Nobody can write into root. The superuser always can: for that one the locks are blocked."""
    for dataset in named.CLASSES if os.geteuid() == 0 else ():
        (root / f".{dataset}.lock").mkdir()
    root.chmod(0o555)
    try:
        yield
    finally:
        root.chmod(0o755)


# Embedded digits ---------------------------------------------------------------------------------


def test_digits_are_those_of_sklearn_with_the_last_fifth_of_each_class_as_test_set(
    tmp_path: Path,
) -> None:
    data = load("digits", tmp_path, None)
    original = load_digits()
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert data.x_train.dtype == torch.uint8
    assert data.classes == tuple("0123456789")
    for c in range(10):
        images = original.images[original.target == c]  # 0 .. 16, in the file's order
        both = torch.cat([data.x_train[data.y_train == c], data.x_test[data.y_test == c]])
        assert np.array_equal(both[:, 0].numpy(), np.rint(images / 16 * 255))
        assert int((data.y_test == c).sum()) == len(images) // 5
    assert data.y_train[:30].tolist() == original.target[:30].tolist()  # in the file's order


@pytest.mark.slow
def test_digits_are_kept_and_read_without_importing_what_is_not_used(tmp_path: Path) -> None:
    first = load("digits", tmp_path, None)
    assert {f.name for f in tmp_path.iterdir()} == {"digits.npz", ".digits.lock"}
    code = (
        "import sys; from pathlib import Path; from cl_runner.data.datasets import load\n"
        "data = load('digits', Path(sys.argv[1]), None)\n"
        "used = {'sklearn', 'torchvision', 'PIL', 'filelock'} & set(sys.modules)\n"
        "print(int(data.x_train.sum()), sorted(used))"
    )
    assert run(code, str(tmp_path)) == f"{int(first.x_train.sum())} []"


def run(code: str, *args: str) -> str:
    """What a fresh Python prints that runs the code; warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code, *args]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("dataset", list(named.CLASSES))
def test_classes_have_names(dataset: str) -> None:
    names = named.CLASSES[dataset]
    assert len(set(names)) == len(names) == (100 if dataset == "cifar100" else 10)
    assert dataset[:5] != "cifar" or list(names) == sorted(names)


# The decoded copy --------------------------------------------------------------------------------


def test_decoded_copy_is_preferred_and_keeps_its_order(tmp_path: Path) -> None:
    arrays = sample(28, 28)
    arrays["y_train"] = np.sort(arrays["y_train"])  # class-major
    lay_out(tmp_path, sample(28, 28, n=5))
    save(tmp_path / "mnist.npz", arrays)
    assert_same(load("mnist", tmp_path, None), arrays)


def test_decoded_copy_of_colour_images_is_channels_first(tmp_path: Path) -> None:
    arrays = sample(32, 32, 3)
    arrays["y_train"] = arrays["y_train"].astype(np.int32)
    save(tmp_path / "cifar10.npz", arrays)
    data = load("cifar10", tmp_path, None)
    assert data.x_train.shape == (20, 3, 32, 32)
    assert data.x_train.is_contiguous()
    assert data.x_train[7, 2, 3, 4] == arrays["x_train"][7, 3, 4, 2]
    assert data.y_train.tolist() == arrays["y_train"].tolist()


def damaged_bytes(kind: str) -> bytes:
    """An .npz file that is damaged as a whole."""
    buffer = io.BytesIO()
    save(buffer, sample(28, 28))
    data = buffer.getvalue()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    kinds = {"empty": b"", "text": b"<html>not found</html>", "truncated": data[:-100]}
    return (kinds | {"flipped": flipped, "npy": npy.getvalue()})[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "flipped", "npy"])
@pytest.mark.parametrize("dataset", ["mnist", "npz"])
def test_damaged_npz_is_named(tmp_path: Path, dataset: str, kind: str) -> None:
    file = tmp_path / "mnist.npz"
    file.write_bytes(damaged_bytes(kind))
    message = fails(dataset, tmp_path, file if dataset == "npz" else None)
    assert str(file) in message
    assert ("copy the files there" if dataset == "mnist" else "data.path") in message
    assert file.read_bytes() == damaged_bytes(kind)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "flipped", "npy"])
def test_damaged_copy_is_made_again_where_it_can_be(tmp_path: Path, kind: str) -> None:
    arrays, told = sample(28, 28), list[str]()
    lay_out(tmp_path, arrays)
    for dataset in ("mnist", "digits"):
        load(dataset, tmp_path, None, told.append)
        file = tmp_path / f"{dataset}.npz"
        whole = file.read_bytes()
        file.write_bytes(damaged_bytes(kind))
        load(dataset, tmp_path, None, told.append)
        assert file.read_bytes() == whole
    assert_same(load("mnist", tmp_path, None, told.append), arrays)
    assert [line.partition(" ")[0] for line in told] == [str(tmp_path / "mnist.npz"), str(file)]
    assert all(line.endswith(": it is made again") for line in told)


def test_bits_that_change_what_an_array_is_are_damage(tmp_path: Path) -> None:
    """Half of the labels read as so many numbers of half the size would pass every other check."""
    arrays = sample(28, 28)
    arrays["y_train"] = arrays["y_train"].astype(np.int64)
    save(tmp_path / "own.npz", arrays)
    data = (tmp_path / "own.npz").read_bytes()
    assert data.count(b"<i8") == 1
    (tmp_path / "own.npz").write_bytes(data.replace(b"<i8", b"<i4"))
    assert "cannot be read" in fails("npz", tmp_path, tmp_path / "own.npz")


INVALID: dict[str, tuple[Decoded, str]] = {
    "objects": ({"x_train": np.array([[None]], dtype=object)}, "allow_pickle"),
    "integers": ({"x_train": np.zeros((20, 28, 28), np.int32)}, "uint8"),
    "strings": ({"x_test": np.zeros((10, 28, 28), "U3")}, "uint8"),
    "scalar": ({"x_train": np.zeros((), np.uint8)}, "shape"),
    "five axes": ({"x_train": np.zeros((20, 1, 1, 1, 1), np.uint8)}, "shape"),
    "no samples": ({"x_test": np.zeros((0, 28, 28), np.uint8)}, "empty"),
    "no pixels": ({"x_train": np.zeros((20, 0, 28), np.uint8)}, "empty"),
    "channels first": ({"x_train": np.zeros((20, 3, 28, 28), np.uint8)}, "channels last"),
    "other size": ({"x_test": np.zeros((10, 14, 14), np.uint8)}, "like x_train"),
    "other dtype": ({"x_test": np.zeros((10, 28, 28), np.float32)}, "like x_train"),
    "floating labels": ({"y_train": np.zeros(20)}, "integers"),
    "text labels": ({"y_train": np.array(["a"] * 20)}, "integers"),
    "too few labels": ({"y_test": np.zeros(9, np.uint8)}, "one label for each sample"),
    "labels in a column": ({"y_test": np.zeros((10, 1), np.uint8)}, "one label for each sample"),
}


@pytest.mark.parametrize("dataset", ["mnist", "npz"])
@pytest.mark.parametrize("kind", list(INVALID))
def test_invalid_arrays_are_refused(tmp_path: Path, dataset: str, kind: str) -> None:
    change, words = INVALID[kind]
    file = tmp_path / "mnist.npz"
    save(file, sample(28, 28) | change)
    message = fails(dataset, tmp_path, file if dataset == "npz" else None)
    assert str(file) in message
    assert words in message or (dataset == "mnist" and "uint8 images" in message)


@pytest.mark.parametrize("dataset", ["mnist", "npz"])
def test_missing_arrays_are_named(tmp_path: Path, dataset: str) -> None:
    arrays = sample(28, 28)
    np.savez(tmp_path / "mnist.npz", x_train=arrays["x_train"], y_test=arrays["y_test"])
    path = tmp_path / "mnist.npz" if dataset == "npz" else None
    assert "mnist.npz lacks y_train, x_test" in fails(dataset, tmp_path, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_train": np.full(20, 10)}, "y_train must lie in 0 .. 9"),
        ({"y_test": np.full(10, -1)}, "y_test must lie in 0 .. 9"),
        (sample(28), "uint8 images"),
        (
            {key: np.zeros((n, 8, 8)) for key, n in (("x_train", 20), ("x_test", 10))},
            "uint8 images",
        ),
    ],
)
def test_decoded_copy_of_something_else_is_refused(
    tmp_path: Path, change: Decoded, words: str
) -> None:
    save(tmp_path / "mnist.npz", sample(28, 28) | change)
    message = fails("mnist", tmp_path)
    assert words in message
    assert "delete it" in message


# torchvision -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchvision_imports_beside_a_torch_it_was_not_built_for() -> None:
    plain = (
        "import torch\n"
        "try: import torchvision\n"
        "except RuntimeError: print('fails')\n"
        "else: print('works')"
    )
    cured = (
        "import gc; from cl_runner.config import libraries; from cl_runner.data import named\n"
        "named._torchvision(); gc.collect()\n"
        "import torch, torchvision; print('fails' if libraries._kept else 'works')\n"
        "assert named._torchvision() is torchvision.datasets and len(libraries._kept) <= 1\n"
        "assert torchvision.datasets.MNIST and torch.ops.torchvision.nms.default"
    )
    assert run(plain) == run(cured)  # schemas are defined where needed, and only there


def test_torchvision_that_imports_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list(libraries._kept)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets="as it is"))
    assert named._torchvision() == "as it is"
    assert libraries._kept == kept


def test_torchvision_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    message = fails("mnist", tmp_path)
    assert "torchvision cannot be imported" in message
    assert "permuted_digits" in message


@pytest.mark.skipif(not PREPARE.exists(), reason="shared/data is not beside the repository")
def test_real_mnist(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("mnist")
    runpy.run_path(str(PREPARE))["prepare_mnist"](root)
    first = load("mnist", root, None)
    shutil.rmtree(root / "MNIST")
    again = load("mnist", root, None)  # from the decoded copy
    parsed = {}
    for key, name in zip(KEYS, RAW, strict=True):
        data = gzip.decompress((PREPARE.parent / "mnist" / f"{name}.gz").read_bytes())
        skip, shape = (16, (-1, 28, 28)) if key[0] == "x" else (8, (-1,))
        parsed[key] = np.frombuffer(data, np.uint8, offset=skip).reshape(shape).copy()
    assert first.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert first.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert first.x_train.shape == (60000, 1, 28, 28)
    assert_same(first, parsed)
    assert_same(again, parsed)


@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_torchvision_layout_is_used_without_network(
    tmp_path: Path, dataset: str, folder: str
) -> None:
    arrays = sample(28, 28)
    lay_out(tmp_path, arrays, folder)
    assert_same(load(dataset, tmp_path, None), arrays)
    shutil.rmtree(tmp_path / folder)
    assert_same(load(dataset, tmp_path, None), arrays)
    assert {f.name for f in tmp_path.iterdir()} == {f"{dataset}.npz", f".{dataset}.lock"}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda d: d[:-1],
        lambda d: d[:6],
        lambda d: d + b"x",
        lambda d: b"\x1f\x8b" + d,
    ],
    ids=["empty", "truncated", "header only", "too long", "wrong magic"],
)
def test_damaged_raw_file_is_named_and_not_replaced(
    tmp_path: Path,
    mnist: tuple[SimpleNamespace, Decoded],
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    file = lay_out(tmp_path, sample(28, 28)) / name
    data = damage(file.read_bytes())
    file.write_bytes(data)
    message = fails("mnist", tmp_path)
    assert f"{file} is damaged" in message
    assert "delete it" in message
    assert file.read_bytes() == data
    assert mnist[0].requests == []
    assert not (tmp_path / "mnist.npz").exists()


def test_raw_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    raw = lay_out(tmp_path, sample(28, 28))
    (raw / RAW[1]).write_bytes(idx(np.zeros(19, np.uint8)))
    message = fails("mnist", tmp_path)
    assert f"{raw}: y_train must hold one label for each sample" in message
    assert not (tmp_path / "mnist.npz").exists()


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("source", ["folder", "archive", "server"])
def test_cifar_comes_from_its_folder_its_archive_or_the_network(
    tmp_path: Path,
    cifar: Callable[[str], tuple[Path, Decoded]],
    server: SimpleNamespace,
    tv: Any,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    source: str,
) -> None:
    archive, arrays = cifar(dataset)
    root = tmp_path / "root"
    root.mkdir()
    if source == "folder":
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
    elif source == "archive":
        shutil.copy(archive, root)
    else:
        server.files[archive.name] = archive.read_bytes()
        monkeypatch.setattr(getattr(tv, dataset.upper()), "url", server.url + archive.name)
    for _ in range(2):  # made, then read
        data = load(dataset, root, None)
        assert data.x_train.is_contiguous()
        assert np.array_equal(data.x_train.permute(0, 2, 3, 1), arrays["x_train"])
        assert np.array_equal(data.x_test.permute(0, 2, 3, 1), arrays["x_test"])
        assert data.y_train.tolist() == arrays["y_train"].tolist()
        assert data.classes[0] == ("airplane" if dataset == "cifar10" else "apple")
    assert not (root / f".{dataset}.download").exists()


@pytest.mark.parametrize("extracted", [True, False])
def test_damaged_cifar_is_named_and_not_replaced(
    cifar: Callable[[str], tuple[Path, Decoded]], extracted: bool
) -> None:
    file, _ = cifar("cifar10")
    root = file.parent
    if extracted:
        with tarfile.open(file) as tar:
            tar.extractall(root, filter="data")
        file = root / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(file.read_bytes()[:-1])
    data = file.read_bytes()
    assert f"{file} is damaged (wrong checksum): delete it" in fails("cifar10", root)
    assert file.read_bytes() == data


# Downloads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", list(named.TORCHVISION))
def test_download_that_fails_says_where_to_put_the_data(tmp_path: Path, dataset: str) -> None:
    message = fails(dataset, tmp_path)
    for words in (
        str(tmp_path / f"{dataset}.npz"),
        str(tmp_path / named.TORCHVISION[dataset][1]),
        "download failed",
        "name resolution is switched off",
        "data.root=",
        "CL_RUNNER_DATA",
        "benchmark=permuted_digits",
    ):
        assert words in message
    assert [f.name for f in tmp_path.iterdir()] == [f".{dataset}.lock"]


def test_download_that_is_cut_leaves_nothing(
    tmp_path: Path, mnist: tuple[SimpleNamespace, Decoded]
) -> None:
    server, arrays = mnist
    server.limit = 100
    assert "download failed" in fails("mnist", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [".mnist.lock"]
    server.limit = None
    assert_same(load("mnist", tmp_path, None), arrays)


def test_leftovers_of_a_killed_process_are_never_taken(
    tmp_path: Path, mnist: tuple[SimpleNamespace, Decoded]
) -> None:
    server, arrays = mnist
    lay_out(tmp_path / ".mnist.download", sample(28, 28, n=7))
    (tmp_path / ".mnist.npz.part").write_bytes(b"half")
    assert_same(load("mnist", tmp_path, None), arrays)
    assert len(server.requests) == 8  # each file once, after a look for redirects
    assert {f.name for f in tmp_path.iterdir()} == {"mnist.npz", ".mnist.lock"}


def test_archives_below_root_save_the_download(
    tmp_path: Path, mnist: tuple[SimpleNamespace, Decoded]
) -> None:
    server, arrays = mnist
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, data in server.files.items():
        (raw / name).write_bytes(data)
    assert_same(load("mnist", tmp_path, None), arrays)
    assert server.requests == []


def test_download_gives_up_on_a_silent_server(
    tmp_path: Path, mnist: tuple[SimpleNamespace, Decoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = mnist
    monkeypatch.setattr(named, "TIMEOUT", 0.2)
    server.gate = lambda: time.sleep(0.5)
    before = socket.getdefaulttimeout()
    assert "timed out" in fails("mnist", tmp_path)
    assert socket.getdefaulttimeout() == before


@pytest.mark.slow
def test_two_processes_download_once(
    tmp_path: Path, mnist: tuple[SimpleNamespace, Decoded], tv: Any
) -> None:
    server, arrays = mnist
    code = (
        "import json, sys; from pathlib import Path; from cl_runner.data import named\n"
        "root, ready, url, resources = sys.argv[1:]\n"
        "mnist = named._torchvision().MNIST\n"
        "mnist.mirrors, mnist.resources = [url], json.loads(resources)\n"
        "Path(ready).touch()\n"
        "from cl_runner.data.datasets import load\n"
        "data = load('mnist', Path(root), None)\n"
        "print(int(data.x_train.sum()), int(data.x_test.sum()))"
    )
    ready = [tmp_path / "ready0", tmp_path / "ready1"]

    def gate() -> None:  # the first request waits for the second process, which then meets the lock
        end = time.monotonic() + 20
        while len(server.requests) == 1 and time.monotonic() < end:
            if all(file.exists() for file in ready):
                time.sleep(0.3)
                return
            time.sleep(0.01)

    server.gate = gate
    root, resources = tmp_path / "root", json.dumps(tv.MNIST.resources)
    environment = os.environ | {"no_proxy": "*"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root), str(file), server.url, resources],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for file in ready
    ]
    results = [process.communicate(timeout=60) for process in processes]
    expected = f"{int(arrays['x_train'].sum())} {int(arrays['x_test'].sum())}"
    assert [out.strip() for out, _ in results] == [expected] * 2, results
    assert len(server.requests) == 8  # each file once, after a look for redirects


# Folders -----------------------------------------------------------------------------------------


def test_root_is_expanded_and_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    load("digits", Path("~/new/cache"), None)
    assert (tmp_path / "new" / "cache" / "digits.npz").is_file()


@pytest.mark.parametrize("dataset", ["digits", "npz"])
def test_home_of_nobody_is_told(dataset: str) -> None:
    folder = Path("~no-such-user/x")
    assert "~no-such-user/x" in fails(dataset, folder, None if dataset == "digits" else folder)


def test_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "data.root must be a folder" in fails("digits", tmp_path / "file")


@pytest.mark.unix
def test_read_only_root_serves_what_needs_no_download(tmp_path: Path) -> None:
    arrays = sample(28, 28)
    lay_out(tmp_path, arrays)
    with read_only(tmp_path):
        assert load("digits", tmp_path, None).x_train.shape[1:] == (1, 8, 8)
        assert_same(load("mnist", tmp_path, None), arrays)
        assert "data.root cannot be written" in fails("fashion_mnist", tmp_path)
    assert [f.name for f in tmp_path.iterdir() if f.suffix != ".lock"] == ["MNIST"]


def test_root_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert load("digits", tmp_path / "file" / "root", None).x_train.shape[1:] == (1, 8, 8)
    assert "data.root cannot be written" in fails("mnist", tmp_path / "file" / "root")


def test_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    save(tmp_path / "mnist.npz", sample(28, 28))
    monkeypatch.setattr(npz, "regular", closed)  # not chmod, which does not stop the superuser
    message = fails("mnist", tmp_path)
    assert f"Permission denied: '{tmp_path / 'mnist.npz'}'" in message
    assert "delete" not in message


def test_full_disk_costs_only_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(load("digits", tmp_path, None).x_train) == 1442
    assert [f.name for f in tmp_path.iterdir()] == [".digits.lock"]


def test_unknown_data_set_is_told(tmp_path: Path) -> None:
    assert "benchmark.dataset must be one of digits, mnist" in fails("imagenet", tmp_path)


# The user's own data -----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["npz", "folder"])
def test_path_must_fit_the_data_set(tmp_path: Path, dataset: str) -> None:
    file = tmp_path / "file"
    file.touch()
    wrong = tmp_path if dataset == "npz" else file
    assert "data.path must be set" in fails(dataset, tmp_path)
    assert "does not exist" in fails(dataset, tmp_path, tmp_path / "nowhere")
    assert "is something else" in fails(dataset, tmp_path, wrong)


def test_path_is_not_ignored_for_a_named_data_set(tmp_path: Path) -> None:
    assert "data.path must not be set" in fails("digits", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 5), (1, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((7,), (1, 1, 7)), ((6, 5, 1), (1, 6, 5))],
)
@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", ">f4", "f8"])
def test_npz_of_each_shape_and_dtype(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...], dtype: str
) -> None:
    arrays = sample(*shape)
    for key in ("x_train", "x_test"):
        arrays[key] = np.asfortranarray((arrays[key] / (1 if dtype == "u1" else 100)).astype(dtype))
    save(tmp_path / "own.npz", arrays)
    data = load("npz", tmp_path / "never made", tmp_path / "own.npz")
    assert data.x_train.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
    assert data.x_train.shape == (20, *expected)
    assert data.x_train.is_contiguous()
    last = data.x_test.permute(0, 2, 3, 1).reshape(arrays["x_test"].shape)
    assert np.array_equal(last, arrays["x_test"].astype(last.numpy().dtype))
    assert not (tmp_path / "never made").exists()


def test_npz_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    labels = np.array([100, -5, 7, 100, 7] * 4, dtype=np.int16)
    arrays = sample(6, 5) | {"y_train": labels, "y_test": np.full(10, 7, np.uint64)}
    save(tmp_path / "own.npz", arrays)
    data = load("npz", tmp_path, tmp_path / "own.npz")
    assert data.classes == ("-5", "7", "100")
    assert data.y_train[:5].tolist() == [2, 0, 1, 2, 1]
    assert data.y_test.tolist() == [1] * 10
    assert data.y_train.dtype == data.y_test.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_test": np.array([1, 2, 33, 44, 1, 1, 1, 1, 1, 1])}, "33, 44"),
        (
            {"x_train": np.full((20, 7), np.nan), "x_test": np.zeros((10, 7))},
            "x_train must be finite",
        ),
        (
            {"x_train": np.zeros((20, 7)), "x_test": np.full((10, 7), 1e300)},
            "x_test must be finite",
        ),
    ],
)
def test_npz_values_that_are_refused(tmp_path: Path, change: Decoded, words: str) -> None:
    save(tmp_path / "own.npz", sample(6, 5) | change)
    assert words in fails("npz", tmp_path, tmp_path / "own.npz")


def paint(file: Path, value: int, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    """Write an image of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = value if len(mode) == 1 or ";" in mode else (value, 2, 3, 255)[: len(mode)]
    Image.new(mode, size, colour).save(file)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with classes ant and bee, grey, two kinds of files, and what is to be ignored."""
    root = tmp_path / "images"
    paint(root / "train" / "bee" / "b.png", 20)
    paint(root / "train" / "bee" / "a.BMP", 10)
    paint(root / "train" / "ant" / "z.png", 30)
    paint(root / "test" / "bee" / "t.png", 40)
    paint(root / "train" / "ant" / ".hidden.png", 1, size=(9, 9))
    paint(root / "train" / ".cache" / "x.png", 1, size=(9, 9))
    (root / "train" / "ant" / "folder.png").mkdir()
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    (root / "train" / "readme.txt").write_text("not a class")
    return root


def test_folder_is_sorted_by_name_and_stays_grey(tmp_path: Path, images: Path) -> None:
    data = load("folder", tmp_path, images)
    assert data.classes == ("ant", "bee")
    assert data.x_train.shape == (3, 1, 4, 5)
    assert data.x_train.dtype == torch.uint8
    assert data.x_train[:, 0, 0, 0].tolist() == [30, 10, 20]
    assert data.y_train.tolist() == [0, 1, 1]
    assert set(data.x_test.flatten().tolist()) == {40}
    assert data.y_test.tolist() == [1]


def test_folder_with_one_bit_images_is_grey(tmp_path: Path, images: Path) -> None:
    paint(images / "test" / "ant" / "one.png", 1, "1")
    data = load("folder", tmp_path, images)
    assert data.x_test[:, 0, 0, 0].tolist() == [255, 40]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_one_colour_image_makes_all_of_them_rgb(tmp_path: Path, images: Path, mode: str) -> None:
    file = images / "test" / "ant" / "colour.png"
    if mode == "P":
        file.parent.mkdir()
        palette = Image.new("P", (5, 4), 1)
        palette.putpalette([0, 0, 0, 1, 2, 3])
        palette.save(file, transparency=bytes([0, 128]))
    else:
        paint(file, 1, mode)
    data = load("folder", tmp_path, images)
    assert data.x_train.shape == (3, 3, 4, 5)
    assert data.x_train[1, :, 0, 0].tolist() == [10, 10, 10]
    assert data.x_test[0, :, 0, 0].tolist() == [1, 2, 3]
    assert data.x_test.is_contiguous()


def test_folder_follows_links(tmp_path: Path, images: Path) -> None:
    paint(tmp_path / "elsewhere" / "c.png", 50)
    paint(tmp_path / "elsewhere" / "d.jpeg", 60)
    (images / "train" / "cow").symlink_to(tmp_path / "elsewhere")
    (images / "test" / "bee" / "link.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    data = load("folder", tmp_path, images)
    assert data.classes == ("ant", "bee", "cow")
    assert data.x_train[:, 0, 0, 0].tolist() == [30, 10, 20, 50, 60]
    assert data.x_test[:, 0, 0, 0].tolist() == [50, 40]


def other_size(root: Path) -> None:
    paint(root / "train" / "bee" / "aa.png", 1, size=(5, 6))
    paint(root / "train" / "bee" / "ab.png", 1, size=(7, 6))


def truncated(root: Path) -> None:
    file = root / "train" / "bee" / "c.bmp"
    paint(file, 1)
    file.write_bytes(file.read_bytes()[:-10])


def shorn(root: Path) -> None:
    file = root / "train" / "bee" / "b.png"
    file.write_bytes(file.read_bytes()[:-30])


def text(root: Path) -> None:
    (root / "train" / "bee" / "c.png").write_text("not an image")


def broken_link(root: Path) -> None:
    (root / "train" / "bee" / "c.png").symlink_to(root / "nowhere")


def unknown_class(root: Path) -> None:
    paint(root / "test" / "cow" / "a.png", 1)


def sixteen_bits(root: Path) -> None:
    paint(root / "test" / "bee" / "a.png", 1000, "I;16")


def empty_class(root: Path) -> None:
    (root / "train" / "cow").mkdir()


def no_test(root: Path) -> None:
    shutil.rmtree(root / "test")


def no_class(root: Path) -> None:
    shutil.rmtree(root / "test" / "bee")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_size, ("train/bee/aa.png has 5x6 pixels", "train/ant/z.png has 5x4")),
        (truncated, ("train/bee/c.bmp is damaged",)),
        (shorn, ("train/bee/b.png is damaged",)),
        (text, ("train/bee/c.png is damaged",)),
        (broken_link, ("train/bee/c.png is damaged",)),
        (unknown_class, ("test/cow: class 'cow' is missing in", "train")),
        (sixteen_bits, ("test/bee/a.png has more than 8 bits",)),
        (empty_class, ("train/cow holds no image",)),
        (no_test, ("data.path must be", "test is missing")),
        (no_class, ("data.path must be", "test holds no class")),
    ],
)
def test_folder_that_is_refused(
    tmp_path: Path, images: Path, change: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    change(images)
    message = fails("folder", tmp_path, images)
    for word in words:
        assert word in message
