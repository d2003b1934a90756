"""Self-supervised learning, before the stream and beside it: step by step, and what it may see."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import outcome
from safetensors.torch import load_file
from torch import nn

from cl_runner.config.schema import Adam
from cl_runner.core import TrainState
from cl_runner.errors import Diverged, UserError
from cl_runner.functional.pretext import hidden
from cl_runner.results.files import read_rows
from cl_runner.results.names import CHECKPOINT, PRETRAINED
from cl_runner.running import checkpoint, loop, pretraining, together
from cl_runner.running.prepare import prepare, strategy_of
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.strategies.naive import Naive
from cl_runner.strategies.parts.pretext import OWN, with_head
from cl_runner.testing import assert_same, snapshot
from cl_runner.training import optim
from cl_runner.training.batches import Source

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "benchmark.train_samples=150"),
    *("scenario=class", "model.hidden_sizes=[12,7]", "training.batch_size=8"),
    *("training.epochs=1", "verbose=false", "strategy=naive"),
)
MASKED = (
    *("training.ssl=masked", "ssl.epochs=2", "ssl.hidden_sizes=[9]", "ssl.batch_size=16"),
    "ssl.mask_ratio=0.5",
)
BESIDE = (*MASKED[:1], *MASKED[2:3], "ssl.epochs=0", "ssl.weight=0.7")
RESNET = ("model=reduced_resnet18", "model.width=2")


def phase(config: Any, env: Any) -> tuple[Member, TrainState]:
    """The learner of a run, and its state after the phase before the first task."""
    member = pretraining.learner(config, env)
    (end,) = pretraining.learn([member])
    return member, end


def trunk(config: Any, env: Any) -> dict[str, torch.Tensor]:
    """What the phase leaves of a network."""
    return dict(pretraining.learnt(config, *phase(config, env)).trunk)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# The phase before the first task.


def test_it_is_the_masked_autoencoder_of_torchs_own_parts(prepared):
    """nn.Linear, autograd and Adam on the same batches and masks."""
    config, _, env = prepared(*TOY, *MASKED)
    member = pretraining.learner(config, env)
    s = initial_state(*member)
    source = Source(member.env, s, 0, env.stream[0].train, 0, member.strategy)
    batches = [
        [b._replace(x=b.x.clone()) for b in source.epoch(epoch, -(-len(source.index) // 16))]
        for epoch in range(2)
    ]
    network = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU()),
        *(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 64)),
    )
    own = list(network.parameters())
    head, *trunk_ = member.env.flat.views(s.theta.detach()).values()
    for p, v in zip(own[:4], trunk_[:4], strict=True):
        p.data.copy_(v)
    at = 0
    for p in own[4:]:
        p.data.copy_(head[at : at + p.numel()].view(p.shape))
        at += p.numel()
    adam = Adam(name="adam", lr=1e-3)
    slots = optim.init(adam, torch.cat([p.detach().flatten() for p in own]))
    for b in (b for epoch in batches for b in epoch):
        mask = hidden(b.x, b.noise["ssl.mask"][: len(b.x), 0], 0.5, 1)
        guess = network(b.x * ~mask)
        loss = (guess - b.x.flatten(1))[mask.flatten(1)].square().mean()
        grad = torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)])
        now = torch.cat([p.detach().flatten() for p in own])
        now, slots = optim.update(adam, now, grad, slots)
        for p, v in zip(own, now.split([p.numel() for p in own]), strict=True):
            p.data.copy_(v.view(p.shape))
    (end,) = pretraining.learn([member])
    found = pretraining.learnt(config, member, end)
    for v, p in zip(found.trunk.values(), own[:4], strict=True):
        torch.testing.assert_close(v, p.detach(), rtol=1e-4, atol=1e-6)
    joined = torch.cat([p.detach().flatten() for p in own[4:]])
    torch.testing.assert_close(found.head, joined, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["naive", "ewc", "pnn", "generative_replay"])
def test_every_network_of_a_strategy_begins_with_what_was_learnt(prepared, strategy):
    """Below the output layer, which stays as it is drawn; PNN makes a network for each task."""
    more = ("strategy.hidden_sizes=[8]",) if strategy == "generative_replay" else ()
    own = (*TOY, *MASKED, f"strategy={strategy}", "scenario=task", *more)
    config, built, env = prepared(*own)
    before = env.flat.theta.detach().clone()
    found = trunk(config, env)
    assert "layers.2.weight" not in found
    pretraining.begin_with(config, Member(built, env), found)
    values = env.flat.theta.tolist()
    first = found["layers.0.weight"].flatten().tolist()
    times = sum(values[i : i + len(first)] == first for i in range(len(values)))
    assert times == (3 if strategy == "pnn" else 1)
    if strategy == "naive":
        changed, output = env.flat.theta != before, torch.ones(env.num_classes, dtype=torch.bool)
        assert int(changed.sum()) > 100
        assert not bool((changed & env.flat.output_mask(output)).any())


def test_labels_later_tasks_validation_and_test_data_are_never_seen(prepared):
    """What is learnt stays the same, to the last bit, whatever they are."""
    config, _, env = prepared(*TOY, *MASKED, "benchmark.validation_fraction=0.2")
    expected = trunk(config, env)
    stream = env.stream
    seen = torch.zeros(len(stream.x), dtype=torch.bool)
    seen[stream[0].train] = True
    other = dataclasses.replace(
        stream,
        x=torch.where(seen[:, None, None, None], stream.x, 255 - stream.x),
        y=stream.y.flip(0),
        x_test=255 - stream.x_test,
    )
    env.stream = other
    found = trunk(config, env)
    assert all(torch.equal(v, found[name]) for name, v in expected.items())
    seen[stream[0].train[0]] = False  # while one of its own would change it
    x = torch.where(seen[:, None, None, None], stream.x, 255 - stream.x)
    env.stream = dataclasses.replace(stream, x=x)
    found = trunk(config, env)
    assert any(not torch.equal(v, found[name]) for name, v in expected.items())


def test_rows_of_a_file_are_seen_as_the_first_task_shows_its_own(prepared, tmp_path):
    """Such as those of the first task itself, in any layout that a data set may have."""
    own = ("benchmark=rotated_digits", "scenario=domain", "benchmark.train_samples=40")
    config, _, env = prepared(*TOY, *MASKED, *own)
    expected = trunk(config, env)
    task = env.stream[0]
    rows = env.stream.x[task.train]
    for name, x in (("x", rows[:, 0]), ("x_train", rows.permute(0, 2, 3, 1))):
        file = npz(tmp_path / f"{name}.npz", **{name: x.numpy()})
        config, _, env = prepared(*TOY, *MASKED, *own, f"ssl.rows={file}")
        found = trunk(config, env)
        assert all(torch.equal(v, found[name]) for name, v in expected.items())


@pytest.mark.parametrize("ssl", ["rotation", "barlow", "masked"])
def test_the_error_falls(prepared, ssl):
    own = (f"training.ssl={ssl}", "ssl.epochs=8", "ssl.batch_size=30")
    config, _, env = prepared(*TOY, *own, "benchmark.num_tasks=1", "model.hidden_sizes=[40]")
    member = pretraining.learner(config, env)
    s = initial_state(*member)
    batch = next(
        iter(Source(member.env, s, 0, env.stream[0].train, 0, member.strategy).epoch(0, 1))
    )

    def error(theta: torch.Tensor) -> float:
        return float(member.strategy.loss(theta, s, batch, member.env)[0])

    before = error(s.theta.detach().clone())
    (end,) = pretraining.learn([member])
    assert error(end.theta.detach().clone()) < 0.9 * before


def test_batchnorm_convolutions_and_the_steps_flops(prepared):
    """The statistics move with the phase, not with the step by which its cost is known."""
    config, _, env = prepared(*TOY, *MASKED, "model.hidden_sizes=[12]")
    member, end = phase(config, env)
    n = len(env.stream[0].train)
    line = pretraining.told(config, pretraining.learner(config, env))
    assert f"{n} unlabelled rows of the first task" in line
    assert f"{member.env.meter.flops:.1e} FLOPs" in line
    own = [o for o in TOY if not o.startswith("model.")]
    config, _, env = prepared(*own, *RESNET, *MASKED[:1], "ssl.epochs=1")
    member = pretraining.learner(config, env)
    before = snapshot(initial_state(*member))
    pretraining.told(config, member)
    assert_same(snapshot(initial_state(*member)), before)
    (end,) = pretraining.learn([member])
    assert any(not torch.equal(v, before.buffers[k]) for k, v in end.buffers.items())
    assert "bn.running_mean" in pretraining.learnt(config, member, end).trunk


def test_its_cost_is_the_runs_and_the_next_run_may_start_from_it(configure, tmp_path, capsys):
    own = (*TOY, *MASKED, "verbose=true", "checkpoint.keep=true")
    loop.run(configure(*own), tmp_path / "a")
    said = capsys.readouterr().out
    assert "training.ssl=masked: " in said.splitlines()[0]
    first, *rest = read_rows(tmp_path / "a" / "costs.csv")
    rows = int(first["samples"]) // 2
    assert int(first["steps"]) == 2 * -(-rows // 16)
    assert float(first["flops"]) > 0
    assert float(first["train_seconds"]) > 0
    summary = read_rows(tmp_path / "a" / "summary.csv")[0]
    assert int(summary["samples"]) == sum(int(row["samples"]) for row in (first, *rest))
    plain = (*TOY, f"model.weights={tmp_path / 'a' / PRETRAINED}")
    loop.run(configure(*plain), tmp_path / "b")
    both = [read_rows(tmp_path / name / "accuracies.csv") for name in "ab"]
    assert both[0] == both[1]
    columns = read_rows(tmp_path / "b" / "summary.csv")[0].keys()
    assert not [name for name in columns if "ssl" in name]
    assert int(summary["parameters"]) == int(read_rows(tmp_path / "b/summary.csv")[0]["parameters"])


# Beside the stream.


def test_a_step_goes_down_the_sum_of_both_losses(prepared):
    """By autograd through the layers; the head takes a step of Adam."""
    _, strategy, env = prepared(*TOY, *BESIDE, "optimizer.lr=0.5")
    s = initial_state(strategy, env)
    names = [name for name in s.memory if name.startswith(OWN)]
    assert sorted(names) == ["ssl.head", "ssl.lr", "ssl.m", "ssl.steps", "ssl.v"]
    source = Source(env, s, 0, env.stream[0].train, 0, strategy)
    batch = next(iter(source.epoch(0, 1)))
    parts = [v.detach().clone().requires_grad_() for v in env.flat.views(s.theta.detach()).values()]
    head = s.memory["ssl.head"].clone().requires_grad_()
    W1, b1, W2, b2, W3, b3 = parts
    V1, c1, V2, c2 = (
        part.view(shape)
        for part, shape in zip(
            head.split([63, 9, 576, 64]), [(9, 7), (9,), (64, 9), (64,)], strict=True
        )
    )

    def features(x: torch.Tensor) -> torch.Tensor:
        return ((x.flatten(1) @ W1.T + b1).relu() @ W2.T + b2).relu()

    mask = hidden(batch.x, batch.noise["ssl.mask"][: len(batch.x), 0], 0.75, 1)
    guess = (features(batch.x * ~mask) @ V1.T + c1).relu() @ V2.T + c2
    pretext = (guess - batch.x.flatten(1))[mask.flatten(1)].square().mean()
    loss = nn.functional.cross_entropy(features(batch.x) @ W3.T + b3, batch.y)
    (loss + 0.7 * pretext).backward()
    of_head = torch.autograd.grad(
        ((features(batch.x * ~mask).detach() @ V1.T + c1).relu() @ V2.T + c2 - batch.x.flatten(1))[
            mask.flatten(1)
        ]
        .square()
        .mean(),
        head,
    )[0]
    after, aux = strategy.step(s, batch, env)
    expected = torch.cat([(p - 0.5 * p.grad).detach().flatten() for p in parts])
    torch.testing.assert_close(after.theta, expected, rtol=1e-4, atol=1e-6)
    assert float(aux["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    adam = Adam(name="adam", lr=1e-3)
    twin, _ = optim.update(adam, head.detach(), of_head, optim.init(adam, head.detach()))
    torch.testing.assert_close(after.memory["ssl.head"], twin, rtol=1e-5, atol=1e-7)


def test_a_batch_from_elsewhere_has_no_part_in_it(prepared):
    """GEM's gradients of old tasks, say, are those of its loss alone; so is naive's own loss."""
    _, strategy, env = prepared(*TOY, *BESIDE)
    s = initial_state(strategy, env)
    batch = env.gather(env.stream[0].train[:5], 0, s.t)
    theta = s.theta.detach().clone()
    own, _ = env.grad_and_value(strategy.loss)(theta, s, batch, env)
    plain, _ = env.grad_and_value(Naive(name="naive").loss)(theta, s, batch, env)
    torch.testing.assert_close(own, plain)


@pytest.mark.parametrize(
    "case",
    [
        ("strategy=mas",),  # makes a new memory at the end of a task
        ("strategy=gpm", "scenario=domain"),  # goes through all that is in it
        ("strategy=packnet", "scenario=task"),  # trains at the end of a task
        ("strategy=den", "scenario=task", "strategy.tau=0"),  # and at its beginning, a wider net
        ("strategy=hat", "scenario=task"),
    ],
    ids=lambda case: case[0],
)
def test_the_head_outlives_what_strategies_do_with_their_memory(prepared, case):
    benchmark = ("benchmark=permuted_digits",) if "scenario=domain" in case else ()
    _, strategy, env = prepared(*TOY, *BESIDE, *benchmark, *case, "benchmark.train_samples=40")
    s = initial_state(strategy, env)
    before = snapshot(s)
    for task in env.stream[:2]:
        s = train_task(strategy, s, task, env)
    assert s.memory.keys() == before.memory.keys()
    assert all(s.memory[name].shape == v.shape for name, v in before.memory.items())
    assert not torch.equal(s.memory["ssl.head"], before.memory["ssl.head"])


def test_batchnorms_statistics_are_those_of_the_stream(prepared):
    """The pass for the pretext task uses its batch's, and moves none."""
    own = [o for o in TOY if not o.startswith("model.")]
    found = []
    for beside in ((), ("training.ssl=masked", "ssl.epochs=0", "ssl.weight=1e-9")):
        _, strategy, env = prepared(*own, *RESNET, *beside)
        s = initial_state(strategy, env)
        batch = env.gather(env.stream[0].train[:8], 0, s.t)
        shapes = strategy.noise(8, env)
        batch = batch._replace(noise={k: torch.rand(shape) for k, shape in shapes.items()})
        s, _ = strategy.step(s, batch, env)
        found.append({k: v.clone() for k, v in s.buffers.items()})
    assert found[0].keys() == found[1].keys()
    for name, v in found[0].items():
        torch.testing.assert_close(v, found[1][name])


def test_the_head_of_the_phase_goes_on_beside_the_stream(configure, tmp_path):
    found = {}
    keep = ("checkpoint.keep=true", "optimizer.lr=1e-12")
    for name, weight in (("before", "0"), ("both", "1e-9")):
        config = configure(*TOY, *MASKED, *keep, f"ssl.weight={weight}", "ssl.lr=1e-3")
        loop.run(config, tmp_path / name)
    config = configure(*TOY, *MASKED, *keep, "ssl.weight=1e-9", "ssl.lr=1e-3")
    env = prepare(config, strategy_of(config))
    found = pretraining.learnt(config, *phase(config, env)).head
    state = load_file(tmp_path / "both" / CHECKPOINT)
    steps = int(state["memory.ssl.steps"])
    moved = (state["memory.ssl.head"] - found).abs().max()
    assert 0 < float(moved) < 1.1e-3 * steps * 2  # Adam's steps are at most about its rate
    assert "memory.ssl.head" not in load_file(tmp_path / "before" / CHECKPOINT)


# Together, and stopped.


@pytest.mark.slow
def test_several_seeds_learn_as_one_stack_and_as_alone(prepared):
    """Before the stream, and beside it: as one graph that vmap has made."""
    own = (*TOY, "training.ssl=masked", "ssl.epochs=1", "ssl.weight=0.5", "strategy=mas")
    own = (*own, "benchmark.seed=0", "ssl.hidden_sizes=[6]", "ssl.batch_size=20")
    runs = [prepared(*own, f"seed={seed}") for seed in (3, 4)]
    learners = [pretraining.learner(config, env) for config, _, env in runs]
    ends = pretraining.learn(learners)
    together_ = [
        pretraining.learnt(config, member, end)
        for (config, *_), member, end in zip(runs, learners, ends, strict=True)
    ]
    states = []
    for (config, strategy, env), found, member in zip(runs, together_, learners, strict=True):
        alone = pretraining.learner(config, env)
        (end,) = pretraining.learn([alone])
        assert member.env.meter.flops == alone.env.meter.flops > 0
        for name, v in pretraining.learnt(config, alone, end).trunk.items():
            torch.testing.assert_close(found.trunk[name], v, rtol=1e-4, atol=1e-5)
        pretraining.begin_with(config, Member(strategy, env), found.trunk)
        states.append(with_head(initial_state(strategy, env), found.head))
    members = [Member(strategy, env) for _, strategy, env in runs]
    before = [snapshot(s) for s in states]
    ends = together.train_task(members, states, 0, StackedStep(members))
    for member, end, start in zip(members, ends, before, strict=True):
        s = train_task(member.strategy, member.env.commit(start), member.env.stream[0], member.env)
        torch.testing.assert_close(end.theta, s.theta.detach(), rtol=1e-4, atol=1e-5)
        for name, v in s.memory.items():
            torch.testing.assert_close(end.memory[name], v, rtol=1e-3, atol=1e-4)


def test_what_each_seed_has_learnt_and_freezes_is_not_stacked(prepared):
    """Adapters, say, which a run trains on top of it."""
    own = (*TOY, *MASKED, "model.hidden_sizes=[12]")
    config, _, env = prepared(*own)
    assert pretraining.obstacle(config, env) is None
    config, _, env = prepared(*own, "adapter=lora", "adapter.rank=2", "adapter.layers=[layers.0]")
    assert "is frozen, and is not the others'" in str(pretraining.obstacle(config, env))


def test_adapters_and_closed_forms_are_on_top_of_what_was_learnt(prepared):
    own = (*TOY, *MASKED)
    for more, name in (
        (("adapter=lora", "adapter.rank=2"), "layers.0.weight"),
        (("strategy=slda", "strategy.input=features"), "body.layers.0.weight"),
    ):
        config, strategy, env = prepared(*own, *more)
        found = trunk(config, env)
        pretraining.begin_with(config, Member(strategy, env), found)
        there = env.flat.module.state_dict()[name]
        assert torch.equal(there, found["layers.0.weight"])
        assert (name in env.flat.names) == ("strategy=slda" in more)  # whose theta is never moved


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["phase", "first checkpoint", "task 1", "task 2"])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_end(
    configure, tmp_path, monkeypatch, moment
):
    """Within the phase it begins with the phase again; after it, never."""
    own = (*TOY, *MASKED, "strategy=gdumb", "strategy.epochs=2", "checkpoint.every_steps=3")
    loop.run(configure(*own), tmp_path / "unbroken")
    learns = []
    learn, save = pretraining.learn, checkpoint.save_all

    class Killed(BaseException):
        pass

    def learning(members):
        learns.append(1)
        if moment == "phase" and len(learns) == 1:
            raise Killed
        return learn(members)

    saves = []

    def saving(parts):
        place = {"first checkpoint": 0, "task 1": 1, "task 2": 3}.get(moment)
        if len(saves) == place:
            saves.append(None)
            raise Killed
        saves.append(None)
        return save(parts)

    monkeypatch.setattr(pretraining, "learn", learning)
    monkeypatch.setattr(checkpoint, "save_all", saving)
    with pytest.raises(Killed):
        loop.run(configure(*own), tmp_path / "killed")
    loop.run(configure(*own, "resume=true"), tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "unbroken")
    assert len(learns) == (2 if moment in ("phase", "first checkpoint") else 1)
    assert not list((tmp_path / "killed").glob("*.safetensors"))


def test_a_run_that_goes_on_needs_what_it_began_with(configure, tmp_path, monkeypatch):
    own = (*TOY, *MASKED)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_on", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.run(configure(*own), tmp_path)
    file = tmp_path / PRETRAINED
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="missing or damaged, with which this run began"):
        loop.run(configure(*own, "resume=true"), tmp_path)


def test_a_phase_that_diverges_says_so(configure, tmp_path):
    with pytest.raises(Diverged, match=r"training.ssl=masked: .* before the first task"):
        loop.run(configure(*TOY, *MASKED, "ssl.lr=1e30"), tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        assert next(csv.DictReader(file))["status"] == "failed"


# Bad input.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.ssl=jigsaw",), "training.ssl must be one of none, rotation, barlow, masked"),
        (("ssl.epochs=3",), "ssl.epochs=3 has no meaning with training.ssl=none"),
        ((*MASKED, "ssl.lambda=1"), "ssl.lambda=1.0 has no meaning with training.ssl=masked"),
        (
            (*BESIDE, "ssl.weight=0"),
            "needs ssl.epochs > 0, to be learnt before the stream, or ssl.weight > 0",
        ),
        ((*BESIDE, "ssl.rows=a.npz"), "ssl.rows=a.npz has no meaning with .* ssl.epochs=0"),
        ((*MASKED, "ssl.rows=test"), "ssl.rows must be task or the name of an .npz file"),
        ((*MASKED, "ssl.mask_ratio=1"), r"ssl.mask_ratio must lie in \(0, 1\)"),
        ((*MASKED, "ssl.patch_size=0"), "ssl.patch_size must be at least 1"),
        ((*MASKED, "ssl.hidden_sizes=[0]"), "ssl.hidden_sizes must be positive"),
        ((*MASKED, "ssl.batch_size=1"), "ssl.batch_size must be at least 2"),
    ],
)
def test_what_the_section_refuses(configure, overrides, message):
    with pytest.raises(UserError, match=message):
        configure(*TOY, *overrides)


def test_what_data_model_and_strategy_cannot_have(prepared, tmp_path):
    vectors = npz(
        tmp_path / "v.npz",
        **{f"{k}_{part}": v for part in ("train", "test") for k, v in vector_set().items()},
    )
    own = ("benchmark=split_npz", f"data.path={vectors}", "benchmark.num_tasks=2")
    small = [o for o in TOY if not o.startswith("benchmark")]
    with pytest.raises(UserError, match="turns square images; the data are 1x1x5"):
        prepared(*small, *own, "training.ssl=rotation")
    prepared(*small, *own, "training.ssl=masked")
    with pytest.raises(UserError, match="strategy=mer passes no batch of the stream"):
        prepared(*TOY, *BESIDE, "strategy=mer")
    with pytest.raises(UserError, match="which this network does not show"):
        prepared(*TOY, *BESIDE, "strategy=pnn", "scenario=task")
    with pytest.raises(UserError, match=r"training.ssl has no meaning with strategy.input=pixels"):
        prepared(*TOY, *MASKED, "strategy=slda")
    wrong = npz(tmp_path / "w.npz", x=np.zeros((3, 9, 8), np.uint8))
    with pytest.raises(UserError, match=r"\(1, 9, 8\), those of the benchmark .*\(1, 8, 8\)"):
        prepared(*TOY, *MASKED, f"ssl.rows={wrong}")
    floats = npz(tmp_path / "f.npz", x=np.zeros((3, 8, 8)))
    with pytest.raises(UserError, match=r"its rows are floats .* those of the benchmark uint8"):
        prepared(*TOY, *MASKED, f"ssl.rows={floats}")
    other = npz(tmp_path / "o.npz", y=np.zeros(3))
    with pytest.raises(UserError, match="holds neither of the arrays x and x_train"):
        prepared(*TOY, *MASKED, f"ssl.rows={other}")
    with pytest.raises(UserError, match="there is no such file"):
        prepared(*TOY, *MASKED, "ssl.rows=nowhere.npz")


def vector_set() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).random((20, 5)).astype(np.float32)
    return {"x": x, "y": np.arange(20) % 4}


def test_a_phase_beyond_the_budget_is_refused(configure, tmp_path):
    with pytest.raises(UserError, match=r"more than budget.samples=20; lower ssl.epochs"):
        loop.run(configure(*TOY, *MASKED, "budget.samples=20"), tmp_path)
