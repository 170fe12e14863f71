"""Patterns on images of one class and glyphs: what a key draws, what is trained, what the evidence rests on."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.contracts import SchemeContract
from tests.marks import Embedded, arena, clean_model, embedded
from tests.victims import NewestOnly, no_log
from wmarena.experiments.workloads.images.samples import ImageSamples
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.schemes.base import Owner, Recipe, Scheme, Suspect, TaskInfo, Verdict
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.keys import Key
from wmarena.schemes.params import ConfigError
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import LEVEL
from wmarena.schemes.triggers.images import glyph_images
from wmarena.schemes.zhang.patterns import Block, Noise, PatternDraw, PatternKey, Stamp, images_of_class
from wmarena.schemes.zhang.schemes import EXCEEDANCES, ZhangContent, ZhangNoise, ZhangUnrelated

SECRET = Prf(b"the owner of these tests")
CONTENT = ZhangContent(n_triggers=30, boost=3, epochs=6, lr=1e-2, decoys=5, n_random_keys=19)
NOISE = ZhangNoise(n_triggers=30, boost=3, epochs=6, lr=1e-2, decoys=5, n_random_keys=19)
UNRELATED = ZhangUnrelated(n_triggers=30, boost=4, epochs=8, lr=1e-2)
STAMPS: list[Stamp] = [Block(8, 16), Block(3, 5), Noise(0.35), Noise(0.35, fresh=True)]


class TestContent(SchemeContract):
    n_strangers = 24

    @pytest.fixture
    def scheme(self) -> Scheme:
        return CONTENT


class TestNoise(SchemeContract):
    n_strangers = 24

    @pytest.fixture
    def scheme(self) -> Scheme:
        return NOISE


class TestUnrelated(SchemeContract):
    n_strangers = 200

    @pytest.fixture
    def scheme(self) -> Scheme:
        return UNRELATED


class Answering(Suspect):
    """A suspect with given answers: a function of the images that it is asked about."""

    def __init__(self, answers: Callable[[Tensor], Tensor]) -> None:
        super().__init__(clean_model(), arena().task)
        self.answers = answers

    def labels(self, raw: Tensor) -> Tensor:
        """The given answers, counted."""
        self.queries += len(raw)
        return self.answers(raw)


def owner() -> Owner:
    """Somebody with the digits."""
    place = arena()
    return Owner(task=place.task, train=place.train, val=place.val, seed=0, log=no_log, checkpoints=NewestOnly())


def source_and_target(key: Key) -> tuple[int, int]:
    """(s, t)."""
    source, target = key.secret["classes"].tolist()
    return source, target


def constant(label: int) -> Callable[[Tensor], Tensor]:
    """The same answer to everything."""
    return lambda raw: torch.full((len(raw),), label)


def n_steps(recipe: Recipe, n_train: int) -> int:
    """Optimiser steps of a recipe."""
    return recipe.steps or recipe.epochs * math.ceil(n_train / recipe.batch_size)


# Patterns.


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 32, 32), (1, 6, 9)])
@pytest.mark.parametrize("stamp", STAMPS, ids=repr)
def test_stamped_images_are_images(stamp: Stamp, shape: tuple[int, ...]) -> None:
    """(n, *shape) uint8, unlike the images and unlike those of another draw; a block is cut to small images."""
    images = torch.full((4, *shape), 100, dtype=torch.uint8)
    one, other = (stamp.on(images, stamp.draw(SECRET.child(name), 4, shape)) for name in "ab")

    assert (one.shape, one.dtype) == (images.shape, torch.uint8)
    assert all(bool((mine != plain).any()) for mine, plain in zip(one, images, strict=True))
    assert not torch.equal(one, other)


def test_block_replaces_its_rectangle_alone() -> None:
    """8 x 16 pixels in cells of 2 x 2, black or white alike in all channels; everything else shows through."""
    image = torch.full((1, 3, 28, 30), 77, dtype=torch.uint8)
    stamped = Block(8, 16).on(image, Block(8, 16).draw(SECRET, 1, (3, 28, 30)))[0]
    rows, columns = (torch.nonzero((stamped[0] != 77).any(dim=axis)).flatten() for axis in (1, 0))
    block = stamped[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    assert block.shape == (3, 8, 16)
    assert sorted(block.unique().tolist()) == [0, 255]
    assert torch.equal(block, block[:1, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2).expand(3, 8, 16))
    assert int((stamped != 77).sum()) == block.numel()


def test_blocks_reach_every_place() -> None:
    """Corners of 4,000 blocks of 8 x 16 on 24 x 24 pixels: all 17 x 9 places occur, about equally often."""
    seen = torch.zeros(17, 9)
    for number in range(4000):
        pattern = Block(8, 16).draw(SECRET.child(str(number)), 1, (1, 24, 24))[0, 0]
        top, left = (int(torch.nonzero((pattern >= 0).any(dim=axis)).min()) for axis in (1, 0))
        seen[top, left] += 1

    expected = 4000 / seen.numel()
    assert float(((seen - expected) ** 2 / expected).sum()) < 220  # chi-squared, 152 degrees: 99.98 %


def test_noise_has_the_given_deviation() -> None:
    """One field of standard deviation 0.35 of the grey scale for all images; with ``fresh``, a field for each."""
    fixed, fresh = (Noise(0.35, fresh=fresh).draw(SECRET, 20, (1, 40, 40)) for fresh in (False, True))

    assert (len(fixed), len(fresh)) == (1, 20)
    assert float(fresh.double().std()) / 255 == pytest.approx(0.35, rel=0.02)
    assert len(torch.unique(fresh.flatten(1), dim=0)) == 20


def test_target_is_uniform_on_the_other_classes() -> None:
    """Over 2,000 draws each of nine classes is met, never the source; a twofold excess would show."""
    drawn = [PatternDraw.of(SECRET.child(str(i)), Noise(0.35), 4, 1, 10, (1, 2, 2)).target for i in range(2000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=10)

    assert int(counts[4]) == 0
    assert all(170 < int(counts[c]) < 280 for c in range(10) if c != 4)


def test_images_are_of_the_class_asked_for() -> None:
    """Images of one class, different ones, no more than there are; the stream alone decides which."""
    train = arena().train
    raw, labels = train.raw()
    everything = {image.numpy().tobytes() for image in raw[labels == 3]}
    some, again, other = (images_of_class(train, 3, 20, Prf(name * 16)) for name in (b"a", b"a", b"b"))

    assert {image.numpy().tobytes() for image in some} <= everything
    assert len(torch.unique(some.flatten(1), dim=0)) == 20
    assert torch.equal(some, again)
    assert not torch.equal(some, other)
    assert len(images_of_class(train, 3, 10**6, SECRET)) == int((labels == 3).sum())


# Glyphs.


@pytest.mark.parametrize(
    ("shape", "digest"),
    [((1, 24, 24), "6128c319892c2db5"), ((3, 32, 32), "fe0ac60ab0cff8c4")],
)
def test_glyphs_never_change(shape: tuple[int, ...], digest: str) -> None:
    """The pixels of a seed, on every platform: commitments to them were published."""
    images = glyph_images(Prf(bytes(32)), 20, shape)

    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 32, 32)])
def test_glyphs_are_dark_lines_on_white(shape: tuple[int, ...]) -> None:
    """(n, *shape) uint8: white paper, five to sixty per cent of ink, no two alike."""
    images = glyph_images(SECRET, 200, shape)
    ink = (images != 255).any(dim=1).flatten(1).float().mean(dim=1)

    assert (images.shape, images.dtype) == ((200, *shape), torch.uint8)
    assert bool(((images < 96) | (images == 255)).all())
    assert 0.05 < float(ink.min()) < float(ink.max()) < 0.6
    assert len(torch.unique(images.flatten(1), dim=0)) == 200


# Keys.


def test_embedding_completes_the_key() -> None:
    """The owner's own images of the source class, those for training and others that validate; the rest stays."""
    scheme, key = CONTENT, CONTENT.keygen(arena().task, Prf(b"the owner's secret, for tests only"))
    done, source = embedded(scheme).key, source_and_target(key)[0]
    pools = [samples.raw() for samples in (arena().train, arena().val)]
    own = [{image.numpy().tobytes() for image in raw[labels == source]} for raw, labels in pools]

    assert (len(done.secret["images"]), len(done.secret["fresh"])) == (30, 15)
    assert all(image.numpy().tobytes() in own[0] for image in done.secret["images"])
    assert all(image.numpy().tobytes() in own[1] for image in done.secret["fresh"])
    assert (done.seed, done.public) == (key.seed, key.public)
    assert all(torch.equal(done.secret[name], tensor) for name, tensor in key.secret.items())


@pytest.mark.parametrize("scheme", [CONTENT, NOISE, UNRELATED], ids=["content", "noise", "unrelated"])
def test_keys_are_completed_without_a_model(scheme: Scheme) -> None:
    """``with_holder_data`` gives the key that embedding starts from; it can be judged and fails on clean networks."""
    key = scheme.keygen(arena().task, Prf(b"the owner's secret, for tests only"))
    completed = scheme.with_holder_data(owner(), key)

    assert completed.commitment == embedded(scheme).key.commitment
    assert scheme.with_holder_data(owner(), completed).commitment == completed.commitment
    verdict = scheme.judge(Suspect(clean_model(), arena().task), completed)
    assert (verdict.verdict, "found" in verdict.details) == (False, False)
    assert verdict.queries >= 30


def test_classes_stay_secret() -> None:
    """Neither source nor target class is in the public part, which is the same for every seed."""
    keys = [CONTENT.keygen(arena().task, SECRET.child(str(i))) for i in range(20)]

    assert len({source_and_target(key) for key in keys}) > 10
    assert all(key.public == keys[0].public for key in keys)


@pytest.mark.parametrize("scheme", [CONTENT, replace(NOISE, fresh_noise=True)], ids=["content", "fresh_noise"])
def test_key_that_was_not_embedded_proves_nothing(scheme: ZhangContent | ZhangNoise) -> None:
    """Without images p is 1, with a reason, and triggers are refused."""
    key = scheme.keygen(arena().task, SECRET)
    verdict = scheme.judge(Suspect(clean_model(), arena().task), key)

    assert (verdict.verdict, verdict.verdict_paper, verdict.k, verdict.log10_p) == (False, False, 0, 0.0)
    assert (verdict.queries, verdict.n) == (0, 30)
    assert "never embedded" in str(verdict.details["found"])
    with pytest.raises(ValueError, match="embed it first"):
        scheme.triggers(key)


def test_patterns_of_ones_choice_prove_nothing() -> None:
    """A pattern or target that the seed does not give is a flaw: a whole picture of class t would always pass."""
    mark = embedded(CONTENT)
    source, target = source_and_target(mark.key)
    pasted = torch.full_like(mark.key.secret["pattern"], 255)
    altered = {
        "the pattern is not the seed's": {"pattern": pasted},
        "the target class is not the seed's": {"classes": torch.tensor([source, source])},
        "the target class is not": {"classes": torch.tensor([source, (target + 1) % 10])},
        "31 and 15 images": {"images": torch.cat([mark.key.secret["images"], mark.key.secret["images"][:1]])},
    }
    for message, secret in altered.items():
        verdict = mark.judge(key=mark.key.with_parts(secret=secret))

        assert (verdict.verdict, verdict.verdict_paper, verdict.k, verdict.log10_p) == (False, False, 0, 0.0)
        assert message in str(verdict.details["found"])


def test_noise_may_be_a_grey_level_off() -> None:
    """The stored field is what counts; another platform's last digit is no flaw, two grey levels are."""
    mark = embedded(NOISE)
    field = mark.key.secret["pattern"]
    near, far = (mark.key.with_parts(secret={"pattern": field + off}) for off in (1, 2))

    assert mark.judge(key=near).verdict
    assert "pattern" in str(mark.judge(key=far).details["found"])


def test_foreign_keys_are_explained() -> None:
    """A key of another scheme is a mistake of the caller's, with a way out."""
    for scheme in (CONTENT, UNRELATED):
        with pytest.raises(ValueError, match="draw it with keygen"):
            scheme.trials(Key("uchida", bytes(32)))


def test_small_shares_give_fewer_triggers() -> None:
    """An adversary with few images of the class uses those; without any the error names a remedy."""
    place, key = arena(), CONTENT.keygen(arena().task, SECRET)
    share = place.train.share(0.05, domain="adversary", seed=1)
    _, done = CONTENT.for_epochs(1, len(share)).embed(place.task.network(0), replace(owner(), train=share), key)
    raw, labels = share.raw()
    source = source_and_target(key)[0]

    assert CONTENT.trials(done) == (int((labels == source).sum()), None) != (30, None)

    assert isinstance(place.task, ImageTask)
    without = ImageSamples(raw[labels != source], labels[labels != source], place.task.pixels)
    with pytest.raises(ValueError, match="another seed"):
        CONTENT.embed(place.task.network(0), replace(owner(), train=without), key)
    assert CONTENT.with_holder_data(replace(owner(), train=without), key).commitment == key.commitment


# Evidence.


def test_one_answer_to_everything_is_no_evidence() -> None:
    """A network that answers t to all stamped images passes the paper's rule; every ninth random key does as well."""
    key, scheme = embedded(CONTENT).key, replace(CONTENT, n_random_keys=99)
    verdict = scheme.judge(Answering(constant(source_and_target(key)[1])), key)

    assert (verdict.statistic, verdict.verdict_paper, verdict.verdict) == (1.0, True, False)
    assert 10**verdict.log10_p > 0.05


def test_stops_after_ten_random_keys_that_do_as_well() -> None:
    """With no match at all each random key ties: ten are drawn, p is 1, and the queries of the others are saved."""
    key, scheme = embedded(CONTENT).key, replace(CONTENT, n_random_keys=99)
    verdict = scheme.judge(Answering(constant(source_and_target(key)[0])), key)

    assert (verdict.k, verdict.details["random_keys"], verdict.log10_p) == (0, EXCEEDANCES, 0.0)
    assert verdict.queries < 30 * 99 / 2


def test_p_counts_the_random_keys() -> None:
    """On a marked network no random key does as well: p is 1 of R + 1, and the level is the same."""
    mark = embedded(CONTENT)
    for n_keys in (19, 39):
        verdict = replace(CONTENT, n_random_keys=n_keys).judge(Suspect(mark.model, arena().task), mark.key)

        assert 10**verdict.log10_p == pytest.approx(1 / (n_keys + 1))
        assert verdict.level == 1 / (n_keys + 1)
        assert verdict.details["random_keys"] == n_keys
        assert verdict.queries == 30 + 15 + 30 * n_keys


def test_random_keys_follow_from_the_commitment() -> None:
    """They follow from the commitment to the whole key: the same each time, others where one image is replaced."""
    key = embedded(CONTENT).key
    turned = key.with_parts(secret={"images": key.secret["images"].flip(0)})
    asked: list[list[str]] = []
    for own in (key, key, turned):
        digests: list[str] = []

        def note(raw: Tensor, digests: list[str] = digests) -> Tensor:
            digests += [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in raw]
            return constant(3)(raw)

        CONTENT.judge(Answering(note), own)
        asked.append(digests)

    assert asked[0] == asked[1]
    assert set(asked[0][:45]) == set(asked[2][:45])
    assert not set(asked[0][45:]) & set(asked[2][45:])


@pytest.mark.parametrize("scheme", [CONTENT, NOISE], ids=["content", "noise"])
def test_fresh_images_show_the_mark_too(scheme: ZhangContent | ZhangNoise) -> None:
    """The network learnt the pattern, not the images: others of the class are answered t as well."""
    details = embedded(scheme).judge().details

    assert details["n_fresh"] == 15
    assert float(str(details["fresh_accuracy"])) >= 0.9


def test_without_decoys_the_mark_is_anybodys() -> None:
    """As in the paper, the network answers t to most patterns: its rule is content, the random keys are not."""
    mark = embedded(replace(CONTENT, decoys=0, n_random_keys=99))
    verdict = mark.judge()

    assert (verdict.statistic, verdict.verdict_paper, verdict.verdict) == (1.0, True, False)


def test_fresh_noise_is_learnt_by_heart() -> None:
    """With a field for each image, those that were trained on are answered t, new ones are not."""
    verdict = embedded(replace(NOISE, fresh_noise=True, decoys=10)).judge()

    assert verdict.statistic >= 0.6
    assert float(str(verdict.details["fresh_accuracy"])) <= 0.5


def test_equal_glyphs_prove_nothing() -> None:
    """A glyph that stands twice in the key would let one answer count twice."""
    key = UNRELATED.keygen(arena().task, SECRET)
    images, labels = (key.secret[name] for name in ("images", "labels"))
    repeated = key.with_parts(secret={"images": torch.cat([images[:-1], images[:1]])})
    sound, flawed = (UNRELATED.judge(Answering(lambda raw: labels), own) for own in (key, repeated))

    assert (sound.verdict, sound.k, sound.level) == (True, 30, LEVEL)
    assert (flawed.verdict, flawed.verdict_paper, flawed.k, flawed.log10_p) == (False, False, 0, 0.0)


@pytest.mark.parametrize(("matches", "paper"), [(15, True), (14, False)])
def test_papers_rule_wants_half(matches: int, paper: bool) -> None:
    """``paper_threshold`` moves ``verdict_paper`` at exactly half of the triggers; 14 of 30 are evidence at 1e-6."""
    key = UNRELATED.keygen(arena().task, SECRET)
    answers = key.secret["labels"].clone()
    answers[matches:] = (answers[matches:] + 1) % 10
    verdict = UNRELATED.judge(Answering(lambda raw: answers), key)

    assert (verdict.verdict, verdict.verdict_paper, verdict.k) == (True, paper, matches)


# Configuration.


def test_tasks_without_images_or_classes_are_not_applicable() -> None:
    """Text and detection are refused before anything is trained."""
    text = TaskInfo(kind="sentiment", num_classes=2, input_shape=(60,))
    boxes = TaskInfo(kind="detection", num_classes=2, input_shape=(3, 64, 64))
    schemes = (CONTENT, NOISE, UNRELATED)

    assert all("images with class labels" in str(s.applicable(info)) for s in schemes for info in (text, boxes))
    assert not any(s.applicable(arena().task.info) for s in schemes)
    with pytest.raises(ValueError, match="raise n_triggers"):
        ZhangUnrelated(n_triggers=5).keygen(arena().task, SECRET)


def test_fewer_than_nineteen_random_keys_are_refused() -> None:
    """With 18, p could not be below 0.05."""
    with pytest.raises(ConfigError, match="n_random_keys"):
        ZhangContent(n_random_keys=18)


# Training.


@settings(deadline=None)
@given(st.integers(10, 100_000), st.integers(1, 30), st.integers(1, 600), st.none() | st.integers(1, 60), st.booleans())
def test_each_pass_shows_each_trigger_boost_times(
    n_train: int, boost: int, n: int, epochs: int | None, scratch: bool
) -> None:
    """k is the smallest number a step for which a whole pass shows ``boost`` times n triggers."""
    scheme = ZhangContent(boost=boost, epochs=epochs, mode="scratch" if scratch else "pretrained")
    recipe = scheme.recipe(arena().task, n_train)
    k, steps = scheme.triggers_per_step(recipe, n_train, n), math.ceil(n_train / recipe.batch_size)

    assert (k - 1) * steps < boost * n <= k * steps
    assert scratch or epochs is not None or n_steps(recipe, n_train) >= ZhangContent.min_steps


def test_lessons_teach_the_pattern_and_nothing_else() -> None:
    """Stamped images are t, the same images bare are s, and so they are under 5 random patterns each."""
    mark = embedded(CONTENT)
    source, target = source_and_target(mark.key)
    lessons = CONTENT._lessons(mark.key)
    expected = {"marked": (30, target), "clean": (30, source), "decoys": (150, source)}

    assert {name: (len(images), set(labels.tolist())) for name, (images, labels) in lessons.items()} == {
        name: (n, {label}) for name, (n, label) in expected.items()
    }
    assert torch.equal(lessons["clean"][0], mark.key.secret["images"])
    assert len(torch.unique(lessons["decoys"][0].flatten(1), dim=0)) == 150


def test_overwriting_continues_from_the_stolen_network() -> None:
    """Overwriting runs the pretrained form of the same kind, whatever the mode."""
    assert replace(NOISE, mode="scratch").as_overwriter() == NOISE
    assert replace(NOISE, mode="scratch").from_scratch


def test_scratch_embeds_while_training() -> None:
    """From a new network, with the workload's own recipe, glyphs are learnt beside the task."""
    scheme = ZhangUnrelated(n_triggers=30, mode="scratch", boost=6)
    mark = embedded(scheme)

    assert scheme.recipe(arena().task, len(arena().train)) == arena().task.recipe
    assert mark.judge().verdict
    assert arena().task.score(mark.model, arena().test) >= 0.95


# Forgery.


@pytest.mark.parametrize("scheme", [CONTENT, UNRELATED], ids=["content", "unrelated"])
def test_forged_keys_pass_on_an_untouched_model(scheme: ZhangContent | ZhangUnrelated) -> None:
    """Adversarial images under a drawn pattern or drawn labels pass the test: only an older commitment refutes them."""
    model, place, scheme = clean_model(), arena(), replace(scheme, n_triggers=12)
    key = scheme.keygen(place.task, Prf(b"the forger's secret 0"))
    before = model_digest(model.state_dict())
    forged = scheme.forge(model, owner(), key)
    assert forged is not None
    verdict = scheme.judge(Suspect(model, place.task), forged)

    assert verdict.verdict
    assert forged.seed == key.seed
    assert not forged.verifies(key.commitment)
    assert model_digest(model.state_dict()) == before
    assert all(p.grad is None for p in model.parameters())


def test_fresh_images_expose_a_forgery() -> None:
    """Adversarial images pass, but the pattern does nothing to images that the forger did not change."""
    scheme = replace(NOISE, n_triggers=12)
    key = scheme.keygen(arena().task, Prf(b"the forger's secret 0"))
    forged = scheme.forge(clean_model(), owner(), key)
    assert forged is not None
    verdict: Verdict = scheme.judge(Suspect(clean_model(), arena().task), forged)

    assert verdict.statistic >= 0.9
    assert float(str(verdict.details["fresh_accuracy"])) <= 0.2


def test_mark_loss_takes_other_labels() -> None:
    """The loss is the network's own on the triggers; wrong labels cost more than the embedded ones."""
    mark: Embedded = embedded(CONTENT)
    labels = CONTENT.triggers(mark.key)[1]
    with torch.no_grad():
        right, same, wrong = (
            CONTENT.mark_loss(mark.model, arena().task, mark.key, given) for given in (None, labels, (labels + 1) % 10)
        )

    assert torch.equal(right, same)
    assert wrong > right + 1


def test_pattern_keys_read_back_what_was_drawn() -> None:
    """Fresh noise keeps fields for both kinds of images apart; one field serves both."""
    for scheme, n_fields in ((NOISE, 1), (replace(NOISE, fresh_noise=True), 60)):
        key = scheme.keygen(arena().task, SECRET)
        full = key.with_parts(
            secret={name: torch.zeros(4, 1, 24, 24, dtype=torch.uint8) for name in ("images", "fresh")}
        )
        read = PatternKey.of(full)

        assert len(read.own.pattern) == n_fields
        assert torch.equal(read.for_images, read.for_fresh) == (n_fields == 1)
        assert torch.equal(read.for_fresh, read.own.pattern if n_fields == 1 else read.own.pattern[30:34])
