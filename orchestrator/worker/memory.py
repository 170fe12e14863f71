"""How much memory a task took at most: what packing several workers on one GPU goes by."""

import resource
from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """The most that this process takes of a device from now on: of its GPU what tensors occupy, else resident memory.

    Where the system cannot forget an earlier peak of resident memory, that peak is what is found.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _RESET.write_text("5")  # Linux: the peak starts anew at what is resident now
        except OSError:
            return

    def found(self) -> dict[str, int]:
        """``peak_bytes``, and on a GPU ``total_bytes``: what it has."""
        if self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            return {"peak_bytes": torch.cuda.max_memory_allocated(self._device), "total_bytes": total}
        return {"peak_bytes": _resident_peak()}


def _resident_peak() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
