"""MTLSign: what its papers' formulas promise, beyond the contract of all schemes."""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tests.marks import clean_model
from wmarena.experiments.workloads.images.digits import DigitsCnn
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Batch, Cancelled, Checkpoints, Owner, Recipe, Samples, Suspect, Verdict
from wmarena.schemes.keys import Key
from wmarena.schemes.mtlsign.loop import SnapshotScore
from wmarena.schemes.mtlsign.mark import Mark, integer_bits, random_head, secret_integers, secret_labels, trigger_data
from wmarena.schemes.mtlsign.scheme import MTLSign, MTLSignFixed
from wmarena.schemes.mtlsign.shift import Shift, pruned_shift, shifts_from_state, trainable, tuned_shift
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import binomial_band, binomial_threshold, log10_binomial_tail

SECRET = Prf(b"the owner of these tests")
_FEW = {"n": 100, "steps": 48, "lr": 2e-3, "batch_size": 50, "mark_batch": 50, "refresh": 16, "tuning_steps": 5}
SMALL = MTLSign(**_FEW, check_every=24, hidden=64)
SMALL_FIXED = MTLSignFixed(**_FEW, check_every=24, hidden=64)
VARIANTS = [SMALL, SMALL_FIXED]
Variant = MTLSign | MTLSignFixed


class StopAt:
    """Checkpoints that keep the newest state and stop the run once, after step ``stop``."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.newest: tuple[int, dict[str, Tensor]] | None = None

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        return self.newest

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        if step == self.stop:
            self.stop, self.newest = None, (step, state())
            raise Cancelled


class Curves:
    """A training log that remembers."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def __call__(self, step: int, **metrics: float) -> None:
        self.rows[step] = metrics


class Unshared:
    """Training samples that must not be split."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        return self._samples.batches(batch_size, seed=seed, epoch=epoch, augment=augment)

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        return self._samples.in_order(batch_size)

    def share(self, fraction: float, *, domain: str, seed: int) -> Samples:
        raise AssertionError(f"a share of {fraction} was drawn for {domain}")


@functools.cache
def arena() -> BoundWorkload:
    """The digits."""
    return DigitsCnn().bind(torch.device("cpu"), None)


@functools.cache
def clean() -> nn.Module:
    """An unmarked network; copy it before changing it."""
    return clean_model()


def owner(checkpoints: Checkpoints | None = None, *, train: Samples | None = None, log: Curves | None = None) -> Owner:
    """An owner of the digits."""
    return Owner(
        task=arena().task,
        train=train or arena().train,
        val=arena().val,
        seed=7,
        log=log or Curves(),
        checkpoints=checkpoints or StopAt(),
    )


def embed(scheme: Variant, by: Owner | None = None) -> tuple[nn.Module, Key]:
    """The clean network, marked."""
    return scheme.embed(copy.deepcopy(clean()), by or owner(), scheme.keygen(arena().task, SECRET))


@functools.cache
def marked(scheme: Variant) -> tuple[nn.Module, Key]:
    """The same, kept: never change it."""
    return embed(scheme)


def judge(scheme: Variant, model: nn.Module, key: Key) -> Verdict:
    """Evidence on a network of the digits."""
    return scheme.judge(Suspect(model, arena().task), key)


def some_mark(n: int = 40) -> Mark:
    """A key's data with a fixed head, for the digits' network."""
    key = Key("mtlsign", bytes(32))
    inputs, labels = trigger_data(arena().task, key, n)
    d = sum((16, 32, 64))
    return Mark(task=arena().task, inputs=inputs, labels=labels, head=random_head(key, d, 32, 1.0))


def distance(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of two networks' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def gradient(loss: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """One vector of all derivatives; those of tensors that the loss does not read are 0."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    parts = zip(found, parameters.values(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])


# Keys.


def test_integers_are_distinct_and_long_enough() -> None:
    """N = 600 integers of 30 bits, all different; m follows from N and stops where workloads do."""
    integers = secret_integers(SECRET, 600)

    assert len(set(integers)) == 600
    assert 2**29 < max(integers) < 2**30
    assert [integer_bits(n) for n in (2, 100, 600, 1024, 2000)] == [3, 21, 30, 30, 30]


def test_keys_practically_never_overlap() -> None:
    """Fifty keys of 600 triggers share no (integer, label): the expected number is 0.2 in all pairs together."""
    keys = [SECRET.child(str(i)) for i in range(50)]
    sets = [set(zip(secret_integers(k, 600), secret_labels(k, 600).tolist(), strict=True)) for k in keys]

    assert sum(len(a & b) for a, b in itertools.combinations(sets, 2)) <= 2


def test_labels_are_not_balanced() -> None:
    """The number of ones varies like Binomial(n, 1/2): balancing would make the p-value wrong."""
    ones = torch.tensor([float(secret_labels(SECRET.child(str(i)), 100).sum()) for i in range(200)])

    assert 3.9 < float(ones.std()) < 6.2  # sd 5, within 5 standard errors
    assert abs(float(ones.mean()) - 50) < 1.8


def test_evidence_of_six_hundred_triggers() -> None:
    """Known numbers of N = 600: log10 p of 420 and of 600 matches, thresholds at 1e-3, 1e-6, 1e-9."""
    assert log10_binomial_tail(420, 600, 0.5) == pytest.approx(-22.65, abs=0.01)
    assert log10_binomial_tail(600, 600, 0.5) == pytest.approx(-180.6, abs=0.05)
    thresholds = [binomial_threshold(600, 0.5, level) / 600 for level in (1e-3, 1e-6, 1e-9)]
    assert thresholds == pytest.approx([0.565, 0.598, 0.623], abs=5e-4)


def test_a_key_of_the_other_variant_is_refused() -> None:
    """The two variants' keys are not interchangeable, and the message says what to do."""
    with pytest.raises(ValueError, match="expected a key of mtlsign, got one of mtlsign_fixed; draw it"):
        judge(SMALL, clean(), SMALL_FIXED.keygen(arena().task, SECRET))


def test_shape_of_a_fixed_head_is_part_of_the_key() -> None:
    """Number, width and scale act when a key is drawn; how the network is trained does not."""
    assert set(SMALL_FIXED.config(until="key")) == {"name", "n", "hidden", "head_scale"}
    assert set(SMALL.config(until="key")) == {"name", "n", "hidden"}


# The mark.


@pytest.mark.parametrize("scheme", VARIANTS, ids=lambda s: s.name)
def test_mark_lives_in_the_network(scheme: Variant) -> None:
    """The owner's key, head included, passes on the marked network and not on the one that it was trained from."""
    model, key = marked(scheme)

    assert judge(scheme, model, key).statistic >= 0.97
    assert judge(scheme, clean(), key).log10_p > -3


def faded() -> tuple[nn.Module, Key]:
    """A mark that is half gone: the marked network drawn towards the clean one."""
    model, key = marked(SMALL)
    between = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, unmarked in zip(between.parameters(), clean().parameters(), strict=True):
            parameter.lerp_(unmarked, 0.6)
    return between, key


def test_gamma_moves_the_papers_verdict_alone() -> None:
    """gamma = 1 refuses what 0.7 accepts; everything else of the evidence is the same."""
    model, key = faded()
    lax, strict = (judge(replace(SMALL, gamma=g), model, key) for g in (0.7, 1.0))

    assert 0.7 <= lax.statistic < 1
    assert (lax.verdict_paper, strict.verdict_paper) == (True, False)
    same = {"verdict_paper": None, "details": {}}
    assert replace(lax, **same) == replace(strict, **same)


def test_the_papers_rule_includes_gamma() -> None:
    """A share of matches that equals gamma passes; the next larger threshold refuses it."""
    model, key = faded()
    share = judge(SMALL, model, key).statistic
    at, above = (judge(replace(SMALL, gamma=g), model, key) for g in (share, math.nextafter(share, 2)))

    assert (at.verdict_paper, above.verdict_paper) == (True, False)


def test_only_a_trained_head_needs_a_commitment() -> None:
    """Evidence from a trained head says so by name, whatever the outcome."""
    verdicts = {s.name: judge(s, clean(), marked(s)[1]) for s in VARIANTS}

    assert verdicts["mtlsign"].caveats == ("needs_prior_commitment",)
    assert verdicts["mtlsign_fixed"].caveats == ()


def test_features_may_be_scaled_and_shifted() -> None:
    """A positive scale and a shift per feature change no answer."""
    mark = some_mark()
    features = torch.rand(40, 112, generator=torch.Generator().manual_seed(0))
    moved = features * torch.linspace(0.5, 3, 112) + torch.linspace(-1, 1, 112)

    torch.testing.assert_close(mark.logits(moved), mark.logits(features), rtol=1e-3, atol=1e-3)


def test_a_constant_feature_says_nothing() -> None:
    """A dead channel gives 0 instead of amplified rounding noise."""
    mark = some_mark()
    features = torch.rand(40, 112, generator=torch.Generator().manual_seed(0))
    features[:, 3], noisy = 0.7, features.clone()
    noisy[:, 3] = 0.7 + 1e-8 * torch.arange(40)

    torch.testing.assert_close(mark.logits(noisy), mark.logits(features), rtol=0, atol=1e-2)


def test_a_new_output_layer_does_not_hide_the_mark() -> None:
    """The mark is read below the output layer: one for 43 classes fits the key and gives the same evidence."""
    model, key = marked(SMALL)
    transferred = copy.deepcopy(model)
    transferred.head = nn.Linear(64, 43)

    assert judge(SMALL, transferred, key) == judge(SMALL, model, key)


def test_another_width_does_not_fit() -> None:
    """A stage of another width is a structural incompatible, with its name."""
    model, key = marked(SMALL)
    wider = copy.deepcopy(model)
    wider.stage3[0] = nn.Conv2d(32, 65, 3, padding=1, bias=False)
    verdict = judge(SMALL, wider, key)

    assert verdict.reason == "structure"
    assert "stage3.0.weight" in str(verdict.details["found"])


def test_marks_loss_uses_the_given_labels_and_leaves_the_network_alone() -> None:
    """The mark's loss is low for the own labels, high for the opposite; flags and batch-norm statistics stay."""
    model, key = marked(SMALL)
    model = copy.deepcopy(model).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    own = SMALL.mark_loss(model, arena().task, key)
    opposite = SMALL.mark_loss(model, arena().task, key, labels=1 - secret_labels(key.prf, 100))

    assert float(own.detach()) < 0.3 < 1 < float(opposite.detach())
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())


@pytest.mark.parametrize("scheme", VARIANTS, ids=lambda s: s.name)
def test_random_keys_stay_in_the_binomial_band(scheme: Variant) -> None:
    """A stranger's key on the marked network is chance: no exception in sixty beyond what the band allows."""
    model, key = marked(scheme)
    strangers = [scheme.randomise_key(key, SECRET.child(f"stranger {i}")) for i in range(60)]
    statistics = [judge(scheme, model, k).statistic for k in strangers]
    low, high = binomial_band(100, 0.5)

    assert sum(not low <= s <= high for s in statistics) <= 1
    assert len(set(statistics)) > 5


# Forging.


def test_a_head_trained_afterwards_passes_on_any_network() -> None:
    """Level 2: on an untouched clean network a forger's own head passes with a fresh key; hence the caveat."""
    before = copy.deepcopy(clean())
    forged = SMALL.forge(clean(), owner(), SMALL.keygen(arena().task, SECRET.child("forger")))
    verdict = judge(SMALL, clean(), forged)

    assert verdict.verdict
    assert "needs_prior_commitment" in verdict.caveats
    assert distance(before, clean()) == 0


def test_a_fixed_head_leaves_a_forger_nothing_to_train() -> None:
    """Tensors that somebody adds to a key of the fixed variant are not read."""
    key = marked(SMALL_FIXED)[1]
    forged = key.with_parts(secret={"head.0.weight": torch.ones(256, 112)})

    assert SMALL_FIXED.forge(clean(), owner(), key) is None
    assert judge(SMALL_FIXED, clean(), forged) == judge(SMALL_FIXED, clean(), key)


# The robustness term.


def in_double(mark: Mark) -> Mark:
    """The same mark for networks in float64, where differences of a loss say more than its rounding."""
    head = {n: t.double() for n, t in mark.head.items()}
    return replace(mark, inputs=mark.inputs.double(), head=head)


def test_shifted_loss_has_the_gradient_of_the_shifted_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """First order: d R_DA / d theta is the mark's gradient at theta + Delta, by autograd and by finite differences."""
    share = arena().train.share(0.1, domain="test", seed=0)
    recipe = Recipe(optimiser="sgd", lr=0.05, batch_size=50, steps=5)
    tuned = tuned_shift(arena().task, copy.deepcopy(clean()), share, recipe, 0)
    # The features are pooled in the double precision of the network, not in float32.
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    mark, model = in_double(some_mark()), copy.deepcopy(clean()).double()
    shift = replace(
        tuned,
        delta={n: t.double() for n, t in tuned.delta.items()},
        buffers={n: t.double() if t.is_floating_point() else t for n, t in tuned.buffers.items()},
    )
    parameters = dict(trainable(model))
    found = gradient(mark.loss(model, state=shift.applied(parameters)), parameters)

    there = copy.deepcopy(model)
    there.load_state_dict({**model.state_dict(), **shift.applied(parameters)})
    torch.testing.assert_close(found, gradient(mark.loss(there), dict(trainable(there))))
    assert not torch.allclose(found, gradient(mark.loss(model), parameters), rtol=0.01)

    # A step so short that hardly a rectifier changes sides, in a precision that still resolves it.
    direction, sizes, length = found / found.norm(), [p.numel() for p in model.parameters()], 1e-8
    with torch.no_grad():
        values = []
        for step in (-length, length):
            probe = copy.deepcopy(model)
            for parameter, part in zip(probe.parameters(), direction.split(sizes), strict=True):
                parameter.add_(step * part.view(parameter.shape))
            values.append(float(mark.loss(probe, state=shift.applied(trainable(probe)))))
    assert (values[1] - values[0]) / (2 * length) == pytest.approx(float(found.norm()), rel=1e-4)


def test_first_order_points_where_the_exact_gradient_does() -> None:
    """Differentiating through three real tuning steps at lr 1e-3 gives almost the same direction."""
    mark, model, task = some_mark(), copy.deepcopy(clean()).eval(), arena().task
    batches = list(itertools.islice(arena().train.batches(50, seed=0, epoch=0), 3))
    parameters = dict(trainable(model))
    exact_state, momentum = dict(parameters), {n: torch.zeros_like(p) for n, p in parameters.items()}
    for inputs, targets in batches:
        loss = functional.cross_entropy(functional_call(model, exact_state, (inputs,)), targets)
        slopes = torch.autograd.grad(loss, list(exact_state.values()), create_graph=True)
        momentum = {n: 0.9 * momentum[n] + g for n, g in zip(exact_state, slopes, strict=True)}
        exact_state = {n: p - 1e-3 * momentum[n] for n, p in exact_state.items()}
    exact = gradient(mark.loss(model, state=exact_state), parameters)
    shift = Shift(tuned=True, delta={n: (exact_state[n] - p).detach() for n, p in parameters.items()})
    first_order = gradient(mark.loss(model, state=shift.applied(parameters)), parameters)

    assert torch.nn.functional.cosine_similarity(exact, first_order, dim=0) > 0.9
    assert not torch.equal(exact, first_order)
    assert task.stage_names(model)


def test_pruning_zeroes_whole_channels_with_their_norm() -> None:
    """A pruned W_t has 10-50 % dead channels in every layer but the output layer, scale and shift included."""
    model = clean()
    shift = pruned_shift(arena().task, model, arena().train, 100, seed=3)
    state = shift.applied(trainable(model))

    for stage in ("stage1", "stage2", "stage3"):
        dead = state[f"{stage}.0.weight"].flatten(1).abs().sum(dim=1) == 0
        assert 0.05 <= float(dead.float().mean()) <= 0.5
        assert bool((state[f"{stage}.1.weight"][dead] == 0).all())
        assert bool((state[f"{stage}.1.bias"][dead] == 0).all())
        assert bool((state[f"{stage}.1.weight"][~dead] != 0).all())
    assert torch.equal(state["head.weight"], model.head.weight)


def test_shifts_survive_a_checkpoint() -> None:
    """Saved and read again, perturbations are the same, in the same order and memory layout."""
    weight = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    shifts = [
        Shift(tuned=True, delta={"a.weight": torch.rand_like(weight)}, buffers={"a.mean": torch.zeros(3)}),
        Shift(tuned=False, delta={"a.weight": torch.ones_like(weight)}),
    ]
    state = {k: v.contiguous() for i, s in enumerate(shifts) for k, v in s.to_state(f"shift.{i}.").items()}
    again = shifts_from_state({**state, "other.tensor": torch.ones(1)}, "shift.", {"a.weight": weight})

    assert [s.tuned for s in again] == [True, False]
    for old, new in zip(shifts, again, strict=True):
        assert torch.equal(old.delta["a.weight"], new.delta["a.weight"])
        assert new.delta["a.weight"].is_contiguous(memory_format=torch.channels_last)
    assert [list(s.buffers) for s in again] == [["a.mean"], []]


# The loop.


def test_nothing_moves_under_a_prohibitive_covertness_term() -> None:
    """lambda2 = alpha = 0 and lambda1 towards infinity: weights stay within a step or two of W0, statistics exactly."""
    free = replace(SMALL_FIXED, alpha=0.0, lambda2=0.0)
    bound, _ = embed(replace(free, lambda1=1e9))
    loose, _ = embed(free)

    assert distance(bound, clean()) <= 3 * free.lr
    assert distance(loose, clean()) > 10 * distance(bound, clean())


def test_trigger_inputs_never_touch_batch_norm_statistics() -> None:
    """Without a primary loss the network sees triggers only, and its running statistics are bit-equal to W0's."""
    model, _ = embed(replace(SMALL, alpha=0.0))
    before = dict(clean().named_buffers())

    assert distance(model, clean()) > 0
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())


def test_without_robustness_term_nothing_is_tuned() -> None:
    """lambda2 = 0 draws no D'_primary and computes no perturbation."""
    log = Curves()
    embed(replace(SMALL, lambda2=0.0, steps=5), owner(train=Unshared(arena().train), log=log))

    assert "loss_robust" not in log.rows[5]
    with pytest.raises(AssertionError, match="mtlsign/d_primary"):
        embed(SMALL, owner(train=Unshared(arena().train)))


@pytest.mark.parametrize(
    ("scheme", "stop"),
    [(SMALL, 16), (SMALL, 29), (SMALL, 48), (SMALL_FIXED, 29)],
    ids=["refresh", "between", "end", "fixed"],
)
def test_resumed_embedding_is_bit_equal(scheme: Variant, stop: int) -> None:
    """Stopped around refreshes, checks and the end, an embedding continues to the same network and key."""
    expected, expected_key = marked(scheme)
    checkpoints = StopAt(stop)
    with pytest.raises(Cancelled):
        embed(scheme, owner(checkpoints))
    model, key = embed(scheme, owner(checkpoints))

    assert all(torch.equal(t, model.state_dict()[n]) for n, t in expected.state_dict().items())
    assert key.commitment == expected_key.commitment


def test_better_snapshots_are_faithful_then_accurate_then_robust_then_late() -> None:
    """The order of candidates: validation guard, mark at W, mark at W_t, step."""
    worst_first = [
        SnapshotScore(False, 1.0, 1.0, 700),
        SnapshotScore(True, 0.72, 1.0, 600),
        SnapshotScore(True, 1.0, 0.95, 500),
        SnapshotScore(True, 1.0, 0.96, 300),
        SnapshotScore(True, 1.0, 0.96, 400),
    ]

    assert sorted(worst_first, key=lambda s: s.step) != worst_first
    assert sorted(worst_first) == worst_first


def test_early_stop_ends_at_the_first_good_check() -> None:
    """With ``early_stop`` the loop ends when the mark is perfect, and curves say where."""
    log = Curves()
    scheme = replace(SMALL_FIXED, early_stop=True, check_every=10, steps=400, lambda2=0.0, max_drop=1.0)
    embed(scheme, owner(log=log))
    last = max(log.rows)

    assert last < 400
    assert log.rows[last]["mark_accuracy"] >= 0.99
    assert all(row["mark_accuracy"] < 0.99 for step, row in log.rows.items() if step < last)


def test_a_loss_that_explodes_is_an_error() -> None:
    """An absurd rate ends in a message that names rate and step instead of a broken network."""
    with pytest.raises(FloatingPointError, match=r"expected finite losses, got .* lower lr"):
        embed(replace(SMALL, lr=1e30, steps=20, check_every=5))


def test_twin_is_the_same_training_without_the_mark() -> None:
    """The compute-matched twin depends on rate, batch and steps alone; without a primary loss it is W0 itself."""
    recipe = SMALL.twin_recipe(arena().task, 1150)
    other = replace(SMALL, n=50, lambda1=0.0, lambda2=0.7, gamma=0.9, hidden=8, refresh=7)

    assert recipe == Recipe(optimiser="adam", lr=2e-3, batch_size=50, steps=48)
    assert other.twin_recipe(arena().task, 1150) == recipe
    assert replace(SMALL, alpha=0.0).twin_recipe(arena().task, 1150) is None
