"""Riemannian walk: the score and the running Fisher along the path, and the penalty they make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_runner.strategies.naive import Naive
from cl_runner.strategies.rwalk import to_unit_range

TOY = (
    "strategy=rwalk",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=200",
    "model.hidden_sizes=[4]",
    "training.batch_size=16",
    "training.epochs=1",
    "optimizer.lr=0.05",
    "strategy.interval=3",
    "strategy.alpha=0.7",
)
NAIVE = Naive(name="naive")


def own_gradient(env, s, batch) -> Tensor:
    """That of the loss without the penalty."""
    return env.grad_and_value(NAIVE.loss)(s.theta, s, batch, env)[0].clone()


def walk(strategy, env, s, batches) -> tuple[list[Tensor], list[Tensor], object]:
    """thetas [n + 1][P], gradients [n][P] and the state after a step on each batch."""
    thetas, gradients = [s.theta.detach().clone()], []
    for batch in batches:
        gradients.append(own_gradient(env, s, batch))
        with torch.no_grad():
            s, _ = strategy.step(s, batch, env)
        s = env.commit(s)
        thetas.append(s.theta.detach().clone())
    return thetas, gradients, s


def by_hand(
    thetas, gradients, fisher, *, alpha, interval, damping, code=False
) -> tuple[Tensor, Tensor]:
    """Score and Fisher of whole intervals, one parameter and one step at a time.

    code: with what the authors' code has otherwise.
    """
    scores, fishers = [], []
    n = len(gradients) // interval * interval
    paths, slopes = torch.stack(thetas, 1).tolist(), torch.stack(gradients, 1).tolist()  # [P][n]
    for theta, g, start in zip(paths, slopes, fisher.tolist(), strict=True):
        score, F = 0.0, start
        for first in range(0, n, interval):
            steps = range(first, first + interval)
            decrease = -sum(g[i] * (theta[i + 1] - theta[i]) for i in steps)
            moved = theta[first + interval] - theta[first]
            score += max(decrease, 0.0) / ((1 if code else 0.5) * F * moved**2 + damping)
            squares = sum(g[i] ** 2 for i in (range(first + interval) if code else steps))
            F = alpha * squares / interval + (1 - alpha) * F
        scores.append(score)
        fishers.append(F)
    return torch.tensor(scores), torch.tensor(fishers)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_score_and_fisher_are_those_of_a_loop_over_parameters_and_steps(mid_run, variant):
    """With a penalty, which must enter neither, a damping that leaves the distance a say, and
    momentum, with which some parameters make the loss grow for a whole interval.
    """
    damping, code = 1e-7, variant == "code"
    more = (f"strategy.damping={damping}", f"strategy.variant={variant}")
    overrides = (*TOY, *more, "optimizer.momentum=0.9")
    strategy, env, s, batches = mid_run(*overrides, tasks=1)
    assert float(s.memory["fisher"].max()) > 0  # that of the first task goes on
    fisher = s.memory["fisher"].clone()
    thetas, gradients, s = walk(strategy, env, s, batches[:9])
    rest = {"interval": 3, "damping": damping, "code": code}
    score, F = by_hand(thetas, gradients, fisher, alpha=0.7, **rest)
    without, _ = by_hand(thetas, gradients, 0 * fisher, alpha=0, **rest)
    assert not torch.allclose(score, without, rtol=0.1)  # the distance does have a say
    torch.testing.assert_close(s.memory["fisher"], F, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(s.memory["score"], score, rtol=1e-2, atol=1e-3)
    assert int(s.memory["steps"]) == 0 and not s.memory["path"].any()


def test_an_interval_cut_short_by_the_task_counts_in_proportion(mid_run):
    strategy, env, s, batches = mid_run(*TOY, tasks=1)
    F, score = s.memory["fisher"].clone(), s.memory["score"]
    assert not score.any()
    thetas, (g,), s = walk(strategy, env, s, batches[:1])  # one step of three
    closed = strategy.close(s.memory, s.theta.detach(), torch.tensor(True))
    torch.testing.assert_close(closed["fisher"], F + 0.7 / 3 * (g**2 - F), rtol=1e-4, atol=1e-9)
    moved = thetas[1] - thetas[0]
    expected = (-g * moved).clamp_min(0) / (0.5 * F * moved**2 + 1e-3)
    torch.testing.assert_close(closed["score"], expected, rtol=1e-3, atol=1e-7)


def test_a_step_descends_the_loss_plus_the_penalty_without_half(mid_run):
    case = ("strategy.lambda=3", "strategy.penalty=loss")
    strategy, env, s, (batch, *_) = mid_run(*TOY, *case, tasks=1)
    P = len(s.theta)
    torch.manual_seed(0)
    memory = s.memory | {
        "importance": torch.rand(P),
        "anchor": s.theta.detach() + 0.1 * torch.randn(P),
    }
    s = s._replace(theta=s.theta.detach().clone(), memory=memory)
    theta = s.theta.clone().requires_grad_()
    penalty = 3 * (memory["importance"] * (theta - memory["anchor"]) ** 2).sum()
    loss = NAIVE.loss(theta, s, batch, env)[0]
    (loss + penalty).backward()
    after, aux = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, s.theta - 0.05 * theta.grad)
    torch.testing.assert_close(aux["loss"], loss.detach())  # shown without it, as all of them do


def test_the_proximal_step_is_the_closed_form_and_part_of_the_path(mid_run):
    """argmin_z |z - theta'|^2 / (2 lr) + lambda sum (F + s) (z - theta*)^2, theta' after SGD."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy.lambda=30", tasks=1)
    importance, anchor = s.memory["importance"], s.memory["anchor"]
    path = s.memory["path"].clone()
    s = s._replace(theta=s.theta.detach() + 0.1)
    grad = own_gradient(env, s, batch)
    moved, pull = s.theta - 0.05 * grad, 2 * 0.05 * 30 * importance
    after, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, (moved + pull * anchor) / (1 + pull))
    torch.testing.assert_close(after.memory["path"], path - grad * (after.theta - s.theta))
    assert float((after.theta - moved).norm()) > 0.1 * float((0.05 * grad).norm())


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("task", [0, 1])
def test_a_task_s_score_is_averaged_with_the_earlier_ones_and_both_terms_fill_0_to_1(
    mid_run, task, variant
):
    strategy, env, s, _ = mid_run(*TOY, f"strategy.variant={variant}", tasks=1)
    torch.manual_seed(0)
    P = len(s.theta)
    known = {"fisher": torch.rand(P) + 2, "score": 1e4 * torch.rand(P), "old_score": torch.rand(P)}
    end = strategy.end_task(s._replace(memory=s.memory | known), env.stream[task], env)
    expected = known["score"]
    if task == 1:
        expected = (known["score"] + known["old_score"]) / 2
        expected = expected + known["old_score"] if variant == "code" else expected
    torch.testing.assert_close(end.memory["old_score"], expected)
    F = known["fisher"]
    terms = [(v - v.min()) / (v.max() - v.min()) for v in (F, expected)]
    torch.testing.assert_close(end.memory["importance"], terms[0] + terms[1])
    assert torch.equal(end.memory["fisher"], F)  # it is the penalty's copy that is scaled
    assert torch.equal(end.memory["anchor"], s.theta.detach())
    assert torch.equal(end.memory["start"], s.theta.detach())
    assert not end.memory["score"].any()


def test_the_squares_of_the_authors_code_begin_anew_with_a_task(mid_run):
    strategy, env, s, batches = mid_run(*TOY, "strategy.variant=code", tasks=1)
    assert not s.memory["squares"].any()
    _, _, s = walk(strategy, env, s, batches[:3])
    assert s.memory["squares"].any()
    assert not strategy.end_task(s, env.stream[1], env).memory["squares"].any()


def test_without_the_score_the_running_fisher_is_the_penalty_and_no_path_is_kept(mid_run):
    strategy, env, s, batches = mid_run(*TOY, "strategy.score=false", tasks=1)
    fisher = s.memory["fisher"].clone()
    assert torch.equal(s.memory["importance"], to_unit_range(fisher))
    thetas, gradients, s = walk(strategy, env, s, batches[:9])
    _, F = by_hand(thetas, gradients, fisher, alpha=0.7, interval=3, damping=1e-3)
    torch.testing.assert_close(s.memory["fisher"], F, rtol=1e-4, atol=1e-9)
    end = strategy.end_task(s, env.stream[1], env)
    torch.testing.assert_close(end.memory["importance"], to_unit_range(F), rtol=1e-3, atol=1e-6)
    assert set(end.memory) == {"anchor", "importance", "fisher", "steps", "squares"}


def test_the_unit_range_is_0_to_1_and_0_where_nothing_differs():
    assert to_unit_range(torch.tensor([2.0, 6.0, 3.0])).tolist() == [0, 1, 0.25]
    assert to_unit_range(torch.tensor([1e-30, 3e-30])).tolist() == [0, 1]
    assert to_unit_range(torch.full((3,), 7.0)).tolist() == [0, 0, 0]
