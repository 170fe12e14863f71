"""The plan of an execution as a file beside its report; WMArena never reads it."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import TaskId

PLAN_FILE = "plan.json"


def plan_document(plan: Plan, cached: Collection[TaskId] = ()) -> dict[str, Any]:
    """Return the plan as JSON values: tasks in planning order, counts by kind, number of cached tasks, cells."""
    tasks = [
        {"id": t.id, "kind": t.kind.value, "label": t.label, "parents": list(t.parent_ids), "cached": t.id in cached}
        for t in plan
    ]
    return {
        "tasks": tasks,
        "counts": plan.counts(),
        "cached": sum(t["cached"] for t in tasks),
        "cells": [cell.document() for cell in plan.cells],
    }


def save_plan(plan: Plan, folder: Path, cached: Collection[TaskId] = ()) -> Path:
    """Write ``plan.json`` under ``folder`` atomically; called again when the plan has grown."""
    path = folder / PLAN_FILE
    write_whole(path, json.dumps(plan_document(plan, cached), indent=1).encode())
    return path
