"""Prepares a study: restores trials of a killed one, and queues those of the grid and of earlier studies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wmarena.experiments.planning.expand import expand
from wmarena.experiments.planning.workload_planner import PlannerCache
from wmarena.experiments.spec.problems import SpecError, unknown
from wmarena.experiments.study.documents import FINISHED, TrialDocument, outcome_of
from wmarena.experiments.study.pareto import directions_of, feasible, front
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.study.words import GAMMA, written
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.proposals import Choices, RecordedTrial, Space, TrialParams
from wmarena.orchestrator.running.resume import find
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.tuner import Tuner

STORE = "store"
"""Entry of ``warm_start`` for all embeddings in the store."""


def prepare(study: StudySpec, tuner: Tuner, store: Store, journal: Journal, planners: PlannerCache) -> None:
    """Synchronise Optuna with the journal, then queue the first trials.

    Raises:
        SpecError: the study's trials belong to another question, or an earlier study is unknown.
    """
    known = journal.trials(study.name)
    if any(document["question"] != study.digest for document in known.values()):
        raise SpecError.of(
            f"expected the question that study {study.name!r} was begun with, got another; rename it", "name"
        )
    recall(study, tuner, known.values())
    _reconcile(study, tuner, journal, known)
    if study.sampler.name == "grid":
        tuner.propose(tuner.grid())  # complete, so earlier studies add nothing
        return
    tuner.propose(list(_earlier(study, store, journal, planners)), warm=True)
    default = None if known else _default(study)
    tuner.propose([default] if default is not None else [])


def recall(study: StudySpec, tuner: Tuner, known: Iterable[TrialDocument]) -> None:
    """Add all trials of the journal to Optuna, also those of other machines.

    Args:
        known: those trials, by number.

    Raises:
        StoreError: the storage that the study names has other trials.
    """
    tuner.recall([_past(document) for document in known], anew=study.storage is None)


def _past(document: TrialDocument) -> RecordedTrial:
    return RecordedTrial(
        number=document["number"],
        params=document["params"],
        outcome=outcome_of(document) if document["state"] in FINISHED else None,
        warm=document["warm"],
        told=[(step, value) for step, value in document.get("told", ())],
    )


def _reconcile(study: StudySpec, tuner: Tuner, journal: Journal, known: Mapping[int, TrialDocument]) -> None:
    """Mark unfinished trials as lost and retry them; the journal decides which have ended.

    Trials that only a shared storage has belong to other drivers.
    """
    unfinished = tuner.unfinished()
    lost = {number: document for number, document in known.items() if document["state"] not in FINISHED}
    if study.storage is None:
        for number in unfinished.keys() - known.keys():
            begun = {"number": number, "params": unfinished[number], "question": study.digest, "warm": False}
            lost[number] = {**begun, "state": "running"}
    for number, document in lost.items():
        if document["state"] != "lost":
            journal.record_trial(study.name, number, {**document, "state": "lost"})
    for number in unfinished:
        if number in lost:
            tuner.give_up(number)
        elif number in known:
            tuner.tell(number, outcome_of(known[number]))
    tuner.retry(sorted(lost))


def _default(study: StudySpec) -> TrialParams | None:
    """Return the experiment as written, as a trial; None if it is outside the search space.

    The sampler chooses γ for a scheme without one.
    """
    out: TrialParams = {}
    for path, part in study.space.items():
        values = _written_values(study, path)
        if path == GAMMA and not values:
            continue
        if len(values) != 1 or not _contains(part, values[0]):
            return None
        out[path] = written(values[0])
    return out


def _written_values(study: StudySpec, path: str) -> list[Any]:
    """Return the experiment's values at a path of a scheme or workload; [] at other paths."""
    spec = study.question.spec
    if path == GAMMA:
        return [s.config()[GAMMA] for s in spec.schemes if GAMMA in s.config()]
    kind, _, rest = path.partition(".")
    name, _, field = rest.rpartition(".")
    entries: Sequence[Any] = spec.schemes if kind == "schemes" else spec.workloads if kind == "workloads" else ()
    return [entry.config()[field] for entry in entries if entry.name == name and field in entry.config()]


def _contains(part: Any, value: Any) -> bool:
    if part.values is not None:
        return value in part.values
    return not isinstance(part, Choices) and isinstance(value, int | float) and part.low <= value <= part.high


def _earlier(study: StudySpec, store: Store, journal: Journal, planners: PlannerCache) -> Iterator[TrialParams]:
    """Yield parameters of other studies or the store: those with all evidence stored, and the best ones."""
    names = journal.studies()
    for name in study.warm_start:
        if name == STORE:
            yield from (p for p in _embedded(study, journal) if _is_stored(study, p, store, journal, planners))
            continue
        if name not in names:
            what = unknown(name, [*(n for n in names if "#" not in n), STORE], "study of this store")
            raise SpecError.of(what, "warm_start")
        documents = [d for d in journal.trials(name).values() if d["state"] == "complete"]
        same = set(study.space) == set(documents[0]["params"]) if documents else False
        best = front(documents, directions_of(study)) if documents and _comparable(documents[0], study) else []
        for document in feasible(documents) if same else []:
            params: TrialParams = document["params"]
            if all(_contains(part, params[path]) for path, part in study.space.items()) and (
                document in best or _is_stored(study, params, store, journal, planners)
            ):
                yield params


def _comparable(document: TrialDocument, study: StudySpec) -> bool:
    return set(document["values"]) == set(directions_of(study))


def _is_stored(study: StudySpec, params: TrialParams, store: Store, journal: Journal, planners: PlannerCache) -> bool:
    """Return True if the store has all evidence of the trial."""
    try:
        plan = expand(study.question.with_params(params), planners=planners).plan
    except SpecError:
        return False
    return len(find(plan.tasks, store, journal).records) == len(plan)


def _embedded(study: StudySpec, journal: Journal) -> Iterator[TrialParams]:
    """Yield fields of earlier embeddings of the study's scheme, if the search is over such fields only."""
    scheme = study.question.spec.schemes[0].name
    prefix = f"schemes.{scheme}."
    space: Space = {path: part for path, part in study.space.items() if path != GAMMA}
    if not all(path.startswith(prefix) for path in space) or len(space) < len(study.space):
        return
    for config in journal.configurations("embed", scheme):
        found = {path: config["scheme"].get(path.removeprefix(prefix)) for path in space}
        if all(_contains(part, found[path]) for path, part in space.items()):
            yield found
