"""Judge one model file with one key. Nothing is unpickled."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from wmarena.experiments.judging.memory import bounded_memory
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.keys.encryption import Passphrase
from wmarena.orchestrator.keys.storage import load_key
from wmarena.orchestrator.plan.plugins import build, build_scheme, use_workloads
from wmarena.orchestrator.worker.workload import WorkloadConfig
from wmarena.schemes.base import Scheme, Suspect, Verdict, Workload
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.keys import Key, KeyFileError

logger = logging.getLogger(__name__)

_MOST_REPEATS = 10**6
"""Largest number in a setting of verification: a million random keys resolve p = 1e-6, the strictest level."""

_MEMORY, _MEMORY_FACTOR = 2 * 2**30, 64
"""Memory for a verdict: bytes, and bytes per byte of weights and key."""

_ZIP, _PICKLE, _HDF5 = b"PK\x03\x04", b"\x80", b"\x89HDF"
_WAY_OUT = "save the weights with safetensors.torch.save_file(model.state_dict(), FILE)"


def verify(model: str | Path, key: str | Path, *, workload: str | None = None) -> dict[str, Any]:
    """Judge a model with a key; read the passphrase of an encrypted key from the environment.

    Args:
        model: a safetensors file of weights.
        key: the folder of a key.
        workload: name of the workload whose network the weights fit; None: the key's own.

    Returns:
        The evidence as JSON values: the fields of ``wmarena.schemes.verdict.Verdict`` (``verdict``: the watermark is
        found at ``level``), ``scheme``, ``workload``, ``commitment`` and ``model`` (file and digest).

    Raises:
        SpecError: the model cannot be read, or nothing says which network it is.
        KeyFileError: the key cannot be read, or its scheme cannot judge with it.
        SealError: the key is encrypted and the passphrase is missing or wrong.
    """
    use_workloads(WORKLOADS)
    folder, file = Path(key), Path(model)
    own = load_key(folder, Passphrase.find())
    weights = read_weights(file)
    scheme, config = _scheme(own, folder), _workload(own, workload, folder)
    with _usable_key(folder), bounded_memory(_memory_limit(weights, own)):
        task = config.task(torch.device("cpu"))
        evidence = _evidence(judge(weights, task, scheme, own), own, scheme, task)
    return evidence | {"model": {"file": str(model), "digest": model_digest(weights)}}


@contextmanager
def _usable_key(folder: Path) -> Iterator[None]:
    """Convert errors from a key that opens its commitment but has unusable shapes, sizes or values."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        logger.debug("no verdict with %s", folder, exc_info=True)
        raise KeyFileError(
            f"expected a key that its scheme can judge with, got {folder} ({type(error).__name__}: {error!s:.200}); if "
            "the key was not altered, this is a fault of ours: see --log-level debug"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, recognised by its content.

    Raises:
        SpecError: unreadable, empty, another format, truncated, not finite.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError.of(f"expected a readable file of weights, got {path} ({error.strerror})") from None
    for magic, name in ((_ZIP, "a zip archive (torch.save)"), (_PICKLE, "a pickle"), (_HDF5, "an HDF5 file")):
        if raw.startswith(magic) and not _has_header(raw):
            raise SpecError.of(
                f"expected safetensors, got {name} in {path}, which is never opened: it may run code; {_WAY_OUT}"
            )
    try:
        tensors: dict[str, Tensor] = load(raw)
    except SafetensorError as error:
        raise SpecError.of(
            f"expected a whole safetensors file, got {path} ({error}); copy it again, or {_WAY_OUT}"
        ) from None
    if not tensors:
        raise SpecError.of(f"expected weights, got a safetensors file without tensors: {path}")
    return tensors


def _has_header(raw: bytes) -> bool:
    """Return True if the file starts like safetensors: eight bytes of length, then a JSON object of that length."""
    length = int.from_bytes(raw[:8], "little")
    return raw[8:9] == b"{" and length <= len(raw) - 8


def _scheme(key: Key, folder: Path) -> Scheme:
    config = key.public.get("config")
    if not isinstance(config, Mapping):
        raise SpecError.of(
            f"expected a key made by `wmarena run`, got {folder}, whose public part names no configuration"
        )
    scheme = build_scheme({**config, "name": key.scheme})
    for name, about in scheme.parameters().items():
        number = getattr(scheme, name)
        if about.stage == "verify" and isinstance(number, int) and number > _MOST_REPEATS:
            raise SpecError.of(
                f"expected numbers up to {_MOST_REPEATS} in the key {folder}, got {name}: {number!r:.40}"
            )
    return scheme


def _workload(key: Key, name: str | None, folder: Path) -> WorkloadConfig:
    """Return the workload of the network to load the weights into: the one named, else the key's own."""
    config: Any = {"name": name} if name is not None else key.public.get("workload")
    if not isinstance(config, Mapping):
        raise SpecError.of(
            f"expected --workload NAME, got none, and the key in {folder} does not know its workload either"
        )
    return cast(WorkloadConfig, build("workload", config))


def _memory_limit(weights: Mapping[str, Tensor], key: Key) -> int:
    """Return the bytes that a verdict may take: they scale with the input, not with numbers in a forged key."""
    return _MEMORY + _MEMORY_FACTOR * sum(t.nbytes for t in (*weights.values(), *key.secret.values()))


def judge(weights: Mapping[str, Tensor], task: Workload, scheme: Scheme, key: Key) -> Verdict:
    """Judge weights; those that do not fit the network get a verdict with reason ``structure``."""
    model = task.network(0)
    why = _mismatch(model, weights)
    if why is not None:
        n, q = scheme.trials(key)
        return Verdict.structure(n, q, access=scheme.access, found=why, p_method=scheme.p_method)
    model.load_state_dict(dict(weights))
    return scheme.judge(Suspect(model.eval(), task), key)


def _mismatch(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    own = model.state_dict()
    for name in own:
        if name not in weights:
            return f"no tensor {name!r}"
        if own[name].shape != weights[name].shape:
            return f"{name} has shape {list(weights[name].shape)}, the workload's network has {list(own[name].shape)}"
    extra = [name for name in weights if name not in own]
    return f"a tensor {extra[0]!r} that the workload's network does not have" if extra else None


def _evidence(verdict: Verdict, key: Key, scheme: Scheme, task: Workload) -> dict[str, Any]:
    """Return the verdict as JSON values, with scheme, workload and commitment."""
    caveats = list(verdict.caveats)
    if key.public.get("simulated"):
        caveats.append("simulated_key")
    about = {"scheme": scheme.name, "workload": task.name, "commitment": key.commitment}
    return {**asdict(verdict), "caveats": caveats, **about}
