"""Overwriting: the adversary's own key passes, at the rate and for the epochs that were asked for."""

import pytest

from attacks.base import Attack, Piracy
from attacks.overwrite import Overwrite
from schemes.adi import Adi
from schemes.base import Scheme
from schemes.mtlsign import MTLSign
from schemes.params import ConfigError
from schemes.uchida import Uchida
from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, arena

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


class Rigid(Uchida):
    """A scheme with neither rate nor epochs to set."""

    name = "rigid"
    for_epochs = Scheme.for_epochs  # type: ignore[assignment]

    @classmethod
    def parameters(cls) -> dict:  # type: ignore[type-arg]
        return {name: p for name, p in super().parameters().items() if name != "lr"}


@pytest.mark.parametrize("attack", [Overwrite(lr=1e-3), Overwrite(epochs=2)])
def test_what_a_scheme_cannot_be_told_is_refused(attack: Overwrite) -> None:
    """A rate or epochs for a scheme without them is named before anything runs."""
    why = attack.applicable(Rigid(), arena("digits_mlp").task.info)

    assert why is not None
    assert "rigid" in why
    assert Overwrite().applicable(Rigid(), arena("digits_mlp").task.info) is None


def test_a_rate_for_a_scheme_without_one_is_an_error() -> None:
    """The same at run time: expected, got, way out."""
    with pytest.raises(ConfigError, match="leave lr out"):
        Overwrite(lr=1e-3).embedding(Rigid(), n_train=10)
