"""Elastic weight consolidation: the penalty is the paper's, whatever form it is kept in."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cl_runner.errors import Diverged, UserError
from cl_runner.functional.importance import LABEL_RULES, fisher_overlap
from cl_runner.functional.kronecker import Factors, merged
from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows
from cl_runner.running.loop import run as run_whole
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive
from cl_runner.strategies.parts import kronecker
from cl_runner.strategies.parts.importance import fisher_diagonal, kronecker_factors

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


@pytest.mark.parametrize("curvature", ["diagonal", "kron"])
@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_lambda_zero_is_naive(prepared, penalty, curvature):
    case = (f"strategy.penalty={penalty}", f"strategy.curvature={curvature}")
    _, _, states = run(prepared, "strategy.lambda=0", *case)
    _, _, env = prepared(*TOY)
    naive = Naive(name="naive")
    s = initial_state(naive, env)
    for task in env.stream:
        s = train_task(naive, s, task, env)
    exact = (penalty, curvature) != ("proximal", "kron")  # there it is turned there and back
    atol = 1e-7 if exact else 1e-4
    torch.testing.assert_close(states[-1].theta, s.theta.detach(), rtol=1e-5, atol=atol)


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


# Kronecker factors. What they are of a layer is in tests/functional/test_kronecker.py.

KRON = ("strategy.curvature=kron", "strategy.lambda=0.5", "optimizer.lr=0.01")


def products(env, states) -> list[dict[str, Factors]]:
    """Each task's own factors, at that task's own weights."""
    return [
        kronecker_factors(env.commit(s), task, env, labels="exact", samples=None)
        for s, task in zip(states, env.stream, strict=True)
    ]


def papers_penalty(env, terms, theta: Tensor) -> Tensor:
    """1/2 sum over (anchor, factors) and layers of tr(D^T G D A), the bias as a last column."""
    total = 0.0
    for anchor, factors in terms:
        d = env.flat.views(theta - anchor)
        for name, (A, G) in factors.items():
            D = torch.cat([d[f"{name}.weight"], d[f"{name}.bias"][:, None]], 1)
            total = total + 0.5 * (D.T @ G @ D @ A).trace()
    return total


def after_two(prepared, *overrides: str):
    """A state of the third task away from the anchors, a batch, the loss's gradient there."""
    strategy, env, states = run(prepared, *KRON, *overrides)
    s = states[1]._replace(theta=(states[1].theta + 0.1).detach())
    batch = env.gather(env.stream[2].train[:8], 2, s.t)
    grad, _ = env.grad_and_value(Naive(name="naive").loss)(s.theta, s, batch, env)
    terms = [(state.theta, of) for state, of in zip(states, products(env, states), strict=True)]
    first, second = terms[:2]
    both = {name: merged(merged(zero(of), of), second[1][name]) for name, of in first[1].items()}
    return strategy, env, s, batch, grad, (first, second, (second[0], both))


def zero(of: Factors) -> Factors:
    return Factors(*(torch.zeros_like(f) for f in of))


def slope(penalty, theta: Tensor) -> Tensor:
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(penalty(leaf), leaf)[0]


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_online_kron_is_the_papers_penalty_with_the_tasks_merged(prepared, penalty):
    own = ("strategy.mode=online", f"strategy.penalty={penalty}")
    strategy, env, s, batch, grad, (_, _, both) = after_two(prepared, *own)
    new, _ = strategy.step(s, batch, env)
    # `proximal` is the implicit step: the penalty's gradient is taken where it leads to.
    where = new.theta if penalty == "proximal" else s.theta
    pull = 0.5 * slope(lambda theta: papers_penalty(env, [both], theta), where.detach())
    assert float(pull.norm()) > 0.02 * float(grad.norm())
    torch.testing.assert_close(new.theta, s.theta - 0.01 * (grad + pull), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_separate_kron_keeps_each_tasks_own_anchor(prepared, penalty):
    """As a sum of penalties: exact at the latest anchor, and with the merged product around it."""
    own = (f"strategy.penalty={penalty}",)
    strategy, env, s, batch, grad, (first, second, both) = after_two(prepared, *own)
    at_anchor = slope(lambda theta: papers_penalty(env, [first, second], theta), second[0])
    assert float(at_anchor.norm()) > 0
    torch.testing.assert_close(s.memory["slope"], at_anchor, rtol=1e-3, atol=1e-6)
    new, _ = strategy.step(s, batch, env)
    where = new.theta if penalty == "proximal" else s.theta
    around = slope(lambda theta: papers_penalty(env, [both], theta), where.detach())
    step = 0.01 * (grad + 0.5 * (around + at_anchor))
    torch.testing.assert_close(new.theta, s.theta - step, rtol=1e-4, atol=1e-6)


def test_the_kron_penalty_as_a_function_has_the_gradient_that_steps_add(prepared):
    for mode in ("separate", "online"):
        strategy, env, s, *_ = after_two(prepared, f"strategy.mode={mode}")
        penalty = kronecker.penalty(strategy, s, env)
        pulled = penalty.pull(torch.zeros_like(s.theta), s.theta)
        torch.testing.assert_close(pulled, slope(penalty, s.theta), rtol=1e-4, atol=1e-6)


def test_gamma_decays_the_product_that_is_kept_and_the_one_that_pulls(prepared):
    own = ("strategy.mode=online", "strategy.gamma=0.4", "strategy.penalty=loss")
    strategy, env, s, _, grad, (first, second, _) = after_two(prepared, *own)
    for name, of in first[1].items():
        kept = merged(merged(zero(of), of), second[1][name], 0.4)
        found = kronecker.penalty(strategy, s, env).factors[name]
        torch.testing.assert_close(found.inputs, kept.inputs, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.outputs, kept.outputs, rtol=1e-3, atol=1e-6)
    strategy_of_one = replace(strategy, gamma=1.0)
    pull, whole = (
        kronecker.penalty(one, s, env).pull(torch.zeros_like(grad), s.theta)
        for one in (strategy, strategy_of_one)
    )
    torch.testing.assert_close(pull, 0.4 * whole)


def test_kron_of_a_network_with_convolutions_penalises_every_parameter(prepared):
    cnn = ("benchmark=split_digits", "model=cnn", "model.channels=[4]", "model.hidden_size=8")
    _, strategy, env = prepared(*TOY[:3], *cnn, "strategy.curvature=kron", "training.epochs=1")
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    pull = kronecker.penalty(strategy, s, env).pull(torch.zeros_like(s.theta), s.theta + 1)
    assert set(kronecker.penalty(strategy, s, env).factors) == {
        "convolutions.0",
        "hidden",
        "output",
    }
    assert all(part.any() for part in env.flat.views(pull).values())


def test_the_factors_take_at_most_twice_the_flops_of_the_diagonal(prepared):
    """Of the default network on images of 28x28, where all classes are active."""
    _, strategy, env = prepared(*TOY[:2], "benchmark.resize=28", "benchmark.train_samples=20")
    s = initial_state(strategy, env)
    flops = []
    for measure in (fisher_diagonal, kronecker_factors):
        before = env.meter.flops
        measure(s, env.stream[0], env, labels="exact", samples=None)
        flops.append(env.meter.flops - before)
    assert flops[0] < flops[1] <= 2 * flops[0]


REFUSED = [
    (("model=reduced_resnet18", "benchmark=split_digits"), "without BatchNorm: use model=mlp"),
    (("optimizer=adam",), "with optimizer=adam use strategy.penalty=loss"),
    (("strategy.overlap=true",), "strategy.overlap=True has no meaning with strategy.curvature"),
]


@pytest.mark.parametrize(("own", "said"), REFUSED, ids=[" ".join(own) for own, _ in REFUSED])
def test_what_kron_cannot_be_is_refused_before_training(prepared, own, said):
    def begun():
        _, strategy, env = prepared("strategy=ewc", "strategy.curvature=kron", *own)
        return initial_state(strategy, env)

    with pytest.raises(UserError, match=said):
        begun()


def test_with_adam_the_kron_penalty_is_part_of_the_loss(prepared):
    _, strategy, env = prepared(
        "strategy=ewc", "strategy.curvature=kron", "optimizer=adam", "strategy.penalty=loss"
    )
    initial_state(strategy, env)


def test_a_step_that_the_kron_penalty_makes_far_dearer_is_told(prepared):
    kron = ("strategy=ewc", "strategy.curvature=kron")
    _, strategy, env = prepared(*kron, "training.batch_size=4")
    (note,) = strategy.notes(env)
    times = int(re.search(r"about (\d+) times the FLOPs of naive's", note)[1])
    sizes = ((256, 65), (256, 257), (10, 257))
    ours = sum(4 * o * i * (o + i) for o, i in sizes)
    naive = sum(6 * 4 * o * (i - 1) for o, i in sizes)
    assert times == pytest.approx(1 + ours / naive, rel=0.05)
    _, strategy, env = prepared(*kron, "training.batch_size=256")
    assert not list(strategy.notes(env))


@pytest.mark.parametrize("told", [False, True])
def test_kron_steps_that_are_too_long_for_sgd_are_told(prepared, told):
    case = ("strategy.curvature=kron", "strategy.penalty=loss", "strategy.lambda=2")
    _, strategy, env = prepared(*TOY, *case, "optimizer.lr=0.5")
    s = initial_state(strategy, env)
    memory = dict(s.memory)
    memory["inputs.layers.1"] = torch.diag(torch.linspace(0, 1, 25))
    memory["outputs.layers.1"] = torch.diag(torch.linspace(0, 2.02 if told else 1.98, 10))
    assert bool(list(strategy.remarks(s._replace(memory=memory), env))) == told


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
