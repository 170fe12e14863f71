"""Conversion of searched values to and from Optuna."""

import json
from typing import Any

GAMMA = "gamma"
"""Search field of the threshold on the statistic, in [0, 1]."""


def written(choice: Any) -> bool | int | float | str | None:
    """Encode a choice for Optuna: lists and mappings as JSON text."""
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    return json.dumps(choice, sort_keys=True)


def meant(value: Any) -> Any:
    """Decode a choice from Optuna."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
