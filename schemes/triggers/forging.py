"""Adversarial pixels: images that a frozen network answers as a forged key claims.

    x <- clip(x - s_t sign(dL / dx)),  s_t falls from 8 grey levels to 1

The iterated gradient-sign method of Madry et al. (ICLR 2018) without a bound on the distance, as triggers need not
look like anything, in whole grey levels, as commitments are to uint8 pixels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wmarena.schemes.base import Workload, untouched

FORGING_STEPS = 200
"""Gradient-sign steps that a forger spends."""

Shown = Callable[[Tensor, int], Tensor]
"""(images (n, channels, height, width) uint8, step) -> what the network is asked, (m, ...) uint8."""

Pulled = Callable[[Tensor, int], Tensor]
"""(gradient of what was asked (m, ...), step) -> gradient of the images (n, ...)."""


def adversarial_images(
    model: nn.Module,
    task: Workload,
    images: Tensor,
    targets: Tensor,
    *,
    shown: Shown = lambda images, step: images,
    pulled: Pulled = lambda gradient, step: gradient,
) -> Tensor:
    """``images`` changed until ``model`` answers ``targets`` to what is ``shown`` of them; ``model`` stays as it is.

    Args:
        images: (n, channels, height, width) uint8.
        targets: (m,) int64, one for each image that is shown.
        shown, pulled: how images become questions, and how the questions' gradients become the images'.

    Returns:
        (n, channels, height, width) uint8 on the task's device.
    """
    wanted = targets.to(task.device)
    pixels = images.to(task.device, torch.int16)
    with untouched(model), torch.enable_grad():
        for step in range(FORGING_STEPS):
            inputs = task.to_inputs(shown(pixels.to(torch.uint8), step)).requires_grad_()
            (gradient,) = torch.autograd.grad(task.loss(model, inputs, wanted), inputs)
            stride = math.ceil(8 * (1 - step / FORGING_STEPS))
            uphill = pulled(_cropped(gradient, images.shape), step).sign().to(torch.int16)
            pixels = (pixels - stride * uphill).clamp(0, 255)
    return pixels.to(torch.uint8)


def _cropped(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient (m, channels, H, W) of the raw image's own pixels, where a workload pads evenly around it."""
    height, width = shape[-2:]
    top, left = (gradient.shape[-2] - height) // 2, (gradient.shape[-1] - width) // 2
    return gradient[..., top : top + height, left : left + width]
