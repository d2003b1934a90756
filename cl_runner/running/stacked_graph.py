"""A stacked step's graph rewritten for one tensor per layer in the place of whole vectors [M, P].

A layer's weights are contiguous then, so batched matrix products read them without a copy, and the
gradients of the layers are never concatenated. The arithmetic is the same, element by element.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
ELEMENTWISE: set[Any] = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default),
    *(aten.addcmul.default, aten.addcdiv.default, aten.lerp.Scalar, aten.lerp.Tensor),
    *(aten.where.self, aten.maximum.default, aten.minimum.default, aten.abs.default),
    *(aten.sqrt.default, aten.pow.Tensor_Scalar, aten.square.default, aten.reciprocal.default),
    *(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.sign.default),
    *(aten.detach.default, aten.clone.default, aten.alias.default, aten._to_copy.default),
    *(aten.eq.Tensor, aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.lt.Scalar),
    *(aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_not.default),
    *(aten.logical_and.default, aten.logical_or.default, aten.logical_not.default),
    *(aten.zeros_like.default, aten.ones_like.default, aten.add.Scalar, aten.mul.Scalar),
}


class Layout:
    """Which tensors are vectors of all parameters, and how they are cut into layers."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)

    def whole(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has an element for each parameter."""
        return len(shape) in (1, 2) and shape[-1] == sum(self.sizes)

    def cut(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Leaves [M, ...] with those of all parameters as one contiguous tensor per layer."""
        parts: list[Tensor] = []
        for leaf in leaves:
            if leaf.dim() == 2 and self.whole(leaf.shape):
                parts += [part.contiguous() for part in leaf.split(self.sizes, 1)]
            else:
                parts.append(leaf)
        return parts

    def join(self, parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """What `cut` made of leaves like these, whole again."""
        left, leaves = list(parts), []
        for leaf in like:
            if leaf.dim() == 2 and self.whole(leaf.shape):
                leaves.append(torch.cat(left[: len(self.sizes)], 1))
                del left[: len(self.sizes)]
            else:
                leaves.append(left.pop(0))
        return leaves


class Rewriter:
    """Copies a graph node by node, with whole vectors as lists of nodes."""

    def __init__(self, module: fx.GraphModule, layout: Layout) -> None:
        self.module, self.layout = module, layout
        self.graph = fx.Graph()
        self.one: dict[fx.Node, fx.Node] = {}  # the copy of a node
        self.many: dict[fx.Node, list[fx.Node]] = {}  # its parts, one per layer

    def run(self) -> fx.GraphModule:
        """The rewritten module: takes and returns parts, as `Layout.cut` makes them."""
        for node in self.module.graph.nodes:
            if node.op == "output":
                (results,) = node.args
                self.graph.output([out for n in results for out in self.result(n)])
            else:
                self.copy(node)
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, self.graph)

    def copy(self, node: fx.Node) -> None:
        """Add what stands for a node to the new graph."""
        sizes, call = self.layout.sizes, self.graph.call_function
        flat = self.is_whole(node)
        if node.op == "placeholder" and flat:
            names = (f"{node.name}_{i}" for i in range(len(sizes)))
            self.many[node] = [self.graph.placeholder(name) for name in names]
        elif flat and node.target in ELEMENTWISE:
            kinds = [self.of_layer(node, i) for i in range(len(sizes))]
            target: Any = node.target
            self.many[node] = [call(target, args, options) for args, options in kinds]
        elif flat and node.target is aten.cat.default and self.covers(node.args[0]):
            layers: Any = node.args[0]
            self.many[node] = [self.get(n) for n in layers]
        elif self.is_split(node):
            self.many[node] = self.parts(node.args[0])  # type: ignore[arg-type]
        elif node.target is operator.getitem and self.is_split(node.args[0]):
            self.one[node] = self.many[node.args[0]][node.args[1]]  # type: ignore[index]
        else:
            self.one[node] = self.graph.node_copy(node, self.get)

    def result(self, node: fx.Node) -> list[fx.Node]:
        """An output as parts or in one."""
        return self.parts(node) if self.is_whole(node) else [self.get(node)]

    def get(self, node: fx.Node) -> fx.Node:
        """The copy of a node in one, concatenated if there are only parts of it."""
        if node not in self.one:
            self.one[node] = self.graph.call_function(aten.cat.default, (self.many[node], -1))
        return self.one[node]

    def parts(self, node: fx.Node) -> list[fx.Node]:
        """The copy of a node in parts."""
        if node not in self.many:
            call, sizes = self.graph.call_function, self.layout.sizes
            split = call(aten.split_with_sizes.default, (self.get(node), sizes, -1))
            self.many[node] = [call(operator.getitem, (split, i)) for i in range(len(sizes))]
        return self.many[node]

    def of_layer(self, node: fx.Node, i: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of an elementwise node for layer i."""

        def part(n: fx.Node) -> fx.Node:
            return self.parts(n)[i] if self.is_whole(n) else self.get(n)

        args = fx.map_arg(node.args, part)
        options = fx.map_arg(node.kwargs, part)
        return args, options

    def is_whole(self, node: object) -> bool:
        """Whether a node is a vector of all parameters, stacked or not."""
        shape = self.shape(node)
        return shape is not None and self.layout.whole(shape)

    def is_split(self, node: object) -> bool:
        """Whether a node cuts a whole vector into the layers."""
        return (
            isinstance(node, fx.Node)
            and node.target is aten.split_with_sizes.default
            and list(node.args[1]) == self.layout.sizes  # type: ignore[arg-type]
            and self.is_whole(node.args[0])
        )

    def covers(self, nodes: Any) -> bool:
        """Whether these are the layers in their order."""
        shapes = [self.shape(n) for n in nodes]
        return [s[-1] if s else None for s in shapes] == self.layout.sizes

    def shape(self, node: object) -> tuple[int, ...] | None:
        """The shape of a node's value, if it is a tensor."""
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            value = getattr(self.module, str(node.target))
        else:
            value = node.meta.get("val")
        return tuple(value.shape) if isinstance(value, Tensor) else None


def by_layer(module: fx.GraphModule, layout: Layout) -> Callable[..., list[Tensor]]:
    """A traced step on whole vectors as one on parts."""
    return Rewriter(module, layout).run()
