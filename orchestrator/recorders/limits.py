"""What MLflow takes in one call, under which names, and what it refuses."""

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

MAX_PARAMS, MAX_METRICS = 100, 900
MAX_DIGEST = 36
MAX_NOTE = 7900
_MAX_KEY = 250

REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
"""Errors that speak of one entry, not of the tracker."""


def key(name: str) -> str:
    """A name that MLflow takes: letters, digits, ``_-./: ``."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:_MAX_KEY]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in pieces of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))
