"""Mirrors a study: one run for the study, a nested run for each trial, with links to the runs of its tasks."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.recorders.attachments import STUDY_FILES
from wmarena.orchestrator.recorders.fields import PREFIX
from wmarena.orchestrator.recorders.tracker import Ending, StudyEntry, Tracker

_ENDINGS: dict[str, Ending] = {"complete": "done", "pruned": "done", "failed": "failed", "lost": "killed"}
_MOST_LINKS = 60


Remember = Callable[[TaskId, str], None]
"""Stores a mark with the tracker's id of the sent entry."""


class StudyMirror:
    """Mirrors one study into a tracker.

    Args:
        marks: mark -> id of sent entries; ``remember`` adds to it.
        experiment: the tracker's id, for links.
    """

    def __init__(
        self, tracker: Tracker, journal: Journal, marks: Mapping[TaskId, str], remember: Remember, experiment: str
    ) -> None:
        self._tracker = tracker
        self._journal = journal
        self._marks = marks
        self._remember = remember
        self._experiment = experiment

    def send(self, study: str, description: str, over: bool) -> None:
        """Send the study's own run, and every ended trial that was not sent.

        Until an execution is ``over``, a trial waits for the runs of its tasks, to link to them.
        """
        trials = self._journal.trials(study)
        entry = StudyEntry(name=study, tags=_tags(study, "study"), note=description, ending="done")
        parent = self._once(TaskId(f"study:{study}"), entry, None)
        for number, document in trials.items():
            mark = TaskId(f"trial:{study}:{number}:{document['state']}")
            linked = over or all(task in self._marks for task in document.get("tasks", ()))
            if document["state"] in _ENDINGS and linked and mark not in self._marks:
                self._once(mark, self._trial_entry(study, document), parent)

    def close(self, study: str, folder: Path, files: str) -> None:
        """Send the study's metrics and report; ``files`` is a digest of the report's files."""
        parent, trials = self._marks[TaskId(f"study:{study}")], self._journal.trials(study)
        ended = [document for document in trials.values() if document["state"] in ("complete", "pruned", "failed")]
        metrics = {"n_trials": float(len(ended)), "n_feasible": float(sum(d["feasible"] for d in ended))}
        mark = TaskId(f"study-report:{study}")
        if self._marks.get(mark) != files:
            self._tracker.add_metrics(parent, metrics)
            for path in (folder / name for name in STUDY_FILES):
                if path.exists():
                    self._tracker.write_file(parent, path)
            self._remember(mark, files)

    def _once(self, mark: TaskId, entry: StudyEntry, parent: str | None) -> str:
        known = self._marks.get(mark)
        if known is None:
            known = self._tracker.find_study_entry(entry) or self._tracker.write_study_entry(entry, parent)
            self._remember(mark, known)
        return known

    def _trial_entry(self, study: str, document: Mapping[str, Any]) -> StudyEntry:
        number, state = document["number"], document["state"]
        excess = {f"excess/{name}": value for name, value in document.get("constraints", {}).items()}
        objective = next(iter(document.get("values", {})), "value")
        return StudyEntry(
            name=f"{study}/trial {number}",
            tags={
                **_tags(study, "trial"),
                f"{PREFIX}trial": str(number),
                f"{PREFIX}state": state,
                f"{PREFIX}feasible": str(bool(document.get("feasible"))).lower(),
                f"{PREFIX}warm": str(bool(document.get("warm"))).lower(),
            },
            params={name: str(value) for name, value in document["params"].items()},
            metrics={**document.get("measures", {}), **document.get("values", {}), **excess},
            points=tuple((f"intermediate/{objective}", value, step) for step, value in document.get("told", ())),
            note="\n\n".join(self._note_paragraphs(document)),
            ending=_ENDINGS[state],
            started_ms=int(1000 * (document.get("started") or 0)),
            ended_ms=int(1000 * (document.get("finished") or document.get("started") or 0)),
        )

    def _note_paragraphs(self, document: Mapping[str, Any]) -> Iterator[str]:
        values = ", ".join(f"{name} **{value:.4g}**" for name, value in document.get("values", {}).items())
        yield values or f"**{document['state']}**"
        if document.get("why"):
            yield str(document["why"])
        sent = [(t, self._marks[t]) for t in map(TaskId, document.get("tasks", ())) if t in self._marks]
        labels = {row["id"]: row["label"] for row in self._journal.task_rows(t for t, _ in sent[:_MOST_LINKS])}
        links = [f"- [{labels[t]}](#/experiments/{self._experiment}/runs/{run})" for t, run in sent if t in labels]
        if links:
            yield "Its tasks:\n" + "\n".join(links)


def _tags(study: str, kind: str) -> dict[str, str]:
    return {f"{PREFIX}study": study, f"{PREFIX}kind": kind}
