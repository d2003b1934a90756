"""How far a network's probabilities can be trusted, and a correction of some classes' logits.

The probabilities are the softmax of the scores. Sums of several batches add up to those of all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15
MOST_STEPS = 100  # of Newton's method
SHORTEST = 1e-9  # its last one


def calibration_sums(scores: Tensor, y: Tensor) -> Tensor:
    """Sums over samples, [BINS + 1, 3] float64, from scores [B, K] and classes y [B].

    Row m < BINS: number, confidence and hits of the samples with confidence in (m, m + 1] / BINS;
    the last row: number, negative log-likelihood and Brier score of all. A class with the score
    -inf has the probability 0.
    """
    log_p = scores.double().log_softmax(1)
    p = log_p.exp()
    confidence = p.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    hits = (scores.argmax(1) == y).double()
    nll = -log_p.gather(1, y[:, None])[:, 0]
    brier = (p - F.one_hot(y, scores.shape[1])).square().sum(1)
    bins = (confidence * BINS).ceil().nan_to_num().long().clamp(1, BINS) - 1
    ones = torch.ones_like(hits)
    of_bins = F.one_hot(bins, BINS).double().T @ torch.stack([ones, confidence, hits], 1)
    return torch.cat([of_bins, torch.stack([ones, nll, brier], 1).sum(0, keepdim=True)])


def calibration(sums: Tensor) -> dict[str, float]:
    """The scores from `calibration_sums`, by the names of calibration.csv's columns.

    - NLL = -mean_n log p(y_n | x_n), in nats.
    - Brier = mean_n sum_k (p(k | x_n) - [k = y_n])^2, from 0 to 2 (Brier 1950).
    - ECE = sum_m (n_m / n) |hits_m / n_m - mean confidence_m| over BINS bins of equal width (Guo et
      al. 2017, arXiv 1706.04599, eq. 3).
    """
    *bins, (n, nll, brier) = sums.tolist()
    gaps = [abs(hits - confidence) for _, confidence, hits in bins]
    return {"NLL": nll / n, "Brier": brier / n, "ECE": sum(gaps) / n}


def confusion(scores: Tensor, y: Tensor) -> Tensor:
    """How many samples of class i were taken for class j, [K, K], from scores [B, K] and y [B]."""
    K = scores.shape[1]
    return torch.bincount(y * K + scores.argmax(1), minlength=K * K).view(K, K)


def correction(logits: Tensor, y: Tensor, new: Tensor, seen: Tensor) -> Tensor:
    """[alpha, beta]: o_c of the classes `new` [K] bool becomes alpha o_c + beta.

    The minimum of sum_n -log softmax(q_n over the classes `seen`)[y_n], q the logits so corrected,
    plus (alpha - 1)^2 / 2 + beta^2 / 2, which keeps it finite. logits [n, K], y [n]; in the kind
    and on the device of the logits. It is convex: Newton's method, with shorter steps where a whole
    one would rise.
    """
    scores = logits.double()[:, seen]  # [n, C]
    moved = torch.stack([scores, torch.ones_like(scores)], 2) * new[seen][:, None]  # dq / d numbers
    target = F.one_hot(y, len(seen))[:, seen].double()
    plain = torch.tensor([1.0, 0.0], dtype=torch.float64, device=logits.device)

    def value(numbers: Tensor) -> tuple[Tensor, Tensor]:
        log_p = (scores + moved @ (numbers - plain)).log_softmax(1)
        pull = (numbers - plain).square().sum() / 2
        return pull - (target * log_p).sum(), log_p.exp()

    numbers = plain
    for _ in range(MOST_STEPS):
        before, p = value(numbers)
        gradient = numbers - plain + torch.einsum("nc,nci->i", p - target, moved)
        mean = torch.einsum("nc,nci->ni", p, moved)
        second = torch.einsum("nc,nci,ncj->ij", p, moved, moved) - mean.T @ mean
        step = torch.linalg.solve(second + torch.eye(2).to(second), gradient)
        length = 1.0
        while length > SHORTEST and value(numbers - length * step)[0] > before:
            length /= 2
        numbers = numbers - length * step
        if step.abs().max() < SHORTEST:
            break
    return numbers.to(logits.dtype)
