"""Losses on logits and penalties on parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_logits(logits: Tensor, active: Tensor | None) -> Tensor:
    """Logits [B, K] with those of inactive classes at minus infinity; active [B, K] or None."""
    return logits if active is None else logits.masked_fill(~active, float("-inf"))


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """sum_b w_b v_b / sum_b w_b; 0 where all weights are 0. Shapes [B], [B] or None.

    Values of weight 0 are ignored even if they are infinite, as the loss of a sample is whose class
    is masked out.
    """
    if weight is None:
        return values.mean()
    share = weight / weight.sum().clamp_min(1e-12)
    return (share * values.masked_fill(weight == 0, 0.0)).sum()


def cross_entropy(
    logits: Tensor, y: Tensor, active: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Weighted mean over the batch of -log softmax(logits over the active classes)[y], in nats.

    Shapes: logits [B, K], y [B], active [B, K] bool, weight [B].
    """
    logits = mask_logits(logits, active)
    if weight is None:
        return F.cross_entropy(logits, y)
    return weighted_mean(F.cross_entropy(logits, y, reduction="none"), weight)


def distillation(
    logits: Tensor,
    target: Tensor,
    classes: Tensor,
    temperature: float,
    scored: Tensor | None = None,
) -> Tensor:
    """-sum_c p_c log q_c, p and q the softmax over some classes of target / T and logits / T.

    Hinton et al. 2015, arXiv 1503.02531, without the factor T^2. Shapes: logits and target
    [..., B, K]; classes [..., 1 or B, K] bool; result [..., B], in nats. Over no class at all it is
    over every one: finite, and for the caller to weigh with 0. `scored`, like `classes` and more
    than those, is what q is over instead: p is 0 on the others, so q is pushed down there.
    """
    classes = classes | ~classes.any(-1, keepdim=True)
    wider = classes if scored is None else classes | scored
    p = (target / temperature).masked_fill(~classes, float("-inf")).softmax(-1)
    log_q = (logits / temperature).masked_fill(~wider, float("-inf")).log_softmax(-1)
    return -(p * log_q.masked_fill(~classes, 0.0)).sum(-1)


def quadratic(theta: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
    """1/2 sum_p importance_p (theta_p - anchor_p)^2, all [P]; importance may be a scalar."""
    return 0.5 * (importance * (theta - anchor).square()).sum()


def pulled(
    grad: Tensor, theta: Tensor, anchor: Tensor, importance: Tensor, strength: float | Tensor
) -> Tensor:
    """Turn a gradient into grad + strength * importance * (theta - anchor), all [P], in place.

    So it includes that of strength * `quadratic`, for which autograd takes three times as long.
    """
    pull = (theta.detach() - anchor).mul_(importance)
    if isinstance(strength, Tensor):  # a member's own, in a stacked step
        return grad.add_(pull.mul_(strength))
    return grad.add_(pull, alpha=strength)


def quadratic_proximal(theta: Tensor, anchor: Tensor, importance: Tensor, step: Tensor) -> Tensor:
    """argmin_z 1/2 |z - theta|^2 + step * quadratic(z, anchor, importance), elementwise.

    = (theta + step importance anchor) / (1 + step importance): the penalty's implicit gradient
    step, which stays finite however large the importance is (Parikh & Boyd 2014, section 1.1).
    step: 0-d, or [P].
    """
    step = step.clamp_max(torch.finfo(step.dtype).max)  # infinity times importance 0 is no number
    return torch.lerp(anchor, theta, (step * importance).add_(1).reciprocal_())


def supervised_contrastive(
    anchors: Tensor, others: Tensor, same: Tensor, among: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Per anchor -1/|P| sum_{p in P} log(exp(z.z_p / T) / sum_{a in A} exp(z.z_a / T)), and if any.

    Khosla et al. 2020, arXiv 2004.11362. anchors [N, D] and others [M, D] of length 1;
    among [N, M] bool: A, those that an anchor is compared with; same [N, M] bool: of its class, so
    that P is those of A that are. The second result, [N] bool, is whether P has any: where not, the
    first is 0.
    """
    positive = same & among
    scores = anchors @ others.T / temperature
    log_p = scores - scores.masked_fill(~among, -1e9).logsumexp(1, keepdim=True)
    number = positive.sum(1)
    return -(log_p * positive).sum(1) / number.clamp_min(1), number > 0
