"""The plan of an execution as a file beside its report: for people, and for what the journal does not say.

A verify task consumes a suspect and a key; that its row is compared with a certain clean twin, or drawn over a certain
strength, is known to the plan alone. ``save_plan`` keeps it, ``load_links`` reads back what a recorder needs.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.plan import Plan
from orchestrator.task import TaskId

PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a verify task (a row of the table) or an embed task is compared with.

    Attributes:
        clean: train task of the compute-matched clean twin.
        scratch: train task on the adversary's data alone, or None.
        strength_name, strength: the attack's monotone strength, or None.
    """

    clean: TaskId
    scratch: TaskId | None = None
    strength_name: str | None = None
    strength: float | None = None

    @property
    def tasks(self) -> list[TaskId]:
        """Tasks whose results the comparison needs."""
        return [self.clean] if self.scratch is None else [self.clean, self.scratch]


def plan_document(plan: Plan, cached: Collection[TaskId] = ()) -> dict[str, Any]:
    """The plan as JSON values: tasks in planning order, counts by kind, how many were there before, cells."""
    tasks = [
        {
            "id": t.id,
            "kind": t.kind.value,
            "label": t.label,
            "parents": list(t.parent_ids),
            "cached": t.id in cached,
        }
        for t in plan
    ]
    return {
        "tasks": tasks,
        "counts": plan.counts(),
        "cached": sum(t["cached"] for t in tasks),
        "cells": [dataclasses.asdict(cell) for cell in plan.cells],
    }


def save_plan(plan: Plan, folder: Path, cached: Collection[TaskId] = ()) -> Path:
    """Write ``plan.json`` under ``folder``, whole or not at all; again when the plan has grown."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN_FILE
    part = folder / f".{PLAN_FILE}.{uuid.uuid4().hex}.part"
    try:
        part.write_text(json.dumps(plan_document(plan, cached), indent=1), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load_links(folder: Path) -> Mapping[TaskId, Link]:
    """Verify or embed task -> what it is compared with; {} where no plan was saved.

    Raises:
        ValueError: the file is not what ``save_plan`` writes.
    """
    path = folder / PLAN_FILE
    try:
        return _read_links(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=4)
def _read_links(path: Path, changed_ns: int) -> Mapping[TaskId, Link]:
    """The file's links; a recorder asks every second, and parses again only when the file has changed."""
    try:
        cells, names = json.loads(path.read_text(encoding="utf-8"))["cells"], [f.name for f in dataclasses.fields(Link)]
        links = {TaskId(cell["embed"]): Link(clean=cell["clean"]) for cell in cells}
        return links | {TaskId(cell["verify"]): Link(**{name: cell[name] for name in names}) for cell in cells}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        shown = type(error).__name__
        raise ValueError(f"expected a plan with cells, got {path} ({shown}); delete it to do without") from None
