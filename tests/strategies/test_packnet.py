"""PackNet: what is pruned, what is retrained, and that owned weights never change again."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.packnet import FREE
from cl_runner.training.fit import fit

TOY = (
    "strategy=packnet",
    "benchmark=split_digits",
    "scenario=task",
    "model.hidden_sizes=[16,12]",
    "training.batch_size=64",
    "training.epochs=2",
)
CNN = (*TOY[:3], "model=cnn", "model.channels=[3,4]", "model.hidden_size=6", *TOY[4:])
OPTIMIZERS = [
    ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.01"),
    ("optimizer=adam", "optimizer.weight_decay=0.01"),
    ("optimizer=adamw", "optimizer.weight_decay=0.1", "optimizer.schedule=cosine"),
]


def run(prepared, *overrides: str, toy=TOY):
    """Strategy, environment, the states before the first and after each task, copied."""
    _, strategy, env = prepared(*toy, *overrides)
    s = initial_state(strategy, env)
    states = [s._replace(theta=s.theta.detach().clone())]
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        states.append(s._replace(theta=s.theta.detach().clone()))
    return strategy, env, states


def hidden_weights(env, vector) -> dict[str, torch.Tensor]:
    views = env.flat.views(vector)
    *hidden, _ = (name for name, part in views.items() if part.ndim > 1)
    return {name: views[name] for name in hidden}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o[0].removeprefix("optimizer="))
@pytest.mark.parametrize("toy", [TOY, CNN], ids=["mlp", "cnn"])
def test_owned_weights_and_old_answers_never_change_again(prepared, toy, optimizer):
    strategy, env, states = run(prepared, *optimizer, toy=toy)
    x = env.stream.normalise(env.stream.held_out("test", env.stream[0])[0])
    for t in range(4):
        mine = states[t + 1]
        assert mine.memory["owner"].dtype == torch.int16  # two bytes for each weight
        owned = (mine.memory["owner"] <= t) & (mine.memory["owner"] != FREE)
        answers = strategy.predict(mine, x, t, env)
        for later in states[t + 2 :]:
            assert torch.equal(later.memory["owner"][owned], mine.memory["owner"][owned])
            assert torch.equal(later.theta[owned], mine.theta[owned])
            assert torch.equal(strategy.predict(later, x, t, env), answers)
        new = mine.memory["owner"] == t
        assert not torch.equal(mine.theta[new], states[t].theta[new])  # and each task did learn


def test_nothing_is_forgotten_at_all(prepared):
    strategy, env, states = run(
        prepared, "training.epochs=10", "optimizer=adam", "optimizer.lr=0.01"
    )
    rows = [evaluate(strategy, env.commit(s), env)["test", "task"] for s in states[1:]]
    learnt = [row[t] for t, row in enumerate(rows)]
    assert rows[-1] == learnt
    assert sum(learnt) / 5 > 0.8


@pytest.mark.parametrize("prune", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("toy", [TOY, CNN], ids=["mlp", "cnn"])
def test_each_task_gives_back_the_share_of_each_hidden_layer(prepared, toy, prune):
    _, env, states = run(prepared, f"strategy.prune={prune}", toy=toy)
    free = {name: part.numel() for name, part in hidden_weights(env, states[0].theta).items()}
    for t, s in enumerate(states[1:]):
        for name, owner in hidden_weights(env, s.memory["owner"]).items():
            kept = free[name] if t == 4 else free[name] - round(prune * free[name])
            assert int((owner == t).sum()) == kept, (t, name)
            free[name] -= kept
            assert int((owner == FREE).sum()) == free[name], (t, name)
    assert not (states[-1].memory["owner"] == FREE).any()  # the last task keeps the rest


def test_the_smallest_weights_are_the_ones_given_back(prepared):
    """Without retraining the kept weights are those of a network that was never pruned."""
    _, env, pruned = run(prepared, "strategy.prune=0.75", "strategy.retrain_epochs=0")
    _, _, whole = run(prepared, "strategy.prune=0", "strategy.retrain_epochs=0")
    owner = hidden_weights(env, pruned[1].memory["owner"])
    kept = hidden_weights(env, pruned[1].theta)
    for name, weight in hidden_weights(env, whole[1].theta).items():
        free = owner[name] == FREE
        assert weight[free].abs().max() <= weight[~free].abs().min()
        assert torch.equal(kept[name], torch.where(free, 0.0, weight))


def test_free_weights_are_zero_after_retraining_and_retraining_moves_the_others(prepared):
    _, _, plain = run(prepared, "strategy.retrain_epochs=0", "optimizer=adam")
    _, env, retrained = run(prepared, "strategy.retrain_epochs=2", "optimizer=adam")
    for s in retrained[1:]:
        assert not s.theta[s.memory["owner"] == FREE].any()
    assert torch.equal(plain[1].memory["owner"], retrained[1].memory["owner"])
    own = retrained[1].memory["owner"] == 0
    for name, part in env.flat.views(own).items():
        moved = env.flat.views(plain[1].theta != retrained[1].theta)[name]
        assert moved[part].any(), name
        assert not moved[~part].any(), name


def test_a_task_is_predicted_with_the_weights_of_the_tasks_up_to_it(prepared):
    strategy, env, states = run(prepared)
    s = states[-1]
    x = torch.rand(3, 1, 8, 8)
    owner = s.memory["owner"]
    for t in range(5):
        noise = torch.randn_like(s.theta)
        changed = s._replace(theta=torch.where(owner > t, noise, s.theta))
        assert torch.equal(strategy.predict(changed, x, t, env), strategy.predict(s, x, t, env))
        for earlier in range(t + 1):  # and with all of these
            gone = s._replace(theta=torch.where(owner == earlier, 0.0, s.theta))
            assert not torch.equal(
                strategy.predict(gone, x, t, env), strategy.predict(s, x, t, env)
            )


def test_hidden_biases_are_the_first_tasks_and_outputs_their_own_tasks(prepared):
    _, env, states = run(prepared)
    for s in states:
        owner = env.flat.views(s.memory["owner"])
        assert not owner["layers.0.bias"].any() and not owner["layers.1.bias"].any()
        assert owner["layers.2.bias"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert (owner["layers.2.weight"] == owner["layers.2.bias"][:, None]).all()


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("strategy.retrain_epochs=0",), 0),
        (("strategy.retrain_epochs=3",), 15),  # an epoch has 5
        (("strategy.retrain_epochs=3", "training.iterations=2"), 15),
        (("training.epochs=4",), 10),
        (("training.epochs=1",), 3),
        (("training.iterations=1",), 1),
        (("training.iterations=11",), 6),
        (("training.iterations=20",), 10),
    ],
)
def test_retraining_takes_its_epochs_or_half_the_tasks_steps(prepared, overrides, steps):
    config, strategy, env = prepared(*TOY, *overrides)
    assert len(env.stream[0].train) in range(4 * 64 + 1, 5 * 64)
    train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    trained = config.training.iterations or 5 * config.training.epochs
    assert env.meter.steps == trained + steps


def test_retraining_begins_with_a_fresh_optimizer(prepared):
    """The momentum that the weights had before pruning does not move them on after it."""
    states = []
    for epochs in (0, 1):
        _, strategy, env = prepared(
            *TOY, "optimizer.momentum=0.9", f"strategy.retrain_epochs={epochs}"
        )
        states.append(train_task(strategy, initial_state(strategy, env), env.stream[0], env))
        if epochs == 0:
            s = env.restart(states.pop(), env.flat.theta.detach().clone())
            samples = (env.stream[0].train, 0)
            states.append(fit(env.commit(s), env, strategy, samples, epochs=1, phase="retrain"))
    torch.testing.assert_close(states[0].theta, states[1].theta)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.prune=1",), r"strategy.prune must lie in \[0, 1\), got 1"),
        (("strategy.prune=-0.1",), "strategy.prune must lie"),
        (("strategy.retrain_epochs=-1",), "strategy.retrain_epochs must be at least 0, got -1"),
        (("scenario=class",), "strategy=packnet does not support scenario=class"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)


def test_batchnorm_is_refused(prepared):
    with pytest.raises(UserError, match="strategy=packnet needs a model without BatchNorm"):
        prepared(*TOY[:3], "model=reduced_resnet18", "model.width=2")
