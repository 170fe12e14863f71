"""Studies on a shared store, their journal on PostgreSQL: killed and concurrent drivers, takeover."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.drills.drill import FULL, Drill, meet
from wmarena.experiments.study.documents import FINISHED
from wmarena.experiments.study.spec import SHIPPED
from wmarena.orchestrator.journal.opening import ADDRESS
from wmarena.orchestrator.journal.shared import PostgresJournal
from wmarena.orchestrator.keys.encryption import PASSPHRASE

STUDY = SHIPPED.find("digits_lambda").read_text()
N_TRIALS = 12 if FULL else 3
EXECUTOR = ("--workers", "2") if FULL else ("--executor", "inline")
Made = Callable[[], str]
Documents = dict[int, dict[str, Any]]


def machines(folder: Path, url: str, journal: str) -> list[Drill]:
    """Two machines that share store and journal, but no folder."""
    environment = {PASSPHRASE: "twelve-whimbrel-eggs", ADDRESS: journal}
    options = (*EXECUTOR, "--trials", str(N_TRIALS))
    return [
        Drill(folder / name, STUDY, options=options, environment=environment, verb="tune", url=url)
        for name in ("one", "other")
    ]


def trials(journal: str) -> Documents:
    """Read the study's trials from the journal."""
    with PostgresJournal(journal) as opened:
        return opened.trials("digits_lambda")


def ended(documents: Documents) -> Documents:
    """Select the trials that have ended."""
    return {number: document for number, document in documents.items() if document["state"] in FINISHED}


@pytest.mark.ray
@pytest.mark.parametrize("seed", range(5 if FULL else 1))
def test_another_machine_continues_a_killed_study(
    s3: Made, postgres: Made, tmp_path: Path, seed: int, counts: Counter[str]
) -> None:
    """SIGKILL of the driver: another machine takes over its trials, ends with as many as asked for, none twice."""
    rng, journal = random.Random(seed), postgres()
    one, other = machines(tmp_path, s3(), journal)
    driver, n_before = one.start(), rng.randrange(1, N_TRIALS - 1)
    driver.wait_for(lambda: driver.said.count("\ntrial ") >= n_before, f"{n_before} trials ended")
    time.sleep(rng.uniform(0.0, 0.5))
    driver.send(signal.SIGKILL)
    driver.end(status=-signal.SIGKILL)
    before = trials(journal)
    summary = other.run().summary
    after = ended(trials(journal))

    assert 0 < len(ended(before)) < N_TRIALS
    assert len(after) == summary["trials"] == N_TRIALS
    assert len({json.dumps(document["params"], sort_keys=True) for document in after.values()}) == N_TRIALS
    tried = [document["params"] for document in after.values()]
    assert {number: after[number] for number in ended(before)} == ended(before)
    assert all(document["params"] in tried for document in before.values())
    assert summary["shared_report"].startswith("s3://")
    counts["studies that another machine went on with"] += 1
    if FULL:
        assert one.run("--trials", str(N_TRIALS + 1)).summary["trials"] == N_TRIALS + 1
        assert {number: trials(journal)[number] for number in after} == after


@pytest.mark.skipif(not FULL, reason="two drivers are drilled by `make drill`")
def test_one_machine_at_a_time_tunes_a_study(s3: Made, postgres: Made, tmp_path: Path, counts: Counter[str]) -> None:
    """Another is refused, exit 3, or waits if asked to and then finds all trials ended."""
    one, other = machines(tmp_path, s3(), postgres())
    first = one.start()
    first.wait_for(lambda: "\ntrial " in first.said, "a trial")
    refused, waiting = meet(first, other.start, "waiting for study 'digits_lambda'")

    assert "expected study 'digits_lambda' free" in refused.said
    assert "`wmarena tune --wait`" in refused.said
    assert (waiting.summary["executed"], waiting.summary["trials"]) == (0, N_TRIALS)
    counts["drivers that met"] += 2
