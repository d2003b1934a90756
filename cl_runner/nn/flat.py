"""All trainable parameters of a module as views into one vector theta[P]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from cl_runner.errors import UserError
from cl_runner.nn import by_hand
from cl_runner.nn.dropout import Dropout


class Flat:
    """A module whose parameters are views into flat storage.

    `theta` is a leaf of its own that shares its memory with the parameters. A loss may use theta
    (in a penalty) and the module (in a forward pass) at once; theta is never split and joined for
    it. A plain MLP's gradient comes as one vector (`nn.by_hand`). Of other modules the layers'
    gradients are concatenated after the backward pass, which takes less time than letting it add to
    views into flat storage that was set to 0.
    """

    def __init__(self, module: nn.Module, *, mixed: bool = False) -> None:
        self.module = module
        self.mixed = mixed  # training in bfloat16 where autocast deems it safe
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for p in self.parameters]
        self.sizes = [p.numel() for p in self.parameters]
        storage = torch.cat([p.detach().flatten() for p in self.parameters])
        for p, view in zip(self.parameters, self._split(storage), strict=True):
            p.data = view
        self.theta = storage.requires_grad_()  # [P]
        self.stays = False  # whether the storage must stay where it is: a recording reads it
        self.steps: dict[Any, Any] = {}  # what was compiled and recorded of it (training.engines)
        self.by_hand = by_hand.applies_to(module) and not mixed
        self.descending = False  # whether a gradient for a step is being computed, by hand
        self.threads: int | None = None  # of the CPU, for what is worth them, in that
        self.answering = in_evaluation_mode(module)
        self.dropouts = [m for m in module.modules() if isinstance(m, Dropout) and m.p]
        self.own_buffers = dict(module.named_buffers())  # not copied; they change in place
        self.standing: tuple[Tensor, dict[str, Tensor]] | None = None  # see `standing_in`
        self.places = places(module, [*self.names, *self.own_buffers])
        self.answering_places = places(self.answering, [*self.names, *self.own_buffers])

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers (BatchNorm statistics) of the live network, by name, not copied."""
        return self.own_buffers if self.standing is None else self.standing[1]

    @contextmanager
    def standing_in(
        self, theta: Tensor, buffers: Mapping[str, Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        """Within, take theta [P] and copies of these buffers, which it gives, for the live ones.

        A step that is a function of the state, as compiled and stacked ones are, changes no memory
        but its own: what moves the statistics are forward passes with this very theta.
        """
        before, own = self.standing, {name: value.clone() for name, value in buffers.items()}
        self.standing = (theta, own)
        try:
            yield own
        finally:
            self.standing = before

    @contextmanager
    def drawing(self, key: Tensor | None) -> Iterator[None]:
        """Within, dropout follows from a key of uniforms (see nn.dropout); None: from none."""
        for i, layer in enumerate(self.dropouts):
            layer.key, layer.calls = key, i << 16
        try:
            yield
        finally:
            for layer in self.dropouts:
                layer.key = None

    def stands_in(self, theta: Tensor) -> bool:
        """Whether theta is the one that is taken for the live one at present."""
        return self.standing is not None and theta is self.standing[0]

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """A vector [P] as the module's named parameters."""
        return dict(zip(self.names, self._split(theta), strict=True))

    def call(self, theta: Tensor, x: Tensor, task: Tensor | int, **options: Any) -> Tensor:
        """The module's output, as a rule [B, K], with the parameters theta.

        Only the live theta's forward passes move the module's buffers.
        """
        if self.mixed and self.module.training:
            with torch.autocast(theta.device.type, dtype=torch.bfloat16):
                return self._call(theta, x, task, **options).float()
        return self._call(theta, x, task, **options)

    def still(
        self,
        theta: Tensor,
        x: Tensor,
        task: Tensor | int,
        buffers: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """What `call` gives in evaluation mode, whatever mode the module is in.

        Dropout is off; BatchNorm uses the statistics in `buffers`, or the module's own ones, and
        moves none.
        """
        self._wake_threads()
        values = [*self._split(theta), *(self.buffers | dict(buffers or {})).values()]
        mixed = self.mixed and self.module.training
        autocast = torch.autocast(theta.device.type, torch.bfloat16, enabled=mixed)
        with autocast, lent(self.answering_places, values):
            output: Tensor = self.answering(x, task, **options)
        return output.float() if mixed else output

    def answers(
        self,
        theta: Tensor,
        x: Tensor,
        task: Tensor | int,
        buffers: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """What `still` gives, without gradient."""
        with torch.no_grad():
            return self.still(theta.detach(), x, task, buffers, **options)

    def _call(self, theta: Tensor, x: Tensor, task: Tensor | int, **options: Any) -> Tensor:
        output: Tensor
        if theta is self.theta and self.descending and not options and not x.requires_grad:
            return by_hand.logits(theta, x, self.parameters, self.threads)
        self._wake_threads()
        if theta is self.theta:
            output = self.module(x, task, **options)
        else:
            own = self.buffers.values()
            moved = own if self.stands_in(theta) else [v.clone() for v in own]
            with lent(self.places, [*self._split(theta), *moved]):
                output = self.module(x, task, **options)
        return output

    def output_mask(self, classes: Tensor) -> Tensor:
        """Which parameters [P] belong to the output units of `classes` [K] bool, as bool.

        The output layer is the last Linear layer, which has a unit for each of the K classes and
        is trained. Raises UserError where it has not or is not.
        """
        layers = [(n, m) for n, m in self.module.named_modules() if isinstance(m, nn.Linear)]
        name, layer = layers[-1] if layers else ("", None)
        trained = f"{name}.weight" in self.names
        if layer is None or layer.out_features != len(classes) or not trained:
            raise UserError(
                f"the strategy needs an output layer, a unit for each of {len(classes)} classes, as"
                " the last nn.Linear of the model, and trains it"
            )
        shown = {f"{name}.weight": classes[:, None], f"{name}.bias": classes}
        parts = [
            shown.get(n, classes.new_zeros(())).expand(shape).flatten()
            for n, shape in zip(self.names, self.shapes, strict=True)
        ]
        return torch.cat(parts)

    @contextmanager
    def descent(self) -> Iterator[None]:
        """Around a loss whose gradient at the live theta is asked for, and its backward pass.

        By hand, all but the large products is done by one thread of a CPU: a batch's outputs and
        losses are few numbers, for which torch wakes all threads again and again. Whatever else
        goes through the network has them all, and so has its backward pass.
        """
        for p in (self.theta, *self.parameters):
            p.grad = None
        threads = torch.get_num_threads()
        self.descending = self.by_hand
        if self.by_hand and self.theta.device.type == "cpu":
            self.threads = threads
            torch.set_num_threads(1)
        try:
            with torch.enable_grad():
                yield
        finally:
            self.descending, self.threads = False, None
            torch.set_num_threads(threads)

    def _wake_threads(self) -> None:
        """From here on to the end of the descent, if there is one, all threads take part."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def gradient(self) -> Tensor:
        """What the backward passes of the last descent have left, [P]."""
        own = self.theta.grad
        if all(p.grad is None for p in self.parameters):
            return torch.zeros_like(self.theta, requires_grad=False) if own is None else own
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in self.parameters
        ]
        joined = torch.cat(parts)
        return joined if own is None else joined.add_(own)

    @torch.no_grad()
    def commit(self, theta: Tensor) -> Tensor:
        """Make theta [P] the live one, and return the leaf.

        Its memory becomes the storage, unless that must stay: nothing else may write into it.
        """
        if theta is self.theta:
            return self.theta
        if self.stays:
            self.theta.copy_(theta)
        else:
            self._move(theta.detach())
        return self.theta

    def stay(self) -> None:
        """From now on the storage stays where it is: in memory that nothing else has."""
        if not self.stays:
            self._move(self.theta.detach().clone())
        self.stays = True

    def _move(self, storage: Tensor) -> None:
        self.theta.data = storage
        views = _unflatten_dense_tensors(storage, self.parameters)
        for p, view in zip(self.parameters, views, strict=True):
            p.data = view

    @torch.no_grad()
    def settle(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy buffers into the live ones, unless they are these, and return the live ones."""
        if buffers is not self.own_buffers:
            for name, own in self.own_buffers.items():
                own.copy_(buffers[name])
        return self.own_buffers


class Place(NamedTuple):
    """Where a module holds a tensor."""

    layer: nn.Module
    parameter: bool  # else it is a buffer
    name: str


def held(place: Place) -> dict[str, Any]:
    """The layer's own tensors of that kind, by name."""
    layer = place.layer
    return layer._parameters if place.parameter else layer._buffers


def places(module: nn.Module, names: Sequence[str]) -> list[list[Place]]:
    """Where each of these tensors is held: in several places if layers share it."""
    found: dict[int, list[Place]] = {}
    for layer in module.modules():
        for kind in (True, False):
            for name, tensor in held(Place(layer, kind, "")).items():
                found.setdefault(id(tensor), []).append(Place(layer, kind, name))
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    return [found[id(own[name])] for name in names]


@contextmanager
def lent(places: Sequence[Sequence[Place]], values: Sequence[Tensor]) -> Iterator[None]:
    """The module holds these tensors in the places of its own, for a while.

    As with torch.func.functional_call, which looks for the places at each call: that takes longer
    than a small layer, and most of the time in which dynamo traces a step.
    """
    before = []
    try:
        for value, of_one in zip(values, places, strict=True):
            for place in of_one:
                tensors, name = held(place), place.name
                before.append((tensors, name, tensors[name]))
                tensors[name] = value
        yield
    finally:
        for tensors, name, own in before:
            tensors[name] = own


def in_evaluation_mode(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, as one of its own that holds no trainable parameters.

    A step that asks an old network while the new one trains thus changes no module's mode, which a
    compiled step could not do. Whoever calls it lends it the parameters (`lent`).
    """
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(v): v for v in tensors}
    memo |= {id(p): nn.Parameter(p.to("meta")) for p in module.parameters() if p.requires_grad}
    return deepcopy(module, memo).eval()
