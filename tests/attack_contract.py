"""What every attack must honour: a plugin joins by one subclass of ``AttackContract`` with an ``attack`` fixture."""

import copy
import dataclasses
import json
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.victims import NewestOnly, Victim, arena, marked, no_log
from wmarena.attacks.base import Attack, AttackOutcome, AttackView, Claim, Finding, Piracy
from wmarena.attacks.knowledge import AuxiliaryData, Budget, Knowledge, NotGranted, SealedModel
from wmarena.orchestrator.plan.plugins import build_attack
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Cancelled, Checkpoints, Scheme
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf, subseed
from wmarena.schemes.uchida import Uchida


def make_view(
    place: BoundWorkload,
    *,
    seed: int = 0,
    scheme: Scheme | None = None,
    key: Key | None = None,
    checkpoints: Checkpoints | None = None,
    fraction: float = 0.1,
    auxiliary_data: AuxiliaryData | None = None,
    **budget: int,
) -> AttackView:
    """A view as an adversary with ``fraction`` of the training data has it; nothing is granted but what is given."""
    share = place.train.share(fraction, domain="adversary", seed=subseed(seed, "data"))
    data, val = share.split(0.2, domain="adversary/val", seed=seed)
    return AttackView(
        task=place.task,
        scheme=scheme,
        data=data,
        val=val,
        budget=Budget(data_fraction=fraction, **budget),
        seed=seed,
        prf=Prf(b"the adversary's secret, for tests"),
        log=no_log,
        checkpoints=checkpoints or NewestOnly(),
        key=key,
        auxiliary_data=auxiliary_data,
    )


def named_data(attack: Attack) -> AuxiliaryData:
    """The data sets that ``attack`` names, of the small workloads."""
    places = {name: arena(name) for name in attack.data_sets()}
    return AuxiliaryData({name: (place.train, place.val, place.task.info) for name, place in places.items()})


def granted_view(attack: Attack, victim: Victim, **changes: Any) -> AttackView:
    """A view that grants exactly what ``attack`` declares."""
    needs = attack.needs()
    return make_view(
        victim.arena,
        scheme=victim.scheme if "algorithm" in needs else None,
        key=victim.key if "key" in needs else None,
        **{"auxiliary_data": named_data(attack), **changes},
    )


def digest(outcome: AttackOutcome) -> tuple[str | None, str | None]:
    """Content of an outcome's model, and of its claim's key or of what it found."""
    if isinstance(outcome, Claim):
        return None, outcome.key.commitment
    if isinstance(outcome, Piracy):
        return model_digest(outcome.model.state_dict()), outcome.claim.key.commitment
    if isinstance(outcome, Finding):
        return model_digest(outcome.model.state_dict()), json.dumps(outcome.details, sort_keys=True)
    return model_digest(outcome.state_dict()), None


def suspect_of(outcome: AttackOutcome, victim: Victim) -> nn.Module:
    """The model that is judged after an attack: a bare claim is one on the victim itself."""
    if isinstance(outcome, Claim):
        return victim.model
    return outcome.model if isinstance(outcome, Piracy | Finding) else outcome


class AttackContract:
    """Subclasses give an ``attack`` fixture; the class attributes say on what it is tried."""

    workload: ClassVar[str] = "digits_mlp"
    min_accuracy: ClassVar[float] = 0.85
    """What the suspect must still be worth, on test data.

    Chance is 0.1, with a standard deviation of 0.013. Where a network is ruined and trained anew on 92 inputs, the
    last bits of a processor move the accuracy by tens of per cent: such an attack must leave a multiple of chance,
    and one that is published to ruin the network nothing at all (0).
    """
    verdict: ClassVar[bool | None] = None
    """What the owner's test must say of the suspect; None where that is open."""

    @pytest.fixture
    def scheme(self) -> Scheme:
        """The victim's scheme."""
        return Uchida(bits=32)

    @pytest.fixture
    def victim(self, scheme: Scheme) -> Victim:
        """The marked model."""
        return marked(self.workload, scheme)

    def test_victim_is_untouched(self, attack: Attack, victim: Victim) -> None:
        """Weights, buffers, training flags and gradient flags of the victim are as before."""

        def flags(model: nn.Module) -> list[bool]:
            return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]

        before = model_digest(victim.model.state_dict()), flags(victim.model)

        attack(victim.model, granted_view(attack, victim))

        assert before == (model_digest(victim.model.state_dict()), flags(victim.model))
        assert all(p.grad is None for p in victim.model.parameters())

    def test_same_seed_gives_the_same_bits(self, attack: Attack, victim: Victim) -> None:
        """Two runs agree bit for bit, whatever the global generators hold."""
        torch.manual_seed(1)
        first = attack(victim.model, granted_view(attack, victim))
        torch.manual_seed(2)
        second = attack(victim.model, granted_view(attack, victim))

        assert digest(first) == digest(second)

    def test_global_generators_are_untouched(self, attack: Attack, victim: Victim) -> None:
        """torch's, numpy's and Python's global generators are left as they were."""
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

        attack(victim.model, granted_view(attack, victim))

        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())

    @pytest.mark.parametrize("withheld", ["key", "algorithm", "weights", "queries"])
    def test_undeclared_knowledge_is_not_used(self, attack: Attack, victim: Victim, withheld: Knowledge) -> None:
        """Without what it declares an attack is refused; without what it does not declare it runs all the same."""
        granted = attack.needs() - {withheld}
        view = make_view(
            victim.arena,
            scheme=victim.scheme if "algorithm" in granted else None,
            key=victim.key if "key" in granted else None,
            auxiliary_data=named_data(attack),
            **({} if "queries" in granted else {"max_queries": 1}),
        )

        if withheld not in attack.needs():
            assert digest(attack(victim.model, view)) == digest(attack(victim.model, granted_view(attack, victim)))
        elif withheld in ("weights", "queries"):
            sealed = SealedModel(copy.deepcopy(victim.model), 0 if withheld == "queries" else None)
            # Helpers that look for a network's layers refuse what has none, before any weight is read.
            with pytest.raises((NotGranted, TypeError)) as refused:
                attack.run(sealed, view)
            assert withheld in str(refused.value) or not isinstance(refused.value, NotGranted)
        else:
            with pytest.raises(NotGranted, match=withheld):
                attack(victim.model, view)

    def test_suspect_is_ready_to_be_judged(self, attack: Attack, victim: Victim) -> None:
        """Eval mode throughout, all gradients enabled, of use for the task, and the verdict is the expected one."""
        suspect = suspect_of(attack(victim.model, granted_view(attack, victim)), victim)

        assert not any(m.training for m in suspect.modules())
        assert all(p.requires_grad for p in suspect.parameters())
        assert victim.accuracy(suspect) >= self.min_accuracy
        assert victim.judge(suspect).verdict in ((True, False) if self.verdict is None else (self.verdict,))

    def test_outcome_is_what_was_announced(self, attack: Attack, victim: Victim) -> None:
        """``makes`` declares whether the attack returns a model, a claim or both."""
        outcome = attack(victim.model, granted_view(attack, victim))

        made = {"claim"} if isinstance(outcome, Claim | Piracy) else set()
        made |= set() if isinstance(outcome, Claim) else {"model"}
        assert attack.makes == made

    def test_interrupted_run_resumes_bit_equal(self, attack: Attack, victim: Victim) -> None:
        """Stopped after any of its first checkpoints and run again, an attack ends where it would have ended."""
        undisturbed = NewestOnly()
        expected = digest(attack(victim.model, granted_view(attack, victim, checkpoints=undisturbed)))

        for stop_at in sorted({1, undisturbed.n_offers // 2, undisturbed.n_offers} - {0}):
            checkpoints = NewestOnly(stop_at=stop_at)
            if undisturbed.n_offers:
                with pytest.raises(Cancelled):
                    attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))
            resumed = attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))
            assert expected == digest(resumed)

    def test_applies_to_its_victim(self, attack: Attack, victim: Victim) -> None:
        """The attack is applicable to the scheme that it is tested on, before and after resolving."""
        info = victim.arena.task.info

        assert attack.applicable(victim.scheme, info) is None
        assert attack.resolved(victim.scheme).applicable(victim.scheme, info) is None

    def test_resolving_twice_changes_nothing(self, attack: Attack, victim: Victim) -> None:
        """Resolving fills in what depends on the victim, once."""
        resolved = attack.resolved(victim.scheme)

        assert resolved == resolved.resolved(victim.scheme)
        assert attack.label == resolved.label

    def test_configuration_round_trips(self, attack: Attack) -> None:
        """``config()`` is JSON that names every field and rebuilds the attack, nested plugins included."""
        config = json.loads(json.dumps(attack.config()))

        assert set(config) == {"name", *attack.parameters()}
        assert attack == build_attack(config)

    def test_fields_are_documented(self, attack: Attack) -> None:
        """Every field has a meaning and acts at the attack's stage; at most one is the strength."""
        fields = attack.parameters()

        assert all(p.doc and p.stage == "attack" for p in fields.values())
        assert sum(p.strength for p in fields.values()) <= 1

    def test_strength_is_not_in_the_label(self, attack: Attack) -> None:
        """Attacks that differ in strength alone share a label, and a trajectory if they are incremental."""
        name = attack.strength_field()
        if name is None or getattr(attack, name) is None:
            assert name is not None or attack.strength is None or attack.plugins()
            return
        value = getattr(attack, name)
        other = dataclasses.replace(attack, **{name: value + 1 if isinstance(value, int) else value * 0.5})

        assert attack.label == other.label
        assert attack.strength != other.strength
        assert (attack.trajectory() == other.trajectory()) == attack.incremental

    def test_longer_strength_continues_the_shorter(self, attack: Attack, victim: Victim) -> None:
        """An incremental attack from a shorter one's kept checkpoint equals the undisturbed longer one, bit for bit."""
        if not attack.incremental:
            assert attack.strength_field() is None or attack.strength_field() in attack.trajectory()
            return
        name = str(attack.strength_field())
        short, long = (dataclasses.replace(attack, **{name: n}) for n in (1, 3))
        shared = NewestOnly()
        short(victim.model, granted_view(short, victim, checkpoints=shared))
        assert shared.kept == {1}
        undisturbed = NewestOnly()

        expected = long(victim.model, granted_view(long, victim, checkpoints=undisturbed))
        continued = long(victim.model, granted_view(long, victim, checkpoints=shared))

        assert digest(expected) == digest(continued)
        assert shared.n_offers == undisturbed.n_offers, "one epoch at first and two more, none twice"

    def test_ruined_weights_are_an_error(self, attack: Attack, victim: Victim) -> None:
        """A suspect with NaN is never returned: the attack fails with FloatingPointError."""
        if "model" not in attack.makes:
            assert attack.makes == {"claim"}
            return
        broken = copy.deepcopy(victim.model)
        with torch.no_grad():
            next(broken.parameters()).fill_(torch.nan)

        with pytest.raises(FloatingPointError, match="expected"):
            attack(broken, granted_view(attack, victim))
