"""Studies as text for tests, small enough to run in seconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.experiments.spec_texts import blocks
from wmarena import StudySpec, StudySummary, tune
from wmarena.experiments.running.pool import Pool
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.journal.journal import Journal

TINY = """\
name: tiny-study
experiment:
  workloads: [{name: digits_mlp, epochs: 1, train_size: 200}]
  schemes: [{name: uchida, bits: 64}]
  attacks: [{name: finetune, variant: ftal, epochs: [1, 2]}]
  seeds: [0]
search:
  schemes.uchida.lambda1: {low: 1.0e-3, high: 1.0, log: true}
objectives: {mean_margin: maximize}
trials: 3
sampler: {name: tpe, startup: 2}
"""


def with_parts(**replaced: str) -> str:
    """``TINY`` with some of its top-level blocks replaced, or added."""
    parts = blocks(TINY) | replaced
    return "\n".join(part for part in parts.values() if part) + "\n"


def problems(text: str) -> list[str]:
    """What is said to be wrong with a study, one line each; [] if nothing is."""
    try:
        StudySpec.parse(text)
    except SpecError as error:
        return [str(p) for p in error.problems]
    return []


def run(text: str, store: Path, **options: Any) -> StudySummary:
    """Tune in this process, without MLflow."""
    return tune(StudySpec.parse(text), store=store, record=False, pool=Pool(executor="inline"), **options)


@contextmanager
def journal(store: Path) -> Iterator[Journal]:
    """The store's journal."""
    with Journal(store / "journal.sqlite") as opened:
        yield opened


def trials(store: Path, study: str = "tiny-study") -> dict[int, Mapping[str, Any]]:
    """What the journal knows of a study's trials."""
    with journal(store) as opened:
        return dict(opened.trials(study))
