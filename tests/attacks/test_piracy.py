"""Ownership piracy: a second set of triggers is planted, for as long as the first, and tuned like any stolen model."""

import dataclasses
from typing import Any

import pytest
import torch

from tests.attack_contract import AttackContract, granted_view
from tests.victims import NewestOnly, Victim, arena, marked
from wmarena.attacks.base import Attack, Piracy
from wmarena.attacks.overwriting.piracy import PlantTriggers
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Owner, Scheme
from wmarena.schemes.uchida import Uchida

ORIGINAL = Adi(n_triggers=30)
TASK = arena("digits_mlp").task


class TestPlantTriggers(AttackContract):
    """Without tuning."""

    verdict = True

    @pytest.fixture
    def scheme(self) -> Scheme:
        return ORIGINAL

    @pytest.fixture
    def attack(self) -> Attack:
        return PlantTriggers(variant="none", plant_epochs=30)

    def test_both_sets_are_found(self, attack: Attack, victim: Victim) -> None:
        """The pirate's triggers are in the suspect and were not in the victim; the owner's are in both."""
        outcome = attack(victim.model, granted_view(attack, victim))

        assert isinstance(outcome, Piracy)
        assert outcome.claim.key.seed != victim.key.seed
        assert victim.judge(outcome.model, outcome.claim.key).verdict
        assert not victim.judge(victim.model, outcome.claim.key).verdict
        assert victim.judge(outcome.model).verdict
        assert outcome.claim.details == {}


class TestPlantAndTuneAllLayers(AttackContract):
    @pytest.fixture
    def scheme(self) -> Scheme:
        return ORIGINAL

    @pytest.fixture
    def attack(self) -> Attack:
        return PlantTriggers(variant="ftal", plant_epochs=30, epochs=3, lr=1e-2)


class TestPlantAndRetrainTheHead(AttackContract):
    """A scheme of the pirate's choice, on a victim that is marked in its weights, with batch norm."""

    workload = "digits_cnn"
    min_accuracy = 0.2

    @pytest.fixture
    def attack(self) -> Attack:
        return PlantTriggers(
            scheme=Adi(n_triggers=20, mode="scratch"), variant="rtll", plant_epochs=20, epochs=8, lr=2e-2
        )

    def test_only_the_head_is_trained_after_planting(self, attack: Attack, victim: Victim) -> None:
        """Below the output layer the suspect is the planted network; above it is another."""
        assert isinstance(attack, PlantTriggers)
        tuned, planted = (
            a(victim.model, granted_view(a, victim)) for a in (attack, dataclasses.replace(attack, variant="none"))
        )

        assert isinstance(tuned, Piracy)
        assert isinstance(planted, Piracy)
        after = dict(tuned.model.named_parameters())
        moved = {n for n, p in planted.model.named_parameters() if not torch.equal(p, after[n])}
        assert moved == {"head.weight", "head.bias"}
        assert tuned.claim.key.commitment == planted.claim.key.commitment


@pytest.fixture(scope="module")
def statistics() -> dict[str, dict[str, float]]:
    """Shares of TS-Orig and TS-New that are answered, by variant of a harsh tuning on a fifth of the data."""
    victim, out = marked("digits_mlp", ORIGINAL), {}
    for variant in ("none", "ftal", "rtll", "rtal"):
        attack = PlantTriggers(variant=variant, plant_epochs=30, epochs=10, lr=2e-2)
        outcome = attack(victim.model, granted_view(attack, victim, fraction=0.2))
        assert isinstance(outcome, Piracy)
        old = outcome.claim.details.get("old_head_statistic")
        out[variant] = {
            "original": victim.judge(outcome.model).statistic,
            "new": victim.judge(outcome.model, outcome.claim.key).statistic,
            "old_head": -1.0 if old is None else float(str(old)),
        }
    return out


def test_planted_triggers_are_lost_in_tuning(statistics: dict[str, dict[str, float]]) -> None:
    """TS-New is whole after planting; training all layers under a new head takes more of it than of TS-Orig."""
    lost = {which: statistics["none"][which] - statistics["rtal"][which] for which in ("new", "original")}

    assert statistics["none"]["new"] >= 0.9
    assert lost["new"] > lost["original"] + 0.1
    assert statistics["rtll"]["new"] < statistics["none"]["new"]


def test_a_new_heads_claim_carries_the_old_one(statistics: dict[str, dict[str, float]]) -> None:
    """With the planted output layer back, retraining the head alone has lost nothing of TS-New."""
    assert statistics["rtll"]["old_head"] == statistics["none"]["new"]
    assert statistics["rtal"]["old_head"] < statistics["none"]["new"]
    assert statistics["none"]["old_head"] == statistics["ftal"]["old_head"] == -1.0


def test_plugging_the_old_head_leaves_the_suspect() -> None:
    """The suspect has the new head; its own verdict is not the claim's detail."""
    victim = marked("digits_mlp", ORIGINAL)
    attack = PlantTriggers(variant="rtal", plant_epochs=30, epochs=1)
    outcome = attack(victim.model, granted_view(attack, victim))

    assert isinstance(outcome, Piracy)
    assert victim.judge(outcome.model, outcome.claim.key).statistic < 0.9
    assert outcome.claim.details["old_head_verdict"] is True
    assert attack.replaces_head
    assert not dataclasses.replace(attack, variant="ftal").replaces_head


@pytest.mark.parametrize(
    ("victim", "given", "limit", "epochs"),
    [
        (Adi(mode="scratch"), None, None, TASK.recipe.epochs),
        (Adi(mode="scratch", epochs=9), None, None, 9),
        (Adi(epochs=7), None, None, 7),
        (Adi(), None, None, None),
        (Adi(), 5, None, 5),
        (Adi(epochs=7), None, 3, 3),
        (Adi(epochs=7), None, 8, 7),
        (Adi(), None, 6, 6),
        (Adi(), None, 10**6, None),
        (Adi(), 9, 6, 6),
    ],
)
def test_planting_takes_as_long_as_the_original(
    victim: Adi, given: int | None, limit: int | None, epochs: int | None
) -> None:
    """From the stolen model, for the original's epochs by default, never beyond the budget; else none."""
    planted = PlantTriggers(plant_epochs=given).planting(victim, TASK, 92, limit)

    assert planted == dataclasses.replace(victim, mode="pretrained", epochs=epochs)


def test_a_budget_caps_both_phases() -> None:
    """Each phase by itself, in the configuration where it has a number, and in the run where the scheme has one."""
    capped = PlantTriggers(plant_epochs=30, epochs=30).within(5, 92)
    assert (capped.plant_epochs, capped.epochs) == (5, 5)
    assert PlantTriggers(plant_epochs=3, epochs=2).within(5, 92) == PlantTriggers(plant_epochs=3, epochs=2)
    assert PlantTriggers().within(5, 92).plant_epochs is None

    taken: list[int | None] = []

    class Noting(Adi):
        def embed(self, model: Any, owner: Owner, key: Any) -> Any:
            taken.append(self.epochs)
            return super().embed(model, owner, key)

    victim = dataclasses.replace(marked("digits_mlp", ORIGINAL), scheme=Noting(n_triggers=30))
    attack = PlantTriggers(variant="ftal").within(2, 92)
    attack(victim.model, granted_view(attack, victim, max_epochs=2))
    assert taken == [2]


def test_both_loops_have_their_own_checkpoints() -> None:
    """A run that was stopped in the tuning resumes there; the tuning's epochs are not taken for the planting's."""
    victim = marked("digits_mlp", ORIGINAL)
    attack = PlantTriggers(variant="ftal", plant_epochs=5, epochs=2)
    checkpoints = NewestOnly()
    outcome = attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))

    assert isinstance(outcome, Piracy)
    assert checkpoints.n_offers == 5 + 2
    assert set(checkpoints.states) == {10**6 + 2}
    assert checkpoints.kept == set()


def test_only_triggers_can_be_planted() -> None:
    """White-box schemes and triggers that do not fit the task are named before anything runs."""
    info = TASK.info

    assert "no triggers to plant" in str(PlantTriggers().applicable(Uchida(), info))
    assert "cannot be embedded here" in str(PlantTriggers().applicable(Adi(n_triggers=3), info))
    assert PlantTriggers(scheme=Adi()).applicable(Uchida(), info) is None
    assert PlantTriggers().resolved(ORIGINAL).plugins() == [ORIGINAL]


class Rigid(Adi):
    """A scheme without epochs to set."""

    name = "rigid"
    for_epochs = Scheme.for_epochs  # type: ignore[assignment]


def test_epochs_for_a_scheme_without_them_are_refused() -> None:
    """Named before anything runs; without ``plant_epochs`` it is planted as it is."""
    assert "leave plant_epochs out" in str(PlantTriggers(plant_epochs=2).applicable(Rigid(), TASK.info))
    assert PlantTriggers().applicable(Rigid(), TASK.info) is None
    assert PlantTriggers().planting(Rigid(), TASK, 92, None) == Rigid()
