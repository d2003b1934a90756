"""model.freeze, model.weights_for: what stays, is trained, and is taken of trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from outcomes import train_the_rest
from safetensors.torch import load_file
from torch import Tensor

from cl_runner import strategies
from cl_runner.config.identity import config_hash
from cl_runner.config.weights import WEIGHTS
from cl_runner.core import TrainState
from cl_runner.errors import UserError
from cl_runner.nn.flat import Flat
from cl_runner.nn.frozen import frozen, within
from cl_runner.nn.networks import CNN, build
from cl_runner.running.loop import run
from cl_runner.running.stacked import StackedStep, obstacle
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.running.together import train_task as train_together
from cl_runner.strategies.base import Strategy
from cl_runner.training.engines import recorded
from cl_runner.training.env import Env

TOY = (
    *("benchmark=split_digits", "strategy=naive", "scenario=class", "verbose=false"),
    *("benchmark.train_samples=60", "training.batch_size=10", "training.epochs=1"),
)
MLP = ("model.hidden_sizes=[12,8]", "model.norm=batch")
STRIDED = ("model=strided_cnn", "model.channels=[3,4]", "model.hidden_sizes=[6]")
PARTS = ("convolutions", "norms")
FREEZE = f"model.freeze=[{','.join(PARTS)}]"

Trained = Callable[..., Path]


@pytest.fixture
def trained(configure, tmp_path: Path) -> Path:
    """The folder of a complete run of a strided network, with other outputs than TOY's task-IL."""
    out = tmp_path / "trained"
    run(configure(*TOY, *STRIDED, "seed=9", "checkpoint.keep=true"), out)
    return out


def tensors(env: Env) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in env.flat.module.state_dict().items()}


def fixed(named: dict[str, Tensor], parts: tuple[str, ...] = PARTS) -> dict[str, Tensor]:
    return {name: v for name, v in named.items() if within(name, parts)}


def same(first: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in first.items())


def after_a_task(strategy: Strategy, env: Env) -> TrainState:
    return train_task(strategy, initial_state(strategy, env), env.stream[0], env)


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("layers.1.weight", "layers", True),
        ("layers.1.weight", "layers.1", True),
        ("layers.1.weight", "layers.1.weight", True),
        ("layers.10.weight", "layers.1", False),
        ("layers", "layers.1", False),
    ],
)
def test_a_part_has_what_is_below_it(name: str, part: str, expected: bool) -> None:
    assert within(name, ["other", part]) == expected


# Alone, stacked, recorded.


def test_what_is_frozen_stays_its_statistics_included(prepared) -> None:
    _, strategy, env = prepared(*TOY, *STRIDED, FREEZE)
    _, _, free = prepared(*TOY, *STRIDED)
    before = tensors(env)
    assert same(before, tensors(free))  # the seed draws the same
    assert len(env.flat.theta) == sum(v.numel() for k, v in before.items() if "layers" in k)
    after_a_task(strategy, env)
    own = tensors(env)
    assert same(fixed(before), fixed(own)) and fixed(own)
    assert not any(torch.equal(before[k], own[k]) for k in own if k.startswith("layers"))
    _, strategy, free = prepared(*TOY, *STRIDED)
    after_a_task(strategy, free)
    assert not any(torch.equal(before[k], v) for k, v in fixed(tensors(free)).items())


def test_a_frozen_part_computes_in_training_what_it_computes_in_evaluation(prepared) -> None:
    """BatchNorm by its running statistics, whatever the batch; what is trained by its own."""
    own = ("model.freeze=[layers.0,norms.0]", "model.cache_features=false")
    _, _, env = prepared(*TOY, *MLP, *own)
    module, x = env.flat.module, torch.rand(7, 1, 8, 8)
    assert module.training and not module.norms[0].training and module.norms[1].training
    trained = module(x, 0, last=1)
    assert torch.equal(trained, module.eval()(x, 0, last=1))
    module.train()
    assert not module.layers[0].training and module.layers[1].training
    assert not torch.allclose(module(x, 0), module.eval()(x, 0))


def test_one_layer_of_an_mlp(prepared) -> None:
    """Without BatchNorm the gradient is otherwise written out by hand; here it is autograd's."""
    _, strategy, env = prepared(*TOY, "model.hidden_sizes=[12,8]", "model.freeze=[layers.1.weight]")
    assert env.flat.names == [f"layers.{i}.{p}" for i, p in ((0, "weight"), (0, "bias"))] + [
        *("layers.1.bias", "layers.2.weight", "layers.2.bias")
    ]
    before = tensors(env)
    after_a_task(strategy, env)
    own = tensors(env)
    assert {k for k in own if torch.equal(own[k], before[k])} == {"layers.1.weight"}


@pytest.mark.parametrize("strategy", ["ewc", "er", "lwf"])
def test_seeds_are_stacked_where_they_share_what_is_frozen(prepared, trained, strategy) -> None:
    more = {"ewc": ("strategy.penalty=loss",), "er": ("strategy.buffer_size=20",)}.get(strategy, ())

    def runs(*begin: str) -> list[Member]:
        own = (*TOY, *STRIDED, FREEZE, f"strategy={strategy}", "benchmark.seed=0", *more, *begin)
        return [Member(*prepared(*own, f"seed={i}")[1:]) for i in (0, 1)]

    begin = (f"model.weights={trained}", f"model.weights_for=[{','.join(PARTS)}]")
    assert obstacle(runs()) == "fixed parts of the network are drawn from the seed"
    members, again = runs(*begin), runs(*begin)
    assert obstacle(members) is None
    alone = [after_a_task(*m) for m in members]
    before = [fixed(tensors(m.env)) for m in again]
    states = [initial_state(*m) for m in again]
    together = train_together(again, states, 0, StackedStep(again))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.theta, other.theta, rtol=1e-4, atol=1e-5)
        assert same(one.buffers, other.buffers)
    assert all(same(b, fixed(tensors(m.env))) for b, m in zip(before, again, strict=True))
    assert not torch.equal(alone[0].theta, alone[1].theta)


def test_a_recorded_step_leaves_them_where_they_are(prepared, monkeypatch) -> None:
    """engine=graph, a step that is repeated on state which stays where it is; without a GPU."""
    _, strategy, env = prepared(*TOY, *STRIDED, FREEZE)
    expected = after_a_task(strategy, env)
    _, strategy, env = prepared(*TOY, *STRIDED, FREEZE)
    env.engine = "graph"
    monkeypatch.setattr("cl_runner.training.engines.cuda_graph", lambda body: body)
    monkeypatch.setattr(
        "cl_runner.training.engines.recorded", lambda step, env, _: recorded(step, env, lambda b: b)
    )
    before = fixed(tensors(env))
    own = after_a_task(strategy, env)
    torch.testing.assert_close(own.theta, expected.theta, rtol=1e-4, atol=1e-6)
    assert same(before, fixed(tensors(env))) and same(own.buffers, expected.buffers)


REFUSING = {"den", "pnn", "hat", "xdg", "gpm", "owm", "vcl", "adam_nscl"}  # they look at the layers
REFUSING |= {"supsup", "piggyback", "ncm", "slda", "ridge"}  # at all weights, or at none
QUICK = {"gdumb": ("strategy.epochs=1",), "mer": ("training.batch_size=4",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", strategies.available())
def test_a_strategy_trains_the_rest_or_refuses_in_a_line(prepared, name) -> None:
    supported = strategies.find(name).scenarios
    where = "domain" if "domain" in supported else supported[0]
    toy = (*TOY[:1], "verbose=false", "model.hidden_sizes=[12,8]", "model.freeze=[layers.0]")
    short = (f"scenario={where}", "benchmark.train_samples=40", "training.iterations=1")
    own = (*toy, *short, f"strategy={name}", *QUICK.get(name, ()))

    if name in REFUSING:
        with pytest.raises(UserError, match=r"model\.freeze") as caught:
            train_the_rest(prepared, *own)
        assert "\n" not in str(caught.value)
    else:
        train_the_rest(prepared, *own)


# What is taken of trained weights.


def test_parts_of_trained_weights_are_taken_and_the_rest_is_new(
    prepared, configure, trained, capsys
) -> None:
    only = f"model.weights_for=[{','.join(PARTS)}]"
    begin = (*TOY, *STRIDED, f"model.weights={trained}", only, "model.hidden_sizes=[9]")
    _, _, env = prepared(*begin, "verbose=true", "seed=3")
    _, _, plain = prepared(*TOY, *STRIDED, "seed=3", "model.hidden_sizes=[9]")
    theirs, own, new = load_file(trained / WEIGHTS), tensors(env), tensors(plain)
    assert same(fixed(own), fixed(theirs)) and not same(fixed(own), fixed(new))
    assert all(torch.equal(own[k], new[k]) for k in own if k.startswith("layers"))
    count = sum(v.numel() for v in fixed(theirs).values())
    line = f"starts from {count:,} trained numbers, convolutions, norms; all else is new"
    assert line in capsys.readouterr().out
    whole = configure(*TOY, *STRIDED, f"model.weights={trained}").resolved
    assert config_hash(whole) != config_hash(configure(*begin).resolved)


def test_a_run_is_the_same_that_it_was_without_them(configure) -> None:
    plain, own = configure(*TOY).resolved, configure(*TOY, "model.freeze=[layers.0]").resolved
    assert "weights_for" not in plain["model"] and "freeze" not in plain["model"]
    assert own["model"]["freeze"] == ["layers.0"] and config_hash(own) != config_hash(plain)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("model.freeze=[layer]",), "model.freeze: the model has no layer; it consists of convolu"),
        (
            ("model.freeze=[layers.7]",),
            "the model has no layers.7; it consists of convolutions, no",
        ),
        (
            ("model.freeze=[convolutions,norms,layers]",),
            r"model.freeze=\['convolutions', 'norms', 'layers'\] leaves no parameter to train",
        ),
        (("model.freeze=layers",), r"model.freeze must be a list of str, such as 'model.freeze=\["),
        (("model.freeze=[norms]", "adapter=lora"), "model.freeze does not go with adapter=lora"),
        (
            ("model.freeze=[norms]", "strategy=slda"),
            "model.freeze has no meaning with strategy.input=pixels",
        ),
        (("model.weights_for=[norms]",), "model.weights_for needs model.weights"),
        (
            ("model.weights={trained}", "model.weights_for=[]"),
            "model.weights_for must name one or more parts",
        ),
        (
            ("model.weights={trained}", "model.weights_for=[norms,conv]"),
            "model.weights_for: the weights have no conv; they have convolutions, layers, norms",
        ),
        (
            ("model.weights={trained}", "model.weights_for=[convolutions]", "model.channels=[3,5]"),
            r"model.weights: convolutions.1.bias is float32 \[4\] there, and float32 \[5\] in",
        ),
        (
            ("model.weights={trained}", "model.weights_for=[layers]", "model.hidden_sizes=[6,6]"),
            "model.weights: layers.1.bias is float32",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(prepared, trained, more, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepared(*TOY, *STRIDED, *(m.format(trained=trained) for m in more))
    assert "\n" not in str(caught.value)


def test_layers_of_a_network_can_be_frozen_one_by_one() -> None:
    def make_net() -> CNN:
        return CNN((1, 8, 8), [2, 3], 4, 5)

    module = build(frozen(make_net, ["convolutions.0", "output.bias"]), 0)
    names = Flat(module).names
    assert names == [
        *("convolutions.1.weight", "convolutions.1.bias"),
        *("hidden.weight", "hidden.bias", "output.weight"),
    ]
    assert frozen(make_net, []) is make_net
