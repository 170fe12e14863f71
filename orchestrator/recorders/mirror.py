"""Mirrors the journal into a tracker: every entry exactly once, asynchronously to the run.

Sent entries are marked in the journal (``sent``). The mark is written after the entry, so before an entry is sent the
tracker is asked whether a pass killed in between has written it. Passes over one store exclude each other. Marks::

    <task id>              a finished train or embed task, or a cell      -> the tracker's run
    <task id>@<run id>     a failure, once per execution                  -> the tracker's run
    model:<task id>        the model that an embed or attack task made    -> the tracker's model
    run:<run id>           an execution                                   -> the tracker's run
    closed:, report:<run id>    its end, its report                       -> the run, a digest of the files
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from wmarena.orchestrator.files.locks import exclusive
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.recorders.attachments import figures_of, report_of
from wmarena.orchestrator.recorders.base import Recorder, SyncReport
from wmarena.orchestrator.recorders.execution import closing, opening
from wmarena.orchestrator.recorders.fields import MetricPoint, TrackerEntry, describe, points, relatives
from wmarena.orchestrator.recorders.links import ComparisonLinks
from wmarena.orchestrator.recorders.passes import Pass, lineage
from wmarena.orchestrator.recorders.studies import StudyMirror
from wmarena.orchestrator.recorders.summary import RunTask, entry_note
from wmarena.orchestrator.recorders.tracker import Delivery, ModelFile, TrackedRun, Tracker, TrackerError
from wmarena.orchestrator.store.local import CorruptArtifact, Store

_MODEL = "model.safetensors"
_HISTORY = "history.json"


class Mirror(Recorder):
    """Mirrors executions into a tracker.

    Args:
        store: source of training curves, models (by reference) and reports, never of keys.
        journal: a connection of its own: the driver writes through another.
    """

    def __init__(self, store: Store, journal: Journal, tracker: Tracker) -> None:
        self._store = store
        self._journal = journal
        self._tracker = tracker
        self._without_entry: set[TaskId] = set()
        self._runs: dict[str, Mapping[str, Any]] = {}
        self._links: dict[str, ComparisonLinks] = {}

    def sync(self, run_id: str, *, abandoned: bool = False) -> SyncReport:
        over = abandoned or not self._journal.run_going(run_id)
        run = self._run(run_id, fresh=over)
        tasks = self._journal.run_tasks(run_id)
        with self._exclusive():
            try:
                current = self._open(run, over, tasks)
            except TrackerError as error:
                waiting = sum(state in ("done", "failed") for *_, state in tasks)
                return SyncReport(failed=waiting, warning=self._warning(error), over=over)
            try:
                self._send_entries(current)
                if study := current.run["info"].get("study"):
                    description = str(current.run["info"].get("description") or "")
                    self._study(current).send(study, description, over)
                if over:
                    self._close(current)
            except TrackerError as error:
                current.warning = self._warning(error)
            return current.report()

    def attach_report(self, run_id: str, folder: Path) -> str | None:
        run = self._run(run_id, fresh=True)
        with self._exclusive():
            try:
                self._attach(self._open(run, True, self._journal.run_tasks(run_id)), folder)
            except TrackerError as error:
                return self._warning(error)
        return None

    def _run(self, run_id: str, *, fresh: bool) -> Mapping[str, Any]:
        """Return an execution's row; cached while it runs, because its spec and info are large."""
        if fresh or run_id not in self._runs:
            run = self._journal.run(run_id)
            if run is None:
                known = ", ".join(r["id"] for r in self._journal.runs()[:3]) or "none yet"
                raise LookupError(f"expected an execution of {self._store.root}, got {run_id!r}; the newest: {known}")
            self._runs[run_id] = run
        return self._runs[run_id]

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Wait until no other process mirrors this store."""
        with exclusive(self._store.root / "recorder.lock"), self._journal.exclusive("recorder"):
            yield

    def _warning(self, error: TrackerError) -> str:
        return (
            f"not everything is recorded at {self._tracker.address}: {error}; nothing is lost, the store has it all: "
            "`wmarena report --sync` sends it"
        )

    def _open(self, run: Mapping[str, Any], over: bool, tasks: list[RunTask]) -> Pass:
        """Open the experiment and the execution's parent run."""
        experiment = str(run["experiment"])
        number, place = self._tracker.open(experiment)
        current = Pass(
            run=run,
            over=over,
            tasks=tasks,
            links=self._links.setdefault(run["id"], ComparisonLinks(self._journal, run["id"])).refresh(),
            place=place,
            experiment=number,
            marks=self._journal.sent(place, experiment),
        )
        mark = TaskId(f"run:{current.run_id}")
        if mark not in current.marks:
            found = self._tracker.find_execution(current.run_id)
            self._remember(current, mark, found or self._tracker.start_execution(opening(run, tasks)))
        current.parent = current.marks[mark]
        return current

    def _remember(self, current: Pass, mark: TaskId, name: str) -> None:
        current.marks[mark] = name
        self._journal.mark_sent(current.place, current.run["experiment"], {mark: name})

    # Entries

    def _send_entries(self, current: Pass) -> None:
        entries = self._entries(current)
        with ThreadPoolExecutor(self._tracker.clients) as pool:
            for wave in current.waves(entries):
                # Marks are read in this thread, which alone writes them; entries of a wave use models of earlier waves.
                deliveries = [self._delivery(current, entry) for entry in wave]
                for delivery, future in [(d, pool.submit(self._deliver, d)) for d in deliveries]:
                    try:
                        sent = future.result()
                    except TrackerError as error:
                        current.failed += 1
                        current.warning = current.warning or self._warning(error)
                        if error.unreachable:
                            pool.shutdown(cancel_futures=True)
                            current.failed = len(entries) - current.sent
                            raise
                        continue
                    if delivery.entry.made is not None and sent.model is not None:
                        self._remember(current, TaskId(f"model:{delivery.entry.made}"), sent.model)
                    self._remember(current, delivery.entry.mark, sent.run)
                    current.sent += 1

    def _entries(self, current: Pass) -> list[TrackerEntry]:
        """Return the entries to send, in planning order."""
        pending = {t: state for t, state in current.pending().items() if t not in self._without_entry}
        current.rows = lineage(self._journal, current.links, pending)
        out: list[TrackerEntry] = []
        for task_id, state in pending.items():
            row = current.rows.get(task_id)
            if row is None or row["state"] != state:
                continue  # computed again since; this execution or a later one sends it
            if row["kind"] == "attack" and row["state"] == "done":
                self._without_entry.add(task_id)  # its verify tasks have the entries
                continue
            link, names = current.links.get(task_id), current.run["info"].get("data_sets")
            out.append(describe(row, current.rows, run_id=current.run_id, link=link, data_sets=names))
        return out

    def _delivery(self, current: Pass, entry: TrackerEntry) -> Delivery:
        row, link = current.rows[entry.task_id], current.links.get(entry.task_id)
        return Delivery(
            entry=entry,
            parent=current.parent,
            note=entry_note(relatives(row, current.rows, link), link),
            consumes=current.marks.get(TaskId(f"model:{entry.judged}")),
            model=current.marks.get(TaskId(f"model:{entry.made}")),
        )

    def _deliver(self, delivery: Delivery) -> TrackedRun:
        """Send an entry unless an earlier pass has; curves are read here, so that few are in memory at once."""
        entry = delivery.entry
        # Exactly once: an earlier pass may have been killed after sending and before marking.
        found = self._tracker.find(entry, delivery.parent)
        if found is not None:
            return found
        weights = None if entry.made is None else self._weights(entry.made)
        return self._tracker.send(replace(delivery, points=self._curves(entry), weights=weights))

    def _curves(self, entry: TrackerEntry) -> list[MetricPoint]:
        path = None if entry.curves_of is None else self._file(entry.curves_of, _HISTORY)
        return [] if path is None else list(points(json.loads(path.read_text(encoding="utf-8"))))

    def _weights(self, task_id: TaskId) -> ModelFile | None:
        try:
            return ModelFile(uri=self._store.uri(task_id, _MODEL), fetch=lambda: self._file(task_id, _MODEL))
        except CorruptArtifact:
            return None

    def _file(self, task_id: TaskId, name: str) -> Path | None:
        """Return a file of an artifact if it exists and is undamaged: artifacts may be removed before results."""
        try:
            return self._store.path(task_id, name)
        except CorruptArtifact:
            return None

    # Studies

    def _study(self, current: Pass) -> StudyMirror:
        remember = partial(self._remember, current)
        return StudyMirror(self._tracker, self._journal, current.marks, remember, current.experiment)

    # The end

    def _close(self, current: Pass) -> None:
        folder = self._store.report_dir(current.run["experiment"], current.run_id)
        mark = TaskId(f"closed:{current.run_id}")
        present, seen = report_of(folder)
        changed = bool(present) and current.marks.get(TaskId(f"report:{current.run_id}")) != seen
        if mark not in current.marks or current.sent or changed:
            settled = [t for _, t, _, state in current.tasks if state is not None]
            rows = lineage(self._journal, current.links, settled)
            cells = [cell for _, cell in self._journal.run_cells(current.run_id)]
            pictures = figures_of(folder)
            ending = closing(current.run, current.tasks, rows, current.links, cells=cells, figures=pictures)
            self._tracker.close_execution(current.parent, ending)
            self._tracker.write_text(current.parent, "spec.yaml", current.run["spec"])
            if not current.failed:
                self._remember(current, mark, current.parent)
        self._attach(current, folder)

    def _attach(self, current: Pass, folder: Path) -> None:
        """Send the report unless the same files were sent."""
        present, seen = report_of(folder)
        mark = TaskId(f"report:{current.run_id}")
        if present and current.marks.get(mark) != seen:
            for path in present:
                self._tracker.write_file(current.parent, path)
            self._remember(current, mark, seen)
        study = current.run["info"].get("study")
        if study and present:
            self._study(current).close(study, folder, seen)
