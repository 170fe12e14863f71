"""The experiment's specification: workloads x schemes x attacks x seeds, as a validated object.

``ExperimentSpec.load("quickstart")`` reads a file or a shipped spec; ``ExperimentSpec(name=..., schemes=[...], ...)``
takes the same fields in Python, entries as mappings, names or plugin objects. After validation entries are plugins,
with every grid expanded and every default filled in.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from wmarena.attacks.knowledge import Budget
from wmarena.experiments.spec.entries import AttackEntry, EntryReader
from wmarena.experiments.spec.problems import Path as Place
from wmarena.experiments.spec.problems import Problem, SpecError, dotted, unknown
from wmarena.experiments.spec.shipped import Shipped
from wmarena.experiments.spec.validation import Seeds, SpecBlock, YamlSpec, problems_of
from wmarena.experiments.spec.yaml_lines import YamlDocument
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.identity import canonical, digest
from wmarena.orchestrator.plan.plugins import names, use_workloads
from wmarena.orchestrator.worker.workload import WorkloadConfig
from wmarena.schemes.base import Scheme
from wmarena.schemes.params import Configurable

use_workloads(WORKLOADS)

SHIPPED = Shipped(Path(__file__).parents[1] / "specs", "spec")


def _raise(problems: Iterable[Problem], *, below: int = 1) -> None:
    """Raise problems through pydantic, which prepends the field's own path."""
    errors = [InitErrorDetails(type=_error(p.message, p.also), loc=p.path[below:], input=None) for p in problems]
    if errors:
        raise ValidationError.from_exception_data("spec", errors)


def _error(message: str, also: Place | None = None) -> PydanticCustomError:
    return PydanticCustomError("spec", "{message}", {"message": message, "also": also})


def _context(info: ValidationInfo, name: str) -> Any:
    return (info.context or {}).get(name)


def _listed(raw: Any, info: ValidationInfo) -> list[Any]:
    if isinstance(raw, list | tuple) and raw:
        return list(raw)
    shown = "an empty list" if isinstance(raw, list | tuple) else repr(raw)
    way = "; leave the field out to judge the marked models alone" if info.field_name == "attacks" else ""
    raise _error(f"expected a list of {info.field_name}, got {shown}{way}")


def _plugins(kind: str) -> Callable[[Any, ValidationInfo], tuple[Configurable, ...]]:
    def resolve(raw: Any, info: ValidationInfo) -> tuple[Configurable, ...]:
        reader = EntryReader(_context(info, "data_root"))
        found = [
            (plugin, (str(info.field_name), i))
            for i, entry in enumerate(_listed(raw, info))
            for plugin in reader.variants(kind, entry, (str(info.field_name), i))
        ]
        _raise([*reader.problems, *_repeated([(p.config(), where) for p, where in found])])
        notes = _context(info, "notes")
        if notes is not None:
            notes += reader.notes
        return tuple(plugin for plugin, _ in found)

    return resolve


def _attacks(raw: Any, info: ValidationInfo) -> tuple[AttackEntry, ...]:
    adversary = info.data.get("adversary", {})
    reader = EntryReader()
    found = [
        (attack, ("attacks", i))
        for i, entry in enumerate(_listed(raw, info))
        for attack in reader.attacks(entry, ("attacks", i), adversary)
    ]
    # The ends of a search may also be listed: equal tasks are computed once.
    configs = [
        ({"attack": a.attack.config(), "adversary": a.budget.config(until="attack")}, w)
        for a, w in found
        if a.search is None
    ]
    hint = "; max_drop changes how a row is judged, not which rows there are"
    _raise([*reader.problems, *_repeated(configs, hint if len({a.budget.max_drop for a, _ in found}) > 1 else "")])
    return tuple(attack for attack, _ in found)


def _repeated(found: Iterable[tuple[Mapping[str, Any], Place]], hint: str = "") -> Iterator[Problem]:
    """Report entries of equal meaning, which are mistyped grids or would repeat rows of the table."""
    first: dict[str, Place] = {}
    for config, where in found:
        text = canonical(dict(config))
        if text not in first:
            first[text] = where
        elif first[text] == where:
            yield Problem(f"expected distinct configurations, got one twice in this entry's own grid{hint}", where)
        else:
            message = f"expected distinct entries, got the same configuration as {dotted(first[text])}{hint}"
            yield Problem(message, where, also=first[text])


def _adversary(raw: Any) -> Mapping[str, Any]:
    if isinstance(raw, Budget):
        return {k: v for k, v in raw.config().items() if k != "name"}
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected fields of the adversary, got {raw!r}")
    reader = EntryReader()
    reader.configured(Budget, raw, ("adversary",))
    _raise(reader.problems)
    return dict(raw)


def _only(raw: Any) -> dict[str, tuple[str, ...]]:
    """Read ``only: {dsn: [mnist_dsn]}``, pairs of workloads, schemes and attacks to be planned."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected names with lists of names, such as {{dsn: [mnist_dsn]}}, got {raw!r}")
    known = sorted({name for kind in ("workload", "scheme", "attack") for name in names(kind)})
    problems: list[Problem] = []
    out: dict[str, tuple[str, ...]] = {}
    for name, listed in raw.items():
        others = [listed] if isinstance(listed, str) else listed
        if not isinstance(others, list | tuple) or not all(isinstance(o, str) for o in others) or not others:
            problems.append(Problem(f"expected a list of names, got {listed!r}", ("only", str(name))))
            continue
        for given in (name, *others):
            if given not in known:
                problems.append(Problem(unknown(str(given), known), ("only", str(name))))
        out[str(name)] = tuple(others)
    _raise(problems)
    return out


def _auto_or(kind: type, low: float, high: float, what: str) -> PlainValidator:
    def check(value: Any) -> Any:
        numeric = isinstance(value, kind | int) and not isinstance(value, bool)
        if value == "auto" or (numeric and low <= value <= high):
            return value
        raise ValueError(f'expected "auto" or {what}, got {value!r}')

    return PlainValidator(check)


def _secret_file(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"expected the path of a secret file, got {value!r}")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"expected the path of a secret file, got {value!r}, whose home folder is not known") from None
    # Absolute: workers have working folders of their own.
    return ((_context(info, "folder") or Path()) / path).absolute()


class ExecutorSpec(SpecBlock):
    """How the plan is run; no field changes a result.

    Attributes:
        workers: number of workers; auto: one for each GPU, else for each CPU slot.
        gpus_per_worker: GPUs, or a share of one, for each worker; auto: one if there are any.
        task_timeout_s: wall seconds of one attempt.
        heartbeat_timeout_s: a worker whose process has not answered for this long is replaced.
        stall_timeout_s: so is a worker whose task has neither ended nor reached a checkpoint for this long.
        max_retries: further attempts after a failure that may not repeat.
    """

    workers: Annotated[int | Literal["auto"], _auto_or(int, 1, 10_000, "an integer from 1 to 10000")] = "auto"
    gpus_per_worker: Annotated[float | Literal["auto"], _auto_or(float, 0, 1024, "a number from 0 to 1024")] = "auto"
    task_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 3600.0
    heartbeat_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 60.0
    stall_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 1800.0
    max_retries: Annotated[int, Field(ge=0, strict=True)] = 2


class CalibrationSpec(SpecBlock):
    """Number of independent clean models, and of fresh keys on each, that check every scheme's null model.

    Attributes:
        models: independent clean models.
        keys: fresh keys on each of them.
    """

    models: Annotated[int, Field(ge=1, le=1000, strict=True)] = 10
    keys: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 30


class KeysSpec(SpecBlock):
    """Paths of the secret files that keys are derived from and sealed with; never the secrets."""

    root: Annotated[Path | None, PlainValidator(_secret_file)] = None
    passphrase: Annotated[Path | None, PlainValidator(_secret_file)] = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.root is None and self.passphrase is None:
            raise ValueError("expected `root`, `passphrase` or both, got neither; leave `keys` out for none")
        return self


class ExperimentSpec(YamlSpec):
    """One question: which schemes on which workloads survive which attacks, over which seeds."""

    shipped: ClassVar[Shipped] = SHIPPED

    adversary: Annotated[Mapping[str, Any], PlainValidator(_adversary)] = Field(default_factory=dict)
    workloads: Annotated[tuple[SkipValidation[WorkloadConfig], ...], BeforeValidator(_plugins("workload"))]
    schemes: Annotated[tuple[SkipValidation[Scheme], ...], BeforeValidator(_plugins("scheme"))]
    attacks: Annotated[tuple[SkipValidation[AttackEntry], ...], BeforeValidator(_attacks)] = ()
    seeds: Seeds
    only: Annotated[dict[str, tuple[str, ...]], PlainValidator(_only)] = Field(default_factory=dict)
    calibration: CalibrationSpec | None = None
    executor: ExecutorSpec = Field(default_factory=ExecutorSpec)
    keys: KeysSpec | None = None
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _notes: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def of(cls, document: YamlDocument, *, data_root: Path | None = None, folder: Path = Path()) -> Self:
        """Validate a document; relative paths in it start at ``folder``."""
        if not isinstance(document.value, dict):
            raise SpecError([Problem("expected a mapping with name, workloads, schemes, seeds", (), "line 1")])
        notes: list[str] = []
        context = {"data_root": data_root, "folder": folder, "notes": notes}
        try:
            spec = cls.model_validate(document.value, context=context)
        except ValidationError as error:
            raise SpecError(problems_of(error, document, cls)) from None
        spec._document = document.value
        spec._notes = tuple(notes)
        return spec

    @property
    def notes(self) -> tuple[str, ...]:
        """Choices made for the user (``first_available``), as text."""
        return self._notes

    def resolved(self) -> dict[str, Any]:
        """Return every field with grids and defaults written out, as JSON values."""
        return {
            "name": self.name,
            "description": self.description,
            "workloads": [w.config() for w in self.workloads],
            "schemes": [s.config() for s in self.schemes],
            "attacks": [_written(a) for a in self.attacks],
            "seeds": list(self.seeds),
            "only": {name: list(others) for name, others in self.only.items()},
            "calibration": None if self.calibration is None else self.calibration.model_dump(),
        }

    @property
    def digest(self) -> str:
        """Hex digest of ``resolved``."""
        return digest("spec", self.resolved())


def _written(entry: AttackEntry) -> dict[str, Any]:
    adversary = {k: v for k, v in entry.budget.config().items() if k != "name"}
    written = {**entry.attack.config(), "adversary": adversary}
    if entry.search is not None:
        written["strength"] = dataclasses.asdict(entry.search)
    return written
