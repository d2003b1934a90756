"""Networks with a part for each task: progressive columns, and several copies of one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from cl_runner.nn.networks import MLP


class Adapter(nn.Module):
    """The lateral connections into one layer: to column k from all columns j < k, for every k.

    The lateral input of column k is U_k relu(V_k [alpha_k0 h_0, ..., alpha_k,k-1 h_k-1] + c_k), h_j
    the activations [B, n] of column j one layer below; column 0 has none. V_k is kept in blocks of
    one source column each, row k (k - 1) / 2 + j for the pair (k, j): no room is taken by pairs
    that do not exist. V_k and U_k start as torch's Linear layers of their size do.
    """

    def __init__(self, columns: int, inputs: int, size: int, outputs: int, alpha: float) -> None:
        super().__init__()
        later = range(1, columns)
        down = [nn.Linear(k * inputs, size) for k in later]
        up = [nn.Linear(size, outputs, bias=False) for _ in later]
        blocks = [v.weight.detach().unflatten(1, (-1, inputs)).transpose(0, 1) for v in down]
        self.alpha = nn.Parameter(torch.full((columns * (columns - 1) // 2,), alpha))  # [pairs]
        self.V = nn.Parameter(torch.cat(blocks))  # [pairs, size, n]
        self.c = nn.Parameter(torch.stack([v.bias.detach() for v in down]))  # [T - 1, size]
        self.U = nn.Parameter(torch.stack([u.weight.detach() for u in up]))  # [T - 1, out, size]

    def into(self, column: Tensor, h: Tensor) -> Tensor:
        """The lateral input [B, outputs] of one column (0-d) from h [m, B, n] of the first m.

        Of these, those that are not earlier than it have no part in it.
        """
        source = torch.arange(len(h), device=h.device)
        pair = (column * (column - 1) // 2 + source).clamp_max(len(self.V) - 1)
        earlier = (source < column)[:, None, None]
        scaled = torch.where(earlier, self.alpha.index_select(0, pair)[:, None, None], 0.0) * h
        row = (column - 1).clamp_min(0).view(1)
        hidden = torch.bmm(scaled, self.V.index_select(0, pair).mT).sum(0)
        hidden = F.relu(hidden + self.c.index_select(0, row))
        return torch.where(column > 0, hidden @ self.U.index_select(0, row)[0].mT, 0.0)

    def among(self, h: Tensor) -> Tensor:
        """The lateral inputs [m, B, outputs] of the first m columns from their own h [m, B, n].

        Without gradient: these columns are constants for whoever asks.
        """
        m = len(h)
        target, source = torch.tril_indices(m, m, -1, device=h.device)
        pairs = slice(m * (m - 1) // 2)
        scaled = self.alpha.detach()[pairs, None, None] * h.index_select(0, source)
        parts = torch.bmm(scaled, self.V.detach()[pairs].mT)
        hidden = self.c.detach()[: m - 1, None].expand(-1, h.shape[1], -1)
        hidden = F.relu(hidden.index_add(0, target - 1, parts))
        lateral = torch.bmm(hidden, self.U.detach()[: m - 1].mT)
        return F.pad(lateral, (0, 0, 0, 0, 1, 0))


class Columns(nn.Module):
    """A progressive network of T columns: each an MLP, which also sees all columns before it.

    Layer i of column k computes f(W h_(i-1) + b + lateral input), from the second layer to the
    output layer. All weights of a layer are stacked, [T, ...]. Every column has all K outputs.
    """

    def __init__(self, networks: Sequence[MLP], adapter_size: int | None, alpha: float) -> None:
        super().__init__()
        layers = [list(same) for same in zip(*(net.layers for net in networks), strict=True)]
        self.W = nn.ParameterList(torch.stack([a.weight.detach() for a in same]) for same in layers)
        self.b = nn.ParameterList(torch.stack([a.bias.detach() for a in same]) for same in layers)
        self.columns = len(networks)
        self.dropout = networks[0].dropout
        self.adapters = nn.ModuleList(
            Adapter(self.columns, W.shape[2], adapter_size or W.shape[2], W.shape[1], alpha)
            for W in list(self.W)[1:]
            if self.columns > 1
        )

    def forward(self, x: Tensor, column: Tensor | int) -> Tensor:
        """Logits [B, K] of one column; only its own parameters get a gradient, and dropout.

        column: an int, for which nothing but the columns up to it is computed; or 0-d, for which
        all are, because how many are needed is not known when the graph is built.
        """
        sources = column if isinstance(column, int) else self.columns - 1
        k = torch.as_tensor(column, device=x.device).view(())  # one for the whole batch
        own = x.flatten(1)  # [B, n]
        below = own.expand(sources, -1, -1)  # [sources, B, n]
        last = len(self.W) - 1
        for i, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            z = F.linear(own, W.index_select(0, k.view(1))[0], b.index_select(0, k.view(1))[0])
            own = z + self._adapter(i).into(k, below) if i and sources else z
            if i < last:
                below = self._frozen(i, W.detach()[:sources], b.detach()[:sources], below)
                own = self.dropout(F.relu(own))
        return own

    def _adapter(self, i: int) -> Adapter:
        adapter = self.adapters[i - 1]
        assert isinstance(adapter, Adapter)
        return adapter

    def _frozen(self, i: int, W: Tensor, b: Tensor, below: Tensor) -> Tensor:
        z = torch.baddbmm(b[:, None], below, W.mT)
        return F.relu(z + self._adapter(i).among(below) if i and len(below) > 1 else z)

    def owners(self) -> Tensor:
        """The column [P] that each parameter belongs to, in the order of `parameters()`."""
        every = torch.arange(self.columns)
        pair = torch.tril_indices(self.columns, self.columns, -1)[0]
        first = {"W": every, "b": every, "alpha": pair, "V": pair, "c": every[1:], "U": every[1:]}

        def owner(name: str, p: Tensor) -> Tensor:
            of = first[next(part for part in name.split(".")[::-1] if not part.isdigit())]
            return of.view(-1, *[1] * (p.dim() - 1)).expand(p.shape).flatten()

        return torch.cat([owner(name, p) for name, p in self.named_parameters()])


class Copies(nn.Module):
    """T networks of one kind that start alike: the parameters are those of one, stacked [T, ...].

    All T networks are computed on the whole batch, T times the cost of one, and each sample takes
    the logits of its own. Not for networks with buffers, of which there is but one set.
    """

    def __init__(self, network: nn.Module, copies: int) -> None:
        super().__init__()
        self.network = network
        for p in network.parameters():
            p.data = p.detach().repeat(copies, *[1] * p.dim())

    def forward(self, x: Tensor, task: Tensor | int) -> Tensor:
        """Logits [B, K], each sample's from the network of its task [B]; an int: of that alone."""
        stacked = dict(self.network.named_parameters())

        def logits(parameters: Mapping[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(self.network, dict(parameters), (x,))
            return output

        if isinstance(task, int):
            return logits({name: p[task] for name, p in stacked.items()})
        every: Tensor = vmap(logits, randomness="different")(stacked)  # [T, B, K]
        return every.gather(0, task[None, :, None].expand(1, *every.shape[1:]))[0]
