"""Resumable training loops: the whole state as a flat dict of tensors, which fits in one safetensors file.

Per-step randomness comes from (seed, epoch or step), so no generator state needs saving; optimiser moments, network,
batch-norm buffers and a loop's own tensors do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from wmarena.schemes.workload import Batch, Checkpoints, Samples


def pack(
    model: nn.Module, optimiser: torch.optim.Optimizer, extra: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Copy to the CPU everything that a bit-equal continuation needs."""
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
    """Restore what ``pack`` copied; return the loop's own ``extra`` tensors."""
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
    """Seed the global generators of the CPU and of ``device`` inside; restore them afterwards.

    Dropout draws from them: a loop that seeds each epoch by its number does not depend on the point of resumption.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # torch.manual_seed would also seed the other devices, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def epochs_left(
    checkpoints: Checkpoints,
    n_epochs: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    keep_last: bool = False,
) -> Iterator[int]:
    """Restore the latest checkpoint if there is one, then yield the epochs that are left, counted from 0.

    A checkpoint is offered after each epoch; ``keep_last`` keeps the last one for longer trainings.
    """
    found = checkpoints.latest(n_epochs)
    if found is not None:
        unpack(found[1], model, optimiser)
    for epoch in range(0 if found is None else found[0], n_epochs):
        yield epoch
        last = epoch + 1 == n_epochs
        checkpoints.offer(epoch + 1, partial(pack, model, optimiser), keep=last and keep_last)


def batches_from(step: int, samples: Samples, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield training batches without end, from ``step`` on; epoch e depends on (seed, e) only."""
    epoch, skipped = divmod(step, -(-len(samples) // batch_size))
    while True:
        for index, batch in enumerate(samples.batches(batch_size, seed=seed, epoch=epoch)):
            if index >= skipped:
                yield batch
        epoch, skipped = epoch + 1, 0


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Give every moment its parameter's memory layout; fused optimisers walk both as flat memory, unchecked."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            slots = optimiser.state.get(parameter, {})
            for slot, value in slots.items():
                if value is not None and value.dim() > 1 and value.shape == parameter.shape:
                    slots[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
