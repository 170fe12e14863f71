"""Ambiguity: random keys fail as often as they should, optimised keys succeed and leave the model alone."""

import dataclasses

import pytest

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, arena, marked
from wmarena.attacks.base import Attack, Claim
from wmarena.attacks.forging.ambiguity import Ambiguity
from wmarena.schemes.base import Scheme
from wmarena.schemes.mtlsign.scheme import MTLSign
from wmarena.schemes.uchida import Uchida
from wmarena.schemes.zhang.schemes import ZhangContent, ZhangNoise

MARKED_TASK = MTLSign(n=60, steps=150, lr=1e-3, head_lr=3e-3, lambda2=0.0, check_every=50)


class TestRandomKeys(AttackContract):
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return Ambiguity(n_keys=50)

    def test_no_random_key_passes_and_the_best_is_claimed(self, attack: Attack, victim: Victim) -> None:
        """Statistics scatter round one half, none passes, and the claim is the best of those tried."""
        claim = attack(victim.model, granted_view(attack, victim))

        assert isinstance(claim, Claim)
        details = claim.details
        assert claim.n_tried == 50
        assert details["n_passing"] == 0
        assert details["mean"] == pytest.approx(0.5, abs=0.05)
        assert details["sd"] == pytest.approx((0.25 / 32) ** 0.5, rel=0.5)
        assert victim.judge(victim.model, claim.key).statistic == details["max"] > details["mean"]
        assert details["false_positive_low"] == 0.0
        assert 0.0 < float(str(details["false_positive_high"])) < 0.1


class TestForgedKey(AttackContract):
    verdict = True

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MARKED_TASK

    @pytest.fixture
    def attack(self) -> Attack:
        return Ambiguity(level=2)

    def test_a_forged_key_passes_on_the_published_model(self, attack: Attack, victim: Victim) -> None:
        """A head trained on the frozen model passes the test: only an older commitment refutes it."""
        claim = attack(victim.model, granted_view(attack, victim))

        assert isinstance(claim, Claim)
        assert claim.n_tried == 1
        assert victim.judge(victim.model, claim.key).verdict
        assert claim.key.seed != victim.key.seed


def test_untrained_heads_are_judged_too() -> None:
    """A drawn key of a scheme with a trained head brings an untrained one, and its statistic is near chance."""
    victim = marked("digits_mlp", MARKED_TASK)
    attack = Ambiguity(n_keys=10)

    claim = attack(victim.model, granted_view(attack, victim))

    assert isinstance(claim, Claim)
    assert claim.details["n_passing"] == 0
    assert claim.details["mean"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "scheme",
    [ZhangContent(n_triggers=30, boost=3, epochs=6, lr=1e-2, n_random_keys=19), ZhangNoise(n_triggers=30, epochs=2)],
    ids=["content", "noise"],
)
def test_keys_that_need_images_get_the_adversarys(scheme: Scheme) -> None:
    """A pattern without images proves nothing: the drawn keys carry the adversary's own, and are really judged."""
    victim = marked("digits_mlp", scheme)
    attack = Ambiguity(n_keys=8)
    view = granted_view(attack, victim)

    claim = attack(victim.model, view)

    assert isinstance(claim, Claim)
    own = {image.numpy().tobytes() for image in view.data.raw()[0]}
    assert {image.numpy().tobytes() for image in claim.key.secret["images"]} <= own
    verdict = victim.judge(victim.model, claim.key)
    assert "found" not in verdict.details
    assert verdict.queries > 19
    assert verdict.statistic == claim.details["max"]


def test_more_keys_find_a_better_one() -> None:
    """Grinding: the keys of a small search are among those of a larger one, so the best only grows."""
    victim = marked("digits_mlp", Uchida(bits=32))

    best = []
    for n_keys in (2, 60):
        attack = Ambiguity(level=1, n_keys=n_keys)
        claim = attack(victim.model, granted_view(attack, victim))
        assert isinstance(claim, Claim)
        best.append(victim.judge(victim.model, claim.key).statistic)

    assert best[0] < best[1]


def test_each_level_has_its_default_effort() -> None:
    """Resolving writes the number of keys into the configuration."""
    counts = [Ambiguity(level=level).resolved(Uchida()).config()["n_keys"] for level in (0, 1, 2)]

    assert counts == [200, 2000, 1]
    assert dataclasses.replace(Ambiguity(level=1), n_keys=7).n_tried == 7


def test_forging_needs_a_scheme_that_can() -> None:
    """Level 2 names schemes without ``forge`` before anything runs; random keys apply to all."""
    why = Ambiguity(level=2).applicable(Uchida(), arena("digits_mlp").task.info)

    assert why is not None
    assert "forge" in why
    assert Ambiguity(level=0).applicable(Uchida(), arena("digits_mlp").task.info) is None
