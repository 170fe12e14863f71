"""Adversarial images, which a frozen network answers with the labels of a forged key.

    x <- clip(x - s_t sign(dL / dx)),  s_t falls from 8 grey levels to 1

The iterated gradient-sign method of Madry et al. (ICLR 2018), without a bound on the distance, since triggers need not
look natural, and in whole grey levels, since commitments are to uint8 pixels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wmarena.schemes.base import Workload, untouched

FORGING_STEPS = 200
"""Gradient-sign steps that a forger spends."""

ToQueries = Callable[[Tensor, int], Tensor]
"""(images (n, channels, height, width) uint8, step) -> queries to the network, (m, ...) uint8."""

ToImages = Callable[[Tensor, int], Tensor]
"""(gradient of the queries (m, ...), step) -> gradient of the images (n, ...)."""


def adversarial_images(
    model: nn.Module,
    task: Workload,
    images: Tensor,
    targets: Tensor,
    *,
    to_queries: ToQueries = lambda images, step: images,
    to_images: ToImages = lambda gradient, step: gradient,
) -> Tensor:
    """Change ``images`` until the frozen ``model`` answers ``targets`` to what ``to_queries`` makes of them.

    Args:
        images: (n, channels, height, width) uint8.
        targets: (m,) int64, one for each query.
        to_queries, to_images: map images to queries, and gradients of queries to gradients of images.

    Returns:
        (n, channels, height, width) uint8 on the task's device.
    """
    wanted = targets.to(task.device)
    pixels = images.to(task.device, torch.int16)
    with untouched(model), torch.enable_grad():
        for step in range(FORGING_STEPS):
            inputs = task.to_inputs(to_queries(pixels.to(torch.uint8), step)).requires_grad_()
            (gradient,) = torch.autograd.grad(task.loss(model, inputs, wanted), inputs)
            # Large steps first, to leave the image's own class; small ones last, to settle.
            stride = math.ceil(8 * (1 - step / FORGING_STEPS))
            uphill = to_images(_cropped(gradient, images.shape), step).sign().to(torch.int16)
            pixels = (pixels - stride * uphill).clamp(0, 255)
    return pixels.to(torch.uint8)


def _cropped(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Crop a gradient (m, channels, H, W) to the raw image, if a workload pads evenly around it."""
    height, width = shape[-2:]
    top, left = (gradient.shape[-2] - height) // 2, (gradient.shape[-1] - width) // 2
    return gradient[..., top : top + height, left : left + width]
