"""State of long computations on disk: what a killed task resumes from, and a longer strength continues from.

A file's name holds its step and the head of its SHA-256: a torn or rotten checkpoint is recognised and ignored. The
training curves up to a checkpoint travel in it, so that the history of a resumed task has no hole.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from wmarena.orchestrator.store.artifacts import tensors_to_bytes
from wmarena.orchestrator.store.backends import CheckpointBackend
from wmarena.schemes.base import Cancelled

_CURVES = "wmarena.curves"
_NAME = re.compile(r"(\d+)-(keep|temp)-([0-9a-f]{16})\.safetensors")


class Curves:
    """Collects training curves (``wmarena.schemes.base.Log``)."""

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
    name: str


class StoredCheckpoints:
    """Checkpoints of one trajectory on one shelf (``wmarena.schemes.base.Checkpoints``).

    Args:
        shelf: where they lie.
        every_s: least seconds between two unasked checkpoints; ``keep`` ones are always written.
        cancelled: polled at each offer.
        curves: saved and restored along with each state.
    """

    def __init__(
        self, shelf: CheckpointBackend, *, every_s: float, cancelled: Callable[[], bool], curves: Curves
    ) -> None:
        self._shelf = shelf
        self._every_s = every_s
        self._cancelled = cancelled
        self._curves = curves
        self._last = time.monotonic()

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """Newest intact state with step <= ``at_most``; the curves go back to it."""
        for saved in sorted(self._saved(), reverse=True):
            if at_most is not None and saved.step > at_most:
                continue
            state = self._read(saved)
            if state is not None:
                return saved.step, state
            self._shelf.drop(saved.name)
        return None

    def _read(self, saved: _Saved) -> dict[str, Tensor] | None:
        """The state in a file, the curves restored; None if it is not what was written."""
        raw = self._shelf.read(saved.name)
        if raw is None or saved.name != _name(saved.step, saved.kind, raw):
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
                self._shelf.drop(saved.name)
        self._shelf.tidy()

    def _write(self, step: int, raw: bytes, kind: str) -> None:
        name = _name(step, kind, raw)
        self._shelf.write(name, raw)
        # Later steps stay: where one loop follows another, the first runs again before the second can resume.
        for saved in self._saved():
            if saved.kind == "temp" and saved.step <= step and saved.name != name:
                self._shelf.drop(saved.name)

    def _saved(self) -> list[_Saved]:
        names = ((_NAME.fullmatch(name), name) for name in self._shelf.names())
        return [_Saved(int(m[1]), m[2], name) for m, name in names if m is not None]


def _name(step: int, kind: str, raw: bytes) -> str:
    return f"{step:08d}-{kind}-{hashlib.sha256(raw).hexdigest()[:16]}.safetensors"
