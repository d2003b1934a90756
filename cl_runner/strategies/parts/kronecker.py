"""EWC's penalty with the curvature of each layer as a Kronecker product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cl_runner.config.schema import SGD
from cl_runner.core import Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.importance import Use
from cl_runner.functional.kronecker import Factors, Spectrum, merged, product, proximal, spectrum
from cl_runner.nn.flat import Flat
from cl_runner.strategies.parts.importance import (
    empty_factors,
    kronecker_factors,
    structured_layers,
)
from cl_runner.training.env import Env

F = TypeVar("F", Factors, Spectrum)
Matrices = dict[str, Tensor]  # of each layer [O, I], by its name, the bias as the last column


class Settings(Protocol):
    """The fields of EWC that say how."""

    @property
    def curvature(self) -> str: ...
    @property
    def overlap(self) -> bool: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def mode(self) -> str: ...
    @property
    def gamma(self) -> float: ...
    @property
    def fisher_labels(self) -> str: ...
    @property
    def fisher_samples(self) -> int | None: ...
    @property
    def penalty(self) -> str: ...


def check_curvature(ewc: Settings) -> None:
    """Raise UserError for a curvature that is none, or for what goes with the diagonal only."""
    one_of("strategy.curvature", ewc.curvature, ("diagonal", "kron"))
    check(
        ewc.curvature == "diagonal" or not ewc.overlap,
        f"strategy.overlap={ewc.overlap} has no meaning with strategy.curvature=kron: leave it out",
    )


def begun(ewc: Settings, anchor: Tensor, env: Env) -> dict[str, Tensor]:
    """The memory before the first task; anchor [P]. Raises UserError for what cannot be."""
    check(
        ewc.penalty == "loss" or isinstance(env.optimizer, SGD),
        "strategy.penalty=proximal with strategy.curvature=kron has a closed form for SGD only: "
        f"with optimizer={env.optimizer.name} use strategy.penalty=loss",
    )
    factors = {name: empty_factors(use, anchor) for name, use in structured_layers(env).items()}
    return memory(ewc, factors, anchor, torch.zeros_like(anchor))


def memory(
    ewc: Settings, factors: dict[str, Factors], anchor: Tensor, slope: Tensor
) -> dict[str, Tensor]:
    """The tensors that stand for the tasks so far; see `Structured`."""
    found = kept(factors) | {"anchor": anchor}
    if ewc.penalty == "proximal":
        found |= kept({name: spectrum(of) for name, of in factors.items()})
    return found | ({"slope": slope} if ewc.mode == "separate" else {})


def penalty(ewc: Settings, s: TrainState, env: Env) -> Structured:
    """The penalty in the loss, lambda / 2 sum_layers tr(D^T G D A)."""
    return Structured(
        ewc.lambda_ / 2 * ewc.gamma,
        held(s.memory, Factors),
        held(s.memory, Spectrum),
        s.memory["anchor"],
        s.memory.get("slope"),
        env.flat,
    )


def notes(ewc: Settings, env: Env) -> Iterator[str]:
    """A line that says that a step takes many times naive's FLOPs, where it does."""
    if ewc.curvature == "kron":
        each = 4 if ewc.penalty == "proximal" else 2
        factor = 1 + relative_cost(structured_layers(env), each, env.training.batch_size)
        if factor > 10:
            yield (
                f"the penalty of strategy.curvature=kron makes a step take about {factor:.0f} "
                "times the FLOPs of naive's: larger batches, or narrower layers, take fewer"
            )


def ended(ewc: Settings, s: TrainState, task: Task, env: Env) -> TrainState:
    """The state after a task, its factors merged into those of the tasks before it."""
    old, theta = penalty(ewc, s, env), s.theta.detach().clone()
    new = kronecker_factors(s, task, env, labels=ewc.fisher_labels, samples=ewc.fisher_samples)
    factors = {name: merged(old.factors[name], of, ewc.gamma) for name, of in new.items()}
    slope = torch.zeros_like(theta)
    if old.slope is not None:
        slope = old.slope + old.curvature(theta - old.anchor)
    return s._replace(memory=memory(ewc, factors, theta, slope))


class Structured(NamedTuple):
    """weight * (d^T K d + 2 slope^T d), d = theta - anchor, K = A (x) G in each layer.

    With `slope` it is a sum of penalties around several anchors, up to a constant: sum_t
    (theta - m_t)^T K_t (theta - m_t) around the last one has slope sum_t K_t (m_T - m_t).
    """

    weight: float
    factors: Mapping[str, Factors]  # by layer
    spectra: Mapping[str, Spectrum]  # likewise; nothing, where no proximal step is taken
    anchor: Tensor  # [P]
    slope: Tensor | None  # [P]
    flat: Flat

    def __call__(self, theta: Tensor) -> Tensor:
        """The penalty at theta [P], 0-d, to be differentiated."""
        d = theta - self.anchor
        value = (d * self.curvature(d)).sum()
        return self.weight * (value if self.slope is None else value + 2 * (self.slope * d).sum())

    def curvature(self, d: Tensor) -> Tensor:
        """K d for d [P]."""
        parts = matrices(d, self.factors, self.flat)
        return vector({k: product(self.factors[k], D) for k, D in parts.items()}, self.flat)

    def pull(self, grad: Tensor, theta: Tensor) -> Tensor:
        """Turn grad [P] into grad + the penalty's own gradient at theta [P], in place."""
        pull = self.curvature(theta.detach() - self.anchor)
        if self.slope is not None:
            pull = pull + self.slope
        return grad.add_(pull, alpha=2 * self.weight)

    def proximal_step(self, s: TrainState, env: Env) -> TrainState:
        """The state after argmin_z |z - theta|^2 / (2 a) + penalty(z), a the optimizer's own step.

        a must be one number: that of SGD, with or without momentum.
        """
        step = env.step_size(s) * 2 * self.weight
        d = s.theta - self.anchor
        if self.slope is not None:
            d = d - step * self.slope
        parts = matrices(d, self.spectra, self.flat)
        new = {k: proximal(D, self.spectra[k], step) for k, D in parts.items()}
        return s._replace(theta=self.anchor + vector(new, self.flat))

    def steepest(self) -> Tensor:
        """Twice the weight times the largest eigenvalue of K, 0-d."""
        largest = [
            torch.linalg.matrix_norm(A, 2) * torch.linalg.matrix_norm(G, 2)
            for A, G in self.factors.values()
        ]
        return 2 * self.weight * torch.stack(largest).max()


def matrices(theta: Tensor, names: Mapping[str, object], flat: Flat) -> Matrices:
    """A vector [P] as a matrix [O, I] for each of the layers."""
    views = flat.views(theta)
    found = {}
    for name in names:
        W = views[f"{name}.weight"].flatten(1)
        bias = views.get(f"{name}.bias")
        found[name] = W if bias is None else torch.cat([W, bias[:, None]], 1)
    return found


def vector(parts: Matrices, flat: Flat) -> Tensor:
    """The vector [P] that has these `matrices`, and 0 for the layers that have none."""
    found = []
    for name, shape in zip(flat.names, flat.shapes, strict=True):
        layer, _, kind = name.rpartition(".")
        D = parts.get(layer)
        if D is None:
            found.append(torch.zeros_like(flat.theta[: shape.numel()], requires_grad=False))
        elif kind == "bias":
            found.append(D[:, -1])
        else:
            found.append(D[:, : shape[1:].numel()].flatten())
    return torch.cat(found)


def kept(factors: Mapping[str, NamedTuple]) -> dict[str, Tensor]:
    """Factors or spectra by layer, by the names that they have in a strategy's memory."""
    return {f"{k}.{layer}": v for layer, own in factors.items() for k, v in own._asdict().items()}


def held(memory: Mapping[str, Tensor], kind: type[F]) -> dict[str, F]:
    """What `kept` has put into a memory, of this kind."""
    first = f"{kind._fields[0]}."
    layers = [key.removeprefix(first) for key in memory if key.startswith(first)]
    return {name: kind(*(memory[f"{k}.{name}"] for k in kind._fields)) for name in layers}


def relative_cost(layers: Mapping[str, Use], products: int, batch_size: int) -> float:
    """The FLOPs of so many products per layer of D [O, I] with a factor, in those of naive's step.

    The latter are taken to be six multiplications per weight, position and sample.
    """
    ours = naive = 0
    for layer, _, factor in layers.values():
        assert isinstance(layer.weight, Tensor)
        outputs, (inputs, positions) = len(layer.weight), factor.shape[1:]
        ours += products * outputs * inputs * (outputs + inputs)
        naive += 6 * batch_size * outputs * inputs * positions
    return ours / naive
