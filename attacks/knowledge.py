"""What an adversary is granted, and the guards that hold an attack to it.

    weights     the model itself; without it a ``SealedModel`` comes, which answers questions and nothing else
    queries     answers of the model, ``Budget.max_queries`` of them at most
    algorithm   the victim's scheme with its public hyper-parameters
    key         the owner's key (spoiling only)

Data, epochs and queries are numbers of the ``Budget``. The guards are types, not promises: what was not granted is
absent from the view, and reaching for it raises ``NotGranted``. They hold against mistakes and shortcuts of attack
code, not against code that searches the process's memory, goes around them by name, or keeps samples that it read
without gradients and trains on them in secret (who trains on kept samples says so with ``AttackView.spend``).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from wmarena.schemes.base import Batch, Samples, TaskInfo
from wmarena.schemes.params import Configurable, param

Knowledge = Literal["weights", "algorithm", "key", "queries"]


class NotGranted(PermissionError):
    """An attack reached for something outside its declared knowledge or budget."""


@dataclass(frozen=True, kw_only=True)
class Budget(Configurable):
    """What the adversary is granted."""

    name: ClassVar[str] = "adversary"

    data_fraction: float = param(
        0.1, doc="share of the training set, class-stratified", stage="attack", low=0, high=1, low_open=True
    )
    disjoint: bool = param(False, doc="draw the share from data that the owner never trained on", stage="attack")
    max_epochs: int | None = param(
        None,
        doc="passes over the share in one attack; longer attacks are shortened to it; none = any",
        stage="attack",
        low=1,
    )
    max_queries: int | None = param(
        None, doc="answers of the model to an attack without weights; none = any number", stage="attack", low=1
    )
    max_drop: float = param(
        0.05, doc="largest accuracy drop at which a removal counts, absolute", stage="verify", low=0, high=1
    )


class Meter:
    """The samples that an adversary may still read in training: ``epochs`` passes over ``n_samples``."""

    def __init__(self, epochs: int, n_samples: int) -> None:
        self._epochs = epochs
        self._left = epochs * n_samples

    def charge(self, n_samples: int) -> None:
        """Count so many samples. Raises NotGranted if fewer are left."""
        if n_samples > self._left:
            raise NotGranted(
                f"expected at most {self._epochs} passes over the adversary's data in training, got more; "
                "raise adversary.max_epochs"
            )
        self._left -= n_samples


class Metered:
    """The adversary's samples (``wmarena.schemes.base.Samples``) with a count of what training reads of them.

    Reading in order or raw without gradients (evaluation, activation statistics) is free; everything else counts, by
    the sample. Parts of the samples share the count of the whole.

    Args:
        samples: what was granted.
        meter: what may be read of them.

    Raises:
        NotGranted: from the iterator, at the first batch beyond the count.
    """

    def __init__(self, samples: Samples, meter: Meter) -> None:
        self._samples = samples
        self._meter = meter

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """One shuffled epoch, counted."""
        for batch in self._samples.batches(batch_size, seed=seed, epoch=epoch, augment=augment):
            self._meter.charge(len(batch[0]))
            yield batch

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        """All samples once; counted where gradients are enabled."""
        for batch in self._samples.in_order(batch_size):
            if torch.is_grad_enabled():
                self._meter.charge(len(batch[0]))
            yield batch

    def raw(self) -> Batch:
        """Raw inputs and targets; counted where gradients are enabled."""
        if torch.is_grad_enabled():
            self._meter.charge(len(self))
        return self._samples.raw()

    def share(self, fraction: float, *, domain: str, seed: int) -> Samples:
        """A part, on the same count."""
        return Metered(self._samples.share(fraction, domain=domain, seed=seed), self._meter)

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple[Samples, Samples]:
        """Two parts, on the same count."""
        rest, part = self._samples.split(fraction, domain=domain, seed=seed)
        return Metered(rest, self._meter), Metered(part, self._meter)


def uncounted(samples: Samples) -> Samples:
    """The samples under a count: for the next view, which counts anew, and for a scheme that sets its own epochs."""
    return samples._samples if isinstance(samples, Metered) else samples


AuxiliaryDataSet = tuple[Samples, Samples, TaskInfo]
"""(training, validation) samples of another data set, normalised in its own way, and its task."""


class AuxiliaryData:
    """Other data sets by the names of their workloads: those that an attack names, and no others."""

    def __init__(self, data_sets: Mapping[str, AuxiliaryDataSet]) -> None:
        self._data_sets = dict(data_sets)

    def __call__(self, workload: str) -> AuxiliaryDataSet:
        """The data set of ``workload``.

        Raises:
            NotGranted: the attack does not name it.
        """
        if workload not in self._data_sets:
            raise NotGranted(f"expected a data set that the attack names, got {workload!r}; add it to its `data_sets`")
        return self._data_sets[workload]

    def only(self, workloads: Iterable[str]) -> "AuxiliaryData":
        """Those of ``workloads`` that are here."""
        named = frozenset(workloads)
        return AuxiliaryData({name: found for name, found in self._data_sets.items() if name in named})

    def counted(self, epochs: int | None) -> "AuxiliaryData":
        """The same with ``epochs`` passes over each training set, on counts of their own; None for any number."""
        return AuxiliaryData({name: _counted(found, epochs) for name, found in self._data_sets.items()})


def _counted(found: AuxiliaryDataSet, epochs: int | None) -> AuxiliaryDataSet:
    train, val, info = (uncounted(found[0]), uncounted(found[1]), found[2])
    if epochs is None:
        return train, val, info
    meter = Meter(epochs, len(train))
    return Metered(train, meter), Metered(val, meter), info


@dataclass
class _Behind:
    """What stands behind a sealed model's interface."""

    model: nn.Module
    limit: int | None
    queries: int = 0


_BEHIND: WeakKeyDictionary[nn.Module, _Behind] = WeakKeyDictionary()


class SealedModel(nn.Module):
    """A model behind an interface: probabilities (n, C) for normalised inputs (n, ...), each answer counted.

    The model is kept beside this object, not in it: no attribute, closure or copy leads to it.

    Args:
        model: in eval mode.
        limit: answers granted, None for any number.

    Raises:
        NotGranted: from any access to weights, buffers or state, from a query that is traced or hooked on all modules,
            and from one answer too many.
    """

    def __init__(self, model: nn.Module, limit: int | None) -> None:
        super().__init__()
        _BEHIND[self] = _Behind(model.eval(), limit)

    @property
    def queries(self) -> int:
        """Answers given so far."""
        return _BEHIND[self].queries

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, C) probabilities without gradients; n answers are charged before they are given."""
        if torch.jit.is_tracing() or _has_any_global_hook():  # type: ignore[attr-defined, no-untyped-call]
            raise NotGranted("expected a plain query, got one that is traced or hooked on all modules; both see layers")
        behind = _BEHIND[self]
        asked = behind.queries + len(inputs)
        if behind.limit == 0:
            raise NotGranted("expected an attack that was granted queries; declare 'queries' in its `knows`")
        if behind.limit is not None and asked > behind.limit:
            raise NotGranted(f"expected at most {behind.limit} queries, got {asked}; raise adversary.max_queries")
        behind.queries = asked
        with torch.no_grad():
            probabilities: Tensor = behind.model(inputs).float().softmax(dim=1)
        return probabilities

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotGranted("expected an attack that was granted the weights; declare 'weights' in its `knows`")

    state_dict = _refuse
    load_state_dict = _refuse
    parameters = _refuse
    named_parameters = _refuse
    buffers = _refuse
    named_buffers = _refuse
    get_parameter = _refuse
    get_buffer = _refuse
    __copy__ = _refuse
    __deepcopy__ = _refuse
    __reduce__ = _refuse
    __reduce_ex__ = _refuse
