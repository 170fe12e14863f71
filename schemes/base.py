"""Base class of all schemes.

A scheme implements ``keygen``, ``embed``, ``verify``, and hooks that the attacks spoil, overwrite and ambiguity use.
The workload that it protects is described in ``wmarena.schemes.workload``, its result in ``wmarena.schemes.verdict``;
both are exported here, so that a plugin needs one import.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from wmarena.schemes.keys import Key
from wmarena.schemes.params import Configurable, Json
from wmarena.schemes.prf import Prf
from wmarena.schemes.verdict import Access as Access
from wmarena.schemes.verdict import PMethod as PMethod
from wmarena.schemes.verdict import Verdict as Verdict
from wmarena.schemes.workload import Batch as Batch
from wmarena.schemes.workload import Cancelled as Cancelled
from wmarena.schemes.workload import Checkpoints as Checkpoints
from wmarena.schemes.workload import Evaluation as Evaluation
from wmarena.schemes.workload import Log as Log
from wmarena.schemes.workload import Recipe as Recipe
from wmarena.schemes.workload import Samples as Samples
from wmarena.schemes.workload import SplitAt as SplitAt
from wmarena.schemes.workload import TaskInfo as TaskInfo
from wmarena.schemes.workload import Workload as Workload


class Suspect:
    """A model to be judged. Counts queries; offers weights and taps to white-box schemes."""

    def __init__(self, model: nn.Module, task: Workload) -> None:
        self.model = model
        self.task = task
        self.queries = 0

    def labels(self, raw: Tensor) -> Tensor:
        """Return (n,) top-1 labels for raw inputs (n, *input_shape)."""
        self.queries += len(raw)
        return self.task.predict(self.model, raw)

    def mismatch(self, architecture: Mapping[str, Json]) -> str | None:
        """Return why the suspect's tensors differ from ``architecture`` (name -> shape), or None."""
        own = self.task.architecture(self.model)
        absent = [n for n in architecture if n not in own]
        if absent:
            return f"no tensor {absent[0]!r}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
        for name, shape in architecture.items():
            if own[name] != shape:
                return f"{name} has shape {own[name]}, the key expects {shape}"
        return None


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The data, seed and services that an owner, or an adversary as owner, embeds with; no test data.

    Attributes:
        task: the workload.
        train, val: the owner's data; hyper-parameters and stopping read ``val`` only.
        seed: fixes batch order and all randomness outside the key.
    """

    task: Workload
    train: Samples
    val: Samples
    seed: int
    log: Log
    checkpoints: Checkpoints


@dataclass(frozen=True)
class Carrier:
    """Scalars that carry a weight-type mark: all of parameter ``name``, or those under ``mask``."""

    name: str
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Scheme(Configurable, ABC):
    """Base of all schemes. Fields carry the paper's symbols; ``stage`` says when each acts."""

    access: ClassVar[Access]
    p_method: ClassVar[PMethod] = "binomial"
    paper: ClassVar[str]
    threat_model: ClassVar[str]
    trained_head: ClassVar[bool] = False
    """True if verification uses a network trained with the mark: evidence needs a prior commitment."""

    @property
    def from_scratch(self) -> bool:
        """True if ``embed`` trains a new network instead of continuing from the clean one."""
        return False

    def applicable(self, info: TaskInfo) -> str | None:
        """Return why this scheme cannot protect such a task, or None."""
        return None

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        """Return the training that ``embed`` adds to the clean model, without the mark: the twin's training.

        None for schemes that train from scratch: their twin is the clean model.
        """
        return None

    def as_overwriter(self) -> "Scheme":
        """Return this scheme in the form that continues from a given (stolen) model, not from scratch."""
        return self

    def licensed_task(self, task: Workload, key: Key) -> Workload | None:
        """Return the task as licensed users run it (DSN: with the serial number in each input).

        None if no licence is needed. The marked model's accuracy is measured on this task.
        """
        return None

    def for_epochs(self, epochs: int, n_train: int) -> "Scheme":
        """Return this scheme with an embedding of ``epochs`` passes over ``n_train`` samples (for overwriting)."""
        raise NotImplementedError(f"{self.name} has no epochs to set")

    @abstractmethod
    def keygen(self, task: Workload, prf: Prf) -> Key:
        """Draw a key. ``prf`` is the only source of randomness."""

    @abstractmethod
    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        """Mark ``model`` in place (a private copy; freshly initialised if ``from_scratch``) and complete the key.

        Returns:
            (marked model as it is published, completed key).
        """

    @abstractmethod
    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        """Test a suspect that fits the key; called through ``judge``, in eval mode, without gradients."""

    @abstractmethod
    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """Return a key of the same public structure that was never embedded: the stranger's key."""

    @abstractmethod
    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        """Return why the suspect's structure does not fit the key, or None."""

    @abstractmethod
    def trials(self, key: Key) -> tuple[int, float | None]:
        """Return (n, q) of the key's test, for suspects that do not fit; q is None if p is not binomial."""

    @final
    def judge(self, suspect: Suspect, key: Key) -> Verdict:
        """Call ``verify`` without side effects on weights, flags or random state; accept incompatible suspects."""
        why = self.incompatible(suspect, key)
        if why is not None:
            n, q = self.trials(key)
            return Verdict.structure(n, q, access=self.access, found=why, p_method=self.p_method)
        with untouched(suspect.model), torch.no_grad(), torch.autocast(suspect.task.device.type, enabled=False):
            verdict = self.verify(suspect, key)
        return replace(verdict, queries=suspect.queries if self.access == "black" else 0)

    # Hooks that the attacks spoil, overwrite and ambiguity use. None: the scheme has no such thing.

    def triggers(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """Return (raw inputs (n, *input_shape), labels (n,)) of a black-box scheme."""
        return None

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor | None:
        """Return the mark's differentiable loss (scalar) over the key's own labels or bits, or over ``labels`` (n,)."""
        return None

    def carriers(self, model: nn.Module, key: Key) -> list[Carrier]:
        """Return the scalars that carry a weight-type mark."""
        return []

    def with_holder_data(self, holder: Owner, key: Key) -> Key:
        """Complete ``key``, fresh from ``keygen``, with the holder's data that evidence needs; no model is read.

        ``embed`` starts from this key; an adversary who embeds nothing presents it. A key that needs no data, or
        whose holder has no fitting data, is returned unchanged.
        """
        return key

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Complete a random ``key`` so that the frozen ``model`` passes (level-2 ambiguity); None if unknown."""
        return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode inside, which keeps batch-norm statistics; restore every training flag afterwards."""
    flags = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Set eval mode inside; restore training flags and the CPU's global random state afterwards."""
    state = torch.get_rng_state()
    try:
        with evaluating(model):
            yield
    finally:
        torch.set_rng_state(state)


def lists(value: Any) -> Any:
    """Convert nested tuples and torch sizes to nested lists, as JSON has them."""
    return [lists(v) for v in value] if isinstance(value, list | tuple | torch.Size) else value
