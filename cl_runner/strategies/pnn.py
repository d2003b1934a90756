"""Progressive neural networks: a new column for each task, which sees all columns before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.losses import cross_entropy
from cl_runner.nn.columns import Columns
from cl_runner.nn.networks import plain
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import only
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class PNN(Strategy):
    """A column (network) per task, frozen once its task is over (Rusu et al. 2016, 1606.04671).

    Eq. 2: h_i^k = f(W_i^k h_(i-1)^k + U_i^k relu(V_i^k [alpha^kj h_(i-1)^j, all j < k])), with a
    learned scalar alpha for each pair of columns and layer; lateral connections lead into every
    layer but the first, the output layer included. W and V have biases, which eq. 2 omits.
    - adapter_size: rows of V; null: n_(i-1), the shape given with eq. 2 (the text there says n_i,
      which for the output layer would be the number of classes).
    - alpha_init: what every alpha starts at.
    Column k starts from initial values of its own, with a fresh optimizer; the first is the
    configured network. Old columns do not move bit for bit: they get no gradient, and what
    momentum, moments and weight decay do to them is undone.

    Cost: theta holds all T columns from the start, with T (T - 1) / 2 blocks V per layer, and the
    optimizer goes over all of it, which for many tasks takes most of the time; a small adapter_size
    helps. A step is one forward pass of the first T - 1 columns, without gradient, and the training
    of one column with its laterals. A prediction computes the columns up to its task.
    """

    scenarios = ("task",)
    uncounted = ("owner",)  # follows from the architecture

    adapter_size: int | None = None
    alpha_init: float = 0.1

    def __post_init__(self) -> None:
        check(
            self.adapter_size is None or self.adapter_size >= 1,
            f"strategy.adapter_size must be at least 1, got {self.adapter_size}",
        )
        check(self.alpha_init > 0, f"strategy.alpha_init must be positive, got {self.alpha_init}")

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        made = (make_net() for _ in range(env.num_tasks))
        networks = [net for net in made if plain(net)]
        needs = "model=mlp, model.norm=none, adapter=none and model.freeze=[]"
        check(len(networks) == env.num_tasks, f"strategy={self.name} needs {needs}")
        check(
            len(networks[0].layers) > 1,
            f"strategy={self.name} needs at least one hidden layer in model.hidden_sizes, got []",
        )
        return Columns(networks, self.adapter_size, self.alpha_init)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        columns = env.flat.module
        assert isinstance(columns, Columns)
        return {"owner": columns.owners().to(env.device, torch.int16)}

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return env.restart(s, s.theta)

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        logits = env.net(theta, batch.x, s.t)
        return cross_entropy(logits, batch.y, batch.active, batch.weight), {"logits": logits}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        return only(new, s, s.memory["owner"] == s.t), aux

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return env.flat.call(s.theta, x, task)
