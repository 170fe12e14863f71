"""The command line: what each command prints, and its exit status."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.experiments.conftest import Finished
from tests.experiments.spec_texts import TINY
from wmarena.experiments.cli import main
from wmarena.experiments.commands.storing import size
from wmarena.experiments.running import context as site
from wmarena.experiments.running import execution
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.executors.base import Completion, NoWorkers
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.plan.plugins import names
from wmarena.orchestrator.plan.task import Task
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import Setup

Wmarena = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def document(capsys: Capture) -> Any:
    """The one JSON document on stdout."""
    return json.loads(capsys.readouterr().out)


# list


@pytest.mark.parametrize("kind", ["scheme", "attack", "workload"])
def test_list_describes_every_plugin(kind: str, capsys: Capture) -> None:
    """Name, summary and each parameter with default, range and meaning, as JSON."""
    status = main(["list", f"{kind}s", "--json"])
    found = document(capsys)

    assert status == 0
    assert [plugin["name"] for plugin in found] == sorted(names(kind))
    for plugin in found:
        assert plugin["summary"]
        for parameter in plugin["parameters"]:
            assert {"name", "type", "required", "default", "range", "choices", "stage", "doc"} <= parameter.keys()


def test_list_is_readable(capsys: Capture) -> None:
    """People get names, ranges and meanings as a table."""
    main(["list", "schemes"])
    shown = capsys.readouterr().out

    assert "uchida" in shown
    assert "[20, inf)" in shown
    assert "access: white" in shown


# plan


def test_plan_counts_stored_tasks(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """After a run the plan counts every task as stored."""
    status = wmarena("plan", finished.spec, "--json")
    found = document(capsys)

    assert status == 0
    assert found["cached"] == len(found["tasks"]) == sum(found["counts"].values()) == 14
    assert found["counts"] == {"train": 5, "embed": 1, "attack": 2, "verify": 6}
    assert {"id", "kind", "label", "parents", "cached"} <= found["tasks"][0].keys()


def test_plan_writes_nothing(tmp_path: Path, finished_once: Finished, capsys: Capture) -> None:
    """The command creates no store."""
    status = main(["--store", str(tmp_path / "new"), "plan", str(finished_once.spec), "--format", "json"])

    assert status == 0
    assert document(capsys)["cached"] == 0
    assert not (tmp_path / "new").exists()


def test_plan_shows_its_cost(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Text for people: the question, counts by kind, what sharing saved, what is left to do."""
    wmarena("plan", finished.spec, "--set", "attacks.finetune.epochs=[1, 2, 3]")
    shown = capsys.readouterr().out

    assert "1 workload × 1 scheme × 3 attacks × 1 seed: 7 rows" in shown
    (verify,) = [line.split() for line in shown.splitlines() if line.strip().startswith("verify")]
    assert verify[:4] == ["verify", "7", "6", "1"]
    assert "Sharing saved" in shown


def test_plan_as_mermaid(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """A graph for Markdown: a node for every task, an edge for every parent, what is there marked."""
    wmarena("plan", finished.spec, "--json")
    n_parents = sum(len(task["parents"]) for task in document(capsys)["tasks"])
    wmarena("plan", finished.spec, "--format", "mermaid")
    lines = capsys.readouterr().out.splitlines()

    assert lines[0] == "graph LR"
    assert sum("-->" in line for line in lines) == n_parents
    assert lines[-1].startswith("  class t0,")


# run


def test_a_second_run_executes_nothing(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """All tasks are cached; the JSON document has the fields that tools need."""
    status = wmarena("run", finished.spec, "--executor", "inline", "--json")
    found = document(capsys)

    assert status == 0
    assert (found["executed"], found["cached"], found["failed"], found["skipped"]) == (0, 14, 0, 0)
    assert set(found) == {"run_id", "executed", "cached", "failed", "skipped", "seconds", "report", "results"}
    assert Path(found["report"]).is_file()
    assert pq.read_table(found["results"]).num_rows == 6


def test_changing_one_attack_executes_that_attack(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """One more strength: one attack, one verification; progress goes to stderr."""
    status = wmarena(
        "run", finished.spec, "--executor", "inline", "--json", "--set", "attacks.finetune.epochs=[1, 2, 3]"
    )
    captured = capsys.readouterr()

    assert status == 0
    assert json.loads(captured.out)["executed"] == 2
    assert "done attack/uchida/finetune-ftal/epochs=3/seed0" in captured.err


def test_a_run_prints_the_paths_of_its_files(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """The text holds a short table and the paths of report and results."""
    wmarena("run", finished.spec, "--executor", "inline")
    shown = capsys.readouterr().out

    assert "uchida" in shown
    assert "0 executed, 14 cached, 0 failed, 0 skipped" in shown
    assert "report.html" in shown
    assert "results.parquet" in shown


def test_a_failed_task_gives_status_1_and_a_whole_table(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Bits that no layer has room for: the embedding fails, its rows are skipped with the cause, the rest is there."""
    override = "schemes=[uchida, {name: uchida, bits: 100000000}]"
    status = wmarena(
        "run", finished.spec, "--executor", "inline", "--json", "--set", "attacks=[none]", "--set", override
    )
    found = document(capsys)
    rows = pq.read_table(found["results"]).to_pylist()

    assert status == 1
    assert found["failed"] == 1
    assert {row["status"] for row in rows} == {"done", "skipped"}
    assert all("embed/uchida[bits=100000000]/seed0 failed" in row["error"] for row in rows if row["error"])


def test_ctrl_c_gives_status_3_and_the_same_command_resumes(
    wmarena: Wmarena, finished: Finished, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished before the interruption is not computed again."""
    arguments = ("run", finished.spec, "--executor", "inline", "--json", "--set", "seeds=[1]")
    submit = InlineExecutor.submit

    def stop_at_the_embedding(self: InlineExecutor, worker: str, tasks: Sequence[Task]) -> None:
        if any(task.kind.value == "embed" for task in tasks):
            raise KeyboardInterrupt
        submit(self, worker, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(InlineExecutor, "submit", stop_at_the_embedding)
        status = wmarena(*arguments)
    captured = capsys.readouterr()
    n_done = captured.err.count("] done ")

    assert (status, captured.out) == (3, "")
    assert "resume by the same command" in captured.err
    assert wmarena(*arguments) == 0
    found = document(capsys)
    assert n_done >= 1
    assert found["cached"] == n_done
    assert found["executed"] == 14 - n_done


class NoRoom(InlineExecutor):
    """A cluster without free resources."""

    def start(self) -> None:
        raise NoWorkers("expected room for 99 workers, got a cluster with 2 CPU")


class Vanishing(InlineExecutor):
    """A cluster that is lost after the first task."""

    def wait(self, timeout: float) -> list[Completion]:
        raise NoWorkers("no worker is left")


def other_executor(kind: type[InlineExecutor]) -> Callable[..., InlineExecutor]:
    """Replace ``make_executor`` by one that makes ``kind``."""
    return lambda pool, spec, store, data_root, share: kind(
        Setup(store=store.root, data_root=data_root, workloads=WORKLOADS)
    )


@pytest.mark.parametrize(("kind", "status"), [(NoRoom, 2), (Vanishing, 3)])
def test_unavailable_workers_are_distinguished_from_lost_workers(
    wmarena: Wmarena,
    finished: Finished,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[InlineExecutor],
    status: int,
) -> None:
    """Before anything ran it is bad input, afterwards the run can be resumed."""
    monkeypatch.setattr(site, "make_executor", other_executor(kind))
    found = wmarena("run", finished.spec, "--set", "seeds=[2]")

    assert found == status
    assert "worker" in capsys.readouterr().err


# report


@pytest.mark.parametrize("name", ["run id", "experiment", "file"])
def test_a_report_is_rebuilt_from_the_store_alone(
    wmarena: Wmarena, finished: Finished, capsys: Capture, tmp_path: Path, name: str
) -> None:
    """By the run's id, the experiment's name or the spec: the same rows, although the report folder is gone."""
    before = pq.read_table(finished.summary.results).to_pylist()
    shutil.rmtree(finished.store / "reports")
    chosen = {"run id": finished.summary.run_id, "experiment": "tiny", "file": finished.spec}[name]
    status = wmarena("report", chosen, "--out", tmp_path / "out", "--json")
    found = document(capsys)

    assert status == 0
    assert found == {
        "report": str(tmp_path / "out" / "report.html"),
        "results": str(tmp_path / "out" / "results.parquet"),
    }
    assert pq.read_table(found["results"]).to_pylist() == before


def test_without_out_a_report_replaces_the_one_in_the_store(
    wmarena: Wmarena, finished: Finished, capsys: Capture
) -> None:
    """The place in the store is the default."""
    wmarena("report", "tiny", "--json")
    folder = finished.store / "reports" / "tiny" / finished.summary.run_id

    assert document(capsys)["report"] == str(folder / "report.html")


# verify


def test_the_mark_is_found_in_the_marked_model(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Status 0, and evidence with its statistics; the benchmark's published key root is a caveat."""
    status = wmarena("verify", "--model", finished.marked, "--key", finished.key, "--json")
    found = document(capsys)

    assert status == 0
    assert found["verdict"] is True
    assert (found["k"], found["n"], found["p_method"]) == (24, 24, "binomial")
    assert found["log10_p"] == pytest.approx(-24 * 0.30103, abs=1e-3)
    assert found["caveats"] == ["simulated_key"]
    assert (found["scheme"], found["workload"]) == ("uchida", "digits_mlp")


def test_the_mark_is_not_found_in_the_clean_model(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Status 1: the same key on a model that was never marked."""
    status = wmarena("verify", "--model", finished.clean, "--key", finished.key)

    assert status == 1
    assert "watermark not found" in capsys.readouterr().out


def test_a_model_of_another_architecture_is_evidence(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """A readable model that the key does not fit: reason ``structure``, status 1, no error."""
    from safetensors.torch import load_file, save_file

    weights = load_file(finished.marked)
    weights.pop(sorted(weights)[0])
    other = finished.store.parent / "other.safetensors"
    save_file(weights, other)
    for arguments in (["--model", other], ["--model", finished.marked, "--workload", "digits_cnn"]):
        status = wmarena("verify", "--key", finished.key, "--json", *arguments)
        found = document(capsys)

        assert (status, found["verdict"], found["reason"], found["log10_p"]) == (1, False, "structure", 0.0)


def test_evidence_holds_no_secret(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """The output holds the commitment instead of the key."""
    from wmarena.orchestrator.keys.storage import load_key

    key = load_key(finished.key, None)
    wmarena("verify", "--model", finished.marked, "--key", finished.key, "--json")
    shown = capsys.readouterr().out

    assert key.commitment in shown
    assert key.seed.hex() not in shown


# store


def test_store_ls_lists_every_artifact(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """One row a task, with the key folder where there is a key."""
    wmarena("store", "ls", "--json")
    rows = document(capsys)

    assert len(rows) == 14
    assert [row["key"] for row in rows if row["kind"] == "embed"] == [str(finished.key)]
    wmarena("store", "ls")
    assert "14 artifacts" in capsys.readouterr().out


def test_store_verify_finds_an_altered_byte(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Status 0 on a sound store, 1 and the name of the task on a damaged one."""
    assert wmarena("store", "verify") == 0
    raw = bytearray(finished.marked.read_bytes())
    raw[-1] ^= 1
    finished.marked.write_bytes(raw)

    assert wmarena("store", "verify") == 1
    assert finished.marked.parent.name[:12] in capsys.readouterr().out


def test_store_gc_counts_first_and_removes_with_apply(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Only artifacts that the named spec does not reach are removed."""
    narrow = finished.store.parent / "narrow.yaml"
    narrow.write_text(TINY.replace("epochs: [1, 2]", "epochs: [1]"))
    wmarena("store", "gc", "--keep", narrow, "--json")
    counted = document(capsys)

    assert (counted["removed"], counted["kept"], counted["applied"]) == (2, 12, False)
    assert finished.only("attack", "epochs=2").exists()
    wmarena("store", "gc", "--keep", narrow, "--apply", "--json")
    assert document(capsys)["applied"] is True
    assert not finished.only("attack", "epochs=2").exists()
    assert finished.only("attack", "epochs=1").exists()


def test_store_gc_keeps_the_newest_run_by_default(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """Nothing that the last table rests on is removed."""
    wmarena("store", "gc", "--json")

    assert document(capsys)["kept"] == 14


@pytest.mark.parametrize(("n_bytes", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB")])
def test_sizes_are_short(n_bytes: int, shown: str) -> None:
    """One decimal and a unit."""
    assert size(n_bytes) == shown


# ui, global options, entry points


def test_ui_points_to_a_tracking_server(capsys: Capture) -> None:
    """Where a server has the records, its address is shown without the password."""
    status = main(["--tracking-uri", "http://me:secret@records.example:5000", "ui"])
    shown = capsys.readouterr().out

    assert status == 0
    assert "http://records.example:5000" in shown
    assert "secret" not in shown


def test_global_options_stand_before_or_after_the_command(finished: Finished, capsys: Capture) -> None:
    """--store and --json mean the same in both places, and the environment is their default."""
    main(["--store", str(finished.store), "--json", "store", "ls"])
    before = document(capsys)
    main(["store", "ls", "--store", str(finished.store), "--json"])

    assert document(capsys) == before


def test_the_environment_names_the_store(finished: Finished, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """WMARENA_STORE is where the store is unless an option says otherwise."""
    monkeypatch.setenv("WMARENA_STORE", str(finished.store))
    main(["store", "ls", "--json"])

    assert len(document(capsys)) == 14


def test_the_package_is_a_command_too() -> None:
    """``python -m wmarena`` is ``wmarena``, and help loads no torch."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "wmarena", "--help"], capture_output=True, text=True, check=True
    )

    assert "COMMAND" in done.stdout
    assert " torch\n" not in done.stderr


def test_a_locked_store_is_waited_for(finished: Finished, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with exit 3 and who holds it; with --wait it says whom it waits for and goes on when it is free."""
    command = ["--store", str(finished.store), "--tracking-uri", "none", "run", str(finished.spec)]
    holding = Store(finished.store).exclusive("r-1")
    holding.__enter__()
    try:
        refused = main([*command, "--executor", "inline"])
        monkeypatch.setattr("wmarena.orchestrator.files.locks.time.sleep", lambda s: holding.__exit__(None, None, None))
        first = capsys.readouterr().err
        waited = main([*command, "--executor", "inline", "--wait"])
    finally:
        holding.__exit__(None, None, None)

    assert (refused, waited) == (3, 0)
    assert "held by run r-1" in first
    assert "waiting for" in capsys.readouterr().err


def test_a_store_that_failed_is_resumable(finished: Finished, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report cannot be written on a full disk: exit 3, the reason and the way out; no traceback."""

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.html")

    monkeypatch.setattr(execution, "publish", full)
    command = ["--store", str(finished.store), "--tracking-uri", "none", "run", str(finished.spec)]
    status = main([*command, "--executor", "inline"])

    assert status == 3
    assert "report.html: No space left on device; finished tasks are kept; repair it" in capsys.readouterr().err
