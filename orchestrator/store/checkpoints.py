"""Checkpoints of long computations, from which a killed task resumes and a longer strength continues.

A file's name holds its step and the head of its SHA-256: a damaged checkpoint is detected and ignored. A checkpoint
holds the training curves up to its step, so that the history of a resumed task is complete.
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
        """Encode as JSON: a list of points, each with ``step``."""
        return json.dumps(self.points).encode()

    def restore(self, raw: bytes) -> None:
        """Restore what ``to_bytes`` wrote. Raises ValueError for anything else."""
        points = json.loads(raw)
        if not isinstance(points, list) or not all(isinstance(p, dict) and "step" in p for p in points):
            raise ValueError("expected a list of points, each with a step, got other JSON")
        self.points = points


class _Saved(NamedTuple):
    """A checkpoint's parsed name; sorts by step."""

    step: int
    kind: str
    name: str


class StoredCheckpoints:
    """Checkpoints of one trajectory in one backend (``wmarena.schemes.base.Checkpoints``).

    Args:
        backend: their storage.
        every_s: least seconds between two temporary checkpoints; ``keep`` ones are always written.
        cancelled: polled at each offer.
        curves: saved and restored along with each state.
    """

    def __init__(
        self, backend: CheckpointBackend, *, every_s: float, cancelled: Callable[[], bool], curves: Curves
    ) -> None:
        self._backend = backend
        self._every_s = every_s
        self._cancelled = cancelled
        self._curves = curves
        self._last = time.monotonic()

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """Return (step, state) of the newest intact checkpoint with step <= ``at_most``, and restore its curves."""
        for saved in sorted(self._saved(), reverse=True):
            if at_most is not None and saved.step > at_most:
                continue
            state = self._read(saved)
            if state is not None:
                return saved.step, state
            self._backend.drop(saved.name)
        return None

    def _read(self, saved: _Saved) -> dict[str, Tensor] | None:
        """Return a file's state and restore its curves; None if the file is damaged."""
        raw = self._backend.read(saved.name)
        if raw is None or saved.name != _name(saved.step, saved.kind, raw):
            return None
        try:
            state: dict[str, Tensor] = load(raw)
            self._curves.restore(state.pop(_CURVES).numpy().tobytes())
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):
            return None
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Write a checkpoint if ``keep``, due or cancelled; raise Cancelled if cancelled."""
        stopping = self._cancelled()
        if keep or stopping or time.monotonic() - self._last >= self._every_s:
            curves = torch.frombuffer(bytearray(self._curves.to_bytes()), dtype=torch.uint8)
            self._write(step, tensors_to_bytes({**state(), _CURVES: curves}), "keep" if keep else "temp")
            self._last = time.monotonic()
        if stopping:
            raise Cancelled(f"stopped at step {step}; the checkpoint is kept")

    def clear(self) -> None:
        """Remove temporary checkpoints; called when the task is done."""
        for saved in self._saved():
            if saved.kind == "temp":
                self._backend.drop(saved.name)
        self._backend.tidy()

    def _write(self, step: int, raw: bytes, kind: str) -> None:
        name = _name(step, kind, raw)
        self._backend.write(name, raw)
        # Later steps stay: with two loops in sequence, the first runs again before the second can resume.
        for saved in self._saved():
            if saved.kind == "temp" and saved.step <= step and saved.name != name:
                self._backend.drop(saved.name)

    def _saved(self) -> list[_Saved]:
        names = ((_NAME.fullmatch(name), name) for name in self._backend.names())
        return [_Saved(int(m[1]), m[2], name) for m, name in names if m is not None]


def _name(step: int, kind: str, raw: bytes) -> str:
    return f"{step:08d}-{kind}-{hashlib.sha256(raw).hexdigest()[:16]}.safetensors"
