"""A tracker's parent run of an execution: at its begin and at its end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from wmarena.orchestrator.plan.identity import digest_text
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.recorders.fields import PREFIX, RunFields, cut, data_set
from wmarena.orchestrator.recorders.links import ComparisonLink
from wmarena.orchestrator.recorders.summary import RunTask, count_states, execution_note
from wmarena.orchestrator.recorders.tracker import Ending, ParentRun, ParentRunResults

_MAX_LIST = 500
_ENDINGS: dict[str, Ending] = {"done": "done", "failed": "failed"}


def opening(run: Mapping[str, Any], tasks: Iterable[RunTask]) -> ParentRun:
    """Describe an execution that has begun.

    Args:
        run: one of ``Journal.runs``. Used of its ``info``: ``spec_digest``, ``code_version``, ``description``.
        tasks: ``Journal.run_tasks``.
    """
    info = run["info"]
    return ParentRun(
        run_id=run["id"],
        started_ms=int(1000 * run["started"]),
        tags={
            f"{PREFIX}run_id": run["id"],
            f"{PREFIX}kind": "run",
            f"{PREFIX}spec_digest": str(info.get("spec_digest") or digest_text("spec", run["spec"])),
            f"{PREFIX}code_version": str(info.get("code_version") or _installed_version()),
            f"{PREFIX}reuses": str(sum(cached for _, _, cached, _ in tasks)),
            f"{PREFIX}status": run["status"],
        },
        note=str(info.get("description") or ""),
    )


def compared_names(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return an execution's workloads, schemes, attacks and seeds as parameters."""
    found = {name + "s": sorted({c[name] for c in cells}) for name in ("workload", "scheme", "attack", "seed")}
    return {name: cut(", ".join(map(str, values)), _MAX_LIST) for name, values in found.items() if values}


def closing(
    run: Mapping[str, Any],
    tasks: Sequence[RunTask],
    rows: Mapping[TaskId, RunFields],
    links: Mapping[TaskId, ComparisonLink],
    *,
    cells: Sequence[Mapping[str, Any]] = (),
    figures: Sequence[str] = (),
) -> ParentRunResults:
    """Describe an execution that is over; a killed one ended when it last settled a task."""
    counts = count_states(tasks)
    own = [rows[t]["finished"] for _, t, cached, _ in tasks if t in rows and not cached]
    finished = float(run["finished"] or max(own, default=run["started"]))
    elapsed = max(0.0, finished - run["started"])
    killed = run["status"] not in _ENDINGS
    return ParentRunResults(
        ending=_ENDINGS.get(run["status"], "killed"),
        ended_ms=int(1000 * (run["started"] + elapsed)),
        tags={f"{PREFIX}reuses": str(counts["cached"]), f"{PREFIX}status": "interrupted" if killed else run["status"]},
        metrics={f"n_{name}": float(n) for name, n in counts.items()} | {"seconds": elapsed},
        note=execution_note(run, tasks, rows, links),
        params=compared_names(cells),
        data=sorted({data_set(row, run["info"].get("data_sets")) for row in rows.values()}, key=astuple),
        figures=figures,
    )


def _installed_version() -> str:
    try:
        return version("wmarena")
    except PackageNotFoundError:
        return "unknown"
