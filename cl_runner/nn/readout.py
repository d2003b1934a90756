"""A linear layer on fixed features: of the inputs, or of a network without its output layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from cl_runner.errors import UserError, check
from cl_runner.functional.fixed_point import LARGEST, projected, rounded
from cl_runner.nn.network import Network, Stage
from cl_runner.nn.networks import STAGES, Shape, activation_shapes


class ReadOut(Network):
    """Features, random ones of these if asked for, and the output layer on top.

    body: a network whose activations after the first `layer` stages are the features (None: after
    all but the last); None: the inputs are. random: so many units relu(V f), V normal; 0: none.
    Without a bias they keep the scale of f, whatever it is. V is in whole multiples of a 32nd of
    its standard deviation, f has 13 bits of its largest number and a sign, the units have 7 bits of
    a sample's largest one: products of such add up without an error (`functional.fixed_point`).
    Raises UserError for a layer that the body does not have.
    """

    def __init__(
        self, body: nn.Module | None, shape: Shape, layer: int | None, random: int, outputs: int
    ) -> None:
        super().__init__()
        self.body = None if body is None else headless(body)
        shapes = () if self.body is None else activation_shapes(self.body, shape)[:-1]
        check(
            layer is None or layer <= len(shapes),
            f"strategy.layer must lie between 1 and {len(shapes)}, since this model has "
            f"{len(shapes) + 1} stages, got {layer}",
        )
        self.layer = len(shapes) if layer is None else layer
        d = math.prod((shape, *shapes)[self.layer])
        self.random = nn.Linear(d, random, bias=False) if random else None
        if self.random is not None:
            self.last = math.sqrt(2 / d) / 32  # a 32nd of their standard deviation
            weight = nn.init.kaiming_normal_(self.random.weight.data, nonlinearity="relu")
            weight.div_(self.last).round_().clamp_(-LARGEST, LARGEST).mul_(self.last)
        self.output = nn.Linear(random or d, outputs)

    def stages(self) -> Sequence[Stage]:
        """Those of the body below the layer, the random layer, the output layer."""
        below = [] if self.body is None else list(self.body.stages()[: self.layer])
        random = [] if self.random is None else [partial(self._random, self.random.weight)]
        return [*below, *random, lambda x: self.output(x.flatten(1))]

    def _random(self, weight: Tensor, x: Tensor) -> Tensor:
        return rounded(projected(x.flatten(1), weight, self.last))


def headless(network: nn.Module) -> Network:
    """The network with nothing in the place of its output layer, the last nn.Linear.

    Raises UserError for a module that does not show its features, or has no such layer.
    """
    if not isinstance(network, Network):
        raise UserError(f"strategy.input=features needs {STAGES}, or strategy.input=pixels")
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    check(bool(layers), "strategy.input=features needs a model whose output layer is nn.Linear")
    network.set_submodule(layers[-1], nn.Identity())
    return network
