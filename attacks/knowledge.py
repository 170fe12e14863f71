"""The adversary's knowledge and budget, and the guards that enforce them.

    weights     the model itself; without it the attack gets a ``SealedModel``, which only answers queries
    queries     answers of the model, at most ``Budget.max_queries``
    algorithm   the victim's scheme with its public hyper-parameters
    key         the owner's key (spoiling only)

Data, epochs and queries are limited by the ``Budget``. What was not granted is absent from the view, and access to it
raises ``NotGranted``. The guards protect against mistakes and shortcuts of attack code, not against code that searches
the process's memory, bypasses them by name, or trains in secret on samples that it read without gradients (an honest
attack counts these with ``AttackView.spend``).
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
    """An attack accessed something outside its declared knowledge or budget."""


@dataclass(frozen=True, kw_only=True)
class Budget(Configurable):
    """The adversary's data, epochs, queries and tolerated accuracy drop."""

    name: ClassVar[str] = "adversary"

    data_fraction: float = param(
        0.1, doc="share of the training set, class-stratified", stage="attack", low=0, high=1, low_open=True
    )
    disjoint: bool = param(False, doc="draw the share from data that the owner never trained on", stage="attack")
    max_epochs: int | None = param(
        None, doc="passes over the share in one attack; longer attacks are shortened; none = any", stage="attack", low=1
    )
    max_queries: int | None = param(
        None, doc="answers of the model to an attack without weights; none = any number", stage="attack", low=1
    )
    max_drop: float = param(
        0.05, doc="largest accuracy drop at which a removal counts, absolute", stage="verify", low=0, high=1
    )


class Meter:
    """A count of the samples that training may still read: ``epochs`` passes over ``n_samples``."""

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
    """The adversary's samples (``wmarena.schemes.base.Samples``), which count what training reads.

    Reading in order or raw without gradients (evaluation, activation statistics) is not counted; everything else is,
    by the sample. Shares and splits use the same meter.

    Raises:
        NotGranted: from the iterator, at the first batch beyond the count.
    """

    def __init__(self, samples: Samples, meter: Meter) -> None:
        self._samples = samples
        self._meter = meter

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """Yield one shuffled epoch, counted."""
        for batch in self._samples.batches(batch_size, seed=seed, epoch=epoch, augment=augment):
            self._meter.charge(len(batch[0]))
            yield batch

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Yield all samples once; counted where gradients are enabled."""
        for batch in self._samples.in_order(batch_size):
            if torch.is_grad_enabled():
                self._meter.charge(len(batch[0]))
            yield batch

    def raw(self) -> Batch:
        """Return raw inputs and targets; counted where gradients are enabled."""
        if torch.is_grad_enabled():
            self._meter.charge(len(self))
        return self._samples.raw()

    def share(self, fraction: float, *, domain: str, seed: int) -> Samples:
        """Return a share on the same meter."""
        return Metered(self._samples.share(fraction, domain=domain, seed=seed), self._meter)

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple[Samples, Samples]:
        """Return two parts on the same meter."""
        rest, part = self._samples.split(fraction, domain=domain, seed=seed)
        return Metered(rest, self._meter), Metered(part, self._meter)


def uncounted(samples: Samples) -> Samples:
    """Return the samples without their meter, for a view that counts anew or a scheme that sets its own epochs."""
    return samples._samples if isinstance(samples, Metered) else samples


AuxiliaryDataSet = tuple[Samples, Samples, TaskInfo]
"""(training, validation) samples of another data set, normalised in its own way, and its task."""


class AuxiliaryData:
    """The data sets that an attack declares, by the names of their workloads."""

    def __init__(self, data_sets: Mapping[str, AuxiliaryDataSet]) -> None:
        self._data_sets = dict(data_sets)

    def __call__(self, workload: str) -> AuxiliaryDataSet:
        """Return the data set of ``workload``. Raises NotGranted: the attack does not declare it."""
        if workload not in self._data_sets:
            raise NotGranted(f"expected a data set that the attack names, got {workload!r}; add it to its `data_sets`")
        return self._data_sets[workload]

    def only(self, workloads: Iterable[str]) -> "AuxiliaryData":
        """Return only the data sets of ``workloads``."""
        named = frozenset(workloads)
        return AuxiliaryData({name: found for name, found in self._data_sets.items() if name in named})

    def counted(self, epochs: int | None) -> "AuxiliaryData":
        """Limit each training set to ``epochs`` passes, on counts of their own; None for any number."""
        return AuxiliaryData({name: _counted(found, epochs) for name, found in self._data_sets.items()})


def _counted(found: AuxiliaryDataSet, epochs: int | None) -> AuxiliaryDataSet:
    train, val, info = (uncounted(found[0]), uncounted(found[1]), found[2])
    if epochs is None:
        return train, val, info
    meter = Meter(epochs, len(train))
    return Metered(train, meter), Metered(val, meter), info


@dataclass
class _Sealed:
    """The model of a ``SealedModel``, its limit and its count."""

    model: nn.Module
    limit: int | None
    queries: int = 0


_SEALED: WeakKeyDictionary[nn.Module, _Sealed] = WeakKeyDictionary()


class SealedModel(nn.Module):
    """A model that only answers queries: probabilities (n, C) for normalised inputs (n, ...), each answer counted.

    The model is stored outside of this object: no attribute, closure or copy refers to it.

    Args:
        model: in eval mode.
        limit: answers granted, None for any number.

    Raises:
        NotGranted: on access to weights, buffers or state, on a query that is traced or hooked on all modules, and on
            queries beyond the limit.
    """

    def __init__(self, model: nn.Module, limit: int | None) -> None:
        super().__init__()
        _SEALED[self] = _Sealed(model.eval(), limit)

    @property
    def queries(self) -> int:
        """Number of answers so far."""
        return _SEALED[self].queries

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, C) probabilities without gradients; n queries are counted before they are answered."""
        if torch.jit.is_tracing() or _has_any_global_hook():  # type: ignore[attr-defined, no-untyped-call]
            raise NotGranted("expected a plain query, got one that is traced or hooked on all modules; both see layers")
        sealed = _SEALED[self]
        asked = sealed.queries + len(inputs)
        if sealed.limit == 0:
            raise NotGranted("expected an attack that was granted queries; declare 'queries' in its `knows`")
        if sealed.limit is not None and asked > sealed.limit:
            raise NotGranted(f"expected at most {sealed.limit} queries, got {asked}; raise adversary.max_queries")
        sealed.queries = asked
        with torch.no_grad():
            probabilities: Tensor = sealed.model(inputs).float().softmax(dim=1)
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
