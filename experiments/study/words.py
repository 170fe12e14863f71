"""How a study writes what it searches."""

import json
from typing import Any

GAMMA = "gamma"
"""The threshold on the statistic, in [0, 1]: searched without running anything."""


def written(choice: Any) -> bool | int | float | str | None:
    """A choice as Optuna keeps it: lists and mappings as JSON text."""
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    return json.dumps(choice, sort_keys=True)


def meant(value: Any) -> Any:
    """What a choice stands for."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
