"""The attack that does nothing."""

import pytest

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim
from wmarena.attacks.base import Attack
from wmarena.attacks.none import NoAttack
from wmarena.schemes.commitment import model_digest


class TestNothing(AttackContract):
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return NoAttack()

    def test_returns_the_victims_weights(self, attack: Attack, victim: Victim) -> None:
        """The suspect equals the victim."""
        suspect = attack(victim.model, granted_view(attack, victim))

        assert model_digest(victim.model.state_dict()) == model_digest(suspect.state_dict())
