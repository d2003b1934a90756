"""Conditions: what each does to an image, by hand; the same image is shown the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_benchmarks import arrays, refused, stream_of
from torch import Tensor

from cl_runner.config.benchmarks import CONDITIONS, Conditions
from cl_runner.core import Stream
from cl_runner.data.kinds.conditions import FIELD, gaussian

ROWS = torch.arange(120)


def shown(x: Tensor, *conditions: str, **keys: Any) -> Stream:
    """A stream over the images, one task for each condition."""
    data = arrays(n=len(x))._replace(x_train=x, x_test=x)
    data = data._replace(y_test=data.y_train)
    keys = {"conditions": list(conditions), "num_tasks": None, **keys}
    return stream_of(Conditions, "domain", data, **keys)


def task(x: Tensor, condition: str, severity: float, **keys: Any) -> Tensor:
    """The images as a task under one condition shows them."""
    stream = shown(x, condition, severity=[severity], **keys)
    return stream.images(torch.arange(len(x)), 0)


def pixels(*values: float, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Twelve images of 2 x n pixels, each row of the values."""
    return torch.tensor([values, values]).to(dtype).expand(12, 1, 2, len(values)).contiguous()


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_severity_0_and_none_change_nothing(condition: str, floating: bool) -> None:
    x = arrays(shape=(3, 6, 5), floating=floating).x_train
    stream = shown(x, condition, "none", severity=[0.0, 1.0])
    assert torch.equal(stream.images(ROWS, 0), x)
    assert torch.equal(stream.images(ROWS, 1), x)
    assert torch.equal(stream.held_out("test", stream[1])[0], x)


def test_brightness_adds_the_severity_and_is_cut_at_white() -> None:
    whole = task(pixels(0, 100, 200, 255), "brightness", 0.25)
    assert whole[0, 0, 0].tolist() == [64, 164, 255, 255]  # + 0.25 * 255 = 63.75
    exact = task(pixels(0.0, 0.5, 1.0, dtype=torch.float32), "brightness", 0.25)
    assert exact[0, 0, 0].tolist() == [0.25, 0.75, 1.25]  # not cut


def test_contrast_pulls_to_the_middle() -> None:
    whole = task(pixels(0, 100, 255), "contrast", 0.5)
    assert whole[0, 0, 0].tolist() == [64, 114, 191]  # half way to 127.5, rounded
    exact = task(pixels(0.0, 0.5, 1.0, dtype=torch.float32), "contrast", 0.5)
    assert exact[0, 0, 0].tolist() == [0.25, 0.5, 0.75]


def test_blur_spreads_a_point_by_the_gaussian_and_keeps_the_sum() -> None:
    x = torch.zeros(10, 1, 16, 16)
    x[:, 0, 8, 7] = 1
    image = task(x, "blur", 0.5)[3, 0]  # sigma = 0.5 / 8 * 16 = 1 pixel
    distance = torch.arange(16.0)
    spread = torch.exp(-((distance - torch.tensor([[8], [7]])) ** 2) / 2)
    spread[(distance - torch.tensor([[8], [7]])).abs() > 3] = 0
    rows, columns = spread / spread.sum(1, keepdim=True)
    torch.testing.assert_close(image, rows[:, None] * columns)
    assert float(image.sum()) == pytest.approx(1)


def test_blur_repeats_the_border() -> None:
    x = torch.full((10, 3, 8, 12), 200, dtype=torch.uint8)
    assert torch.equal(task(x, "blur", 1.0), x)


def test_widths_of_gaussians_differ_by_task() -> None:
    taps = gaussian(torch.tensor([0.0, 0.5, 2.0]))
    assert taps.shape == (3, 13)
    assert taps[0].tolist() == [0.0] * 6 + [1.0] + [0.0] * 6
    torch.testing.assert_close(taps.sum(1), torch.ones(3))
    assert float(taps[1, 7] / taps[1, 6]) == pytest.approx(torch.e**-2)  # 1 pixel is 2 sigma
    assert float(taps[2, 8] / taps[2, 6]) == pytest.approx(torch.e**-0.5)  # 2 pixels are 1 sigma


def test_occlusion_hides_a_rectangle_at_a_place_of_the_tasks_own() -> None:
    x = torch.full((10, 2, 12, 8), 90, dtype=torch.uint8)
    stream = shown(x, *["occlusion"] * 4, severity=[0.5])
    places = set()
    for t in range(4):
        images = stream.images(torch.arange(10), t)
        hidden = images[0, 0] == 0
        rows, columns = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
        assert (len(rows), len(columns), int(hidden.sum())) == (6, 4, 24)
        assert int(rows[-1] - rows[0]) == 5 and int(columns[-1] - columns[0]) == 3
        assert torch.equal(images, x * ~hidden)  # all images and channels at the same place
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 1
    assert int(task(x, "occlusion", 1.0).max()) == 0


def test_noise_is_normal_of_half_the_severity() -> None:
    x = torch.rand(400, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    noise = task(x, "noise", 0.6) - x
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.3, abs=0.01)
    inside = float((noise.abs() < 0.3).float().mean())
    assert inside == pytest.approx(0.683, abs=0.01)  # within one standard deviation
    # A pixel's noise differs from image to image: it is no constant to be learnt.
    assert float(noise.mean(0).abs().max()) < 5 * 0.3 / 400**0.5
    assert float(noise.std(0).min()) > 0.2
    pairs = noise.flatten(1)
    alike = torch.corrcoef(pairs) - torch.eye(400)
    assert float((alike.abs() > 0.5).float().mean()) < 0.01  # but where two begin at one place


def test_noise_of_uint8_images_is_cut_to_their_range() -> None:
    x = arrays(shape=(3, 20, 20)).x_train
    noisy = task(x, "noise", 1.0)
    assert noisy.dtype == torch.uint8
    added = noisy[(x > 120) & (x < 135)].float()
    assert (float(added.min()), float(added.max())) == (0, 255)
    assert float((added == 255).float().mean()) == pytest.approx(0.159, abs=0.03)  # beyond one SD


@pytest.mark.parametrize("floating", [False, True])
def test_an_image_has_the_same_noise_wherever_it_is_shown(floating: bool) -> None:
    x = arrays(shape=(1, 6, 6), floating=floating).x_train
    stream = shown(x, "none", "noise", "noise")
    first = stream.images(ROWS, 1)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream.images(order, 1), first[order])
    assert torch.equal(stream.images(order, torch.ones_like(order)), first[order])
    assert torch.equal(stream.held_out("test", stream[1])[0], first)  # the same images
    assert not torch.equal(stream.images(ROWS, 2), first)  # another task's noise is another
    other = shown(x, "none", "noise", "noise", seed=1)
    assert not torch.equal(other.images(ROWS, 1), first)


@pytest.mark.parametrize("floating", [False, True])
def test_a_batch_of_many_tasks_is_as_each_alone(floating: bool) -> None:
    x = arrays(shape=(3, 9, 7), floating=floating).x_train
    stream = shown(x, *CONDITIONS, severity=[0.1, 0.2, 0.3, 0.4, 0.9, 0.5])
    tasks = ROWS % len(CONDITIONS)
    mixed = stream.images(ROWS, tasks)
    for t in range(len(CONDITIONS)):
        own = tasks == t
        assert torch.equal(mixed[own], stream.images(ROWS[own], t))
    assert len({tuple(stream.images(ROWS[:1], t).flatten().tolist()) for t in range(6)}) == 6


def test_tables_of_noise_and_blur_are_there_only_where_they_are_used() -> None:
    x = arrays().x_train
    plain = shown(x, "none", "brightness").tables
    assert set(plain) == {"label", "gain", "offset", "shown"}
    assert set(shown(x, "noise", "blur").tables) == {*plain, "noise", "taps"}
    assert shown(x, "noise", "blur").tables["noise"].shape == (2, FIELD)


def test_tasks_are_called_by_their_conditions() -> None:
    stream = shown(arrays().x_train, "none", "noise", "blur", "noise")
    assert [task.title for task in stream] == ["none", "noise", "blur", "noise 2"]


def test_a_number_of_tasks_takes_the_first_conditions() -> None:
    keys = {"num_tasks": 2, "severity": [0.1, 0.2, 0.3]}
    stream = shown(arrays().x_train, "none", "brightness", "noise", **keys)
    assert [task.title for task in stream] == ["none", "brightness"]
    assert stream.tables["offset"].flatten().tolist() == pytest.approx([0, 0.2])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"conditions": []}, "benchmark.conditions must hold one entry per task"),
        ({"conditions": ["fog"]}, "benchmark.conditions must be one of none, brightness"),
        ({"num_tasks": 7}, "benchmark.num_tasks=7 is more than the 6 of benchmark.conditions"),
        ({"severity": [0.1, 0.2]}, "benchmark.severity must hold 1 number, or one for each of"),
        ({"severity": []}, "benchmark.severity must hold 1 number"),
        ({"severity": [1.1]}, "benchmark.severity must lie in [0, 1]"),
        ({"severity": [-0.1]}, "benchmark.severity must lie in [0, 1]"),
    ],
)
def test_what_makes_no_conditions_is_refused(keys: dict[str, Any], words: str) -> None:
    assert words in refused(Conditions, **{"num_tasks": None, **keys})


def test_feature_vectors_have_no_conditions() -> None:
    data = arrays(shape=(1, 1, 30), floating=True)
    assert "needs images" in refused(Conditions, data=data)
