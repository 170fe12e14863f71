"""State of long computations on disk: what a killed task resumes from, and a longer strength continues from.

A file's name holds its step and the head of its SHA-256: a torn or rotten checkpoint is recognised and ignored.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from orchestrator.store import StoreError, tensors_to_bytes
from schemes.base import Cancelled


class FolderCheckpoints:
    """Checkpoints of one trajectory in one folder (``schemes.base.Checkpoints``).

    Args:
        folder: created when the first checkpoint is written.
        every_s: least seconds between two unasked checkpoints; ``keep`` ones are always written.
        cancelled: polled at each offer.
    """

    def __init__(self, folder: Path, *, every_s: float, cancelled: Callable[[], bool]) -> None:
        self._folder = folder
        self._every_s = every_s
        self._cancelled = cancelled
        self._last = time.monotonic()

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """Newest intact state with step <= ``at_most``."""
        for path in sorted(self._folder.glob("*.safetensors"), reverse=True):
            step = int(path.name.split("-")[0])
            if at_most is not None and step > at_most:
                continue
            raw = path.read_bytes()
            if _name(step, path.name.split("-")[1] == "keep", raw) == path.name:
                return step, load(raw)
            path.unlink()
        return None

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Write if asked, due or stopping; then stop if stopping."""
        stopping = self._cancelled()
        if keep or stopping or time.monotonic() - self._last >= self._every_s:
            self._write(step, tensors_to_bytes(state()), keep)
            self._last = time.monotonic()
        if stopping:
            raise Cancelled(f"stopped at step {step}; the checkpoint is kept")

    def _write(self, step: int, raw: bytes, keep: bool) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / _name(step, keep, raw)
            part = path.with_suffix(".part")
            part.write_bytes(raw)
            part.replace(path)
        except OSError as error:
            raise StoreError(f"expected to write a checkpoint in {self._folder}, got: {error}") from error
        self.clear(but=path)

    def clear(self, but: Path | None = None) -> None:
        """Remove what is not kept on purpose; called when the task is done."""
        for path in self._folder.glob("*-temp-*"):
            if path != but:
                path.unlink(missing_ok=True)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _name(step: int, keep: bool, raw: bytes) -> str:
    return f"{step:08d}-{'keep' if keep else 'temp'}-{hashlib.sha256(raw).hexdigest()[:16]}.safetensors"
