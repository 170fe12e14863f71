"""Peak memory of a task, from which the number of workers per GPU is computed."""

import resource
from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory of this process from now on: of tensors on its GPU, else resident memory.

    Where the system cannot reset the peak of resident memory, an earlier peak is returned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _RESET.write_text("5")  # Linux: resets the peak to the current resident memory
        except OSError:
            return

    def found(self) -> dict[str, int]:
        """Return ``peak_bytes``, and on a GPU its ``total_bytes``."""
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
