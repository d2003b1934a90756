"""Elastic weight consolidation: the penalty is the paper's, whatever form it is kept in."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import Diverged, UserError
from cl_runner.functional.importance import LABEL_RULES, fisher_overlap
from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows
from cl_runner.run.loop import run as run_whole
from cl_runner.run.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive
from cl_runner.strategies.parts.importance import fisher_diagonal

TOY = (
    "strategy=ewc",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=300",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
)


def run(prepared, *overrides: str):
    """The state after each task (theta and memory copied), and the environment."""
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    states = []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        memory = {k: v.clone() for k, v in s.memory.items()}
        states.append(s._replace(theta=s.theta.detach().clone(), memory=memory))
    return strategy, env, states


def fishers(env, states) -> list[torch.Tensor]:
    """Each task's own Fisher, at that task's own weights."""
    found = []
    for s, task in zip(states, env.stream, strict=True):
        live = env.commit(s)
        found.append(fisher_diagonal(live, task, env, labels="exact", samples=None))
    return found


def test_separate_mode_is_one_penalty_per_task_around_its_own_weights(prepared):
    _, env, states = run(prepared, "strategy.lambda=50")
    terms = list(zip(fishers(env, states), states, strict=True))
    theta = states[-1].theta + 0.1 * torch.randn(states[-1].theta.shape)
    expected = sum(F * (theta - s.theta) for F, s in terms)
    memory = states[-1].memory
    actual = memory["fisher"] * (theta - memory["anchor"])
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_online_mode_decays_the_fisher_and_keeps_the_latest_weights(prepared):
    _, env, states = run(
        prepared, "strategy.lambda=50", "strategy.mode=online", "strategy.gamma=0.5"
    )
    F = fishers(env, states)
    torch.testing.assert_close(states[2].memory["fisher"], 0.25 * F[0] + 0.5 * F[1] + F[2])
    assert torch.equal(states[2].memory["anchor"], states[2].theta)


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_lambda_zero_is_naive(prepared, penalty):
    _, _, states = run(prepared, "strategy.lambda=0", f"strategy.penalty={penalty}")
    _, _, env = prepared(*TOY)
    naive = Naive(name="naive")
    s = initial_state(naive, env)
    for task in env.stream:
        s = train_task(naive, s, task, env)
    torch.testing.assert_close(states[-1].theta, s.theta.detach(), rtol=1e-5, atol=1e-7)


def test_the_step_is_along_the_gradient_of_the_papers_loss(prepared):
    """Eq. 3 with its half, differentiated by autograd, and a step of plain gradient descent."""
    explicit = ("strategy.penalty=loss", "strategy.lambda=7", "optimizer.lr=0.01")
    strategy, env, states = run(prepared, *explicit)
    s = states[1]._replace(theta=(states[1].theta + 0.1).detach())
    batch = env.gather(env.stream[2].train[:8], 2, s.t)

    def papers_loss(theta, s, batch, env):
        loss, aux = Naive(name="naive").loss(theta, s, batch, env)
        distance = (theta - s.memory["anchor"]).square()
        return loss + 7 / 2 * (s.memory["fisher"] * distance).sum(), aux

    grad, _ = env.grad_and_value(papers_loss)(s.theta, s, batch, env)
    naive, _ = env.grad_and_value(Naive(name="naive").loss)(s.theta, s, batch, env)
    assert (grad - naive).abs().max() > 0.1 * naive.abs().max()
    new, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(new.theta, s.theta - 0.01 * grad, rtol=1e-5, atol=1e-7)


def test_the_proximal_step_stays_finite_where_the_explicit_one_diverges(prepared):
    huge = ("strategy.lambda=1e6", "training.epochs=5")
    _, _, states = run(prepared, *huge, "strategy.penalty=proximal")
    assert torch.isfinite(states[-1].theta).all()
    with pytest.raises(Diverged, match=r"task \d at step \d+"):
        run(prepared, *huge, "strategy.penalty=loss")


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_online_mode_penalises_with_gamma_times_the_fisher(prepared, penalty):
    """Schwarz et al. 2018, eq. 8; and with lambda, by the closed form of either way."""
    case = ("strategy.mode=online", "strategy.gamma=0.4", f"strategy.penalty={penalty}")
    strategy, env, states = run(prepared, *case, "strategy.lambda=200", "optimizer.lr=0.01")
    s = states[1]._replace(theta=(states[1].theta + 0.1).detach())
    batch = env.gather(env.stream[2].train[:8], 2, s.t)
    grad, _ = env.grad_and_value(Naive(name="naive").loss)(s.theta, s, batch, env)
    step = 0.01 * 200 * 0.4 * s.memory["fisher"]
    pull = step * (s.theta - s.memory["anchor"])
    assert float(pull.norm()) > 0.1 * float((0.01 * grad).norm())
    expected = s.theta - 0.01 * grad - pull
    if penalty == "proximal":
        expected = (s.theta - 0.01 * grad + step * s.memory["anchor"]) / (1 + step)
    new, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(new.theta, expected, rtol=1e-5, atol=1e-7)


def test_gamma_is_refused_where_it_has_no_meaning(prepared):
    with pytest.raises(UserError, match=r"strategy.gamma=0.5 has no meaning with strategy.mode=se"):
        prepared(*TOY, "strategy.gamma=0.5")
    prepared(*TOY, "strategy.gamma=1.0")  # what a preset or a saved configuration repeats


@pytest.mark.parametrize("labels", LABEL_RULES)
@pytest.mark.parametrize("samples", ["7", "null"])
def test_the_fisher_is_that_of_the_label_rule_and_of_so_many_samples(prepared, labels, samples):
    number = None if samples == "null" else int(samples)
    case = (f"strategy.fisher_labels={labels}", f"strategy.fisher_samples={samples}")
    _, strategy, env = prepared(*TOY, *case)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)

    def fisher(labels: str, number: int | None):
        return fisher_diagonal(s, env.stream[0], env, labels=labels, samples=number)

    actual = s.memory["fisher"]
    torch.testing.assert_close(actual, fisher(labels, number))
    others = [fisher(rule, number) for rule in LABEL_RULES if rule != labels]
    for other in (*others, fisher(labels, 300 if number else 7)):
        assert float((actual - other).norm()) > 0.02 * float(other.norm())


def test_the_fisher_of_a_network_with_convolutions_and_batchnorm(prepared):
    """Against one backward pass per sample, in evaluation mode; BatchNorm's statistics stay."""
    _, strategy, env = prepared(
        "strategy=ewc",
        "benchmark=split_digits",
        "benchmark.num_tasks=2",
        "benchmark.train_samples=40",
        "model=reduced_resnet18",
        "model.width=2",
        "training.epochs=1",
        "training.batch_size=20",
    )
    s = initial_state(strategy, env)
    s = train_task(strategy, s, env.stream[0], env)
    before = {k: v.clone() for k, v in env.flat.buffers.items()}
    actual = fisher_diagonal(s, env.stream[0], env, labels="true", samples=None)
    assert all(torch.equal(v, before[k]) for k, v in env.flat.buffers.items())

    env.flat.module.eval()
    rows = env.stream[0].train
    expected = torch.zeros_like(actual)
    for row in rows:
        batch = env.gather(row[None], 0, s.t)
        log_p = env.net(s.theta, batch.x, batch.task).log_softmax(1)[0, batch.y[0]]
        gradients = torch.autograd.grad(log_p, env.flat.parameters)
        expected += torch.cat([g.flatten() for g in gradients]).square() / len(rows)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-8)


# Fisher overlap.


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_the_overlap_is_that_of_each_tasks_own_fisher_by_layer(prepared, mode: str) -> None:
    settings = ("strategy.lambda=5", f"strategy.mode={mode}", "strategy.fisher_samples=null")
    strategy, env, states = run(prepared, *settings, "strategy.overlap=true")
    F = fishers(env, states)
    assert strategy.tables(states[0]._replace(t=torch.tensor(0)), env) == {}
    rows = strategy.tables(states[1]._replace(t=torch.tensor(1)), env)["fisher_overlap"]
    assert {(row["task_a"], row["task_b"]) for row in rows} == {(1, 2)}  # of what is trained
    rows = strategy.tables(states[2]._replace(t=torch.tensor(2)), env)["fisher_overlap"]
    hidden, total = 24 * 64 + 24, env.flat.theta.numel()
    parts = {"layers.0": slice(hidden), "layers.1": slice(hidden, total)}
    found = {(row["layer"], row["task_a"], row["task_b"]): row["overlap"] for row in rows}
    assert found == {
        (layer, a + 1, b + 1): pytest.approx(fisher_overlap(F[a][part], F[b][part]), rel=1e-4)
        for layer, part in parts.items()
        for a, b in ((0, 1), (0, 2), (1, 2))
    }


def test_the_overlap_is_written_and_changes_nothing_else(configure, tmp_path) -> None:
    for name in ("true", "false"):
        config = configure(*TOY, f"strategy.overlap={name}", "verbose=false")
        run_whole(config, tmp_path / name)
    assert len(read_rows(tmp_path / "true" / "fisher_overlap.csv")) == 3 * 2
    assert not (tmp_path / "false" / "fisher_overlap.csv").exists()
    one, other = (read_rows(tmp_path / n / "summary.csv")[0] for n in ("true", "false"))
    differing = {key for key in one if one[key] != other[key] and reproducible(key)}
    assert differing <= {"strategy.overlap", "config_hash"}
    assert one["memory_bytes"] == other["memory_bytes"]
    files = [(tmp_path / n / "accuracies.csv").read_bytes() for n in ("true", "false")]
    assert files[0] == files[1]
