"""Chains: parts in order, each with its own randomness and no more knowledge than it declares."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import nn

from tests.attack_contract import AttackContract, granted_view
from tests.attacks.test_pruning import weights
from tests.victims import Victim, arena, marked
from wmarena.attacks.base import Attack, AttackView, Family, Piracy
from wmarena.attacks.chain import Chain
from wmarena.attacks.compression.pruning import PruneWeights, smallest
from wmarena.attacks.forging.ambiguity import Ambiguity
from wmarena.attacks.knowledge import Knowledge, NotGranted
from wmarena.attacks.known_key.spoil import Spoil
from wmarena.attacks.none import NoAttack
from wmarena.attacks.overwriting.overwrite import Overwrite
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.schemes.params import ConfigError
from wmarena.schemes.uchida import Uchida


class TestChain(AttackContract):
    @pytest.fixture
    def attack(self) -> Attack:
        return Chain(attacks=(PruneWeights(sparsity=0.5), FineTune(epochs=2, lr=1e-2)))

    def test_parts_run_in_order(self, attack: Attack, victim: Victim) -> None:
        """Fine-tuning comes after pruning and, unlike pruning's own recovery, moves what was pruned."""
        suspect = attack(victim.model, granted_view(attack, victim))
        pruned = PruneWeights(sparsity=0.5)(victim.model, granted_view(PruneWeights(), victim))

        masks = smallest(weights(victim.model), 0.5)
        assert all(int((w[m] != 0).sum()) == 0 for w, m in zip(weights(pruned), masks, strict=True))
        assert any(int((w[m] != 0).sum()) > 0 for w, m in zip(weights(suspect), masks, strict=True))
        assert victim.accuracy(suspect) != victim.accuracy(pruned)


class TestChainWithTwoLoopsAPart(AttackContract):
    """A part with two training loops of its own, followed by the same again: no state is mixed up."""

    min_accuracy = 0.3

    @pytest.fixture
    def attack(self) -> Attack:
        part = Spoil(mode="sequential", recovery=3, recovery_lr=5e-2)
        return Chain(attacks=(part, part, FineTune(epochs=1)))


class TestChainThatClaims(AttackContract):
    @pytest.fixture
    def attack(self) -> Attack:
        return Chain(attacks=(FineTune(epochs=1), Overwrite()))


class TestChainThatForges(AttackContract):
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return Chain(attacks=(FineTune(epochs=1), Ambiguity(n_keys=3)))

    def test_the_claim_is_on_the_new_suspect(self, attack: Attack, victim: Victim) -> None:
        """A key drawn for the tuned model comes with that model."""
        outcome = attack(victim.model, granted_view(attack, victim))

        assert isinstance(outcome, Piracy)
        best = victim.judge(outcome.model, outcome.claim.key).statistic
        assert best == outcome.claim.details["max"]


@dataclass(frozen=True, kw_only=True)
class Curious(Attack):
    """Reaches for the key without declaring it."""

    name: ClassVar[str] = "curious"
    family: ClassVar[Family] = "none"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights", "algorithm"})
    paper: ClassVar[str] = ""

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        assert view.scheme is not None
        _ = view.key
        return model


def test_one_parts_knowledge_is_not_anothers() -> None:
    """A chain that was granted the key for spoiling withholds it from parts that do not declare it."""
    victim = marked("digits_mlp", Uchida(bits=32))
    chain = Chain(attacks=(Curious(), Spoil(steps=1)))

    assert chain.needs() == {"weights", "algorithm", "key"}
    with pytest.raises(NotGranted, match="granted the key"):
        chain(victim.model, granted_view(chain, victim))


def test_equal_parts_draw_differently() -> None:
    """The place in the chain enters the seeds: tuning twice is not the same epoch twice."""
    seeds: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Noting(NoAttack):
        def run(self, model: nn.Module, view: AttackView) -> nn.Module:
            seeds.extend([view.seed, view.prf.seed("x")])
            return model

    victim = marked("digits_mlp", Uchida(bits=32))
    chain = Chain(attacks=(Noting(), Noting()))
    chain(victim.model, granted_view(chain, victim))

    assert len(set(seeds)) == 4


def test_a_chain_combines_the_facts_of_its_parts() -> None:
    """Label, strength, head and plugins follow from the parts."""
    chain = Chain(attacks=(PruneWeights(sparsity=0.5), FineTune(variant="rtal", epochs=7), NoAttack()))
    pirate = Chain(attacks=(chain.attacks[0], Overwrite(scheme=Uchida())))

    assert chain.label == "prune_weights+finetune+none"
    assert chain.strength == 7.0
    assert chain.replaces_head
    assert chain.makes == {"model"}
    assert chain.plugins() == list(chain.attacks)
    assert pirate.makes == {"model", "claim"}
    assert pirate.plugins() == [*pirate.attacks, Uchida()]


def test_resolving_reaches_the_parts() -> None:
    """What depends on the victim is filled in everywhere."""
    chain = Chain(attacks=(NoAttack(), Overwrite())).resolved(Uchida(bits=40))

    assert chain.plugins()[-1] == Uchida(bits=40)


def test_a_part_that_means_nothing_stops_the_chain() -> None:
    """The reason names the part."""
    chain = Chain(attacks=(NoAttack(), Ambiguity(level=2)))

    assert str(chain.applicable(Uchida(), arena("digits_mlp").task.info)).startswith("ambiguity: uchida")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((NoAttack(),), "expected two attacks or more"),
        ((Chain(attacks=(NoAttack(), NoAttack())), NoAttack()), "chain inside a chain"),
        ((Ambiguity(), FineTune()), "expected ambiguity in the last place"),
    ],
)
def test_chains_without_meaning_are_refused(parts: tuple[Attack, ...], message: str) -> None:
    """Too short, nested, or continuing after a part that leaves no model."""
    with pytest.raises(ConfigError, match=message):
        Chain(attacks=parts)
