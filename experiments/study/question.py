"""The experiment of a study: read once, then instantiated for each trial with some fields set."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmarena.experiments.spec import experiment as specs
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.overrides import assign
from wmarena.experiments.spec.problems import Problem, SpecError
from wmarena.experiments.spec.yaml_lines import YamlDocument, read
from wmarena.experiments.study.words import GAMMA, meant


@dataclass(frozen=True)
class StudyExperiment:
    """A study's experiment, as document and as spec, with the study's seeds.

    Attributes:
        document: the experiment as read, with the lines of its file.
        spec: validated, without searched fields.
        folder: base of relative paths.
    """

    document: YamlDocument
    spec: ExperimentSpec
    folder: Path
    data_root: Path | None

    def with_params(
        self, params: Mapping[str, Any], *, seeds: Iterable[int] | None = None, name: str | None = None
    ) -> ExperimentSpec:
        """Return the experiment of a trial; ``gamma`` is applied to its evidence later. Raises SpecError."""
        copied = YamlDocument(copy.deepcopy(self.document.value), {})
        if seeds is not None:
            copied.value["seeds"] = list(seeds)
        if name is not None:
            copied.value["name"] = name
        # A whole chain is set before fields inside it.
        fields = {path: meant(params[path]) for path in sorted(params, key=len) if path != GAMMA}
        problems = [problem for path, value in fields.items() for problem in assign(copied, path, value, path)]
        if problems:
            raise SpecError(problems)
        return ExperimentSpec.of(copied, data_root=self.data_root, folder=self.folder)


def question_of(
    document: YamlDocument, seeds: Any, data_root: Path | None, folder: Path
) -> tuple[StudyExperiment | None, list[Problem]]:
    """Read the experiment, inline or by name; its problems have its own lines."""
    given = document.value.get("experiment")
    inline = isinstance(given, dict)
    try:
        if inline:
            inner = YamlDocument(copy.deepcopy(given), _below(document, "experiment"))
            inner.value.setdefault("name", document.value.get("name", "study"))
        elif isinstance(given, str):
            beside = folder / given
            path = specs.SHIPPED.find(beside if beside.is_file() else given)
            inner, folder = read(path.read_text(encoding="utf-8")), path.parent
        else:
            what = f"expected an experiment, or the file or shipped name of one, got {given!r}"
            return None, [Problem(what, ("experiment",), document.place(("experiment",)))]
        if isinstance(inner.value, dict):
            inner.value = {**inner.value} | ({"seeds": seeds} if seeds is not None else {})
        spec = ExperimentSpec.of(inner, data_root=data_root, folder=folder)
    except SpecError as error:
        where = "" if inline else f"{given}: "
        place = document.place(("experiment",))
        return None, [
            Problem(p.message, ("experiment", *p.path), p.place if inline else f"{place} ({where}{p.place})", p.also)
            for p in error.problems
        ]
    return StudyExperiment(inner, spec, folder, data_root), []


def _below(document: YamlDocument, part: str) -> dict[tuple[str | int, ...], str]:
    return {path[1:]: place for path, place in document.places.items() if path[:1] == (part,)}
