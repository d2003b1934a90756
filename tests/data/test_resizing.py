"""Images brought to another size: by how much each pixel counts, of which data, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cl_runner.config.schema import Config
from cl_runner.core import Stream
from cl_runner.data import sources, streams
from cl_runner.data.streams import CPU, pad, resize
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.running import prepare
from cl_runner.strategies import build

SIXTEEN = "benchmark.resize=16"


def noise(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def by_triangles(n: int, size: int) -> Tensor:
    """Weights [size, n] of pixels: a triangle over each new one, as wide as it is in old ones."""
    scale = n / size
    width = max(scale, 1)
    old, new = torch.arange(n) + 0.5, (torch.arange(size) + 0.5) * scale
    weights = (1 - (old - new[:, None]).abs() / width).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


# What it does to an image.


@pytest.mark.parametrize("size", [1, 3, 5, 8, 13, 40])
def test_each_pixel_is_a_mean_under_a_triangle(size: int) -> None:
    x = noise(20, 3, 8, 6)
    rows, columns = by_triangles(8, size).double(), by_triangles(6, size).double()
    expected = rows @ x.double() @ columns.T
    found = resize(x, size, CPU)
    assert found.dtype == torch.uint8 and found.shape == (20, 3, size, size)
    assert (found - expected).abs().max() <= 0.5 + 1e-4  # rounded
    exact = resize(x.float() / 255, size, CPU)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact.double() * 255, expected, atol=1e-4, rtol=1e-5)


def test_half_the_size_by_hand() -> None:
    """Of four columns 0, 0, 70, 70 the first new one has weights 3/7, 3/7, 1/7 and 0."""
    x = torch.tensor([0, 0, 70, 70], dtype=torch.uint8).expand(1, 1, 4, 4)
    assert resize(x, 2, CPU).tolist() == [[[[10, 60], [10, 60]]]]


@pytest.mark.parametrize("value", [0, 1, 200, 255])
@pytest.mark.parametrize("size", [3, 7, 16])
def test_a_constant_image_stays_constant(value: int, size: int) -> None:
    x = torch.full((2, 3, 7, 9), value, dtype=torch.uint8)
    assert bool((resize(x, size, CPU) == value).all())


@pytest.mark.parametrize("size", [4, 9])
def test_many_at_once_are_as_one_by_one_and_as_in_parts(size: int, monkeypatch) -> None:
    for x in (noise(23, 3, 6, 6), noise(23, 1, 7, 5) / 255):
        whole = resize(x, size, CPU)
        alone = torch.cat([resize(one[None], size, CPU) for one in x])
        assert torch.equal(whole, alone)
        monkeypatch.setattr(streams, "AT_ONCE", 5 * x.shape[1] * max(*x.shape[2:], size) ** 2)
        sizes: list[int] = []
        interpolate = streams.F.interpolate

        def noted(part: Tensor, _sizes=sizes, _f=interpolate, **keys: object) -> Tensor:
            _sizes.append(len(part))
            return _f(part, **keys)

        with monkeypatch.context() as patched:
            patched.setattr(streams.F, "interpolate", noted)
            assert torch.equal(resize(x, size, CPU), whole)
        assert sizes == [5, 5, 5, 5, 3]


def test_of_the_same_size_or_of_no_size_they_stay_as_they_are() -> None:
    x = noise(3, 1, 6, 6)
    assert resize(x, 6, CPU) is x
    assert resize(x, None, CPU) is x
    vectors = noise(3, 1, 1, 6)
    assert resize(vectors, None, CPU) is vectors


def test_what_it_is_made_of_is_left_alone() -> None:
    x = noise(3, 1, 6, 6) / 255
    before = x.clone()
    resize(x, 4, CPU)
    assert torch.equal(x, before)


def test_it_is_done_on_the_device_of_the_run(configure, monkeypatch) -> None:
    seen: list[tuple[str, torch.dtype]] = []

    def noted(part: Tensor, size: tuple[int, int], **_: object) -> Tensor:
        seen.append((part.device.type, part.dtype))
        return torch.zeros(*part.shape[:2], *size)

    monkeypatch.setattr(prepare, "choose_device", lambda _: torch.device("meta"))
    monkeypatch.setattr(streams.F, "interpolate", noted)
    found = prepare.read(configure("strategy=naive", "benchmark=split_digits", SIXTEEN))
    assert seen == [("meta", torch.float32)] * 2  # training and test images
    assert (found.x_train.device, found.x_test.device) == (CPU, CPU)


# The streams.


@pytest.fixture
def stream(configure: Callable[..., Config]) -> Callable[..., Stream]:
    def made(*overrides: str) -> Stream:
        config = configure("strategy=naive", "device=cpu", *overrides)
        return prepare.prepare(config, build(config.strategy, [])).stream

    return made


def test_a_split_stream_and_its_network_have_the_size(stream) -> None:
    plain, small = (
        stream("benchmark=split_digits"),
        stream("benchmark=split_digits", "benchmark.resize=5"),
    )
    assert small.input_shape == (1, 5, 5)
    assert torch.equal(small.x, resize(plain.x, 5, CPU))
    assert torch.equal(small.x_test, resize(plain.x_test, 5, CPU))


def test_a_permutation_is_of_the_resized_and_padded_image(stream) -> None:
    own = ("benchmark=permuted_digits", "benchmark.num_tasks=2")
    plain = stream(*own)
    found = stream(*own, "benchmark.resize=5", "benchmark.pad_to=7")
    raw = pad(resize(plain.x, 5, CPU), 7)
    assert torch.equal(found.x, raw)
    order = found.tables["order"][1]
    assert order.sort().values.tolist() == list(range(49))
    rows = torch.arange(20)
    assert torch.equal(found.images(rows, 1).flatten(2), raw[:20].flatten(2)[:, :, order])


@pytest.mark.parametrize("kind", ["rotated", "conditions", "label_permuted", "random_labels"])
def test_what_other_tasks_do_is_done_to_the_resized_image(stream, kind: str) -> None:
    found = stream(f"benchmark={kind}_digits", "benchmark.num_tasks=2", "benchmark.resize=12")
    raw = resize(stream(f"benchmark={kind}_digits").x, 12, CPU)
    first, second = (found.images(torch.arange(30), t) for t in (0, 1))
    assert torch.equal(first, raw[:30])  # the first angle is 0, the first condition none
    assert second.shape == (30, 1, 12, 12)
    assert torch.equal(first, second) == (kind in {"label_permuted", "random_labels"})


def test_in_a_sequence_each_data_set_is_brought_to_the_size(configure, monkeypatch) -> None:
    digits = sources.load("digits", Path(configure("strategy=naive").data.root), None)
    data = {
        "digits": digits,
        "mnist": digits._replace(x_train=noise(1442, 1, 28, 28), x_test=noise(355, 1, 28, 28)),
        "cifar10": digits._replace(x_train=noise(1442, 3, 32, 32), x_test=noise(355, 3, 32, 32)),
    }
    monkeypatch.setattr(sources, "load", lambda dataset, *_: data[dataset])
    several = ("benchmark=sequence", f"benchmark.datasets=[{','.join(data)}]")
    plain, own = (configure(*several, *more).benchmark for more in ((), (SIXTEEN,)))
    assert sources.read(plain, Path(), None, print).x_train.shape[2:] == (32, 32)
    found = sources.read(own, Path(), None, print)
    assert found.x_train.shape == (3 * 1442, 3, 16, 16) and len(found.x_test) == 3 * 355
    for t, part in enumerate(data.values()):
        expected = resize(part.x_train, 16, CPU).expand(-1, 3, -1, -1)  # and no zeros around it
        assert torch.equal(found.x_train[found.slice_train == t], expected)


# Images in files.


def save_noise(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """train/a/<i>.png, and one in test/a, of widths and heights."""
    for split, some in (("train", sizes), ("test", sizes[:1])):
        (folder / split / "a").mkdir(parents=True)
        for i, (width, height) in enumerate(some):
            image = Image.fromarray(noise(height, width).numpy())
            image.save(folder / split / "a" / f"{i}.png")


def test_a_folder_of_several_sizes_is_resized_when_it_is_decoded(configure, tmp_path) -> None:
    """By Pillow, which rounds once more than torch, between rows and columns."""
    sizes = [(30, 20), (8, 8), (5, 40), (16, 16)]
    save_noise(tmp_path / "in", sizes)
    split = ("benchmark=split_folder", "benchmark.num_tasks=1", f"data.path={tmp_path / 'in'}")
    with pytest.raises(UserError, match=r"set benchmark\.resize=32, or another size"):
        sources.read(configure(*split).benchmark, tmp_path, tmp_path / "in", print)
    config = configure(*split, SIXTEEN)
    found = sources.read(config.benchmark, tmp_path, tmp_path / "in", print).x_train
    expected = [resize(noise(1, 1, height, width), 16, CPU) for width, height in sizes]
    assert (found.int() - torch.cat(expected).int()).abs().max() <= 1
    assert torch.equal(found[3], expected[3][0])  # it has the size


def test_npz_images_of_one_file_and_of_a_file_for_each_task(configure, tmp_path) -> None:
    x, y = noise(40, 9, 6).numpy(), np.arange(40) % 2
    (tmp_path / "in").mkdir()
    for name, images in (("a", x), ("b", x / 255)):
        arrays = {"x_train": images, "y_train": y, "x_test": images, "y_test": y}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    np.savez(tmp_path / "in" / "1.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    own = configure("benchmark=split_npz", f"data.path={tmp_path / 'a.npz'}", SIXTEEN)
    expected = resize(torch.from_numpy(x)[:, None], 16, CPU)
    for path, exact in (("a.npz", True), ("b.npz", False)):
        found = sources.read(own.benchmark, tmp_path, tmp_path / path, print)
        unit = 1 if exact else 255
        torch.testing.assert_close(
            found.x_train * unit, expected.to(found.x_train.dtype), atol=unit // 2, rtol=0
        )
    files = configure("benchmark=files", f"data.path={tmp_path / 'in'}", SIXTEEN)
    found = sources.read(files.benchmark, tmp_path, tmp_path / "in", print)
    assert torch.equal(found.x_train, expected)


# Mistakes, and the whole program.


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("benchmark=split_digits", "benchmark.resize=0"), "must lie in 1 .. 8192 pixels, or be "),
        (("benchmark=weather", "benchmark.resize=8193"), "must lie in 1 .. 8192 pixels, or be "),
        (("benchmark=weather", SIXTEEN), "needs images; the data are feature vectors"),
        (("benchmark=split_letter", SIXTEEN), "needs images; the data are feature vectors"),
    ],
)
def test_what_cannot_be_resized_is_told(stream, overrides, line) -> None:
    with pytest.raises(UserError) as caught:
        stream(*overrides)
    assert str(caught.value).startswith(f"benchmark.resize {line}")
    assert "\n" not in str(caught.value)


def test_npz_vectors_are_told(configure, tmp_path) -> None:
    x, y = noise(20, 6).numpy(), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = configure("benchmark=split_npz", f"data.path={tmp_path / 'a.npz'}", SIXTEEN)
    with pytest.raises(UserError, match="resize needs images; the data are feature vectors"):
        sources.read(config.benchmark, tmp_path, tmp_path / "a.npz", print)


def test_more_than_memory_holds_is_told_before_it_is_made(monkeypatch) -> None:
    monkeypatch.setattr("cl_runner.data.arrays.ram.available", lambda _: 10_000)
    assert resize(noise(10, 1, 8, 8), 31, CPU).shape == (10, 1, 31, 31)
    with pytest.raises(UserError, match=r"10 images at benchmark\.resize=32 take"):
        resize(noise(10, 1, 8, 8), 32, CPU)


@pytest.mark.slow
def test_the_command_trains_on_resized_images_and_refuses_tables(cl_run, tmp_path: Path) -> None:
    tiny = ("training.iterations=3", "device=cpu", "data.root=data", "strategy=er")
    for name, *own in (
        ("split", "benchmark=split_digits", SIXTEEN, "model=cnn", "model.channels=[2,2]"),
        ("permuted", "benchmark=permuted_digits", "benchmark.resize=5", "seeds=[0,1]"),
        ("sequence", "benchmark=sequence", "benchmark.datasets=[digits,digits]", SIXTEEN),
    ):
        done = cl_run(*own, *tiny, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "sequence" / "summary.csv")
    weights = (256 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 20  # of an MLP on 16x16 pixels
    assert int(row["parameters"]) == weights
    done = cl_run("benchmark=weather", SIXTEEN, *tiny, "hydra.run.dir=weather", cwd=tmp_path)
    assert done.returncode == 2
    line = "cl-run: benchmark.resize needs images; the data are feature vectors"
    assert done.stderr.strip() == line
    assert not (tmp_path / "weather" / "accuracy_matrix.csv").exists()
