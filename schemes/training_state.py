"""A training loop's whole state as a flat dict of tensors, so that it fits in one safetensors file.

Per-step randomness comes from (seed, epoch or step), so no generator state needs saving; optimiser moments, network,
batch-norm buffers and a loop's own tensors do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def pack(
    model: nn.Module, optimiser: torch.optim.Optimizer, extra: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Copies of everything a bit-equal continuation needs, on the CPU."""
    out = {f"model.{k}": v.detach().cpu().clone() for k, v in model.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        for slot, value in slots.items():
            if value is None:
                continue
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            out[f"optimiser.{index}.{slot}"] = tensor.detach().cpu().clone()
    out |= {f"extra.{k}": v.detach().cpu().clone() for k, v in (extra or {}).items()}
    return {k: v.contiguous() for k, v in out.items()}


def unpack(state: Mapping[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Restore what ``pack`` took; returns the loop's own ``extra`` tensors."""
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimiser."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    _lay_out(optimiser)
    return {k.removeprefix("extra."): v for k, v in state.items() if k.startswith("extra.")}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators of the CPU and of ``device`` follow from ``seed``; afterwards they are as before.

    Dropout draws from them: a loop that seeds each epoch by its number does not depend on where it was resumed.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: it would seed the other devices too, which nobody restores.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Give every moment its parameter's memory layout; fused optimisers walk both as flat memory, unchecked."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            slots = optimiser.state.get(parameter, {})
            for slot, value in slots.items():
                if value is not None and value.dim() > 1 and value.shape == parameter.shape:
                    slots[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
