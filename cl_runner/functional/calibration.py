"""How far a network's probabilities can be trusted: sums over samples, and what follows from them.

The probabilities are the softmax of the scores. Sums of several batches add up to those of all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15


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
