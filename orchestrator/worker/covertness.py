"""Distances between the weights of two models: how far a mark or an attack moved them."""

import math

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import nn


def mean_abs_deviation(reference: nn.Module, other: nn.Module) -> float:
    """Return the mean |w - w0| over all parameters with equal names and shapes (covertness, MTLSign Sec. 4)."""
    pairs = _pairs(reference, other)
    total = sum(float((a.detach() - b.detach()).abs().sum()) for a, b in pairs)
    return total / max(1, sum(a.numel() for a, _ in pairs))


def covertness(reference: nn.Module, other: nn.Module) -> dict[str, float]:
    """Return mean |w - w0|, the Kolmogorov-Smirnov distance of the weight histograms, and ||w - w0|| / ||w0||."""
    pairs = _pairs(reference, other)
    before = torch.cat([a.detach().flatten() for a, _ in pairs]).double().cpu().numpy()
    after = torch.cat([b.detach().flatten() for _, b in pairs]).double().cpu().numpy()
    # Not np.linalg.norm: the order of BLAS's sums depends on the number of threads.
    change, size = (math.sqrt(float(np.square(values).sum())) for values in (after - before, before))
    return {
        "covertness_mean_abs_dev": mean_abs_deviation(reference, other),
        "covertness_ks": float(ks_2samp(before, after, method="asymp").statistic),
        "covertness_relative_l2": change / max(size, 1e-300),
    }


def _pairs(reference: nn.Module, other: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return the parameters that both models have with equal names and shapes."""
    base = dict(reference.named_parameters())
    return [(base[n], p) for n, p in other.named_parameters() if n in base and base[n].shape == p.shape]
