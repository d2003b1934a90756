"""adapter=lora: what is trained, what stays, and what a run leaves of it."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from outcomes import train_the_rest
from safetensors.torch import load_file, save_file
from torch import nn

from cl_runner import strategies
from cl_runner.config.identity import config_hash
from cl_runner.config.parse import validate
from cl_runner.config.weights import WEIGHTS
from cl_runner.errors import UserError
from cl_runner.nn.adapters import LowRank
from cl_runner.nn.networks import build, factory
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run
from cl_runner.running.stacked import StackedStep, obstacle
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.running.together import train_task as train_together

TOY = (
    *("benchmark=split_digits", "strategy=naive", "model.hidden_sizes=[24,12]"),
    *("benchmark.num_tasks=2", "benchmark.train_samples=60", "training.epochs=2"),
    *("training.batch_size=16", "verbose=false"),
)
LORA = ("adapter=lora", "adapter.rank=3", "adapter.alpha=6")


@pytest.fixture
def trained(prepared, tmp_path):
    """A file of trained weights, as those of the toy model."""
    config, _, env = prepared(*TOY)
    file = tmp_path / "base.safetensors"
    make_net = factory(config.model, env.input_shape, env.num_classes)
    save_file(build(make_net, 99).state_dict(), file)
    return file


def test_a_layer_is_that_of_the_changed_weight_and_has_its_gradients():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double()
    layer = LowRank(linear, 2, 3.0).double()
    x, out = torch.randn(7, 5).double(), torch.randn(7, 4).double()
    assert torch.equal(layer(x), linear(x))  # B is 0
    nn.init.normal_(layer.B)
    W = (linear.weight + 1.5 * layer.B @ layer.A).detach().requires_grad_()
    torch.testing.assert_close(layer.merged(), W.detach().requires_grad_())
    expected = x @ W.T + linear.bias
    torch.testing.assert_close(layer(x), expected)
    (gradient,) = torch.autograd.grad((expected * out).sum(), W)
    A, B = torch.autograd.grad((layer(x) * out).sum(), [layer.A, layer.B])
    torch.testing.assert_close(A, 1.5 * layer.B.T @ gradient)
    torch.testing.assert_close(B, 1.5 * gradient @ layer.A.T)


@pytest.mark.parametrize(
    ("more", "parameters"),
    [
        ((), 3 * (64 + 24) + 3 * (24 + 12) + 13 * 10),
        (("adapter.layers=[layers.1]",), 3 * (24 + 12) + 13 * 10),
        (("adapter.head=frozen",), 3 * (64 + 24) + 3 * (24 + 12)),
        (("adapter.head=frozen", "adapter.layers=[layers.2]"), 3 * (12 + 10)),
        (("model=cnn", "model.channels=[4]", "model.hidden_size=9"), 3 * (64 + 9) + 10 * 10),
    ],
)
def test_theta_is_the_adapters_and_the_head(prepared, more, parameters):
    toy = [t for t in TOY if "hidden_sizes" not in t] if "model=cnn" in more else TOY
    _, strategy, env = prepared(*toy, *LORA, *more)
    assert len(initial_state(strategy, env).theta) == parameters


def test_what_is_frozen_is_the_models_own_and_stays(prepared):
    _, _, plain = prepared(*TOY)
    _, strategy, env = prepared(*TOY, *LORA)
    own = {k: v.clone() for k, v in plain.flat.module.state_dict().items()}
    x, task = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    assert torch.equal(env.flat.module(x, task), plain.flat.module(x, task))
    s = initial_state(strategy, env)
    for t in env.stream:
        s = train_task(strategy, s, t, env)
    after = env.flat.module.state_dict()
    moved = {k for k in own if not torch.equal(after[k], own[k])}
    assert moved == {"layers.2.weight", "layers.2.bias"}
    assert float(after["layers.0.B"].abs().max()) > 0


def test_a_runs_weights_are_those_of_a_model_without_adapters(configure, tmp_path):
    run(configure(*TOY, *LORA, "checkpoint.keep=true"), tmp_path / "lora")
    names = set(load_file(tmp_path / "lora" / WEIGHTS))
    assert names == {f"layers.{i}.{part}" for i in range(3) for part in ("weight", "bias")}
    run(configure(*TOY, f"model.weights={tmp_path / 'lora'}"), tmp_path / "on")
    ended, begun = (
        read_matrix(tmp_path / name / "accuracy_matrix.csv")[row]
        for name, row in (("lora", -1), ("on", 0))
    )
    assert begun.tolist() == ended.tolist()


REFUSING = {"den", "pnn", "hat", "xdg", "gpm", "owm", "vcl"}  # they look at the layers themselves,
REFUSING |= {
    "adam_nscl",
    "supsup",
    "piggyback",
    "ncm",
    "slda",
    "ridge",
}  # at all weights, or train none
HEADLESS = {"expandable_head", "frozen_features", "lwf", "packnet", "soft_sharing"}
QUICK = {"gdumb": ("strategy.epochs=1",), "mer": ("training.batch_size=4",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", strategies.available())
def test_a_strategy_trains_adapters_or_refuses_them_in_a_line(prepared, name):
    toy = [t for t in TOY if not t.startswith("strategy=")]
    supported = strategies.find(name).scenarios
    where = "domain" if "domain" in supported else supported[0]
    short = (f"scenario={where}", "benchmark.train_samples=40", "training.iterations=1")
    own = (*toy, *LORA, *short, f"strategy={name}", *QUICK.get(name, ()))

    if name in REFUSING:
        with pytest.raises(UserError) as caught:
            train_the_rest(prepared, *own)
        assert "\n" not in str(caught.value)
    else:
        train_the_rest(prepared, *own)
    if name in HEADLESS:
        which = "task" if "task" in supported else "class"
        with pytest.raises(UserError, match=r"an output layer, .* and trains it"):
            prepared(*own, "adapter.head=frozen", f"scenario={which}")


def test_seeds_are_stacked_where_they_share_what_is_frozen(prepared, trained):
    def runs(*more: str) -> list[Member]:
        own = (*TOY, *LORA, *more, "benchmark.seed=0")
        return [Member(*prepared(*own, f"seed={i}")[1:]) for i in (0, 1)]

    assert obstacle(runs()) == "fixed parts of the network are drawn from the seed"
    members = runs(f"model.weights={trained}")
    assert obstacle(members) is None
    states = [initial_state(*m) for m in members]
    alone = [
        train_task(m.strategy, s._replace(theta=s.theta.detach().clone()), m.env.stream[0], m.env)
        for m, s in zip(members, states, strict=True)
    ]
    again = runs(f"model.weights={trained}")
    begun = [initial_state(*m) for m in again]
    together = train_together(again, begun, 0, StackedStep(again))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.theta, other.theta, rtol=1e-4, atol=1e-5)


def test_it_is_no_part_of_other_runs(configure):
    plain, lora = configure(*TOY).resolved, configure(*TOY, *LORA).resolved
    assert "adapter" not in plain and lora["adapter"]["rank"] == 3
    assert config_hash(plain) == config_hash(configure(*TOY, "adapter=none").resolved)
    assert config_hash(plain) != config_hash(lora)
    assert validate(OmegaConf.create(dict(plain))).adapter.name == "none"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("adapter.rank=0",), "adapter.rank must be at least 1, got 0"),
        (("adapter.alpha=0",), "adapter.alpha must be positive"),
        (("adapter.head=linear",), "adapter.head must be one of train, frozen"),
        (("adapter.layers=[]",), "one or more different names, or null"),
        (("adapter.name=dora",), "adapter.name must be one of none, lora"),
        (("adapter.rank=13",), "rank=13 is too large for layers.1 with 24 inputs and 12 outputs"),
        (("adapter.layers=[fc]",), "fc is no nn.Linear of the model; known: layers.0, layers.1"),
        (("adapter.layers=[layers.2]",), "layers.2 is the output layer, which adapter.head=train"),
        (("model.hidden_sizes=[]",), "only nn.Linear layer is the output layer layers.0; adapt it"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        prepared(*TOY, *LORA, *overrides)
    assert "\n" not in str(caught.value)
