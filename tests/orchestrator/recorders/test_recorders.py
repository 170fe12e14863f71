"""Parts of recorders that need no tracker: fields, notes, addresses, the plan's file, the order of entries."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.orchestrator.recorder_world import World
from wmarena.orchestrator.files import addresses
from wmarena.orchestrator.plan.plan_file import plan_document, save_plan
from wmarena.orchestrator.plan.task import Kind, State, Task
from wmarena.orchestrator.recorders.base import Recorder, SyncReport
from wmarena.orchestrator.recorders.fields import TrackerEntry, describe, flat, points
from wmarena.orchestrator.recorders.links import ComparisonLink, ComparisonLinks
from wmarena.orchestrator.recorders.memory import MemoryRecorder
from wmarena.orchestrator.recorders.summary import execution_note


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A store with one whole run, r1."""
    world = World(tmp_path)
    world.whole_run("r1")
    yield world
    world.journal.close()


def entry_of(world: World, task: Task) -> TrackerEntry:
    """The entry of a task, from the journal."""
    links = ComparisonLinks(world.journal, "r1").refresh()
    rows = {row["id"]: row for row in world.journal.task_rows(t.id for t in world.tasks)}
    return describe(rows[task.id], rows, run_id="r1", link=links.get(task.id), data_sets={"digits_mlp": "digits"})


def test_a_cell_has_the_metrics_of_its_ancestors(world: World) -> None:
    """Clean twin, marked model, suspect, strength and verdict stand in the verify task's entry, under column names."""
    found = entry_of(world, world.cells[5]).metrics

    marked, suspect = 0.95, world.result(world.attacks[5])["metric_test"]
    assert found["metric_clean"] == 0.97
    assert found["metric_marked"] == marked
    assert found["metric_suspect"] == suspect
    assert found["relative_drop"] == pytest.approx((marked - suspect) / marked)
    assert found["metric_suspect_val"] == pytest.approx(suspect - 0.01)
    assert found["strength"] == 5.0
    assert (found["verdict"], found["verdict_paper"]) == (0.0, 0.0)
    assert found["statistic"] == pytest.approx(0.12)
    assert found["log10_p"] > -6
    assert found["covertness_mean_abs_dev"] == 0.004
    assert [found[f"seconds_{kind}"] for kind in ("embed", "attack", "verify")] == [2.0, 2.0, 2.0]


def test_without_the_plan_no_other_model_is_taken_for_the_clean_twin(world: World) -> None:
    """The model that embedding started from is not the compute-matched twin: what is unknown is left out."""
    row, *_ = world.journal.task_rows([world.cells[5].id])
    rows = {r["id"]: r for r in world.journal.task_rows(t.id for t in world.tasks)}

    found = describe(row, rows, run_id="r1").metrics

    assert "metric_clean" not in found
    assert "strength" not in found
    assert found["metric_marked"] == 0.95


def test_a_cell_shows_the_configuration_of_mark_attack_and_verification(world: World) -> None:
    """Fields of all stages are there: gamma acts in verify alone, epochs in the attack, lambda1 in embedding."""
    found = entry_of(world, world.cells[1]).params

    assert found["scheme.gamma"] == "0.9"
    assert found["scheme.lambda1"] == "0.1"
    assert found["attack.epochs"] == "1"
    assert found["adversary.data_fraction"] == "0.1"
    assert found["adversary.disjoint"] == "false"
    assert found["seed"] == "0"


def test_tags_say_what_an_entry_is(world: World) -> None:
    """Identity, parents by role, status; a control and a plugged-back head are named."""
    cell, control = entry_of(world, world.original).tags, entry_of(world, world.control).tags

    assert cell["wmarena.task_id"] == world.original.id
    assert cell["wmarena.kind"] == "verify"
    assert json.loads(cell["wmarena.parents"]) == {"suspect": world.attacks[5].id, "owner": world.embed.id}
    assert cell["wmarena.head"] == "original"
    assert cell["wmarena.attack_task"] == world.attacks[5].id
    assert "wmarena.control" not in cell
    assert control["wmarena.control"] == "clean"
    assert control["wmarena.attack"] == "none"
    assert control["wmarena.status"] == "done"


def test_only_a_model_judged_as_it_is_gets_the_numbers(world: World) -> None:
    """Controls and plugged-back heads say nothing of the model alone; the deployed attacked model is what was made."""
    deployed, original = entry_of(world, world.cells[5]), entry_of(world, world.original)

    assert deployed.about_model
    assert deployed.made == world.attacks[5].id
    assert deployed.judged == world.embed.id
    assert not original.about_model
    assert not entry_of(world, world.control).about_model
    assert entry_of(world, world.none).made is None
    assert entry_of(world, world.none).judged == world.embed.id


def test_a_failure_is_remembered_per_execution(tmp_path: Path) -> None:
    """A task that failed twice has two entries; its later success has the plain mark."""
    world = World(tmp_path)
    world.start("r1")
    world.fail("r1", world.embed)
    row, *_ = world.journal.task_rows([world.embed.id])

    entry = describe(row, {row["id"]: row}, run_id="r1")

    assert entry.mark == f"{world.embed.id}@r1"
    assert entry.failed
    assert entry.tags["wmarena.error"] == "diverged: loss is not finite"
    assert "metric_marked" not in entry.metrics
    assert entry.made is None


def test_nested_configuration_becomes_dotted_names() -> None:
    """Plugins in lists are numbered, plain lists and truth values are JSON, long values are cut."""
    config = {"attack": {"name": "chain", "attacks": [{"name": "a", "x": 1}, {"name": "b"}]}, "taps": [1, 2], "y": None}

    found = flat({**config, "long": "z" * 9000})

    assert found["attack.attacks.0.x"] == "1"
    assert found["attack.attacks.1.name"] == "b"
    assert (found["taps"], found["y"]) == ("[1, 2]", "null")
    assert len(found["long"]) == 6000


def test_another_scheme_in_a_claim_stands_beside_the_victims(world: World) -> None:
    """An adversary who claims with another scheme does not overwrite the victim's fields."""
    config = {"scheme": {"name": "other", "bits": 8}, "control": None, "head": "deployed", "claim": True}
    parents = (("suspect", world.attacks[1].id), ("claim", world.attacks[1].id))
    claim = world.task(Kind.VERIFY, config, parents, "verify/toy/claim", scheme="toy", attack="overwrite")
    world.journal.extend_run("r1", [claim.id], set())
    world.finish("r1", claim)
    rows = {r["id"]: r for r in world.journal.task_rows([*(t.id for t in world.tasks), claim.id])}

    entry = describe(rows[claim.id], rows, run_id="r1")

    assert entry.params["scheme.name"] == "toy"
    assert entry.params["claimed_scheme.bits"] == "8"
    assert entry.tags["wmarena.claim"] == "adversary"


def test_curves_keep_their_steps() -> None:
    """A history of records becomes one curve per name."""
    found = list(points([{"step": 1, "loss": 0.5, "val": 0.1}, {"step": 2, "loss": 0.25}]))

    assert found == [("training/loss", 0.5, 1), ("training/val", 0.1, 1), ("training/loss", 0.25, 2)]


def test_the_journal_says_what_rows_are_compared_with(world: World) -> None:
    """Links of cells and of marked models; cells that join later are read when they are there, others not again."""
    links = ComparisonLinks(world.journal, "r1")
    first = dict(links.refresh())
    late = replace(world.plan().cells[0], verify=world.attacks[1].id, strength_name="epochs", strength=9.0)
    world.journal.extend_run("r1", [], set(), [late])
    again = links.refresh()

    assert first[world.cells[5].id] == ComparisonLink(clean=world.twin.id, strength_name="epochs", strength=5.0)
    assert first[world.embed.id] == ComparisonLink(clean=world.twin.id)
    assert again == {**first, late.verify: ComparisonLink(clean=world.twin.id, strength_name="epochs", strength=9.0)}
    assert ComparisonLinks(world.journal, "another").refresh() == {}


def test_the_plan_file_is_replaced_whole(world: World, tmp_path: Path) -> None:
    """A plan that has grown is written again, and nothing else is left beside it."""
    save_plan(world.plan([world.clean, world.twin, world.embed]), tmp_path / "plan")
    save_plan(world.plan(), tmp_path / "plan", {world.clean.id})

    assert [p.name for p in (tmp_path / "plan").iterdir()] == ["plan.json"]
    assert json.loads((tmp_path / "plan" / "plan.json").read_text()) == plan_document(world.plan(), {world.clean.id})


def test_the_plan_document_counts(world: World) -> None:
    """Tasks in planning order with parents, how many of a kind, how many were cached."""
    found = plan_document(world.plan(), {world.clean.id})

    assert found["counts"] == {"train": 2, "embed": 1, "attack": 2, "verify": 5}
    assert found["cached"] == 1
    assert found["tasks"][2]["parents"] == [world.clean.id]


def test_the_note_of_an_execution_counts_judges_and_names_failures(tmp_path: Path) -> None:
    """One table of states, one of verdicts, the failures with their causes; never more than a tag can hold."""
    world = World(tmp_path)
    world.start("r1")
    world.finish("r1", world.clean, world.twin, world.embed, world.none)
    world.fail("r1", world.attacks[5], world.cells[5], world.original)
    rows = {row["id"]: row for row in world.journal.task_rows(t.id for t in world.tasks)}
    run, *_ = world.journal.runs()

    note = execution_note(run, world.journal.run_tasks("r1"), rows, {})

    assert note.startswith("Does the toy mark survive?\n\n**Tasks:** 4 done, 1 failed, 2 skipped, 3 open")
    assert "| train | 2 | – | – | – | – |" in note
    assert "| verify | 1 | – | – | 2 | – |" in note
    assert "| digits_mlp | toy | none | 1/1 |" in note
    assert "- `attack/toy/finetune/epochs=5/seed0`: diverged: loss is not finite" in note
    assert len(note) < 8000


def test_addresses_are_absolute_and_shown_without_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is the store's file; a relative file depends on the working folder no more; secrets never show."""
    monkeypatch.chdir(tmp_path)
    secret = "http://ann:pw1@host:5000/x"

    assert addresses.resolve(None, Path("/s")) == "sqlite:////s/mlflow.db"
    assert addresses.resolve("sqlite:///m.db?timeout=3", Path("/s")) == f"sqlite:///{tmp_path}/m.db?timeout=3"
    assert addresses.resolve(secret, Path("/s")) == secret
    assert addresses.shown(secret) == "http://host:5000/x"
    assert addresses.redacted(f"no answer from {secret}: pw1", secret) == "no answer from http://***@host:5000/x: ***"
    assert addresses.is_remote(secret)
    assert not addresses.is_remote("postgresql://u:p@host/db")


def test_memory_keeps_each_record_once(world: World) -> None:
    """A second sync finds nothing new, and says that the execution is over."""
    recorder = MemoryRecorder(world.journal)

    first, second = recorder.sync("r1"), recorder.sync("r1")

    assert (first.sent, first.over) == (len(world.tasks), True)
    assert (second.sent, second.present) == (0, len(world.tasks))
    assert recorder.records["r1"][world.none.id].state is State.DONE


def test_an_unknown_execution_is_an_error(world: World) -> None:
    """A mistyped run id is a LookupError."""
    with pytest.raises(LookupError, match="got 'r9'"):
        MemoryRecorder(world.journal).sync("r9")


class Scripted(Recorder):
    """A recorder whose ``sync`` returns reports from a list."""

    def __init__(self, *answers: SyncReport) -> None:
        self.answers = list(answers)

    def sync(self, run_id: str, *, abandoned: bool = False) -> SyncReport:
        return self.answers.pop(0)

    def attach_report(self, run_id: str, folder: Path) -> str | None:
        return None


def test_following_ends_with_the_execution_and_adds_up() -> None:
    """Passes repeat until the journal says that it is over; nothing sent is forgotten in the report."""
    recorder = Scripted(SyncReport(sent=2), SyncReport(failed=1, warning="away"), SyncReport(sent=3, over=True))

    report = recorder.follow("r1", threading.Event(), pause_s=0.001)

    assert report == SyncReport(sent=5, over=True)
    assert recorder.answers == []


def test_following_makes_one_last_pass_after_stop() -> None:
    """What was written before the stop is seen by the pass that follows it."""
    stop = threading.Event()
    stop.set()
    recorder = Scripted(SyncReport(sent=1), SyncReport(sent=9))

    assert recorder.follow("r1", stop).sent == 1
