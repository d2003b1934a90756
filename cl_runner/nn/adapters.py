"""Adapters: few trained numbers beside the frozen weights of a network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.config import schema
from cl_runner.errors import check


class LowRank(nn.Module):
    """A Linear layer whose weight W and bias b stay, and a trained change of W of low rank.

    W x + b + alpha / rank B A x, A [rank, inputs] and B [outputs, rank] (Hu et al. 2021, arXiv
    2106.09685, eq. 3). B starts at 0, so that nothing is changed at first, and A is drawn as torch
    draws a Linear layer's weight (the authors' loralib; the paper has a Gaussian). W and b keep
    the names that the layer has without an adapter.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.empty(rank, layer.in_features))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        change = F.linear(F.linear(x, self.A), self.B)
        return torch.add(F.linear(x, self.weight, self.bias), change, alpha=self.scale)

    def merged(self) -> Tensor:
        """The one weight [outputs, inputs] that does the same: W + alpha / rank B A."""
        return self.weight + self.scale * self.B @ self.A


def adapted(make_net: Callable[[], nn.Module], adapter: schema.Adapter) -> Callable[[], nn.Module]:
    """make_net with the adapters in its Linear layers, and everything else frozen but the head.

    The weights of the network are those that it has without adapters, drawn or loaded. It raises
    UserError where the adapters do not fit the network.
    """
    if not isinstance(adapter, schema.LoRA):
        return make_net

    def made() -> nn.Module:
        network = make_net()
        layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
        check(bool(layers), f"adapter={adapter.name} adapts nn.Linear layers; the model has none")
        output = list(layers)[-1]
        for name, p in network.named_parameters():
            whole = adapter.head == "train" and name.rpartition(".")[0] == output
            p.requires_grad_(whole)
        for name in chosen(list(layers), adapter):
            layer = layers[name]
            least = min(layer.in_features, layer.out_features)
            sizes = f"{layer.in_features} inputs and {layer.out_features} outputs"
            message = f"adapter.rank={adapter.rank} is too large for {name} with {sizes}"
            check(adapter.rank <= least, f"{message}: at most {least}")
            network.set_submodule(name, LowRank(layer, adapter.rank, adapter.alpha))
        return network

    return made


def chosen(layers: list[str], adapter: schema.LoRA) -> list[str]:
    """The layers, of all Linear ones of a network, that have adapters; the last is the output's.

    Raises UserError for one that is not there, for an output layer that is trained whole, and
    where none is left.
    """
    *hidden, output = layers
    if adapter.layers is None:
        check(
            bool(hidden),
            f"adapter={adapter.name}: the model's only nn.Linear layer is the output layer {output}"
            f"; adapt it by 'adapter.layers=[{output}]' and adapter.head=frozen",
        )
        return hidden
    for name in adapter.layers:
        known = ", ".join(layers)
        check(
            name in layers, f"adapter.layers: {name} is no nn.Linear of the model; known: {known}"
        )
        check(
            name != output or adapter.head == "frozen",
            f"adapter.layers: {output} is the output layer, which adapter.head=train trains whole: "
            "leave it out or set adapter.head=frozen",
        )
    return adapter.layers


def merged(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors by name, as if there were no adapters but weights with their change."""
    named: dict[str, Tensor] = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            del named[f"{name}.A"], named[f"{name}.B"]
            named[f"{name}.weight"] = module.merged()
    return named
