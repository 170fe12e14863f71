"""A study's report as plain values, with its HTML and Markdown views."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wmarena.experiments.report.writers import html as report_html
from wmarena.experiments.study.documents import TrialDocument, shown
from wmarena.experiments.study.gamma import Statistics
from wmarena.experiments.study.measures import MEASURES, MeasureCall
from wmarena.experiments.study.pareto import best_of, directions_of, flatness, front
from wmarena.experiments.study.spec import StudySpec

_FLAT = 0.05
_MOST_LINES = 1000
_ENOUGH = 30
_RATES = (1e-2, 1e-4, 1e-6)


@dataclass(frozen=True)
class Table:
    """A table of text cells; ``words`` are the indices of text columns."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A figure: its file, and its content as a data URL."""

    file: str
    alt: str
    source: str


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    why: str
    pictures: tuple[Picture, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class StudyPage:
    """A study's report, independent of its format."""

    name: str
    description: str
    sentences: tuple[str, ...]
    counts: str
    sections: tuple[Section, ...]
    text: str

    def html(self) -> str:
        """Render one self-contained file; every name is escaped."""
        css = Path(report_html.__file__).parents[1] / "page.css"
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("study.html.j2")
        return template.render(page=self, style=Markup(css.read_text(encoding="utf-8")))

    def markdown(self) -> str:
        """Render Markdown; figures are links to files."""
        parts = [f"# {self.name}", self.description, " ".join(self.sentences), self.counts]
        for section in self.sections:
            parts += [f"## {section.title}", section.why]
            parts += [f"![{picture.alt}](figures/{picture.file})" for picture in section.pictures]
            parts += [_markdown_table(section.table)] if section.table else []
        parts += ["## Reproduce", f"```yaml\n{self.text.rstrip()}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.columns, tuple("---" for _ in table.columns), *table.lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def make_page(
    study: StudySpec,
    documents: Sequence[TrialDocument],
    confirmed: Sequence[TrialDocument],
    importance: Mapping[str, Mapping[str, float]],
    figures: Sequence[Path],
    busy: float | None,
) -> StudyPage:
    """Make the report."""
    best = best_of(documents, study)
    pictures = {path.stem: _picture(path) for path in figures}
    sections = [
        *_best_section(study, documents),
        *_confirmed_section(study, confirmed),
        *_drawn_sections(pictures, sum(document["feasible"] for document in documents)),
        *_gamma_section(best, pictures),
        *_response_section(best),
        _trials_section(study, documents),
    ]
    return StudyPage(
        name=study.name,
        description=study.description,
        sentences=tuple(_sentences(study, documents, best, confirmed)),
        counts=_counts(study, documents, busy),
        sections=tuple(sections),
        text=study.text,
    )


def _picture(path: Path) -> Picture:
    raw = base64.b64encode(path.read_bytes()).decode()
    return Picture(path.name, path.stem, f"data:image/svg+xml;base64,{raw}")


def _sentences(
    study: StudySpec, documents: Sequence[TrialDocument], best: TrialDocument | None, confirmed: Sequence[TrialDocument]
) -> Iterator[str]:
    if best is None:
        yield "No trial keeps every limit."
        return
    chosen = ", ".join(f"{path} = {shown(value)}" for path, value in best["params"].items())
    values = ", ".join(f"{name} {value:.4g}" for name, value in best["values"].items())
    what = "Best" if len(study.objectives) == 1 else "Nearest to the ideal point of the front"
    yield f"{what} is trial {best['number']}: {chosen}, with {values}."
    for name in directions_of(study):
        p = flatness(documents, name)
        if p is not None and p > _FLAT:
            yield f"The surface of {name} is flat: trials differ no more than seeds do (one-way ANOVA, p = {p:.2g})."
        elif p is not None:
            yield f"Trials differ in {name} by more than seeds do (one-way ANOVA, p = {p:.2g})."
    by_label = {d["label"]: d for d in confirmed if d["state"] == "complete"}
    if {"default", "best"} <= by_label.keys():
        pairs = [
            (name, by_label["default"]["values"][name], by_label["best"]["values"][name])
            for name in directions_of(study)
        ]
        pairs_text = ", ".join(f"{name} {after:.4g} against {before:.4g}" for name, before, after in pairs)
        yield f"On seeds that no trial used, best against default: {pairs_text}."


def _counts(study: StudySpec, documents: Sequence[TrialDocument], busy: float | None) -> str:
    states = Counter(d["state"] for d in documents)
    infeasible = sum(d["state"] == "complete" and not d["feasible"] for d in documents)
    parts = [f"{len(documents)} trials", *(f"{n} {state}" for state, n in states.items())]
    parts += [f"{infeasible} of the complete ones break a limit"] if infeasible else []
    parts += [f"workers {100 * busy:.0f} % busy in the last run"] if busy is not None else []
    sampler = f"sampler {study.sampler.name}" + (f", pruner {study.pruner.name}" if study.pruner.name != "none" else "")
    return f"{', '.join(parts)}; {sampler}. Objectives and limits read validation data only."


def _best_section(study: StudySpec, documents: Sequence[TrialDocument]) -> Iterator[Section]:
    found = front(documents, directions_of(study))
    if found:
        title = "Best trial" if len(study.objectives) == 1 else "Pareto front"
        yield Section("best", title, _objective_words(study), table=_table(study, found))


def _objective_words(study: StudySpec) -> str:
    words = [f"{asked} ({direction}): {MEASURES[asked.name].doc}" for asked, direction in study.objectives.items()]
    limits = ", ".join(str(limit) for limit in study.constraints)
    return "; ".join(words) + (f". Limits: {limits}." if limits else ".")


def _confirmed_section(study: StudySpec, confirmed: Sequence[TrialDocument]) -> Iterator[Section]:
    if not confirmed:
        return
    asked = [*study.objectives, MeasureCall("fidelity_drop")]
    lines = []
    for document in confirmed:
        cells = []
        for name in dict.fromkeys(map(str, asked)):
            value, by_seed = document.get("measures", {}).get(name), document.get("by_seed", {}).get(name, [])
            seeds = f" ({', '.join(f'{v:.4g}' for v in by_seed)})" if len(by_seed) > 1 else ""
            cells.append("–" if value is None else f"{value:.4g}{seeds}")
        lines.append((document["label"], *cells, document["why"]))
    columns = ("configuration", *dict.fromkeys(map(str, asked)), "remark")
    why = f"Seeds {', '.join(map(str, study.confirm_seeds or ()))}, which no trial used; in brackets each seed."
    yield Section("confirmed", "On fresh seeds", why, table=Table(columns, tuple(lines), frozenset({len(columns) - 1})))


_DRAWN = (
    ("history", "History", "Each objective by trial."),
    ("importance", "Importance", "Share of an objective's variance that each parameter explains (fANOVA)."),
    ("contour", "Surface", "Trials as points; interpolated in between, outside the nearest trial's value."),
    ("front", "Front", "The Pareto front, and the volume that it dominates by trial."),
)


def _drawn_sections(pictures: Mapping[str, Picture], n_trials: int) -> Iterator[Section]:
    for stem, title, why in _DRAWN:
        if stem == "importance" and n_trials < _ENOUGH:
            why += f" From {n_trials} trials it is mostly noise: wait for {_ENOUGH}."
        found = tuple(picture for name, picture in pictures.items() if name.partition("-")[0] == stem)
        if found:
            yield Section(stem, title, why, found)


def _gamma_section(best: TrialDocument | None, pictures: Mapping[str, Picture]) -> Iterator[Section]:
    if best is None:
        return
    found = Statistics.of(best["statistics"])
    chosen = [(rate, found.choose(rate)) for rate in _RATES]
    lines = [_gamma_line(f"false positives ≤ {rate:g}", gamma, found) for rate, gamma in chosen if gamma is not None]
    own = best["params"].get("gamma", found.own)
    if own is not None:
        lines.insert(0, _gamma_line("the trial's own" if "gamma" in best["params"] else "the scheme's own", own, found))
    exact = "exact binomial tail" if found.q is not None else "Clopper–Pearson, one-sided 95 %"
    why = (
        f"Stored statistics of the best trial at every γ, without a new run. The {exact} bounds the false positives; "
        f"power is the share of marked models, and of attacked ones within the budget, that pass (95 % interval)."
    )
    columns = ("threshold", "γ", "false positives", "power", "interval")
    table = Table(columns, tuple(lines)) if lines and found.positives() else None
    yield Section("gamma", "Threshold γ", why, tuple(p for n, p in pictures.items() if n == "gamma"), table)


def _gamma_line(label: str, gamma: float, found: Statistics) -> tuple[str, ...]:
    bound, power = found.false_positive_bound(gamma), found.power(gamma)
    low, high = found.power_interval(gamma) if found.positives() else (0.0, 1.0)
    shown_power = "–" if power is None else f"{power:.3f}"
    return label, f"{gamma:.4g}", "–" if bound is None else f"{bound:.2g}", shown_power, f"{low:.3f}…{high:.3f}"


def _response_section(best: TrialDocument | None) -> Iterator[Section]:
    responses = best["best_responses"] if best is not None else []
    attacked = [r for r in responses if r["attack"] != "none"]
    if not attacked:
        return
    lines = tuple(_response_line(response) for response in responses)
    mean = fmean(r["margin"] for r in responses)
    why = (
        f"The smallest margin after attacks on the best trial within the accuracy budget, "
        f"seed by seed. Its mean, {mean:.4g}, is the scheme's robustness here."
    )
    columns = ("", "attack", "fields", "margin", "accuracy drop, pp")
    yield Section("response", "The attacker’s best response", why, table=Table(columns, lines, frozenset({1, 2})))


def _response_line(response: Mapping[str, Any]) -> tuple[str, ...]:
    fields = ", ".join(f"{name}={shown(value)}" for name, value in _chosen_fields(response).items())
    drop = "–" if response["drop"] is None else f"{100 * response['drop']:.2f}"
    return f"seed {response['seed']}", response["attack"], fields, f"{response['margin']:.4g}", drop


def _chosen_fields(response: Mapping[str, Any]) -> dict[str, Any]:
    strength = {response["strength_name"]: response["strength"]} if response["strength_name"] else {}
    return {**strength, **{k: v for k, v in response["params"].items() if v is not None and not isinstance(v, list)}}


def _trials_section(study: StudySpec, documents: Sequence[TrialDocument]) -> Section:
    why = "Trials are pruned at the first verification, by the pruner, or if perfect seeds could not beat the best."
    if len(documents) > _MOST_LINES:
        why += f" The first {_MOST_LINES} of {len(documents)}; trials.csv has all."
    return Section("trials", "Trials", why, table=_table(study, documents[:_MOST_LINES]))


def _table(study: StudySpec, documents: Sequence[TrialDocument]) -> Table:
    searched, asked = list(study.space), [str(a) for a in study.objectives]
    lines = tuple(
        (
            str(d["number"]),
            *(shown(d["params"].get(path)) for path in searched),
            *(f"{d['values'][name]:.4g}" if name in d["values"] else "–" for name in asked),
            d["state"] if d["feasible"] or d["state"] != "complete" else "breaks a limit",
            d["why"] or ", ".join(f"{n}: over by {v:.3g}" for n, v in d["constraints"].items() if v > 0),
        )
        for d in documents
    )
    columns = ("trial", *searched, *asked, "state", "why")
    return Table(columns, lines, frozenset({len(columns) - 2, len(columns) - 1}))
