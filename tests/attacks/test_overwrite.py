"""Overwriting: the adversary's own key passes, at the rate and for the epochs that were asked for."""

from typing import Any

import pytest

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, arena, marked
from wmarena.attacks.base import Attack, Piracy
from wmarena.attacks.overwriting.overwrite import Overwrite, held_to
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Scheme
from wmarena.schemes.dsn.scheme import Dsn
from wmarena.schemes.mtlsign.scheme import MTLSign
from wmarena.schemes.params import ConfigError
from wmarena.schemes.uchida import Uchida

OWN = Uchida(bits=32)


class TestOverwrite(AttackContract):
    @pytest.fixture
    def attack(self) -> Attack:
        return Overwrite(lr=2e-3)

    def test_the_adversarys_key_passes(self, attack: Attack, victim: Victim) -> None:
        """Piracy: a key that the owner never saw is found in the suspect, and not in the victim."""
        outcome = attack(victim.model, granted_view(attack, victim))

        assert isinstance(outcome, Piracy)
        assert outcome.claim.key.seed != victim.key.seed
        assert victim.judge(outcome.model, outcome.claim.key).verdict
        assert not victim.judge(victim.model, outcome.claim.key).verdict

    def test_resolving_names_the_victims_scheme(self, attack: Attack, victim: Victim) -> None:
        """Without a scheme it is the victim's own, which then is part of the configuration and of its code."""
        resolved = attack.resolved(victim.scheme)

        assert attack.plugins() == []
        assert resolved.plugins() == [victim.scheme]
        assert resolved.config()["scheme"] == victim.scheme.config(until="attack")


class TestOverwriteWithAnotherScheme(AttackContract):
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return Overwrite(scheme=Adi(n_triggers=30, mode="scratch", lr=2e-3), epochs=8)

    def test_marks_from_scratch_continue_from_the_victim(self, attack: Attack, victim: Victim) -> None:
        """A scheme that trains anew runs its pretrained form: the owner's bits are still there."""
        outcome = attack(victim.model, granted_view(attack, victim))

        assert isinstance(outcome, Piracy)
        assert victim.judge(outcome.model).statistic > 0.9
        assert outcome.claim.key.scheme == "adi"


def test_rate_and_epochs_reach_the_scheme() -> None:
    """The embedding's rate is the attack's, a head's rate keeps its ratio, epochs become the scheme's own count."""
    attack = Overwrite(lr=1e-4, epochs=3)

    scheme = attack.embedding(MTLSign(lr=3e-4, head_lr=6e-4, batch_size=50), n_train=100)

    assert isinstance(scheme, MTLSign)
    assert (scheme.lr, scheme.head_lr) == (1e-4, pytest.approx(2e-4))
    assert scheme.steps == 3 * 2


def test_nothing_asked_changes_nothing() -> None:
    """Without rate and epochs the scheme is embedded as it is."""
    assert Overwrite().embedding(OWN, n_train=100) == OWN


def test_a_scheme_from_scratch_is_run_pretrained() -> None:
    """Nobody overwrites by training anew."""
    assert Overwrite().embedding(Adi(mode="scratch"), n_train=100) == Adi(mode="pretrained")


@pytest.mark.parametrize(
    ("scheme", "n_train", "limit", "expected"),
    [
        (Uchida(bits=32, epochs=2), 92, 9, Uchida(bits=32, epochs=2)),
        (Uchida(bits=32, epochs=12), 92, 9, Uchida(bits=32, epochs=9)),
        (Uchida(bits=32), 92, 9, Uchida(bits=32, epochs=9)),  # 200 steps at least, one a pass
        (Uchida(bits=32), 92, None, Uchida(bits=32)),
        (Adi(epochs=3), 92, 9, Adi(epochs=3)),
        (MTLSign(steps=20, batch_size=50), 92, 9, MTLSign(steps=18, batch_size=50)),
        (MTLSign(steps=17, batch_size=50), 92, 9, MTLSign(steps=17, batch_size=50)),
        (Dsn(mode="labels", epochs=6), 92, 3, Dsn(mode="labels", epochs=3)),
        (Dsn(mode="labels", epochs=6), 92, 6, Dsn(mode="labels", epochs=6)),
    ],
)
def test_a_budget_only_shortens(scheme: Scheme, n_train: int, limit: int | None, expected: Scheme) -> None:
    """The scheme's own number of epochs, or what is granted, whichever is less."""
    assert held_to(limit, scheme, arena("digits_mlp").task, n_train) == expected


def test_planning_within_a_budget_leaves_the_schemes_own_number() -> None:
    """A number that was asked for is lowered, never raised; the scheme's own is not replaced by the budget's."""
    assert [Overwrite(epochs=epochs).within(5, 92).epochs for epochs in (None, 3, 9)] == [None, 3, 5]


@pytest.mark.parametrize(("own", "limit", "expected"), [(2, 5, 2), (5, 2, 2)])
def test_as_many_passes_as_own_and_granted(own: int, limit: int, expected: int) -> None:
    """What is embedded on the stolen network trains for the smaller of both numbers."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = Overwrite(scheme=Uchida(bits=24, epochs=own))
    view = granted_view(attack, victim, max_epochs=limit)
    epochs: list[int] = []

    def log(step: int, **metrics: Any) -> None:
        epochs.append(step)

    view.log = log
    attack.within(limit, len(view.data))(victim.model, view)

    assert epochs == list(range(1, expected + 1))


class Rigid(Uchida):
    """A scheme with neither rate nor epochs to set."""

    name = "rigid"
    for_epochs = Scheme.for_epochs  # type: ignore[assignment]

    @classmethod
    def parameters(cls) -> dict:  # type: ignore[type-arg]
        return {name: p for name, p in super().parameters().items() if name != "lr"}


@pytest.mark.parametrize("attack", [Overwrite(lr=1e-3), Overwrite(epochs=2)])
def test_fields_that_a_scheme_lacks_are_refused(attack: Overwrite) -> None:
    """A rate or epochs for a scheme without them is named before anything runs."""
    why = attack.applicable(Rigid(), arena("digits_mlp").task.info)

    assert why is not None
    assert "rigid" in why
    assert Overwrite().applicable(Rigid(), arena("digits_mlp").task.info) is None


def test_a_rate_for_a_scheme_without_one_is_an_error() -> None:
    """The same at run time: expected, got, way out."""
    with pytest.raises(ConfigError, match="leave lr out"):
        Overwrite(lr=1e-3).embedding(Rigid(), n_train=10)
