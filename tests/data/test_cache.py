"""Decoded data, kept beside their source: when they are read back, and when made again."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_runner.data import cache
from cl_runner.data.cache import cached
from cl_runner.data.datasets import Arrays
from cl_runner.errors import UserError

NAMES = ("a,b", 'say "x"', "Fahrräder", "", " 自転車 ", "x" * 300)


def arrays(n: int = 12, *, floating: bool = False, sliced: bool = True) -> Arrays:
    """A small data set, with names that are no plain words."""
    x = torch.arange(n * 12).view(n, 1, 3, 4) % 256
    x = x / 7 if floating else x.to(torch.uint8)
    y, part = torch.arange(n) % len(NAMES), torch.arange(n) % 2
    slices = {"slice_train": part, "slice_test": part[:6], "slices": ("month 1", "Ω")}
    return Arrays(x, y, x[:6], y[:6], NAMES, **slices if sliced else {})


def assert_equal(found: Arrays, expected: Arrays) -> None:
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        else:
            assert a == b


class Source:
    """A folder with two files, and how often it was decoded."""

    def __init__(self, tmp_path: Path) -> None:
        self.path, self.root = tmp_path / "own", tmp_path / "root"
        self.made, self.told = 0, list[str]()
        (self.path / "sub").mkdir(parents=True)
        for name in ("a", "sub/b"):
            (self.path / name).write_text(name)
        self.gives = arrays()

    def make(self) -> Arrays:
        self.made += 1
        return self.gives

    def read(self, **options: object) -> Arrays:
        files = [f for f in sorted(self.path.rglob("*")) if f.is_file() and f.name[0] != "."]
        return cached(files, options, self.path, self.root, self.make, self.told.append)

    def copies(self) -> list[Path]:
        return sorted(self.path.parent.rglob(".cl_runner*.npz"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
def test_what_is_read_back_is_what_was_made(source: Source, floating: bool, sliced: bool) -> None:
    source.gives = arrays(floating=floating, sliced=sliced)
    source.read()
    assert_equal(source.read(), source.gives)
    assert source.made == 1
    assert not source.told
    (copy,) = source.copies()
    assert copy.parent == source.path
    with np.load(copy, allow_pickle=False) as content:  # nothing in it is pickled
        assert set(content) == {k for k, v in source.gives._asdict().items() if v is not None}
    assert not source.root.exists()


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed"])
def test_files_that_changed_are_decoded_again_and_the_old_copy_goes(
    source: Source, change: str
) -> None:
    source.read(resize=8)
    source.read(resize=None)
    file = source.path / "sub" / "b"
    before = file.stat()
    match change:
        case "content":
            file.write_text("longer")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "time":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        case "added":
            (source.path / "c").touch()
        case "removed":
            file.unlink()
        case "renamed":
            file.rename(file.with_name("c"))
    source.gives = arrays(18)
    assert_equal(source.read(resize=8), source.gives)
    assert source.made == 3
    assert len(source.copies()) == 1  # both old ones are of files that are no more
    source.read(resize=8)
    assert source.made == 3


def test_copies_with_other_options_stand_beside_each_other(source: Source) -> None:
    for _ in range(2):
        for size in (8, 16, None):
            source.read(resize=size, test_fraction=0.2)
    source.read(test_fraction=0.2, resize=8)  # in another order
    assert source.made == len(source.copies()) == 3


def test_another_version_of_the_format_is_made_anew(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.read()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    source.read()
    assert source.made == 2
    assert len(source.copies()) == 1


def test_a_single_file_has_its_copy_beside_it(tmp_path: Path) -> None:
    made = list[int]()

    def make() -> Arrays:
        made.append(1)
        return arrays()

    for name in ("t.csv", "u.csv"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, ns=(0, 0))
        for _ in range(2):
            file = tmp_path / name
            cached([file], {}, file, tmp_path / "root", make, pytest.fail)
    assert len(made) == 2  # the second file does not remove the first one's
    copies = sorted(f.name for f in tmp_path.iterdir() if f.suffix == ".npz")
    assert [name.partition("-")[0] for name in copies] == [".t.csv.cl_runner", ".u.csv.cl_runner"]


def lock_out(folder: Path, prefix: str) -> None:
    """Nobody can lock there, not even the superuser, whom permissions do not stop."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}.lock").mkdir()


def test_beside_data_that_cannot_be_written_it_is_kept_below_the_root(source: Source) -> None:
    lock_out(source.path, ".cl_runner")
    source.read()
    assert_equal(source.read(), source.gives)
    assert source.made == 1
    (copy,) = source.copies()
    assert copy.parent == source.root
    other = Source(source.path.parent / "elsewhere")  # the same names, sizes: not the same data
    other.root = source.root
    lock_out(other.path, ".cl_runner")
    other.read()
    assert other.made == 1
    assert len(source.copies()) == 2


def test_where_nothing_can_be_written_only_the_copy_is_missing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_out(source.path, ".cl_runner")
    source.root.touch()  # no folder
    for i in (1, 2):
        assert_equal(source.read(), source.gives)
        assert source.made == i
    assert not source.told
    source.root.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert_equal(source.read(), source.gives)
    assert not source.copies()
    assert not list(source.root.glob("*.part"))
    assert not source.told


@pytest.mark.parametrize("damage", ["empty", "cut", "bits", "labels", "kind", "object"])
def test_a_damaged_copy_is_made_again_and_told(source: Source, damage: str) -> None:
    source.read()
    (copy,) = source.copies()
    data = copy.read_bytes()
    match damage:
        case "empty":
            copy.write_bytes(b"")
        case "cut":
            copy.write_bytes(data[:-100])
        case "bits":
            at = data.index(bytes(source.gives.x_train.numpy().tobytes()[:40]))
            copy.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        case "labels" | "kind" | "object":
            with np.load(copy) as content:
                changed = dict(content)
            changed["y_train"] = {
                "labels": changed["y_train"] + 99,
                "kind": changed["y_train"].astype(str),
                "object": changed["y_train"].astype(object),
            }[damage]
            np.savez(copy, **changed)
    assert_equal(source.read(), source.gives)
    assert source.made == 2
    (line,) = source.told
    assert str(copy) in line
    assert line.endswith("it is made again")
    assert "\n" not in line
    assert_equal(source.read(), source.gives)
    assert (source.made, len(source.told)) == (2, 1)


def test_jobs_that_need_the_same_data_decode_them_once(source: Source) -> None:
    make = source.make

    def slow() -> Arrays:
        time.sleep(0.2)
        return make()

    source.make = slow  # type: ignore[method-assign]
    threads = [threading.Thread(target=source.read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.made == 1


def test_what_cannot_be_decoded_leaves_nothing_and_may_be_tried_again(source: Source) -> None:
    make = source.make

    def fails() -> Arrays:
        raise UserError("b is damaged")

    source.make = fails  # type: ignore[method-assign]
    with pytest.raises(UserError, match="b is damaged"):
        source.read()
    assert not source.copies()
    source.make = make  # type: ignore[method-assign]
    assert_equal(source.read(), source.gives)
