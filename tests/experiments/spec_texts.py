"""Specs as text for tests, small enough to run in seconds."""

import dataclasses
import re
import textwrap

import pytest

from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.workloads.images.base import ImageWorkload

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


def blocks(text: str) -> dict[str, str]:
    """The top-level blocks of a spec by name."""
    found = re.findall(r"^\S.*(?:\n .*)*", text, re.MULTILINE)
    return {block.partition(":")[0]: block for block in found}


def with_lines(**replaced: str) -> str:
    """``TINY`` with some of its top-level blocks replaced: ``with_lines(seeds="seeds: [1]")``."""
    parts = blocks(TINY) | {name: textwrap.dedent(block).strip("\n") for name, block in replaced.items()}
    return "\n".join(part for part in parts.values() if part) + "\n"


def without_data(monkeypatch: pytest.MonkeyPatch, workload: type[ImageWorkload]) -> None:
    """Let the data of ``workload`` be nowhere: neither on this machine nor to be downloaded."""
    nowhere = dataclasses.replace(workload.source, in_root=lambda root: (), in_system=(), download=None)
    monkeypatch.setattr(workload, "source", nowhere)


def problems(text: str, *overrides: str) -> list[str]:
    """What is said to be wrong with a spec, one line each; [] if nothing is."""
    try:
        ExperimentSpec.parse(text, overrides=overrides)
    except SpecError as error:
        return [str(p) for p in error.problems]
    return []
