"""Specs as text for tests, small enough to run in seconds."""

import textwrap

from experiments.problems import SpecError
from experiments.spec import ExperimentSpec

TINY = """\
name: tiny
workloads:
  - {name: digits_mlp, epochs: 1, train_size: 200}
schemes:
  - {name: uchida, bits: 24}
attacks:
  - {name: finetune, variant: ftal, epochs: [1, 2]}
seeds: [0]
"""
"""A whole spec; runs in a few seconds on one thread."""


def with_lines(**blocks: str) -> str:
    """``TINY`` with some of its top-level blocks replaced: ``with_lines(seeds="seeds: [1]")``."""
    parts: dict[str, str] = {}
    for line in TINY.splitlines():
        if not line.startswith(" "):
            key = line.partition(":")[0]
            parts[key] = line
        else:
            parts[key] += "\n" + line
    for name, block in blocks.items():
        parts[name] = textwrap.dedent(block).strip("\n")
    return "\n".join(part for part in parts.values() if part) + "\n"


def problems(text: str, *overrides: str) -> list[str]:
    """What is said to be wrong with a spec, one line each; [] if nothing is."""
    try:
        ExperimentSpec.parse(text, overrides=overrides)
    except SpecError as error:
        return [str(p) for p in error.problems]
    return []
