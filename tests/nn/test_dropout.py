"""Dropout whose random numbers follow from a number that a step is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_runner.nn.dropout import Dropout, draws_itself, keyed, uniform_bits
from cl_runner.nn.flat import Flat

KEYS = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))


def masks(layer: Dropout, key: Tensor, *shape: int, calls: int = 1) -> list[Tensor]:
    layer.key, layer.calls = key, 0
    return [layer(torch.ones(shape)) for _ in range(calls)]


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9])
def test_a_share_is_dropped_and_the_others_grow_so_that_the_mean_stays(p: float) -> None:
    (shown,) = masks(Dropout(p), KEYS[0], 400, 300)
    assert (shown == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert shown.mean().item() == pytest.approx(1, abs=0.03)
    assert set(shown.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}


def test_whole_channels_are_dropped() -> None:
    (shown,) = masks(Dropout(0.5, channels=True), KEYS[0], 50, 40, 3, 3)
    per_channel = shown.flatten(2)
    assert torch.equal(per_channel.amin(2), per_channel.amax(2))
    assert (per_channel[..., 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_all_is_dropped_without_a_division_by_zero() -> None:
    (shown,) = masks(Dropout(1.0), KEYS[0], 100, 10)
    assert torch.equal(shown, torch.zeros(100, 10))


def test_nothing_is_dropped_in_evaluation() -> None:
    assert torch.equal(masks(Dropout(0.5).eval(), KEYS[0], 10, 10)[0], torch.ones(10, 10))


def test_keys_calls_and_places_are_independent() -> None:
    """As good as numbers of torch's: correlations of about 1 / sqrt(n)."""
    n = 20_000
    rows = torch.stack([uniform_bits(key, call, (n,)) for key in KEYS[:16] for call in (1, 2)])
    uniform = rows.double() / 2**32
    assert uniform.min() >= 0 and uniform.max() < 1
    together = torch.cat([uniform, uniform.roll(1, 1), uniform.roll(2, 1)])  # and of neighbours
    correlation = together.corrcoef() - torch.eye(len(together))
    assert correlation.abs().max() < 5 / n**0.5
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.002)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.001)
    for bit in range(32):
        assert (rows >> bit & 1).double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_the_next_layer_or_pass_of_a_step_draws_anew_and_the_step_again_does_not() -> None:
    layer = Dropout(0.5)
    first, second = masks(layer, KEYS[0], 20, 20, calls=2)
    assert not torch.equal(first, second)
    assert torch.equal(masks(layer, KEYS[0], 20, 20)[0], first)
    assert not torch.equal(masks(layer, KEYS[1], 20, 20)[0], first)


def test_the_layers_of_a_network_draw_apart() -> None:
    flat = Flat(nn.Sequential(Dropout(0.5), nn.Identity(), Dropout(0.5), nn.Linear(2, 2)))
    first, second = (m for m in flat.module.modules() if isinstance(m, Dropout))
    with flat.drawing(KEYS[0]):
        shown = [layer(torch.ones(50, 50)) for layer in (first, second, first, second)]
    kept = torch.stack([x.flatten() != 0 for x in shown]).double()
    assert (kept.corrcoef() - torch.eye(4)).abs().max() < 0.1
    assert first.key is None


def test_members_of_a_stack_have_the_numbers_of_their_own_keys() -> None:
    stacked = torch.func.vmap(lambda key: uniform_bits(key, 3, (5, 7)))(KEYS)
    assert torch.equal(stacked, torch.stack([uniform_bits(key, 3, (5, 7)) for key in KEYS]))


def test_torchs_dropout_layers_are_replaced_wherever_they_are() -> None:
    shared = nn.Dropout(0.3)
    inner = nn.Sequential(nn.Dropout2d(0.4), shared)
    network = keyed(nn.Sequential(shared, inner, nn.Linear(3, 2)).eval())
    found = [m for m in network.modules() if not isinstance(m, nn.Sequential | nn.Linear)]
    assert all(isinstance(m, Dropout) and not m.training for m in found)
    assert [(m.p, m.channels) for m in found] == [(0.3, False), (0.4, True)]
    assert network[0] is network[1][1]
    assert not draws_itself(network)


def test_what_draws_by_other_means_is_known() -> None:
    recurrent = nn.LSTM(3, 4, num_layers=2, dropout=0.1)
    for layer in (nn.AlphaDropout(0.1), nn.RReLU(), recurrent):
        assert draws_itself(nn.Sequential(layer))
    assert not draws_itself(nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2)))
