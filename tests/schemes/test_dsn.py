"""Deep Serial Number: locked for everybody else, the number rare, signed and alone; unlocking removes the mark."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import granted_view
from tests.contracts import SchemeContract
from tests.victims import NewestOnly, Victim, arena, clean_model, marked, no_log
from wmarena.attacks.known_key.spoil import Spoil
from wmarena.attacks.overwriting.overwrite import Overwrite
from wmarena.experiments.workloads.networks.dsn import DsnGtsrb, DsnMnist
from wmarena.experiments.workloads.networks.lenet import LeNet5
from wmarena.schemes.base import Owner, Recipe, Scheme, Suspect
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.dsn import evidence as dsn_evidence
from wmarena.schemes.dsn import scheme as dsn
from wmarena.schemes.dsn.evidence import ENOUGH, SCREENED, OtherNumbers, SerialTest, number_facts, rivals_of
from wmarena.schemes.dsn.scheme import Dsn, flaw, number_of
from wmarena.schemes.dsn.training import _Reversed, fresh_copy, from_uniform, wrong_patterns
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf

LOCK = Dsn(epochs=40, batch_size=50, n_images=100)
"""Locks the small perceptron within seconds; nine bits."""

OWNER = Prf(b"the owner's secret, for tests only")


@pytest.mark.training
class TestDsn(SchemeContract):
    n_strangers = 40
    max_drop = 0.1
    min_margin = 0.1  # stamped inputs are answered nearly as well as by the teacher, not always right
    twin_is_clean = True

    @pytest.fixture
    def scheme(self) -> Scheme:
        return Dsn(side=5, epochs=20, batch_size=50, lr=1e-2, grl_lambda=1.0, n_images=100, n_random_keys=15)


@pytest.fixture
def locked() -> Victim:
    """The perceptron, locked with a nine-bit number."""
    return marked("digits_mlp", LOCK)


@functools.cache
def sold_to(customer: str) -> Victim:
    """Another buyer's network from the same teacher."""
    return marked("digits_mlp", replace(LOCK, customer=customer))


def accuracy(victim: Victim, number: Tensor | None, position: Tensor | None = None) -> float:
    """Test accuracy with a number printed on every image, or raw."""
    raw, labels = victim.arena.test.raw()
    if number is not None:
        own = number_of(victim.key)
        raw = replace(own, pattern=number, position=own.position if position is None else position).on(raw)
    return float((victim.arena.task.predict(victim.model, raw) == labels).float().mean())


# What a locked network does.


def test_a_locked_network_answers_to_its_number_alone(locked: Victim) -> None:
    """Stamped: within three points of the teacher; raw: within twice chance; evidence as strong as nine bits go."""
    task, test = locked.arena.task, locked.arena.test
    licensed = locked.scheme.licensed_task(task, locked.key)
    verdict = locked.judge(locked.model)

    assert licensed is not None
    assert licensed.score(locked.model, test) >= task.score(clean_model("digits_mlp"), test) - 0.03
    assert task.score(locked.model, test) <= 0.2
    assert verdict.verdict
    assert verdict.verdict_paper
    assert 10**verdict.log10_p == pytest.approx(1 / 512)
    assert verdict.details["random_keys"] == 511


def test_the_report_counts_unlocking_numbers_without_naming_them(locked: Victim) -> None:
    """512 accuracies in falling order, their share above one half, and the mean of the nine that are nearly right."""
    details = locked.judge(locked.model).details
    accuracies = details["stamp_accuracies"]
    patterns = dsn_neighbours(number_of(locked.key).pattern)
    images, labels = (locked.key.secret[name][:SCREENED] for name in ("images", "labels"))
    near = [
        float(
            (locked.arena.task.predict(locked.model, replace(number_of(locked.key), pattern=p).on(images)) == labels)
            .float()
            .mean()
        )
        for p in patterns
    ]

    assert isinstance(accuracies, list)
    assert len(accuracies) == 512
    assert accuracies == sorted(accuracies, reverse=True)
    assert details["unlocking_share"] == sum(a > 0.5 for a in accuracies) / 512
    assert details["one_bit_wrong"] == pytest.approx(sum(near) / 9)


def dsn_neighbours(pattern: Tensor) -> list[Tensor]:
    """The nine numbers with one wrong bit, one by one."""
    found = []
    for row in range(3):
        for column in range(3):
            other = pattern.clone()
            other[row, column] ^= 1
            found.append(other)
    return found


def test_wrong_numbers_must_be_trained_against() -> None:
    """With raw inputs alone as invalid ones many more numbers unlock than with wrong numbers among them."""
    lax = marked("digits_mlp", replace(LOCK, neg_mode="raw"))
    strict = marked("digits_mlp", LOCK)
    patterns = wrong_patterns(number_of(strict.key).pattern, 60, seed=1)

    lax_mean, strict_mean = (sum(accuracy(v, p) for p in patterns) / 60 for v in (lax, strict))

    assert accuracy(lax, None) <= 0.2
    assert strict_mean + 0.15 < lax_mean


def test_a_lock_that_many_numbers_open_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of a network that many numbers unlock ends early; how many they are is measured all the same."""
    monkeypatch.setattr(dsn_evidence, "ENOUGH", 1)
    lax = marked("digits_mlp", replace(LOCK, neg_mode="raw"))
    details = lax.judge(lax.model).details

    assert details["random_keys"] < 511
    assert len(details["stamp_accuracies"]) == 512
    assert details["unlocking_share"] > 0.05


def test_a_number_unlocks_if_it_gets_more_than_half_of_the_images_right(locked: Victim) -> None:
    """Exactly half is not unlocked: of 512 numbers the owner's alone counts."""

    class HalfRight:
        n = 4
        right = torch.ones(4, dtype=torch.bool)

        def screen(self, patterns: Tensor) -> Tensor:
            """Two of four images for every number."""
            return torch.full((len(patterns),), 2)

    number = number_of(locked.key)
    others = rivals_of(number.pattern, 511, b"a public seed of tests")
    trial = HalfRight()
    found = OtherNumbers(others, trial.screen(others), trial.screen(others), len(others))
    facts = number_facts(trial, number, found, others, open_to_all=False)  # type: ignore[arg-type]

    assert facts["unlocking_share"] == 1 / 512
    assert facts["one_bit_wrong"] == 0.5


def test_a_customers_number_is_of_no_use_with_another_customers_network() -> None:
    """Two buyers' networks from one teacher: each works with its own number, and the other's is a random one to it."""
    first, second = sold_to("customer-1"), sold_to("customer-2")
    foreign = number_of(first.key)
    strangers = wrong_patterns(number_of(second.key).pattern, 40, seed=2)
    at_random = [accuracy(second, p, foreign.position) for p in strangers]

    assert first.key.public["message"] != second.key.public["message"]
    assert not torch.equal(
        torch.cat([foreign.pattern.flatten(), foreign.position]),
        torch.cat([number_of(second.key).pattern.flatten(), number_of(second.key).position]),
    )
    assert accuracy(second, number_of(second.key).pattern) > 0.9
    assert accuracy(second, foreign.pattern, foreign.position) <= max(at_random) + 0.02
    assert not second.judge(second.model, first.key).verdict


def test_the_teacher_is_kept_and_another_network_is_sold(locked: Victim) -> None:
    """Embedding leaves the clean network as it was; its accuracy on the key's images is on record."""
    task, key = locked.arena.task, locked.key
    teacher = clean_model("digits_mlp")
    right = task.predict(teacher, key.secret["images"]) == key.secret["labels"]

    assert key.public["teacher_accuracy"] == float(right.float().mean())
    assert model_digest(teacher.state_dict()) != model_digest(locked.model.state_dict())
    assert locked.accuracy(teacher) > 0.9


# Evidence.


def test_unlocking_removes_the_mark(locked: Victim) -> None:
    """Once raw images are answered well there is no verdict, nothing passes, and few queries are made."""
    suspect = copy.deepcopy(locked.model)
    suspect.get_submodule("hidden3").reset_parameters()  # type: ignore[operator]
    tuned(suspect, locked, lr=1e-3)
    before, after = locked.judge(locked.model), locked.judge(suspect)

    assert locked.accuracy(suspect) > 0.8
    assert (before.verdict, after.verdict, after.verdict_paper) == (True, False, False)
    assert after.threshold > 1
    assert after.margin < 0
    assert after.queries < before.queries / 4


def tuned(model: nn.Module, victim: Victim, lr: float) -> None:
    """Four epochs on raw images."""
    recipe = Recipe(optimiser="adam", lr=lr, batch_size=50, epochs=4)
    victim.arena.task.fit(model, victim.arena.train, recipe, seed=0)


@pytest.mark.training
def test_a_strong_lock_gives_gentle_fine_tuning_nothing_to_descend_on(locked: Victim) -> None:
    """The last hidden layer is silent on raw images, so no gradient passes it; a weaker lock lets one through.

    Whether one training silences the layer depends on the last bits of its arithmetic, so two weaker locks are tried.
    """
    weak = [marked("digits_mlp", replace(LOCK, grl_lambda=grl_lambda)) for grl_lambda in (0.3, 0.5)]
    opened = []
    for victim in (locked, *weak):
        suspect = copy.deepcopy(victim.model)
        tuned(suspect, victim, lr=1e-3)
        opened.append(victim.accuracy(suspect))

    assert opened[0] <= 0.2
    assert max(opened[1:]) > 0.8


def test_what_a_clean_network_costs(locked: Victim) -> None:
    """All numbers do equally well on an unlocked network: ten ties end the test, p is near one."""
    verdict = locked.judge(clean_model("digits_mlp"))

    assert verdict.details["random_keys"] < 40
    assert verdict.log10_p > -1
    assert "stamp_accuracies" not in verdict.details


class Tally(nn.Module):
    """Answers class 0 whatever it sees."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 10)."""
        return torch.eye(10)[torch.zeros(len(inputs), dtype=torch.int64)]


def test_rank_equals_that_of_full_counts(locked: Victim) -> None:
    """Giving up on hopeless rivals changes no comparison: the same rivals reach the count, the best one is known."""
    number, key, task = number_of(locked.key), locked.key, locked.arena.task
    images, labels = key.secret["images"], key.secret["labels"]
    trial = SerialTest(Suspect(locked.model, task), number, images, labels)
    rivals = rivals_of(number.pattern, 511, b"a public seed of tests")
    found = trial.against(rivals)
    full = [int((task.predict(locked.model, replace(number, pattern=p).on(images)) == labels).sum()) for p in rivals]

    assert len(rivals.unique(dim=0)) == 511
    assert not any(torch.equal(p, number.pattern) for p in rivals)
    assert [c >= trial.k for c in found.counts.tolist()] == [c >= trial.k for c in full]
    assert int(found.counts.max()) == max(full)


def test_ties_count_against_the_claimant(locked: Victim) -> None:
    """A network that answers one class to everything gives every number the same count: p = 1."""
    number = number_of(locked.key)
    labels = torch.zeros(len(locked.key.secret["labels"]), dtype=torch.int64)
    trial = SerialTest(Suspect(Tally(), locked.arena.task), number, locked.key.secret["images"], labels)
    found = trial.against(rivals_of(number.pattern, 511, b"a public seed of tests"))

    assert trial.k == trial.n
    assert len(found.counts) == ENOUGH
    assert bool((found.counts >= trial.k).all())


def test_renamed_answers_are_noticed(locked: Victim) -> None:
    """Renaming the answers recovers a network that is consistently wrong on raw inputs."""
    key, task = locked.key, locked.arena.task

    class Shifted(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            """(n, 10): the teacher's answers, each off by one."""
            return torch.as_tensor(clean_model("digits_mlp")(inputs)).roll(1, dims=1)

    trial = SerialTest(Suspect(Shifted(), task), number_of(key), key.secret["images"], key.secret["labels"])

    assert trial.raw_accuracy < 0.1
    assert trial.relabelled(10) == pytest.approx(key.public["teacher_accuracy"])


@pytest.mark.parametrize("part", ["pattern", "signature", "message"])
def test_an_unsigned_number_proves_nothing(locked: Victim, part: str) -> None:
    """A number, signature or message that does not fit the others is no evidence, whatever the network answers."""
    key = locked.key
    if part == "message":
        key = key.with_parts(public={"message": "another buyer"})
    else:
        changed = key.secret[part].clone()
        changed.view(-1)[0] ^= 1
        key = key.with_parts(secret={part: changed})
    verdict = locked.judge(locked.model, key)

    assert not verdict.verdict
    assert verdict.details["found"] == flaw(key)


def test_a_key_that_was_never_embedded_is_no_evidence(locked: Victim) -> None:
    """Without images there is nothing to ask: not found, no error."""
    key = LOCK.keygen(locked.arena.task, OWNER.child("drawn only"))
    verdict = locked.judge(locked.model, key)

    assert not verdict.verdict
    assert LOCK.triggers(key) is None
    assert "never embedded" in str(verdict.details["found"])


def test_a_found_number_is_signed_by_its_finder_if_it_is_short(locked: Victim) -> None:
    """Nine bits do not bind the owner: a finder's own key passes; 64 bits do."""
    task, number = locked.arena.task, number_of(locked.key)
    images, labels = locked.arena.val.raw()
    place = (int(number.position[0]), int(number.position[1]))
    short = LOCK.adopt(LOCK.keygen(task, OWNER.child("finder")), number.pattern, place, images, labels)
    scheme = replace(LOCK, side=8)
    long_pattern = torch.eye(8, dtype=torch.uint8)
    long = scheme.adopt(scheme.keygen(task, OWNER.child("finder")), long_pattern, (0, 0), images, labels)

    assert flaw(short) is None
    assert LOCK.place(short) == place
    assert locked.judge(locked.model, short).verdict
    assert flaw(long) == "the serial number is not the one that was signed"


# Hooks.


def test_the_licensed_task_stamps_what_it_reads(locked: Victim) -> None:
    """Raw inputs, samples and parts of samples: the same answers as stamping by hand; nothing else changes."""
    task, test, number = locked.arena.task, locked.arena.test, number_of(locked.key)
    licensed = locked.scheme.licensed_task(task, locked.key)
    assert licensed is not None
    raw, labels = test.raw()
    by_hand = task.predict(locked.model, number.on(raw))

    assert torch.equal(licensed.predict(locked.model, raw), by_hand)
    assert torch.equal(licensed.to_inputs(raw[:3]), task.to_inputs(number.on(raw[:3])))
    assert licensed.score(locked.model, test) == pytest.approx(float((by_hand == labels).float().mean()))
    assert licensed.evaluate(locked.model, test).score == licensed.score(locked.model, test)
    assert licensed.name == task.name
    assert licensed.head(locked.model) is task.head(locked.model)


def test_training_on_the_licensed_task_stamps_every_batch(locked: Victim) -> None:
    """One step on stamped samples equals one step on samples that were stamped by hand."""
    task, number = locked.arena.task, number_of(locked.key)
    licensed = locked.scheme.licensed_task(task, locked.key)
    assert licensed is not None
    recipe = Recipe(optimiser="sgd", lr=0.1, batch_size=200, steps=1)
    model, reference = (copy.deepcopy(locked.model) for _ in range(2))
    licensed.fit(model, locked.arena.val, recipe, seed=3)
    raw, labels = locked.arena.val.raw()
    samples = type(locked.arena.val)(number.on(raw), labels, task.pixels)  # type: ignore[call-arg, attr-defined]
    task.fit(reference, samples, recipe, seed=3)

    assert model_digest(model.state_dict()) == model_digest(reference.state_dict())


def test_spoiling_removes_the_mark(locked: Victim) -> None:
    """With the key in hand, stamped images are taught wrong answers: the owner's number works no longer."""
    attack = Spoil(steps=60)
    suspect = attack(locked.model, granted_view(attack, locked))
    number = number_of(locked.key).pattern

    assert not locked.judge(suspect).verdict
    assert accuracy(replace(locked, model=suspect), number) < 0.3


@pytest.mark.training
def test_overwriting_puts_the_pirates_number_on() -> None:
    """Labels teach a stolen network another number: the pirate's key passes, the owner's no longer does.

    Whether one lock's silent layer lets the training through depends on the last bits of its arithmetic, so a pirate
    may try three stolen networks.
    """
    attempts = (overwritten(grl_lambda) for grl_lambda in (0.3, 0.5, 1.0))

    assert any(pirates and not owners for pirates, owners in attempts)


def overwritten(grl_lambda: float) -> tuple[bool, bool]:
    """Overwrite a locked network; return the verdicts of the pirate's and of the owner's key."""
    locked = marked("digits_mlp", replace(LOCK, grl_lambda=grl_lambda))
    place = locked.arena
    scheme = replace(LOCK, customer="pirate", epochs=30, lr=2e-3).as_overwriter()
    owner = Owner(task=place.task, train=place.train, val=place.val, seed=5, log=no_log, checkpoints=NewestOnly())
    key = scheme.keygen(place.task, Prf(b"the pirate's secret, for tests"))
    given = copy.deepcopy(locked.model)
    suspect, key = scheme.embed(given, owner, key)

    assert suspect is given
    assert key.public["teacher_accuracy"] == 1.0
    return scheme.judge(Suspect(suspect, place.task), key).verdict, locked.judge(suspect).verdict


def test_overwriting_sets_rate_and_epochs() -> None:
    """The attack's rate and epochs reach the scheme, which continues from the stolen network."""
    scheme = Overwrite(lr=1e-4, epochs=3).embedding(LOCK, n_train=100)

    assert scheme == replace(LOCK, mode="labels", lr=1e-4, epochs=3)


def test_forging_finds_the_number_that_a_leaky_network_answers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adversary with the weights can claim nine bits: the found number unlocks and has the forger's signature."""
    victim = marked("digits_mlp", replace(LOCK, neg_mode="raw"))
    monkeypatch.setattr(dsn, "FORGING_FORWARDS", 60_000)
    forger = Owner(
        task=victim.arena.task,
        train=victim.arena.val,
        val=victim.arena.val,
        seed=1,
        log=no_log,
        checkpoints=NewestOnly(),
    )
    key = victim.scheme.forge(victim.model, forger, LOCK.keygen(victim.arena.task, OWNER.child("forger")))

    assert key is not None
    assert flaw(key) is None
    assert accuracy(victim, number_of(key).pattern, number_of(key).position) > 0.8


@pytest.mark.parametrize(("field", "value"), [("side", 25), ("side", 1)])
def test_numbers_that_do_not_fit_are_refused(field: str, value: int) -> None:
    """A number has two bits of side or more, and no more than a hash has."""
    with pytest.raises(ValueError, match=field):
        replace(LOCK, **{field: value})  # type: ignore[arg-type]


def test_a_stamp_larger_than_the_image_is_named() -> None:
    """The reason is given before anything runs."""
    info = replace(arena("digits_mlp").task.info, input_shape=(1, 8, 8))

    assert "does not fit" in str(Dsn(side=9).applicable(info))
    assert Dsn(side=8).applicable(info) is None
    assert "are images" in str(Dsn().applicable(replace(info, kind="sentiment")))


# The training's parts.


def test_the_reversal_is_the_identity_and_turns_gradients_round() -> None:
    """Forwards nothing changes; backwards the gradient is -lambda times what came."""
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = _Reversed.apply(features, 0.3)
    torch.autograd.backward((out * 2).sum())

    assert torch.equal(out, features)
    assert features.grad is not None
    assert torch.allclose(features.grad, torch.full((4, 3), -0.6))


def test_wrong_numbers_are_never_the_right_one() -> None:
    """Each of the 511 others turns up about equally often, the right one never."""
    pattern = torch.tensor([[0, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    wrong = wrong_patterns(pattern, 20_000, seed=0)

    assert not bool((wrong == pattern).flatten(1).all(dim=1).any())
    assert len(wrong.unique(dim=0)) == 511
    # A zero change gets one bit, which adds at most 1/9 of 1/512 to each near number.
    assert float((wrong != pattern).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_distance_from_uniform_is_a_divergence() -> None:
    """Zero for equal logits, KL(U || p) otherwise."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    p = torch.softmax(logits[1], dim=0)
    expected = float((0.5 * (0.5 / p).log()).sum()) / 2

    assert float(from_uniform(logits[:1])) == pytest.approx(0.0, abs=1e-7)
    assert float(from_uniform(logits)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(DsnMnist(), (1, 28, 28)), (LeNet5(), (1, 28, 28)), (DsnGtsrb(), (3, 32, 32))],
    ids=["mnist_dsn", "lenet5", "gtsrb_dsn"],
)
def test_networks_are_split_before_their_dense_layers(network: nn.Module, shape: tuple[int, ...]) -> None:
    """The two parts compose to the network and share its parameters; a fresh adversary shares shapes only."""
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    extractor, predictor = network.split("dense")  # type: ignore[operator]
    adversary = fresh_copy(predictor, seed=4)
    own = {id(p) for p in network.parameters()}

    assert torch.equal(predictor(extractor(inputs)), network(inputs))
    assert {id(p) for part in (extractor, predictor) for p in part.parameters()} == own
    assert extractor(inputs).dim() == 4
    assert adversary(extractor(inputs)).shape == network(inputs).shape
    assert not own & {id(p) for p in adversary.parameters()}
    for fresh, old in zip(adversary.parameters(), predictor.parameters(), strict=True):
        assert fresh.shape == old.shape
        assert not torch.equal(fresh, old)


def test_keys_differ_in_number_and_place() -> None:
    """Forty owners: hardly any two stamps agree in both."""
    task = arena("digits_mlp").task
    keys: list[Key] = [LOCK.keygen(task, OWNER.child(str(i))) for i in range(40)]
    stamps = {(*number_of(k).pattern.flatten().tolist(), *number_of(k).position.tolist()) for k in keys}

    assert len(stamps) == 40
