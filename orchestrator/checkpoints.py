"""State of long computations on disk: what a killed task resumes from, and a longer strength continues from.

A file's name holds its step and the head of its SHA-256: a torn or rotten checkpoint is recognised and ignored. The
training curves up to a checkpoint travel in it, so that the history of a resumed task has no hole.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from orchestrator.artifacts import StoreError, tensors_to_bytes
from schemes.base import Cancelled

_CURVES = "wmarena.curves"
_NAME = re.compile(r"(\d+)-(keep|temp)-([0-9a-f]{16})\.safetensors")


class Curves:
    """Collects training curves (``schemes.base.Log``)."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def __call__(self, step: int, **metrics: float) -> None:
        self.points.append({"step": step, **metrics})

    def to_bytes(self) -> bytes:
        """JSON: a list of points, each with ``step``."""
        return json.dumps(self.points).encode()

    def restore(self, raw: bytes) -> None:
        """Go back to what ``to_bytes`` wrote. Raises ValueError for anything else."""
        points = json.loads(raw)
        if not isinstance(points, list) or not all(isinstance(p, dict) and "step" in p for p in points):
            raise ValueError("expected a list of points, each with a step, got other JSON")
        self.points = points


class _Saved(NamedTuple):
    """What a checkpoint's name says; sorts by step."""

    step: int
    kind: str
    path: Path


class FolderCheckpoints:
    """Checkpoints of one trajectory in one folder (``schemes.base.Checkpoints``).

    Args:
        folder: created when the first checkpoint is written.
        every_s: least seconds between two unasked checkpoints; ``keep`` ones are always written.
        cancelled: polled at each offer.
        curves: saved and restored along with each state.
    """

    def __init__(self, folder: Path, *, every_s: float, cancelled: Callable[[], bool], curves: Curves) -> None:
        self._folder = folder
        self._every_s = every_s
        self._cancelled = cancelled
        self._curves = curves
        self._last = time.monotonic()

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """Newest intact state with step <= ``at_most``; the curves go back to it."""
        for step, kind, path in sorted(self._saved(), reverse=True):
            if at_most is not None and step > at_most:
                continue
            state = self._read(path, step, kind)
            if state is not None:
                return step, state
            path.unlink()
        return None

    def _read(self, path: Path, step: int, kind: str) -> dict[str, Tensor] | None:
        """The state in a file, the curves restored; None if it is not what was written."""
        raw = path.read_bytes()
        if path.name != _name(step, kind, raw):
            return None
        try:
            state: dict[str, Tensor] = load(raw)
            self._curves.restore(state.pop(_CURVES).numpy().tobytes())
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):
            return None
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Write if asked, due or stopping; then stop if stopping."""
        stopping = self._cancelled()
        if keep or stopping or time.monotonic() - self._last >= self._every_s:
            curves = torch.frombuffer(bytearray(self._curves.to_bytes()), dtype=torch.uint8)
            self._write(step, tensors_to_bytes({**state(), _CURVES: curves}), "keep" if keep else "temp")
            self._last = time.monotonic()
        if stopping:
            raise Cancelled(f"stopped at step {step}; the checkpoint is kept")

    def clear(self) -> None:
        """Remove what is not kept on purpose; called when the task is done."""
        for saved in self._saved():
            if saved.kind == "temp":
                saved.path.unlink(missing_ok=True)
        for part in self._folder.glob("*.part"):
            part.unlink(missing_ok=True)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _write(self, step: int, raw: bytes, kind: str) -> None:
        path = self._folder / _name(step, kind, raw)
        part = path.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(raw)
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # what filled the disk must not stay on it
                part.unlink(missing_ok=True)
            raise StoreError(f"expected to write a checkpoint in {self._folder}, got: {error}; free space") from error
        # Later steps stay: where one loop follows another, the first runs again before the second can resume.
        for saved in self._saved():
            if saved.kind == "temp" and saved.step <= step and saved.path != path:
                saved.path.unlink(missing_ok=True)

    def _saved(self) -> list[_Saved]:
        names = ((_NAME.fullmatch(p.name), p) for p in self._folder.glob("*.safetensors"))
        return [_Saved(int(m[1]), m[2], p) for m, p in names if m is not None]


def _name(step: int, kind: str, raw: bytes) -> str:
    return f"{step:08d}-{kind}-{hashlib.sha256(raw).hexdigest()[:16]}.safetensors"
