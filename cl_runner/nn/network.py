"""What a network is that shows the activations between its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

Stage = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """Stages one after another; the last one is the output layer.

    Between them lie the activations that a strategy may store, gate or compare.
    """

    channels_last: ClassVar[bool] = False  # whether it takes inputs whose channels lie together

    def stages(self) -> Sequence[Stage]:
        """The network's parts in order: [B, ...] -> [B, ...]."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, task: Tensor | int | None = None, first: int = 0, last: int | None = None
    ) -> Tensor:
        """The activations after the stages first .. last - 1; by default, logits [B, K]."""
        for stage in self.stages()[first:last]:
            x = stage(x)
        return x
