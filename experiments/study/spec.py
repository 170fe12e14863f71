"""The study's specification: an experiment, fields to search, measures to optimise, limits, sampler and pruner.

``StudySpec.load("digits_lambda")`` reads a file or a shipped study. Trials are the experiment with some fields set;
``gamma`` is no field but a threshold on stored evidence, so its search runs no task.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
)

from wmarena.experiments.spec import experiment as specs
from wmarena.experiments.spec.labels import table_name
from wmarena.experiments.spec.problems import Problem, SpecError, unknown
from wmarena.experiments.spec.shipped import Shipped
from wmarena.experiments.spec.validation import Seeds, SpecBlock, YamlSpec, by_line, problems_of
from wmarena.experiments.spec.yaml_lines import YamlDocument
from wmarena.experiments.study.measures import MEASURES, MeasureBound, MeasureCall
from wmarena.experiments.study.question import StudyExperiment, question_of
from wmarena.experiments.study.space import read_space, resolved_space
from wmarena.experiments.study.words import GAMMA
from wmarena.orchestrator.plan.identity import digest
from wmarena.orchestrator.plan.proposals import Direction, Method, PrunerName, SamplerName, Space

SHIPPED = Shipped(specs.SHIPPED.folder / "studies", "study")

_ASKED = re.compile(r"\s*([a-z0-9_]+)\s*(?:\(\s*([^()]+?)\s*\))?\s*")
_LIMIT = re.compile(rf"({_ASKED.pattern})(<=|>=)\s*(\S+)\s*")


def _measure(text: str) -> MeasureCall:
    found = _ASKED.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a measure such as margin or margin(fine_prune), got {text!r}")
    name, attack = found[1], found[2]
    if name not in MEASURES:
        raise ValueError(unknown(name, MEASURES, "measure"))
    if attack is not None and not MEASURES[name].attacks:
        raise ValueError(f"expected {name} without an attack, got {text!r}; it is about the marked model alone")
    return MeasureCall(name, attack)


def _objectives(raw: Any) -> dict[MeasureCall, Direction]:
    """Read ``{margin(fine_prune): maximize}``."""
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError(f"expected measures with maximize or minimize, such as {{robustness: maximize}}, got {raw!r}")
    out: dict[MeasureCall, Direction] = {}
    for text, direction in raw.items():
        if direction not in ("maximize", "minimize"):
            raise ValueError(f"expected maximize or minimize for {text}, got {direction!r}")
        out[_measure(str(text))] = direction
    return out


def _limits(raw: Any) -> tuple[MeasureBound, ...]:
    """Read ``[fidelity_drop <= 0.01]``."""
    listed = [raw] if isinstance(raw, str) else raw
    if not isinstance(listed, list | tuple):
        raise ValueError(f"expected a list such as [fidelity_drop <= 0.01], got {raw!r}")
    return tuple(_limit(item) for item in listed)


def _limit(text: Any) -> MeasureBound:
    found = _LIMIT.fullmatch(text) if isinstance(text, str) else None
    try:
        if found is None:
            raise ValueError
        return MeasureBound(_measure(found[1]), found[4] == ">=", float(found[5]))
    except ValueError as error:
        message = str(error) if found is not None and "measure" in str(error) else ""
        raise ValueError(message or f"expected `measure <= number` or `measure >= number`, got {text!r}") from None


def _named(raw: Any) -> Any:
    """Read ``tpe`` as ``{name: tpe}``."""
    return {"name": raw} if isinstance(raw, str) else raw


def _storage(raw: Any) -> str | None:
    """Refuse passwords: the study's text goes into reports and MLflow."""
    if raw is not None and not re.match(r"(sqlite|postgresql)(\+\w+)?://", str(raw)):
        raise ValueError(f"expected sqlite:///FILE or postgresql://USER@HOST/DATABASE, got {raw!r}")
    if raw is not None and re.match(r"[^:]+://[^/@]*:[^/@]*@", str(raw)):
        raise ValueError("expected a URL without a password, got one with; put it into PGPASSWORD or ~/.pgpass")
    return None if raw is None else str(raw)


class SamplerSpec(SpecBlock):
    """How trials are proposed: ``tpe`` (multivariate), ``nsga2``, ``gp``, ``random``, ``grid``."""

    name: SamplerName = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    startup: Annotated[int, Field(ge=1, strict=True)] = 10
    population: Annotated[int, Field(ge=2, strict=True)] = 50


class PrunerSpec(SpecBlock):
    """How trials are pruned, by their objective at growing strengths of the field ``on``."""

    name: PrunerName = "none"
    on: Annotated[str, Field(strict=True)] = "epochs"
    startup: Annotated[int, Field(ge=1, strict=True)] = 5


class StudySpec(YamlSpec):
    """One search."""

    shipped: ClassVar[Shipped] = SHIPPED

    experiment: Any
    search: Annotated[Mapping[str, Any], PlainValidator(read_space)]
    objectives: Annotated[Mapping[MeasureCall, Direction], PlainValidator(_objectives)]
    constraints: Annotated[tuple[MeasureBound, ...], PlainValidator(_limits)] = ()
    trials: Annotated[int, Field(ge=1, le=100_000, strict=True)] | None = None
    sampler: Annotated[SamplerSpec, BeforeValidator(_named)] = Field(default_factory=SamplerSpec)
    pruner: Annotated[PrunerSpec, BeforeValidator(_named)] = Field(default_factory=PrunerSpec)
    storage: Annotated[str | None, PlainValidator(_storage)] = None
    seeds: Seeds | None = None
    confirm_seeds: Seeds | None = None
    warm_start: tuple[Annotated[str, Field(strict=True)], ...] = ()
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _question: StudyExperiment = PrivateAttr()
    _folder: Path = PrivateAttr(default_factory=Path)
    _space: Space = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, document: YamlDocument, *, data_root: Path | None = None, folder: Path = Path()) -> Self:
        """Validate a document and the experiment in it; relative paths start at ``folder``."""
        if not isinstance(document.value, dict):
            raise SpecError.of("expected a mapping with name, experiment, search, objectives")
        study, problems = None, list[Problem]()
        try:
            study = cls.model_validate(document.value)
        except ValidationError as error:
            problems = problems_of(error, document, cls)
        question, wrong = question_of(document, document.value.get("seeds"), data_root, folder)
        problems += wrong
        if study is not None and question is not None:
            problems += study._contradictions(question, document)
        if problems or study is None or question is None:
            raise SpecError(by_line(problems))
        study._document, study._question, study._folder = document.value, question, folder
        return study

    def _contradictions(self, question: StudyExperiment, document: YamlDocument) -> list[Problem]:
        """Collect the problems between fields, and between study and experiment."""
        self._space, out = resolved_space(self.search, question, document)

        def add(message: str, *path: str) -> None:
            out.append(Problem(message, path, document.place(path) if path != ("trials",) else "line 1"))

        if len(question.spec.schemes) != 1:
            got = f"got {len(question.spec.schemes)}; give each its own study"
            add(f"expected one configured scheme to tune, {got}", "experiment", "schemes")
        if self.pruner.name != "none" and len(self.objectives) > 1:
            got = f"got {len(self.objectives)}; Optuna prunes no others"
            add(f"expected one objective with a pruner, {got}", "pruner")
        labels = sorted({table_name(entry.attack) for entry in question.spec.attacks})
        asked = [(a, ("objectives", str(a))) for a in self.objectives]
        for measure, path in [*asked, *((limit.asked, ("constraints",)) for limit in self.constraints)]:
            if measure.attack is not None and measure.attack not in labels:
                add(unknown(measure.attack, labels, "attack of the experiment"), *path)
            elif MEASURES[measure.name].needs_attack and not labels:
                add(f"expected attacks in the experiment for {measure.name}, got none", *path)
        if self.sampler.name == "grid":
            for name, part in self.search.items():
                if part.values is None:
                    what = "expected a step or choices for a grid, got a range that cannot be counted"
                    add(what, "search", name)
        elif self.trials is None:
            add("expected a number of trials, got nothing", "trials")
        return out

    @property
    def folder(self) -> Path:
        """Base of relative paths in the study."""
        return self._folder

    @property
    def question(self) -> StudyExperiment:
        """The experiment of the study."""
        return self._question

    @property
    def space(self) -> Space:
        """The search space."""
        return self._space

    @property
    def digest(self) -> str:
        """Hex digest of experiment, measures and searched fields: trials are comparable only under one digest."""
        measured = [[str(asked) for asked in self.objectives], [str(limit) for limit in self.constraints]]
        return digest("study", [self.question.spec.digest, *measured, sorted(self.search)])

    @property
    def gamma_only(self) -> bool:
        """True if only γ is searched."""
        return set(self.search) == {GAMMA}

    def method(self, rungs: tuple[int, ...] = ()) -> Method:
        """Return Optuna's settings."""
        return Method(
            sampler=self.sampler.name,
            pruner=self.pruner.name,
            seed=self.sampler.seed,
            startup=self.sampler.startup if self.pruner.name == "none" else self.pruner.startup,
            population=self.sampler.population,
            rungs=rungs,
        )
