"""Channel symmetries of a network: which hidden channels may be reordered or scaled without changing its function.

If the rows of a layer and the columns of the layers that read it are reordered alike, the outputs stay the same. If all
operations in between are positively homogeneous, f(a x) = a f(x) for a > 0, a channel's rows may also be multiplied by
a and its columns divided by a.

    W1[i] <- W1[p(i)],    b1[i] <- b1[p(i)],    W2[:, i] <- W2[:, p(i)]       permute
    W1[i] <- a_i W1[i],   b1[i] <- a_i b1[i],   W2[:, i] <- W2[:, i] / a_i    scale

    W1  (C, ...)          weight of a layer that writes the channels (several of them: a residual sum)
    W2  (out, C k, ...)   weight of a layer that reads them; k > 1 after flattening: a channel owns k columns
    p   (C,)              permutation;  a (C,) positive

Which channels form a group:

    batch norm              permuted with its channels (scale, shift, statistics); layers before it are not scaled,
                            since eps would make that inexact; layers behind it are, by gamma and beta
    residual sum            one group for stem, last convolution of every block, shortcuts, and all their readers
    depthwise convolution   permuted with its channels; other grouped convolutions pin both their sides
    option-A shortcut       (strided slice, zero channels added) pins the residual streams; inner groups stay free
    inputs and outputs      pinned, as are channels that enter an operation not known to treat channels alike:
                            gates, layers used twice, shared or reparametrised weights, hooks

Source: Li, Yang, Wang, Liew, "Leveraging Multi-task Learning for Unambiguous and Flexible Deep Neural Network
Watermarking" (SafeAI at AAAI 2022) names the weakness; permutations as in Ainsworth, Hayase, Srinivasa, "Git Re-Basin"
(ICLR 2023), scalings as in Neyshabur, Salakhutdinov, Srebro, "Path-SGD" (NeurIPS 2015). Left out: recurrent cells,
sign flips, scaling before a batch norm, splitting of neurons.
"""

import copy
import math

import torch
from torch import Tensor, nn

from wmarena.schemes.symmetry.flow import channel_groups
from wmarena.schemes.symmetry.tensors import ChannelWeights, Gain, Group, TensorAxis

__all__ = ["ChannelWeights", "Gain", "Group", "TensorAxis", "channel_groups", "ensure_equivalent", "logit_difference"]

MAX_DIFFERENCE = 1e-4
"""Largest difference of logits between equivalent networks, relative to the largest logit where that exceeds 1."""


def logit_difference(first: nn.Module, second: nn.Module, inputs: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return (largest |difference| of two networks' outputs on ``inputs``, largest |output|), in ``dtype``."""
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        one, two = (copy.deepcopy(m).eval().to(dtype)(inputs.to(dtype)).double() for m in (first, second))
        return float((one - two).abs().max()), float(one.abs().max())


def ensure_equivalent(first: nn.Module, second: nn.Module, inputs: Tensor) -> float:
    """Check that two networks agree; return the largest difference of logits, in double precision.

    Raises:
        FloatingPointError: an output is NaN or infinite.
        RuntimeError: the functions differ.
    """
    difference, size = logit_difference(first, second, inputs, torch.float64)
    if not math.isfinite(difference):
        raise FloatingPointError("expected finite logits of a rewritten network, got NaN or infinity")
    if difference >= MAX_DIFFERENCE * max(1.0, size):
        raise RuntimeError(
            f"expected an unchanged function, got logits that differ by {difference:.2g} at a size of {size:.2g}; "
            "the network computes something that symbolic tracing does not see"
        )
    return difference
