"""What a row says beyond its columns: the JSON of its column ``details``."""

import json
from collections.abc import Mapping
from typing import Any, Literal

Part = Literal["verdict", "attack", "claim"]
"""Whose words: the scheme's verdict, the attack's findings, the forger's account."""


def details(row: Mapping[str, Any], part: Part) -> Mapping[str, Any]:
    """One part of a row's details; empty where it has none."""
    found: Mapping[str, Any] = json.loads(row.get("details") or "{}").get(part) or {}
    return found
