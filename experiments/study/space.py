"""Search space of a study: ``schemes.mtlsign.lambda1: {low: 0.02, high: 0.2}``, ``attacks[0]: {choices: [...]}``, γ.

The experiment itself decides whether a range is of integers or numbers, and whether its ends are allowed: it is
validated with both ends and an inner point, and its problems become those of the range.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

from wmarena.experiments.spec.entries import is_number
from wmarena.experiments.spec.problems import Problem, SpecError, unknown
from wmarena.experiments.spec.yaml_lines import YamlDocument
from wmarena.experiments.study.question import StudyExperiment
from wmarena.experiments.study.words import GAMMA, meant, written
from wmarena.orchestrator.plan.proposals import Choices, Range

_FIELDS = ("low", "high", "step", "log", "choices")
_INSIDE = 0.371


def read_space(raw: Any) -> dict[str, Range | Choices]:
    """Read the parts of ``search:``, without validation by the experiment."""
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError(f"expected fields to search, such as schemes.mtlsign.lambda1: [0.1, 1], got {raw!r}")
    out: dict[str, Range | Choices] = {}
    wrong = []
    for path, part in raw.items():
        try:
            out[str(path)] = _part(part)
        except ValueError as error:
            wrong.append(f"{path}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return out


def _part(raw: Any) -> Range | Choices:
    if isinstance(raw, list):
        raw = {"choices": raw}
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected {{low, high}} or {{choices: [...]}}, got {raw!r}")
    for name in raw:
        if name not in _FIELDS:
            raise ValueError(unknown(name, _FIELDS))
    if "choices" in raw:
        choices = raw["choices"]
        if len(raw) > 1 or not isinstance(choices, list) or not choices:
            raise ValueError(f"expected a list of choices and nothing beside it, got {dict(raw)!r}")
        return Choices(tuple(written(choice) for choice in choices))
    low, high, step, log = raw.get("low"), raw.get("high"), raw.get("step"), raw.get("log", False)
    if not _number(low) or not _number(high) or not low < high:
        raise ValueError(f"expected numbers low < high, got low: {low!r}, high: {high!r}")
    if log not in (True, False) or (log and low <= 0):
        raise ValueError(f"expected low above 0 on a logarithmic scale, got low: {low!r}, log: {log!r}")
    if step is not None and (log or not _number(step) or not 0 < step <= high - low):
        raise ValueError(f"expected a step of at most high - low on a linear scale, got {step!r}")
    whole = all(isinstance(v, int) for v in (low, high, step) if v is not None)
    return Range(low=low, high=high, step=step, log=log, whole=whole)


def _number(value: Any) -> TypeGuard[float]:
    return is_number(value) and abs(value) < float("inf")


def resolved_space(
    search: Mapping[str, Range | Choices], question: StudyExperiment, document: YamlDocument
) -> tuple[dict[str, Range | Choices], list[Problem]]:
    """Resolve the type of every part, and collect the experiment's problems with it."""
    space: dict[str, Range | Choices] = {}
    problems: list[Problem] = []
    for path, part in search.items():
        space[path], wrong = _gamma(part) if path == GAMMA else _resolved(path, part, question)
        if wrong:
            problems.append(Problem(wrong, ("search", path), document.place(("search", path))))
    return space, problems


def _gamma(part: Range | Choices) -> tuple[Range | Choices, str]:
    ends = part.options if isinstance(part, Choices) else (part.low, part.high)
    if not all(_number(end) and 0 <= float(end or 0) <= 1 for end in ends):
        return part, f"expected γ within [0, 1], got {list(ends)}"
    if isinstance(part, Range):
        part = Range(low=part.low, high=part.high, step=part.step, log=part.log)
    return part, ""


def _resolved(path: str, part: Range | Choices, question: StudyExperiment) -> tuple[Range | Choices, str]:
    """Resolve the type of a part; return it with a problem, or ""."""
    if path.rpartition(".")[2] == GAMMA:
        return part, "expected `gamma` by itself, got it as a field; the threshold is searched on stored evidence"
    if isinstance(part, Choices):
        return part, next(filter(None, (_refusal(path, option, question) for option in part.options)), "")
    # An uneven point is no integer: if the experiment takes it, the field takes numbers.
    inside = part.low + _INSIDE * (part.high - part.low)
    smooth = part.step is None or not part.whole
    if part.whole and smooth and not _refusal(path, inside, question):
        part = Range(low=part.low, high=part.high, step=part.step, log=part.log)
    wrong = [_refusal(path, part.rounded(end), question) for end in (part.low, part.high)]
    if not part.whole and not any(wrong):
        wrong.append(_refusal(path, inside, question))
    return part, next(filter(None, wrong), "")


def _refusal(path: str, value: Any, question: StudyExperiment) -> str:
    try:
        question.with_params({path: meant(value)})
    except SpecError as error:
        return f"{value!r} cannot be tried: {error.problems[0].message}"
    return ""
