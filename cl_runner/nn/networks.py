"""The networks: MLP, small CNN, and residual networks for 32x32 images.

A model is a dataclass (`config.schema`) and a function that makes an `nn.Module` of it, both in
`MODELS`; those of the user's own packages are found by `config.plugins`. What a run asks of a
module:

- `module(x, task)` gives logits [B, K] for inputs x [B, C, H, W] and tasks [B] (or one int). Ours
  ignore the task: a multi-head network is the same network scored on the task's classes. A module
  that does not is for scenario=task only.
- It has a parameter that is trained. What else changes in training is a buffer, which the engine
  carries along (BatchNorm's statistics). What it draws it draws by torch's dropout layers
  (`nn.Dropout`), which become ours (`nn.dropout`); a module that draws otherwise says so by an
  attribute `dropout`, a number, and is trained operation by operation.
- The last `nn.Linear` in it is the output layer, with K units: lwf, hat, packnet, imm, den,
  soft_sharing, frozen_features, expandable_head and wa tell by it which weights belong to which
  class (`nn.flat.Flat.output_mask`), and refuse a module without it; so do lucir and scr, which
  put another layer in its place.
- It is a `Network`, which has `stages`: icarl, lucir, er_aml, scr, bir, latent_replay and
  policy=herding read the activations between them, hat and xdg gate them. They refuse any other
  module, and den and pnn, which grow an mlp, any other network. All other strategies train a plain
  `nn.Module`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.config import schema
from cl_runner.config.plugins import MODEL, theirs
from cl_runner.errors import UserError, check
from cl_runner.nn.dropout import Dropout, keyed
from cl_runner.nn.network import Network, Stage
from cl_runner.nn.pretrained import timm, torchvision
from cl_runner.nn.strided import StridedCNN

Shape = tuple[int, int, int]  # (channels, height, width) of an input
STAGES = (
    "the activations between the model's layers, which it does not show: it is no "
    "cl_runner.nn.networks.Network with stages(); use model=mlp, for instance"
)


class MLP(Network):
    """Fully connected network with ReLU; BatchNorm before it and dropout after it if asked for.

    init `default`: as nn.Linear draws; `xavier`: Xavier-uniform weights, zero biases;
    `truncated_normal`: weights of standard deviation 0.1 before they are cut at 0.2, biases 0.1.
    """

    def __init__(
        self,
        inputs: int,
        hidden_sizes: Sequence[int],
        outputs: int,
        init: str,
        dropout: float,
        norm: str = "none",
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden_sizes, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        norms = hidden_sizes if norm == "batch" else ()
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in norms)
        self.dropout = Dropout(dropout)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            if init == "truncated_normal":
                nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
                nn.init.constant_(layer.bias, 0.1)

    def stages(self) -> Sequence[Stage]:
        *hidden, last = self.layers
        norms = [*self.norms] or [None] * len(hidden)
        stages = [partial(self._hidden, *own) for own in zip(hidden, norms, strict=True)]
        return [*stages, partial(self._last, last)]

    def _hidden(self, layer: nn.Module, norm: nn.Module | None, x: Tensor) -> Tensor:
        x = layer(x.flatten(1))
        shown: Tensor = self.dropout(F.relu(x if norm is None else norm(x)))
        return shown

    def _last(self, layer: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = layer(x.flatten(1))
        return logits


def plain(network: nn.Module) -> TypeGuard[MLP]:
    """Whether a network is an MLP of trained nn.Linear layers: no adapters, no BatchNorm."""
    if not isinstance(network, MLP) or network.norms:
        return False
    if not all(p.requires_grad for p in network.parameters()):
        return False
    return all(isinstance(layer, nn.Linear) for layer in network.layers)


class CNN(Network):
    """3x3 convolutions with ReLU, each followed by 2x2 max pooling, and one hidden layer."""

    channels_last: ClassVar[bool] = True

    def __init__(
        self, shape: tuple[int, int, int], channels: Sequence[int], hidden: int, outputs: int
    ) -> None:
        super().__init__()
        sizes = [shape[0], *channels]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        side = [extent >> len(channels) for extent in shape[1:]]
        self.hidden = nn.Linear(channels[-1] * side[0] * side[1], hidden)
        self.output = nn.Linear(hidden, outputs)

    def stages(self) -> Sequence[Stage]:
        blocks = [partial(self._block, convolution) for convolution in self.convolutions]
        return [*blocks, lambda x: F.relu(self.hidden(x.flatten(1))), self.output]

    def _block(self, convolution: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(convolution(x)), 2)


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                Subsample(stride, outputs - inputs)
                if shortcut == "identity"
                else nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Subsample(nn.Module):
    """The shortcut without parameters: every stride-th pixel, new channels zero (option A)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class ResNet(Network):
    """Residual network with a 3x3 stem (He et al. 2016, arXiv 1512.03385).

    The width doubles and the resolution halves from stage to stage. `shortcut`: "projection" (1x1
    convolution) or "identity" (subsampling and zero channels, as the paper has it for CIFAR).
    """

    channels_last: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        blocks: Sequence[int],
        width: int,
        outputs: int,
        shortcut: str,
        init: str = "default",
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs_of_stage = width << stage
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                stages.append(Block(inputs, outputs_of_stage, stride, shortcut))
                inputs = outputs_of_stage
        self.blocks = nn.Sequential(*stages)
        self.output = nn.Linear(inputs, outputs)
        initialise(self, init)

    def stages(self) -> Sequence[Stage]:
        return [
            lambda x: F.relu(self.bn(self.stem(x))),
            *self.blocks,
            lambda x: x.mean((2, 3)),
            self.output,
        ]


def initialise(network: nn.Module, init: str) -> None:
    """Draw a convolutional network's weights anew; `default`: they stay as torch has drawn them.

    Normal with variance 2 / fan (He et al. 2015, arXiv 1502.01852): `kaiming_fan_in`: the inputs of
    a unit, for all weights, those of the output layer too; `kaiming_fan_out`: the outputs that an
    input reaches, for convolutions alone. `uniform_side`: convolutions uniform within
    +- 1 / sqrt(k C) for k x k kernels on C channels, so that the variance of a unit's inputs grows
    with the kernel's side: Chaudhry et al. 2019 (1812.00420), in their code alone
    (facebookresearch/agem, utils/resnet_utils.py). Biases and BatchNorm stay as torch has them.
    """
    if init == "default":
        return
    for module in network.modules():
        if init == "kaiming_fan_in" and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if init == "kaiming_fan_out" and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if init == "uniform_side" and isinstance(module, nn.Conv2d):
            bound = (module.kernel_size[0] * module.in_channels) ** -0.5
            nn.init.uniform_(module.weight, -bound, bound)


def layout(
    network: nn.Module, input_shape: Shape, device: torch.device, precision: str = "float32"
) -> torch.memory_format:
    """How a network's inputs lie in memory.

    On a CPU, convolutions take two thirds of the time where the channels of a pixel lie together.
    So they want them on a GPU where they use tensor cores, with precision=tf32 and bfloat16. With
    one channel both layouts are the same, and torch may take one for the other.
    """
    able = isinstance(network, Network) and network.channels_last
    wanted = device.type == "cpu" or (device.type == "cuda" and precision in {"tf32", "bfloat16"})
    last = able and wanted and input_shape[0] > 1
    return torch.channels_last if last else torch.contiguous_format


def activations(network: nn.Module, input_shape: Shape) -> list[int]:
    """How many numbers one sample takes before the network and after each of its modules."""
    x, task = example(network, input_shape)
    sizes = [x.numel()]

    def see(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(see) for module in network.modules()]
    in_evaluation(network, x, task)
    for hook in hooks:
        hook.remove()
    return sizes


def example(network: nn.Module, input_shape: Shape) -> tuple[Tensor, Tensor]:
    """An input of one sample, of zeros, and its task [1]."""
    x = next(network.parameters()).detach().new_zeros(1, *input_shape)
    return x, x.new_zeros(1, dtype=torch.int64)


def activation_shapes(network: nn.Module, input_shape: Shape) -> tuple[tuple[int, ...], ...]:
    """The shape of one sample after each stage of a Network, that of the logits last.

    Raises UserError for any other module.
    """
    if not isinstance(network, Network):
        raise UserError(f"the strategy needs {STAGES}")
    x, shapes = next(network.parameters()).detach().new_zeros(1, *input_shape), []
    training = network.training
    network.eval()
    with torch.no_grad():
        for stage in network.stages():
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    network.train(training)
    return tuple(shapes)


# The models.


def mlp(config: schema.MLP, input_shape: Shape, outputs: int) -> MLP:
    """Fully connected network."""
    inputs = math.prod(input_shape)
    return MLP(inputs, config.hidden_sizes, outputs, config.init, config.dropout, config.norm)


def cnn(config: schema.CNN, input_shape: Shape, outputs: int) -> CNN:
    """Small convolutional network. Raises UserError for images that are too small."""
    height, width = input_shape[1:]
    check(
        min(height, width) >> len(config.channels) >= 1,
        f"model.channels has {len(config.channels)} poolings, too many for {height}x{width} inputs",
    )
    network = CNN(input_shape, config.channels, config.hidden_size, outputs)
    initialise(network, config.init)
    return network


def strided_cnn(config: schema.StridedCNN, input_shape: Shape, outputs: int) -> StridedCNN:
    """Convolutions with strides, and hidden layers. Raises UserError for feature vectors."""
    check(input_shape[1] > 1, "model=strided_cnn needs images; the data are feature vectors")
    return StridedCNN(input_shape, config.channels, config.hidden_sizes, outputs)


def resnet18(config: schema.ResNet, input_shape: Shape, outputs: int) -> ResNet:
    """Four stages of two blocks."""
    return resnet(config, input_shape, outputs, [2, 2, 2, 2], "projection")


def resnet32(config: schema.ResNet, input_shape: Shape, outputs: int) -> ResNet:
    """Three stages of five blocks (He et al. 2016, section 4.2)."""
    return resnet(config, input_shape, outputs, [5, 5, 5], "identity")


def resnet(
    config: schema.ResNet, input_shape: Shape, outputs: int, blocks: Sequence[int], shortcut: str
) -> ResNet:
    """Residual network. Raises UserError for feature vectors."""
    channels, height, _ = input_shape
    check(height > 1, f"model={config.name} needs images; the data are feature vectors")
    return ResNet(channels, blocks, config.width, outputs, shortcut, config.init)


# model.name -> its dataclass, and (configuration, input shape, K) -> module, whose weights are of
# torch's global generator. `config.plugins` reads it without torch.
MODELS: dict[str, tuple[type[schema.Model], Callable[[Any, Shape, int], nn.Module]]] = {
    "mlp": (schema.MLP, mlp),
    "cnn": (schema.CNN, cnn),
    "strided_cnn": (schema.StridedCNN, strided_cnn),
    "resnet18": (schema.ResNet, resnet18),
    "reduced_resnet18": (schema.ResNet, resnet18),
    "resnet32": (schema.ResNet, resnet32),
    "torchvision": (schema.Torchvision, torchvision),
    "timm": (schema.Timm, timm),
}


def factory(
    model: schema.Model, input_shape: Shape, outputs: int, plugins: Sequence[str] = ()
) -> Callable[[], nn.Module]:
    """make_net: each call builds the configured network anew, from torch's global generator.

    It raises UserError if the network does not fit the inputs, or, of a model of the user's own, if
    it is none (see `check_network`). Raises UserError for a name that is not there.
    """
    own = theirs(MODEL, model.name, plugins)
    _, function = own or MODELS[model.name]

    def make_net() -> nn.Module:
        network: nn.Module = function(model, input_shape, outputs)
        if own:
            check_network(model.name, network, input_shape, outputs)
            return keyed(network)
        return network

    return make_net


def check_network(name: str, network: nn.Module, input_shape: Shape, outputs: int) -> None:
    """Raise UserError unless a module takes inputs and tasks, and gives logits."""
    where = f"model={name}: build() must return an nn.Module"
    check(isinstance(network, nn.Module), f"{where}, got {type(network).__name__}")
    weights = [p for p in network.parameters() if p.requires_grad]
    check(bool(weights), f"{where} with parameters to train")
    x = weights[0].detach().new_zeros(2, *input_shape)
    try:
        logits = in_evaluation(network, x, x.new_zeros(2, dtype=torch.int64))
    except TypeError as error:  # of its signature, as a rule
        message = f"{where} that is called with (x, task), x {list(x.shape)} and task [2]: {error}"
        raise UserError(message) from error
    right = isinstance(logits, Tensor) and logits.shape == (2, outputs)
    got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    check(right, f"{where} that gives logits [2, {outputs}] for x {list(x.shape)}, got {got}")


def replace_output(
    network: nn.Module, outputs: int, make: Callable[[nn.Linear], nn.Module]
) -> nn.Module:
    """The network with another module, made of it, for its output layer, the last nn.Linear.

    Raises UserError where that has not a unit for each of so many classes.
    """
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    name, layer = layers[-1] if layers else ("", None)
    if layer is None or layer.out_features != outputs:
        raise UserError(
            f"the strategy replaces the output layer, which must have a unit for each of {outputs} "
            "classes and be the last nn.Linear of the model"
        )
    network.set_submodule(name, make(layer))
    return network


def with_projection(network: nn.Module, outputs: int, size: int) -> nn.Module:
    """The network with two layers that give [B, size] for its output layer. Raises UserError."""

    def projection(layer: nn.Linear) -> nn.Module:
        D = layer.in_features
        return nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, size))

    return replace_output(network, outputs, projection)


def in_evaluation(network: nn.Module, *args: Any) -> Any:
    """What a network gives in evaluation mode, without gradient; its mode is left as it was."""
    training = network.training
    network.eval()
    with torch.no_grad():
        result = network(*args)
    network.train(training)
    return result


def build(make_net: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network initialised from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_net()
