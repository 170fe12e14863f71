"""Runs of studies: sharing, resuming, pruning, γ, confirmation."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.experiments.study.texts import TINY, journal, run, trials, with_parts
from wmarena.experiments.cli import main
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.study.export import write_export
from wmarena.experiments.study.spec import StudySpec
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.store.local import Store

GAMMA = """\
name: tiny-gamma
experiment: {experiment}
search: {{gamma: {{low: 0.4, high: 1.0}}}}
objectives: {{power: maximize}}
constraints: [false_positive_rate <= 0.01]
trials: 6
sampler: random
"""


def kinds_executed(store: Path, run_id: str) -> Counter[str]:
    """How many tasks of each kind one run has executed."""
    with journal(store) as opened:
        ids = [t for _, t, cached, state in opened.run_tasks(run_id) if state == "done" and not cached]
        return Counter(row["kind"] for row in opened.task_rows(ids))


def test_a_study_leaves_trials_table_and_report(tmp_path: Path) -> None:
    """Every trial is in the table with its values; clean training is shared; a repetition runs nothing."""
    first = run(TINY, tmp_path)
    rows = pq.read_table(first.table).to_pylist()

    assert (first.trials, len(rows)) == (3, 3)
    assert rows[0]["param.schemes.uchida.lambda1"] == "0.03"  # the default is tried first
    assert {row["value.mean_margin"] for row in rows} == {d["values"]["mean_margin"] for d in trials(tmp_path).values()}
    assert first.best[0]["values"]["mean_margin"] == max(row["value.mean_margin"] for row in rows)
    assert kinds_executed(tmp_path, first.run_id)["train"] == 5
    assert kinds_executed(tmp_path, first.run_id)["embed"] == 3
    assert "data:image/svg+xml" in Path(first.report).read_text()

    again = run(TINY, tmp_path)
    assert (again.executed, again.trials, again.best) == (0, 3, first.best)
    more = run(TINY, tmp_path, trials=4)
    assert (more.trials, kinds_executed(tmp_path, more.run_id)["embed"]) == (4, 1)


def test_the_same_trial_in_two_studies_is_executed_once(tmp_path: Path) -> None:
    """Equal parameters are equal tasks: the second study is answered by the store, and starts no worker."""
    grid = with_parts(search="search: {schemes.uchida.lambda1: [0.01, 0.1]}", sampler="sampler: grid", trials="")
    first = run(grid, tmp_path)
    second = run(grid.replace("tiny-study", "other-study"), tmp_path)

    assert (first.executed > 0, second.executed, second.trials) == (True, 0, 2)
    assert trials(tmp_path)[1]["values"] == trials(tmp_path, "other-study")[1]["values"]


def test_a_study_of_gamma_alone_trains_nothing(tmp_path: Path) -> None:
    """Without stored evidence it is refused; with it, no task runs, and it gives threshold, bound and power."""
    path = tmp_path / "inner.yaml"
    path.write_text(StudySpec.parse(TINY).question.with_params({}, name="inner").text)
    text = GAMMA.format(experiment=path)
    with pytest.raises(SpecError, match="wmarena run"):
        run(text, tmp_path / "store")

    run(TINY, tmp_path / "store", trials=1)
    found = run(text, tmp_path / "store")
    page = Path(found.report).with_suffix(".md").read_text()

    assert (found.executed, found.trials) == (0, 6)
    assert 0.4 < found.best[0]["params"]["gamma"] <= 1.0
    assert found.best[0]["values"]["power"] == 1.0
    assert "false positives ≤ 1e-06" in page
    for document in trials(tmp_path / "store", "tiny-gamma").values():
        bound = document["constraints"]["false_positive_rate <= 0.01"] + 0.01
        assert (bound <= 0.01) == document["feasible"]


def test_an_infeasible_trial_runs_no_attack(tmp_path: Path) -> None:
    """The first verification decides: no attack is even planned."""
    found = run(with_parts(constraints="constraints: [fidelity_drop <= -0.9]"), tmp_path)

    assert {d["state"] for d in trials(tmp_path).values()} == {"pruned"}
    assert found.best == []
    assert kinds_executed(tmp_path, found.run_id)["attack"] == 0


def test_a_trial_that_cannot_reach_the_best_is_pruned(tmp_path: Path) -> None:
    """After its first seed, if perfect values on other seeds would not reach the best trial."""
    text = with_parts(
        search="search: {schemes.uchida.lambda1: [0.3, 0.0]}",
        objectives="objectives: {margin: maximize}",
        sampler="sampler: grid",
        seeds="seeds: [0, 1]",
        trials="",
    )
    run(text, tmp_path)
    first, second = trials(tmp_path).values()

    assert first["state"] == "complete"
    assert second["state"] == "pruned"
    assert "cannot reach" in second["why"]


def test_a_pruner_decides_at_growing_epochs(tmp_path: Path) -> None:
    """The intermediate values are those after each length of the adversary's trajectory."""
    text = with_parts(pruner="pruner: {name: median, startup: 1}", trials="trials: 2")
    run(text, tmp_path)

    assert [step for step, _ in trials(tmp_path)[0]["told"]] == [1, 2]


def test_a_pruner_without_steps_is_bad_input(tmp_path: Path) -> None:
    """No task runs; the message names the pruner's field."""
    with pytest.raises(SpecError, match="two or more values of 'sparsity'"):
        run(with_parts(pruner="pruner: {name: hyperband, on: sparsity}"), tmp_path)


def test_another_question_is_another_study(tmp_path: Path) -> None:
    """Trials of a changed experiment are not comparable: a message, no task runs."""
    run(TINY, tmp_path, trials=1)
    with pytest.raises(SpecError, match="rename it"):
        run(TINY.replace("bits: 64", "bits: 65"), tmp_path)


def test_best_and_default_are_compared_on_fresh_seeds(tmp_path: Path) -> None:
    """The report gives both, on seeds that no trial used."""
    found = run(with_parts(trials="trials: 2", confirm_seeds="confirm_seeds: [7]"), tmp_path)
    confirmed = trials(tmp_path, "tiny-study#confirmed")

    assert [d["label"] for d in confirmed.values()] == ["default", "best"]
    assert "On seeds that no trial used" in Path(found.report).with_suffix(".md").read_text()
    with journal(tmp_path) as opened:
        seeds = {cell["seed"] for _, cell in opened.run_cells(found.run_id)}
    assert seeds == {0, 7}


def test_the_best_configuration_is_a_spec_that_is_done_already(tmp_path: Path) -> None:
    """The export reads as a spec, holds the trial's values, and everything in it is in the store."""
    from wmarena.experiments.planning.expand import expand
    from wmarena.orchestrator.running.resume import already_done
    from wmarena.orchestrator.store.local import Store

    found = run(TINY, tmp_path / "store")
    write_export(StudySpec.parse(TINY), found.best[0], tmp_path / "best.yaml")
    spec = ExperimentSpec.load(tmp_path / "best.yaml")
    plan = expand(spec).plan

    assert spec.schemes[0].config()["lambda1"] == found.best[0]["params"]["schemes.uchida.lambda1"]
    with journal(tmp_path / "store") as opened:
        assert len(already_done(plan, Store(tmp_path / "store"), opened)) == len(plan)


def test_a_warm_start_proposes_stored_trials_first(tmp_path: Path) -> None:
    """Trials of a warm start do not count towards the requested number."""
    run(TINY, tmp_path)
    warm = with_parts(name="name: warm", warm_start="warm_start: [tiny-study, store]", trials="trials: 1")
    found = run(warm, tmp_path)
    documents = trials(tmp_path, "warm")

    assert sum(d["warm"] for d in documents.values()) >= 2
    assert sum(not d["warm"] for d in documents.values()) == 1
    assert kinds_executed(tmp_path, found.run_id)["embed"] <= 1
    with pytest.raises(SpecError, match="did you mean 'tiny-study'"):
        run(warm.replace("tiny-study", "tiny-stdy").replace("warm\n", "warm2\n"), tmp_path)


def test_a_bisection_grows_inside_a_trial(tmp_path: Path) -> None:
    """The attacker's cost may be searched: each trial waits for its own search."""
    text = TINY.replace(
        "{name: finetune, variant: ftal, epochs: [1, 2]}",
        "{name: prune_weights, strength: {bisect: sparsity, low: 0.1, high: 0.99, steps: 2}}",
    ).replace("mean_margin", "attackers_cost(prune_weights)")
    found = run(text, tmp_path, trials=1)
    rows = pq.read_table(found.results).to_pylist()

    assert len({row["strength"] for row in rows if row["attack"] == "prune_weights"}) == 4
    assert 0 <= found.best[0]["values"]["attackers_cost(prune_weights)"] <= 0.2


def tune_process(spec: Path, store: Path) -> subprocess.Popen[str]:
    """Start the command line in a separate process."""
    arguments = ["--store", str(store), "--tracking-uri", "none", "--json", "tune", str(spec), "--executor", "inline"]
    return subprocess.Popen(
        [sys.executable, "-m", "wmarena", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_a_killed_study_ends_with_the_same_trials(tmp_path: Path) -> None:
    """SIGKILL at a random moment, then the same command: as many finished trials as asked for, none twice."""
    spec = tmp_path / "study.yaml"
    spec.write_text(TINY.replace("trials: 3", "trials: 6"))
    store = tmp_path / "store"
    process = tune_process(spec, store)
    wanted = 1 + random.randrange(3)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (store / "journal.sqlite").is_file() and len(trials(store)) > wanted:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = trials(store)

    out, _ = tune_process(spec, store).communicate(timeout=300)
    summary = json.loads(out)
    after = trials(store)
    ended = [d for d in after.values() if d["state"] == "complete"]

    assert summary["trials"] == len(ended) == 6
    assert len({json.dumps(d["params"]) for d in ended}) == 6
    for number, document in before.items():
        if document["state"] == "complete":
            assert after[number] == document
        else:
            assert after[number]["state"] == "lost"
            assert document["params"] in [d["params"] for d in ended]


def test_a_study_whose_storage_is_lost_goes_on(tmp_path: Path) -> None:
    """The journal restores Optuna's trials: none is overwritten, the unfinished one is retried."""
    run(TINY, tmp_path, trials=2)
    before = trials(tmp_path)
    under_way = {**before[1], "number": 2, "state": "running", "params": {"schemes.uchida.lambda1": 0.25}}
    with journal(tmp_path) as opened:
        opened.record_trial("tiny-study", 2, under_way)
    shutil.rmtree(tmp_path / "studies")
    found = run(TINY, tmp_path, trials=4)
    after = trials(tmp_path)

    assert found.trials == 4
    assert {number: after[number] for number in before} == before
    assert [d["state"] for d in after.values()] == ["complete", "complete", "lost", "complete", "complete"]
    assert after[3]["params"] == under_way["params"]
    shutil.rmtree(tmp_path / "studies")
    assert main(["--store", str(tmp_path), "--tracking-uri", "none", "report", "tiny-study"]) == 0
    again = run(TINY, tmp_path, trials=4)
    assert (again.executed, trials(tmp_path)) == (0, after)


def test_a_study_waits_for_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with exit 3 and who holds it; with --wait it says whom it waits for and goes on when it is free."""
    store, spec = tmp_path / "store", tmp_path / "study.yaml"
    spec.write_text(TINY)
    command = ["--store", str(store), "--tracking-uri", "none", "tune", str(spec), "--executor", "inline"]
    holding = Store(store).exclusive("r-1")
    holding.__enter__()
    try:
        refused = main(command)
        first = capsys.readouterr().err
        monkeypatch.setattr("wmarena.orchestrator.files.locks.time.sleep", lambda s: holding.__exit__(None, None, None))
        waited = main([*command, "--trials", "1", "--wait"])
    finally:
        holding.__exit__(None, None, None)

    assert (refused, waited) == (3, 0)
    assert "held by run r-1" in first
    assert "`wmarena tune --wait` starts when it is free" in first
    assert f"waiting for {store}, which is held by run r-1" in capsys.readouterr().err


def test_a_missing_storage_is_bad_input(tmp_path: Path) -> None:
    """Before anything runs."""
    with pytest.raises(StoreError, match="check `storage`"):
        run(with_parts(storage=f"storage: sqlite:///{tmp_path}/no/folder/x.db"), tmp_path / "store")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (with_parts(pruner="pruner: median", objectives="objectives: {margin: maximize, power: maximize}"), "pruner"),
        (with_parts(search="search: {schemes.uchida.lambda: [1]}"), "did you mean 'lambda1'"),
        ("name: [", "expected YAML"),
    ],
)
def test_bad_studies_exit_with_2(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message is on stderr, no store is made, nothing runs."""
    spec = tmp_path / "study.yaml"
    spec.write_text(text)

    assert main(["--store", str(tmp_path / "store"), "tune", str(spec)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_the_report_of_a_study_is_rebuilt_from_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``wmarena report STUDY`` writes the same page and table again."""
    found = run(with_parts(trials="trials: 2"), tmp_path)
    page, table = Path(found.report), pq.read_table(found.table)
    page.unlink()
    Path(found.table).unlink()

    assert main(["--store", str(tmp_path), "--tracking-uri", "none", "--json", "report", "tiny-study"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(page)
    assert "data:image/svg+xml" in page.read_text()
    assert pq.read_table(found.table) == table
