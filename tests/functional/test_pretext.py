"""Pretext tasks: each error in another way; what becomes of the inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from cl_runner.functional import pretext


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("normed", [False, True])
def test_a_perceptron_is_torchs_layers_one_after_another(normed):
    """With the vector cut into weights and biases in turn, and BatchNorm of batch statistics."""
    sizes = [5, 7, 3, 2]
    head, x = pretext.draw_head(sizes, generator()), torch.rand(6, 5, generator=generator(1))
    expected, at = x, 0
    for i, (a, b) in enumerate(pairwise(sizes)):
        layer = nn.Linear(a, b)
        with torch.no_grad():
            layer.weight.copy_(head[at : at + a * b].view(b, a))
            layer.bias.copy_(head[at + a * b : at + a * b + b])
        at += a * b + b
        expected = layer(expected)
        if i < 2:
            norm = nn.BatchNorm1d(b, affine=False) if normed else nn.Identity()
            expected = norm(expected).relu()
    assert at == len(head)
    torch.testing.assert_close(pretext.perceptron(head, sizes, x, normed=normed), expected)


def test_a_head_is_drawn_as_torch_draws_its_layers():
    """Uniform within 1 / sqrt(inputs), weights and biases alike."""
    head = pretext.draw_head([400, 50, 4], generator())
    first, second = head[: 401 * 50], head[401 * 50 :]
    assert float(first.abs().max()) == pytest.approx(1 / 20, rel=0.01)
    assert float(second.abs().max()) == pytest.approx(50**-0.5, rel=0.05)
    assert float(first.mean().abs()) < 1e-3


def test_rotations_are_quarter_turns_and_labelled():
    x = torch.arange(8.0).view(2, 1, 2, 2)
    turned, which = pretext.rotations(x)
    assert which.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert turned[0].tolist() == [[[0, 1], [2, 3]]]
    assert turned[2].tolist() == [[[1, 3], [0, 2]]]  # its right column has come to the top
    assert turned[4].tolist() == [[[3, 2], [1, 0]]]
    assert turned[7].tolist() == [[[6, 4], [7, 5]]]


def test_the_error_of_rotations_is_the_mean_over_all_four_of_each():
    x = torch.rand(3, 1, 4, 4, generator=generator())
    weight = torch.rand(4, 16, generator=generator(1))
    expected = []
    for image in x:
        for k in range(4):
            p = (weight @ image.rot90(k, (1, 2)).flatten()).softmax(0)
            expected.append(-p[k].log())
    actual = pretext.rotation_error(lambda x: x.flatten(1), lambda z: z @ weight.T, x)
    torch.testing.assert_close(actual, torch.stack(expected).mean())


def test_whole_patches_are_hidden_in_all_channels():
    x = torch.ones(1, 2, 5, 5)
    uniform = torch.tensor([[[0.1, 0.9, 0.9], [0.9, 0.9, 0.1], [0.9, 0.3, 0.9]]])
    mask = pretext.hidden(x, uniform, 0.3, 2)
    rows = ["##...", "##...", "....#", "....#", "....."]
    assert mask.tolist() == [[[[c == "#" for c in row] for row in rows]]]


def test_the_share_that_is_hidden_is_the_ratio():
    uniform = torch.rand(4000, 7, 7, generator=generator())
    mask = pretext.hidden(torch.ones(4000, 1, 28, 28), uniform, 0.75, 4)
    assert float(mask.float().mean()) == pytest.approx(0.75, abs=0.005)


def test_the_error_of_masking_is_of_the_hidden_values_alone():
    """What is seen may be guessed as wrongly as it likes; what is hidden is not seen."""
    x, mask = torch.tensor([[[[1.0, 2.0, 3.0]]], [[[4.0, 5.0, 6.0]]]]), torch.zeros(2, 1, 1, 3)
    mask[0, 0, 0, 1] = mask[1, 0, 0, 0] = mask[1, 0, 0, 2] = 1
    seen = []

    def features(x):
        seen.append(x)
        return x.flatten(1)

    error = pretext.masked_error(features, lambda z: torch.full_like(z, 2.5), x, mask.bool())
    assert seen[0].flatten().tolist() == [1, 0, 3, 0, 5, 0]
    assert float(error) == pytest.approx((0.5**2 + 1.5**2 + 3.5**2) / 3)


def test_a_shift_moves_the_image_and_repeats_its_border():
    x = torch.arange(9.0).view(1, 1, 3, 3).repeat(3, 1, 1, 1)
    uniform = torch.tensor([[0.99, 0.5], [0.5, 0.0], [0.5, 0.5]])  # down; left; not at all
    down, left, still = pretext.shifted(x, uniform, 1)[:, 0].tolist()
    assert down == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert left == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert still == x[0, 0].tolist()


def test_barlow_twins_by_its_formula():
    """Equation 1 and 2 of the paper, sum by sum; embeddings centred and scaled over the batch."""
    z1, z2 = torch.randn(2, 9, 4, generator=generator()).double()
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + pretext.EPS).sqrt() for z in (z1, z2))
    expected = 0.0
    for i in range(4):
        for j in range(4):
            C = float((a[:, i] * b[:, j]).sum()) / 9
            expected += (1 - C) ** 2 if i == j else 0.3 * C**2
    assert float(pretext.barlow_error(z1, z2, 0.3)) == pytest.approx(expected)


def test_equal_views_without_redundancy_have_no_error():
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    assert float(pretext.barlow_error(z, z, 1.0)) < 1e-8
    assert float(pretext.barlow_error(z, -z, 1.0)) == pytest.approx(
        8, rel=1e-3
    )  # 2 times (1 + 1)^2


def test_members_mapped_by_vmap_have_the_errors_of_each_alone():
    """What stacked runs build on: nothing branches on values or changes the inputs in place."""
    shapes = {"x": (8, 1, 6, 6), "shift": (8, 2), "mask": (8, 3, 3), "W": (5, 36), "head": (180,)}
    random = generator()
    members = {k: torch.rand(3, *shape, generator=random) for k, shape in shapes.items()}

    def errors(x, shift, mask, W, head):
        def features(x):
            return (x.flatten(1) @ W.T).relu()

        def guess(z):
            return pretext.perceptron(head, [5, 4, 4], z, normed=True)

        view = pretext.shifted(x, shift, 1)
        hidden = pretext.hidden(view, mask, 0.4, 2)
        z1, z2 = (guess(features(v)) for v in (view, view.masked_fill(hidden, 0.0)))
        masked = pretext.masked_error(features, lambda z: z @ W, x, hidden)
        turned = pretext.rotation_error(features, guess, x)
        return torch.stack([pretext.barlow_error(z1, z2, 0.1), masked, turned])

    mapped = torch.func.vmap(errors)(*members.values())
    for i in range(3):
        torch.testing.assert_close(mapped[i], errors(*(v[i] for v in members.values())))
