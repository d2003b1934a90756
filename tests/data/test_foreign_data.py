"""Data that somebody else has made, by mistake or with intent: one line, before it costs much."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cl_runner.data import images as reader
from cl_runner.data import named
from cl_runner.data.arrays import KEYS
from cl_runner.data.datasets import load
from cl_runner.errors import UserError
from cl_runner.machine import ram as free_memory


def fails(dataset: str, path: Path) -> str:
    """The message of the UserError that load raises; always one line."""
    with pytest.raises(UserError) as caught:
        load(dataset, path.parent, path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of two images each."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (8, 6), 40 * i).save(root / split / name / f"{i}.png")
    return root


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"


def test_postscript_under_another_name_starts_no_interpreter(images, monkeypatch):
    """Pillow takes it for EPS by its first bytes, and hands it to Ghostscript."""
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    (images / "train/ant/9.png").write_bytes(EPS)
    message = fails("folder", images)
    assert "train/ant/9.png is damaged, or no PNG image (cannot identify" in message
    assert not started


@pytest.mark.parametrize(
    ("written", "name"),
    [*((kind, "9.png") for kind in ("GIF", "TIFF", "JPEG", "PPM", "ICO")), ("PNG", "9.jpg")],
)
def test_what_is_in_a_file_must_be_what_its_name_says(images, written, name):
    Image.new("L", (8, 6)).save(images / "train/ant" / name, format=written)
    kind = "JPEG" if name.endswith("jpg") else "PNG"
    assert f"{name} is damaged, or no {kind} image" in fails("folder", images)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp"])
def test_every_format_that_is_named_is_read(images, suffix):
    kind = {"jpg": "JPEG", "JPEG": "JPEG"}.get(suffix, suffix.upper())
    Image.new("L", (8, 6)).save(images / "train/ant" / f"9.{suffix}", format=kind)
    assert len(load("folder", images, images).x_train) == 5


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, with next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (60_000, 60_000)])
def test_a_bomb_is_told_by_its_header(images, size):
    (images / "train/ant/0.png").write_bytes(png_of(*size))
    assert "0.png has more than 67108864 pixels (8192x8192)" in fails("folder", images)


def test_images_that_together_fill_the_memory_are_refused_before_any_is_decoded(
    images, monkeypatch
):
    for file in images.rglob("*.png"):
        file.write_bytes(png_of(8000, 8000))
    monkeypatch.setattr(free_memory, "available", lambda _: 400_000_000)
    monkeypatch.setattr(reader, "_image", None)
    message = f"not enough memory: the images of {images} take 512 MB, and 400 MB are free"
    assert fails("folder", images) == message


def test_a_size_that_differs_is_told_before_any_image_is_decoded(images, monkeypatch):
    (images / "test/bee/1.png").write_bytes(png_of(9, 6))
    monkeypatch.setattr(reader, "_image", None)
    assert "bee/1.png has 9x6 pixels, but" in fails("folder", images)


@pytest.mark.unix
def test_a_pipe_among_the_images_is_not_read(images):
    os.mkfifo(images / "train/ant/9.png")
    assert fails("folder", images) == f"{images}/train/ant/9.png is no regular file"


# Arrays


def arrays() -> dict[str, np.ndarray]:
    y = np.arange(4) % 2
    x = np.zeros((4, 2, 2), np.uint8)
    return dict(zip(KEYS, (x, y, x, y), strict=True))


def packed(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file


def npy(array: np.ndarray, says: tuple[int, ...] | None = None) -> bytes:
    """An .npy file, whose header may say another shape."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, header | {"shape": says or array.shape})
    return stream.getvalue() + array.tobytes()


@pytest.fixture
def never_inflated(monkeypatch):
    """Reading more than a header fails the test."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("inflated")

    monkeypatch.setattr(np.lib.format, "read_array", read)


@pytest.mark.usefixtures("never_inflated")
def test_zeros_that_unpack_to_a_thousand_times_their_size_are_refused(tmp_path):
    whole = arrays() | {"x_train": np.zeros((70_000, 32, 32), np.uint8)}
    np.savez_compressed(tmp_path / "own.npz", **whole)
    message = fails("npz", tmp_path / "own.npz")
    assert "x_train.npy would unpack to 72 MB, more than 200 times its size; " in message


@pytest.mark.usefixtures("never_inflated")
def test_arrays_that_do_not_fit_into_memory_are_refused_by_their_headers(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", **(arrays() | {"x_train": np.zeros((4000, 32, 32), np.uint8)}))
    monkeypatch.setattr(free_memory, "available", lambda _: 4_000_000)
    message = f"not enough memory: the arrays of {tmp_path}/own.npz take 4.1 MB, and 4 MB are free"
    assert fails("npz", tmp_path / "own.npz") == message


@pytest.mark.usefixtures("never_inflated")
@pytest.mark.parametrize("says", [(10**12, 2, 2), (5, 2, 2), (3, 2, 2)])
def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path, says):
    members = {key: npy(array) for key, array in arrays().items()}
    members["x_train"] = npy(np.zeros((4, 2, 2), np.uint8), says)
    assert "cannot be read" in fails("npz", packed(tmp_path / "own.npz", members))


def test_small_arrays_may_be_packed_as_closely_as_they_like(tmp_path):
    whole = arrays() | {"x_train": np.zeros((4, 1000, 1000), np.uint8)}
    whole["x_test"] = whole["x_train"]
    np.savez_compressed(tmp_path / "own.npz", **whole)
    assert load("npz", tmp_path, tmp_path / "own.npz").x_train.shape == (4, 1, 1000, 1000)


@pytest.mark.parametrize("name", ["own.csv", "own.npz", "own"])
def test_another_kind_of_file_is_not_called_damaged(tmp_path, name):
    (tmp_path / name).write_text("x,y\n1,2\n")
    message = fails("npz", tmp_path / name)
    assert message == (
        "data.path must be an .npz file, or with benchmark=split_folder a folder of images; "
        f"{tmp_path / name} is something else"
    )


@pytest.mark.unix
@pytest.mark.parametrize("dataset", ["npz", "folder"])
def test_a_pipe_is_not_read(tmp_path, dataset):
    os.mkfifo(tmp_path / "own.npz")
    assert "own.npz is something else" in fails(dataset, tmp_path / "own.npz")


@pytest.mark.unix
def test_a_pipe_in_the_place_of_a_decoded_copy_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "digits.npz")
    with pytest.raises(UserError, match=r"digits\.npz is no regular file"):
        load("digits", tmp_path, None)


# Too little memory is not damage


LACKS = [
    MemoryError("Unable to allocate 9.31 GiB for an array"),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: type(lack).__name__)
def test_a_sound_copy_stays_when_memory_is_short(tmp_path, monkeypatch, lack):
    load("digits", tmp_path, None)
    file = tmp_path / "digits.npz"
    before = file.read_bytes(), file.stat().st_mtime_ns

    def short(*_: object, **__: object) -> None:
        raise lack

    for module, name in ((np.lib.format, "read_array"), (named, "tensors")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, short)
            patch.setattr(named, "_digits", None)  # not made again
            told: list[str] = []
            with pytest.raises(UserError, match=r"^not enough memory to read digits: "):
                load("digits", tmp_path, None, told.append)
        assert (file.read_bytes(), file.stat().st_mtime_ns) == before
        assert not told


def test_your_own_file_is_not_called_damaged_when_memory_is_short(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", **arrays())

    def short(*_: object, **__: object) -> None:
        raise LACKS[0]

    monkeypatch.setattr(np.lib.format, "read_array", short)
    assert fails("npz", tmp_path / "own.npz").startswith("not enough memory to read npz: ")


@pytest.mark.parametrize(
    "lack",
    [MemoryError(), ImportError("libtorch.so: failed to map segment from shared object")],
    ids=lambda lack: type(lack).__name__,
)
def test_torchvision_that_does_not_fit_is_neither_blamed_nor_asked_to_download(
    tmp_path, monkeypatch, lack
):
    class Refusing:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == "torchvision":
                raise lack

    monkeypatch.setattr("sys.meta_path", [Refusing()])
    monkeypatch.delitem(__import__("sys").modules, "torchvision", raising=False)
    monkeypatch.setattr(named, "_download", None)
    with pytest.raises(UserError, match=r"^not enough memory to read mnist: "):
        load("mnist", tmp_path, None)


def test_what_is_read_is_what_was_written(tmp_path):
    """All the sizes of a sound file agree with each other, packed and unpacked, float and bytes."""
    rng = np.random.default_rng(0)
    for save in (np.savez, np.savez_compressed):
        for x in (rng.integers(0, 255, (6, 3, 3), np.uint8), rng.normal(size=(6, 9))):
            y = np.arange(6) % 3
            save(tmp_path / "own.npz", **dict(zip(KEYS, (x, y, x, y), strict=True)))
            found = load("npz", tmp_path, tmp_path / "own.npz")
            expected = torch.from_numpy(x).to(found.x_train.dtype).flatten(1)
            assert torch.equal(found.x_train.flatten(1), expected)
