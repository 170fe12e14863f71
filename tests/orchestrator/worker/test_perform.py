"""Tasks on real digits: reproducible to the last bit, resumable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.orchestrator.digits import ADVERSARY, QUICK, Bench
from tests.orchestrator.toys import failed
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.plugins import build_attack, build_scheme
from wmarena.orchestrator.plan.task import Failure, FailureKind, Kind, Task
from wmarena.orchestrator.worker.context import MODEL, trajectory_id
from wmarena.orchestrator.worker.perform import HISTORY, PREDICTIONS
from wmarena.orchestrator.worker.resident import ModelCache
from wmarena.orchestrator.worker.roles import adversary_data, owner_of, scratch_recipe
from wmarena.schemes.base import Recipe


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Uchida's mark on digits, fine-tuned for an epoch and verified."""
    bench = Bench(tmp_path_factory.mktemp("perform") / "store")
    bench.run(bench.defended("uchida"))
    return bench


def finetune(bench: Bench, epochs: int, **fields: Any) -> Task:
    """Fine-tuning of the marked model."""
    return bench.attack_task(build_attack({"name": "finetune", "epochs": epochs, **fields}))


# The whole way


@pytest.mark.parametrize("scheme", QUICK)
def test_a_mark_is_embedded_attacked_and_verified(scheme: str, tmp_path: Path) -> None:
    """train -> embed -> finetune -> verify, with everything that tables need; again in another store: bit-equal."""
    runs = []
    for name in ("one", "other"):
        bench = Bench(tmp_path / name, workload="digits_cnn" if scheme == "mtlsign" else "digits_mlp")
        tasks = bench.defended(scheme)
        records = bench.run(tasks)
        assert [records[t.id].error for t in tasks] == [None] * 4
        runs.append((bench, tasks))
    (one, tasks), (other, _) = runs
    train, embed, attack, verify = (one.result(t) for t in tasks)

    assert [one.files(t) for t in tasks] == [other.files(t) for t in tasks]
    assert verify["verdict"] == other.result(tasks[3])["verdict"]
    assert embed["commitment"] == other.result(tasks[1])["commitment"]
    for made in (train, embed, attack):
        assert 0 <= made["metric_test"] <= 1
        assert 0 <= made["metric_val"] <= 1
    assert embed["covertness_mean_abs_dev"] > 0
    assert attack["consumed"] == {one.embed.id: embed["made"]}
    assert embed["made"] == one.files(tasks[1])[MODEL]
    assert verify["verdict"]["n"] > 0
    assert verify["verdict"]["log10_p"] <= 0


def test_what_was_stored_is_what_was_scored(marked: Bench) -> None:
    """The answers beside a model give its accuracy; the history has one point an epoch."""
    result = marked.result(marked.train)
    answers = marked.store.load_tensors(marked.train.id, PREDICTIONS)
    history = json.loads(marked.store.read(marked.train.id, HISTORY))

    for split in ("test", "val"):
        assert float((answers[split] == answers[f"{split}_labels"]).double().mean()) == result[f"metric_{split}"]
    assert [p["step"] for p in history] == [1, 2]


def test_a_mark_is_found_only_where_it_is(marked: Bench) -> None:
    """The owner's key finds it on the marked model, not on the clean one; a stranger's key does not find it."""
    scheme = build_scheme({"name": "uchida", **QUICK["uchida"]})
    tasks = {
        "marked": marked.verify_task(scheme, marked.embed),
        "clean": marked.verify_task(scheme, marked.train, control="clean"),
        "stranger": marked.verify_task(scheme, marked.embed, control="stranger_key"),
    }
    marked.run([marked.train, marked.embed, *tasks.values()])
    verdicts = {name: marked.result(t)["verdict"]["verdict"] for name, t in tasks.items()}

    assert verdicts == {"marked": True, "clean": False, "stranger": False}


def test_nothing_depends_on_what_the_process_did_before(marked: Bench, tmp_path: Path) -> None:
    """The global generator may be in any state, other tasks may have run: the same bytes."""
    bench = marked.copied(tmp_path)
    torch.manual_seed(999)
    torch.rand(17)
    state = torch.get_rng_state()
    attack = finetune(bench, 1)
    bench.attempt(attack)

    assert bench.files(attack) == marked.files(finetune(marked, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_global_generator_is_the_tasks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training draws from it (dropout, say) follows from the task alone."""
    real, drawn = ImageTask.fit, []

    def fit(self: ImageTask, *arguments: Any, **options: Any) -> None:
        drawn.append(float(torch.rand(())))
        real(self, *arguments, **options)

    monkeypatch.setattr(ImageTask, "fit", fit)
    for seed in (1, 2):
        torch.manual_seed(seed)
        bench = Bench(tmp_path / str(seed))
        bench.attempt(bench.train)

    assert drawn[0] == drawn[1]


# Trajectories and interruptions


def test_a_longer_strength_continues_the_shorter_ones_trajectory(marked: Bench, tmp_path: Path) -> None:
    """Two epochs after one: the same id and the same bytes, curves included, as two epochs alone."""
    after, alone = (marked.copied(tmp_path / name) for name in ("after", "alone"))
    one, two = finetune(after, 1), finetune(after, 2)
    after.attempt(one)
    shared = after.store.checkpoint_dir(trajectory_id(two))
    assert [p.name[:13] for p in shared.iterdir()] == ["00000001-keep"]
    after.attempt(two)
    alone.attempt(two)

    assert trajectory_id(one) == trajectory_id(two) != one.id
    assert after.files(two) == alone.files(two)
    assert after.files(one)[MODEL] != after.files(two)[MODEL]
    assert len(json.loads(after.store.read(two.id, HISTORY))) == 2


def test_other_attacks_share_no_trajectory(marked: Bench) -> None:
    """Any other field makes it another one; attacks that do not continue have their own."""
    attacks = [finetune(marked, 1), finetune(marked, 1, variant="rtal"), finetune(marked, 1, lr=0.5)]
    prune = marked.attack_task(build_attack({"name": "prune_weights"}))

    assert len({trajectory_id(t) for t in attacks}) == 3
    assert trajectory_id(prune) == prune.id
    assert trajectory_id(marked.embed) == marked.embed.id


@pytest.mark.parametrize("kind", ["train", "embed", "attack"])
def test_a_cancelled_task_resumes_where_it_stood(marked: Bench, tmp_path: Path, kind: str) -> None:
    """Stopped after each offer, again and again: bit-equal to an undisturbed one, no epoch twice, no hole."""
    asked: list[int] = []

    def at_every_offer() -> bool:
        asked.append(1)
        return True

    stopping = marked.copied(tmp_path, cancelled=at_every_offer)
    task = {"train": stopping.train, "embed": stopping.embed, "attack": finetune(stopping, 2)}[kind]
    undisturbed = marked.copied(tmp_path / "undisturbed")
    undisturbed.attempt(task)
    stopping.store.set_aside(task.id)
    outcomes = []
    for _ in range(9):
        outcomes.append(stopping.attempt(task))
        if not isinstance(outcomes[-1], Failure):
            break

    assert {failed(o).kind for o in outcomes[:-1]} == {FailureKind.CANCELLED}
    assert len(outcomes) == 1 + len(asked)
    assert len(outcomes) > 2
    assert stopping.files(task) == undisturbed.files(task)
    assert not any((stopping.store.root / "checkpoints").rglob("*temp*"))


def test_a_checkpoint_outlives_a_failed_commit(marked: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the artifact is written: the last checkpoint is still there for the next attempt."""
    bench = marked.copied(tmp_path, checkpoint_s=0.0)
    task = finetune(bench, 2)

    def full(*arguments: Any) -> None:
        raise StoreError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(bench.context.store, "commit", full)
        assert failed(bench.attempt(task)).kind is FailureKind.STORE
    kept = list(bench.store.checkpoint_dir(trajectory_id(task)).iterdir())
    bench.attempt(task)

    assert kept != []
    assert bench.store.has(task.id)


# What roles are given


def test_the_adversarys_share_is_the_same_for_every_attack(marked: Bench) -> None:
    """A tenth of it is held out; together they are the granted fraction of the owner's data."""
    arena = marked.context.workload(marked.workload)
    first, again = (adversary_data(arena, ADVERSARY, 0) for _ in range(2))
    other = adversary_data(arena, ADVERSARY, 1)

    def pixels(samples: Any) -> torch.Tensor:
        return torch.cat([inputs for inputs, _ in samples.in_order()])

    assert sum(map(len, first)) == pytest.approx(0.2 * len(arena.train), abs=10)
    assert len(first[1]) == pytest.approx(0.1 * sum(map(len, first)), abs=10)
    assert all(torch.equal(pixels(a), pixels(b)) for a, b in zip(first, again, strict=True))
    assert not torch.equal(pixels(first[0])[:20], pixels(other[0])[:20])


def test_seeds_are_independent_replicates(marked: Bench) -> None:
    """Owners of other seeds see the same data in another order; one seed's order is always the same."""

    def order(seed: int) -> list[int]:
        owner = owner_of(marked.job(replace(marked.embed, seed=seed)))
        return [int(label) for _, labels in owner.train.batches(100, seed=owner.seed, epoch=0) for label in labels]

    zero, again, one, two = map(order, (0, 0, 1, 2))

    assert zero == again
    assert sorted(zero) == sorted(one) == sorted(two)
    assert len({tuple(o) for o in (zero, one, two)}) == 3


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 0.1), (0.2, 0.2), (0.5, 0.25)])
def test_a_disjoint_share_is_counted_in_the_owners_data(marked: Bench, fraction: float, expected: float) -> None:
    """A tenth is a tenth of the owner's training set, wherever it is drawn from; a reserve gives at most itself."""
    arena = marked.context.workload(marked.workload)
    arena = replace(arena, reserve=arena.train.share(0.25, domain="reserve of tests", seed=0))
    granted = {"data_fraction": fraction, "disjoint": True}

    assert sum(map(len, adversary_data(arena, granted, 0))) == pytest.approx(expected * len(arena.train), abs=10)


def test_a_disjoint_adversary_needs_a_reserve(marked: Bench) -> None:
    """Without data that the owner never saw, the error says how to set some aside."""
    arena = marked.context.workload(marked.workload)

    with pytest.raises(ValueError, match="set the workload's `reserve`"):
        adversary_data(arena, {**ADVERSARY, "disjoint": True}, 0)


@pytest.mark.parametrize(("fraction", "epochs", "milestones"), [(1.0, 10, (5,)), (0.5, 20, (10,)), (0.01, 100, (50,))])
def test_training_from_scratch_gets_as_many_steps(fraction: float, epochs: int, milestones: tuple[int, ...]) -> None:
    """A tenth of the data is passed over ten times as often; no more than tenfold."""
    recipe = Recipe(optimiser="sgd", lr=0.1, batch_size=10, epochs=10, schedule="step", milestones=(5,))
    found = scratch_recipe(recipe, fraction)

    assert (found.epochs, found.milestones) == (epochs, milestones)


def test_a_model_trained_on_the_adversarys_data_alone(marked: Bench) -> None:
    """The scratch model is trained like any other model, and differs from the clean one."""
    scratch = marked.task(Kind.TRAIN, {"recipe": None, "adversary": ADVERSARY})
    marked.run([scratch])

    assert marked.files(scratch)[MODEL] != marked.files(marked.train)[MODEL]
    assert marked.result(scratch)["metric_test"] <= 1.0


# Residents


def test_residents_go_when_others_need_the_room() -> None:
    """Least recently used first, by bytes; the newest stays even if it alone is too large."""
    loaded: list[str] = []

    def load_it(name: str) -> nn.Module:
        loaded.append(name)
        return nn.Linear(10, 10, bias=False)

    resident = ModelCache(limit_bytes=2 * 400)
    for name in ("a", "b", "a", "c", "a", "b"):
        resident.get(name, lambda name=name: load_it(name))  # type: ignore[misc]
    sole = ModelCache(limit_bytes=1)
    sole.get("x", lambda: load_it("x"))

    assert loaded == ["a", "b", "c", "b", "x"]
    assert (len(resident), len(sole)) == (2, 1)
