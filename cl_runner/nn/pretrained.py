"""Networks of torchvision and timm as a `Network` of two stages, the second the output layer.

The names of their tensors stay those of the library, so that its files of weights fit, and the
library takes what a run leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config import libraries, schema
from cl_runner.errors import UserError, check
from cl_runner.nn.dropout import keyed
from cl_runner.nn.network import Network, Stage

Shape = tuple[int, int, int]  # (channels, height, width) of an input
CHANNELS = 3  # of the images that they take
_fitting: set[tuple[str, str, Shape]] = set()  # what was tried, and worked


class Pretrained(Network):
    """What a library's network becomes: its class is one of both, this one first.

    `before_output` is a copy of the network that shares all its layers and tensors, but in the
    place of the output layer it has nothing: what it gives are the features.
    """

    channels_last: ClassVar[bool] = True
    output_name: str  # of the output layer

    def stages(self) -> Sequence[Stage]:
        return [self.features, self.get_submodule(self.output_name)]

    def features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, ...]; of no images, too, which not every library's network takes."""
        none = x.shape[0] == 0  # not len(x), of which a trace would keep the number
        some = x.new_zeros(1, *x.shape[1:]) if none else x
        features: Tensor = self.__dict__["before_output"](some)
        return features[:0] if none else features

    def train(self, mode: bool = True) -> Any:
        """As every module; of the copy only its own mode is not shared."""
        self.__dict__["before_output"].training = mode
        return super().train(mode)


def in_two_stages(network: nn.Module, outputs: int, where: str = "the model") -> nn.Module:
    """A network as a Network of two stages: all before its output layer, the last nn.Linear; that.

    Its forward pass must end with that layer, and take x alone. Raises UserError where the layer
    has not a unit for each of the outputs.
    """
    network = keyed(network)
    linear = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    name, layer = linear[-1] if linear else ("", None)
    right = layer is not None and layer.out_features == outputs
    check(right, f"{where} has no nn.Linear with {outputs} units as its output layer")
    before = without(network, name)
    network.__class__ = both(type(network))  # type: ignore[arg-type]  # it is hashable
    network.__dict__ |= {"before_output": before, "output_name": name}
    return network


@cache
def both(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of such a network."""
    return type(f"Pretrained{kind.__name__}", (Pretrained, kind), {})


def without(network: nn.Module, name: str) -> nn.Module:
    """A network that shares all with this one but a layer, in whose place inputs pass as they are.

    Only what lies around that layer is copied, and no tensor.
    """
    first, _, rest = name.partition(".")
    own = copy(network)
    inner = without(network.get_submodule(first), rest) if rest else nn.Identity()
    own._modules = {**network._modules, first: inner}
    return own


# The models.


def torchvision(config: schema.Torchvision, input_shape: Shape, outputs: int) -> nn.Module:
    """A network of torchvision.models, its weights as the library draws them."""
    models = libraries.torchvision().models
    options: dict[str, Any] = {}
    wanted = libraries.wants("torchvision", config.arch)
    if config.arch in libraries.SPLIT:
        options = {"aux_logits": False, "init_weights": True}
    elif wanted.fixed and input_shape[1] != wanted.size:
        options = {"image_size": input_shape[1]}

    def make() -> nn.Module:
        made: nn.Module = models.get_model(config.arch, num_classes=outputs, **options)
        return made

    return fitted(config, input_shape, outputs, make)


def timm(config: schema.Timm, input_shape: Shape, outputs: int) -> nn.Module:
    """A network of timm, its weights as the library draws them."""
    library, wanted = libraries.timm(), libraries.wants("timm", config.arch)
    other = wanted.fixed and input_shape[1] != wanted.size
    options = {"img_size": input_shape[1]} if other else {}

    def make() -> nn.Module:
        made: nn.Module = library.create_model(config.arch, num_classes=outputs, **options)
        return made

    return fitted(config, input_shape, outputs, make)


def fitted(config: schema.Library, input_shape: Shape, outputs: int, make: Any) -> nn.Module:
    """A library's network. Raises UserError unless it takes such images and gives logits."""
    shown = "x".join(map(str, input_shape))
    where = f"model={config.name} model.arch={config.arch}"
    check(input_shape[1] > 1, f"{where} needs images; the data are feature vectors")
    right = input_shape[0] == CHANNELS and input_shape[1] == input_shape[2]
    check(right, f"{where} takes square images of {CHANNELS} channels, not {shown}")
    try:
        network = in_two_stages(make(), outputs, where)
        check_shapes(network, config, input_shape, outputs)
    except UserError:
        raise
    except Exception as error:
        if next(iter(error.args), None) and "memory" in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:160]
        hint = f"images of {shown} may be too small: set benchmark.resize"
        raise UserError(f"{where} cannot be used here ({reason}); {hint}") from None
    return network


def check_shapes(
    network: nn.Module, config: schema.Library, input_shape: Shape, outputs: int
) -> None:
    """Run a network once on nothing. Raises what it raises, and UserError for other outputs."""
    key = (config.name, config.arch, input_shape)
    if key in _fitting:
        return
    x = next(network.parameters()).detach().new_zeros(2, *input_shape)
    with torch.no_grad():
        logits = network.eval()(x)
    network.train()
    right = isinstance(logits, Tensor) and logits.shape == (2, outputs)
    check(right, f"model.arch={config.arch} has other outputs than a layer of classes")
    if x.device.type != "meta":
        _fitting.add(key)
