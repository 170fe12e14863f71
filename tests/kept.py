"""Small networks that tests share, trained once for all of pytest's processes and for later sessions.

What is kept depends on the code that trains, on torch and on the processor: where any of them differs it is made anew.
"""

import functools
import hashlib
import inspect
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import nn

from wmarena.orchestrator.keys.storage import load_key, save_key
from wmarena.schemes.base import Scheme
from wmarena.schemes.keys import Key

_TREE = Path(__file__).resolve().parents[1]
_CODE = (
    "schemes",
    "experiments/workloads",
    "orchestrator/worker/workload.py",
    "tests/kept.py",
    "tests/marks.py",
    "tests/victims.py",
)
_MODEL, _KEY = "model.safetensors", "key"
_HOME: list[Path] = []


def keep_in(folder: Path) -> None:
    """Keep networks there from now on; until this is called every process trains its own."""
    _HOME[:] = [folder]


def kept_network(name: str, blank: Callable[[], nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` returns, or the same read from disk into ``blank()``; in eval mode, without gradients."""
    return _kept(name, blank, lambda: (make(), None))[0]


def kept_mark(
    name: str, blank: Callable[[], nn.Module], make: Callable[[], tuple[nn.Module, Key]]
) -> tuple[nn.Module, Key]:
    """The same for a network and the key whose mark it carries."""
    model, key = _kept(name, blank, make)
    assert key is not None
    return model, key


def described(scheme: Scheme) -> str:
    """A scheme by its configuration and by the file that defines it."""
    source = hashlib.sha256(Path(inspect.getfile(type(scheme))).read_bytes()).hexdigest()
    return json.dumps([type(scheme).__qualname__, scheme.config(), source], sort_keys=True)


def _kept(
    name: str, blank: Callable[[], nn.Module], make: Callable[[], tuple[nn.Module, Key | None]]
) -> tuple[nn.Module, Key | None]:
    if not _HOME:
        model, key = make()
        return _at_rest(model), key
    place = _HOME[0] / hashlib.sha256(f"{_circumstances()}\n{name}".encode()).hexdigest()[:32]
    # Another process that needs the same waits instead of training it, too.
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            _write(place, *make())
    model = blank()
    model.load_state_dict(load_file(place / _MODEL))
    return _at_rest(model), load_key(place / _KEY, None) if (place / _KEY).exists() else None


def _write(place: Path, model: nn.Module, key: Key | None) -> None:
    aside = Path(tempfile.mkdtemp(prefix="new-", dir=place.parent))
    save_file(
        {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in model.state_dict().items()},
        aside / _MODEL,
    )
    if key is not None:
        save_key(key, aside / _KEY, None)
    aside.rename(place)


def _at_rest(model: nn.Module) -> nn.Module:
    model.zero_grad(set_to_none=True)
    return model.eval()


@functools.cache
def _circumstances() -> str:
    """Digest of what decides the bits of a trained network."""
    files = [f for name in _CODE for f in (sorted((_TREE / name).rglob("*.py")) if "." not in name else [_TREE / name])]
    code = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()
    cpu = Path("/proc/cpuinfo")
    models = {line for line in cpu.read_text().splitlines() if line.startswith("model")} if cpu.exists() else set()
    isa = {n: v for n, v in os.environ.items() if n.startswith(("ATEN_", "ONEDNN_", "DNNL_", "MKL_"))}
    where = (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), platform.processor(), sorted(models))
    return repr((code, torch.__version__, where, sorted(isa.items())))
