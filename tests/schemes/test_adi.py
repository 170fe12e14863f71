"""The trigger set: what it looks like, how it is shown, what spoils its evidence."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.marks import arena, clean_model, embedded
from tests.victims import NewestOnly, no_log
from wmarena.experiments.workloads.images.digits import DigitsCnn
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Owner, Recipe, Suspect, TaskInfo
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.keys import Key
from wmarena.schemes.params import ConfigError, Json
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import LEVEL
from wmarena.schemes.triggers.images import abstract_images
from wmarena.schemes.triggers.labelled import commit_triggers, draw_triggers, flaw, trigger_set
from wmarena.schemes.triggers.training import TriggerFeed

SECRET = Prf(b"the owner of these tests")


class Answering(Suspect):
    """A suspect that answers every query with given labels."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__(clean_model(), arena().task)
        self.answers = answers

    def labels(self, raw: Tensor) -> Tensor:
        """The given labels."""
        return self.answers


def some_key(n: int = 20) -> Key:
    """A key of n triggers for the digits."""
    return Adi(n_triggers=n).keygen(arena().task, SECRET)


def commitments(key: Key) -> dict[str, list[str]]:
    """The published commitments to images and labels."""
    found = key.public["commitments"]
    assert isinstance(found, dict)
    return {part: [str(digest) for digest in digests] for part, digests in found.items() if isinstance(digests, list)}


def n_steps(recipe: Recipe, n_train: int) -> int:
    """Optimiser steps of a recipe."""
    return recipe.steps or recipe.epochs * math.ceil(n_train / recipe.batch_size)


# Images.


@pytest.mark.parametrize(
    ("shape", "digest"),
    [((1, 24, 24), "66ea927a9b948e0a"), ((1, 28, 28), "d385ab62cc987eee"), ((3, 32, 32), "bd8fa8a8d842ef06")],
)
def test_images_never_change(shape: tuple[int, ...], digest: str) -> None:
    """The pixels of a seed, on every platform: commitments to them were published."""
    images = abstract_images(Prf(bytes(32)), 20, shape)

    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("shape", [(1, 5, 9), (3, 32, 32)])
def test_images_use_the_grey_scale_and_differ(shape: tuple[int, ...]) -> None:
    """(n, channels, height, width) uint8, with dark and bright pixels in each, no two alike."""
    images = abstract_images(SECRET, 30, shape)
    flat = images.flatten(1)

    assert (images.shape, images.dtype) == ((30, *shape), torch.uint8)
    assert bool((flat.amin(dim=1) < 100).all())
    assert bool((flat.amax(dim=1) > 155).all())
    assert len(torch.unique(flat, dim=0)) == 30


def test_images_of_a_flat_shape_are_refused() -> None:
    """A text has no pixels."""
    with pytest.raises(ValueError, match="expected an image shape"):
        abstract_images(SECRET, 1, (40,))


# Keys.


def test_labels_follow_from_the_secret_alone() -> None:
    """Labels do not depend on what images look like or what a network answers: a match has probability 1/C."""
    bare = Key("adi", bytes(32))
    small, large = (draw_triggers(bare, 50, 10, (1, side, side)).secret["labels"] for side in (8, 28))
    expected = bare.prf.integers("labels", 50, 10).tolist()

    assert small.tolist() == large.tolist() == expected


def test_key_never_changes() -> None:
    """The commitment of a seed's key: another draw or another layout of the public part would be noticed here."""
    assert some_key().commitment[:16] == "e41a46d652ba65ce"


def test_public_part_commits_to_each_image_and_label() -> None:
    """One commitment for each, all different: equal labels are hidden by their own openings."""
    published = commitments(some_key(40))

    assert {part: len(digests) for part, digests in published.items()} == {"images": 40, "labels": 40}
    assert len({*published["images"], *published["labels"]}) == 80


def test_too_few_triggers_are_refused() -> None:
    """A key that could never reach the level is not drawn; the message says what to raise."""
    assert Adi(n_triggers=7).applicable(arena().task.info) is None
    with pytest.raises(ValueError, match="raise n_triggers"):
        Adi(n_triggers=5).keygen(arena().task, SECRET)


def test_tasks_without_images_or_classes_are_not_applicable() -> None:
    """Text and detection are refused before anything is trained."""
    text = TaskInfo(kind="sentiment", num_classes=2, input_shape=(60,))
    boxes = TaskInfo(kind="detection", num_classes=2, input_shape=(3, 64, 64))

    assert all("images with class labels" in str(Adi().applicable(info)) for info in (text, boxes))


# Evidence.


def test_key_without_flaw_has_none() -> None:
    """All commitments of a drawn key open."""
    assert flaw(some_key()) is None


def test_altered_triggers_prove_nothing() -> None:
    """One altered pixel, label, commitment or seed: no answers count, and the evidence says what is wrong."""
    key, scheme = some_key(), Adi(n_triggers=20)
    images, labels = (key.secret[part].clone() for part in ("images", "labels"))
    images[7, 0, 3, 3] ^= 1
    labels[4] = (labels[4] + 1) % 10
    published = commitments(key)
    swapped: dict[str, Json] = {"images": [*published["images"][1:], published["images"][0]]}
    swapped["labels"] = list(published["labels"])
    altered = {
        "commitment 7 of the images": replace(key, secret={**key.secret, "images": images}),
        "commitment 4 of the labels": replace(key, secret={**key.secret, "labels": labels}),
        "commitment 0 of the images": replace(key, public={**key.public, "commitments": swapped}),
        "20 images for 20 triggers, without": replace(key, public={**key.public, "commitments": None}),
        "20 images for 19 triggers": replace(key, secret={**key.secret, "labels": key.secret["labels"][:19]}),
    }
    altered["commitment 0 of the images does"] = replace(key, seed=bytes(32))
    for message, wrong in altered.items():
        verdict = scheme.judge(Answering(wrong.secret["labels"]), wrong)

        assert (verdict.verdict, verdict.verdict_paper, verdict.k, verdict.log10_p) == (False, False, 0, 0.0)
        assert message in str(verdict.details["found"])


def test_repeated_images_prove_nothing() -> None:
    """An image that stands twice in the set would let one answer count twice."""
    key = some_key()
    images = key.secret["images"].clone()
    images[3] = images[9]
    repeated = commit_triggers(key, images, key.secret["labels"])

    assert "equal" in str(flaw(repeated))
    assert not Adi(n_triggers=20).judge(Answering(key.secret["labels"]), repeated).verdict


@pytest.mark.parametrize(("errors", "verdict", "paper"), [(0, 1, 1), (10, 1, 1), (11, 1, 0), (72, 1, 0), (73, 0, 0)])
def test_two_rules(errors: int, verdict: bool, paper: bool) -> None:
    """The paper lets eps |T| = 10 of 100 triggers go wrong; 28 matches are evidence at one in a million."""
    key, scheme = some_key(100), Adi(eps=0.1)
    answers = key.secret["labels"].clone()
    answers[:errors] = (answers[:errors] + 1) % 10
    found = scheme.judge(Answering(answers), key)

    assert (found.k, found.n, found.null_q, found.level) == (100 - errors, 100, 0.1, LEVEL)
    assert (found.verdict, found.verdict_paper) == (verdict, paper)


def test_eps_moves_the_papers_rule_only() -> None:
    """A stricter eps changes ``verdict_paper`` and nothing else, neither evidence nor what a key is."""
    key = some_key(100)
    answers = key.secret["labels"].clone()
    answers[:10] = (answers[:10] + 1) % 10
    lenient, strict = (Adi(eps=eps).judge(Answering(answers), key) for eps in (0.1, 0.05))

    assert (lenient.verdict_paper, strict.verdict_paper) == (True, False)
    assert replace(strict, verdict_paper=True, details=lenient.details) == lenient
    assert Adi(eps=0.1).config(until="attack") == Adi(eps=0.05).config(until="attack")


def test_foreign_key_is_explained() -> None:
    """A key of another scheme is a mistake of the caller's, with a way out."""
    with pytest.raises(ValueError, match="draw it with keygen"):
        Adi().trials(Key("uchida", bytes(32)))


# Several sets.

SETS = Adi(n_triggers=20, n_sets=3)


def test_first_set_is_the_one_of_a_single_set_key() -> None:
    """Set 0 has the images, labels and commitments of a one-set key of the same seed, byte for byte."""
    one, three = some_key(20), SETS.keygen(arena().task, SECRET)

    for part in ("images", "labels"):
        assert torch.equal(trigger_set(three, 0)[part == "labels"], one.secret[part])
        assert commitments(three)[part][:20] == commitments(one)[part]
    assert "sets" not in json.dumps(dict(one.public))


def test_sets_are_disjoint() -> None:
    """Sixty different images, each with its own commitment; triggers for embedding and spoiling are all of them."""
    key = SETS.keygen(arena().task, SECRET)
    images, labels = SETS.triggers(key)
    parts = [trigger_set(key, index) for index in range(3)]

    assert len(torch.unique(images.flatten(1), dim=0)) == len(labels) == 60
    assert torch.equal(torch.cat([own for own, _ in parts]), images)
    assert len({*commitments(key)["images"], *commitments(key)["labels"]}) == 120
    assert SETS.trials(key) == (20, 0.1)
    assert SETS.trials(SETS.randomise_key(key, Prf(b"strangers to the owner"))) == (20, 0.1)


def test_a_verification_queries_the_released_set_alone() -> None:
    """Each set has evidence of its own: queries are its twenty images, the others are not shown to the suspect."""
    key = SETS.keygen(arena().task, SECRET)
    for released in range(3):
        asked: list[Tensor] = []
        images, labels = trigger_set(key, released)

        class Recording(Answering):
            def labels(self, raw: Tensor, asked: list[Tensor] = asked) -> Tensor:
                asked.append(raw)
                return super().labels(raw)

        verdict = replace(SETS, released=released).judge(Recording(labels), key)

        assert (verdict.verdict, verdict.k, verdict.n) == (True, 20, 20)
        assert (verdict.details["sets"], verdict.details["released"]) == (3, released)
        assert torch.equal(torch.cat(asked), images)


def test_opening_one_set_leaves_the_others_closed() -> None:
    """What is wrong with another set does not matter, and what is wrong with the released one does."""
    key = SETS.keygen(arena().task, SECRET)
    images = key.secret["images"].clone()
    images[25, 0, 3, 3] ^= 1
    altered = replace(key, secret={**key.secret, "images": images})

    assert [flaw(altered, index) for index in (0, 2)] == [None, None]
    assert flaw(altered, 1) == "commitment 25 of the images does not open"


def test_all_sets_are_embedded() -> None:
    """Each of three sets is found in the marked network, whose accuracy is what it was within three points."""
    mark = embedded(SETS)
    task, test = mark.arena.task, mark.arena.test
    verdicts = [replace(SETS, released=index).judge(Suspect(mark.model, task), mark.key) for index in range(3)]

    assert all(verdict.verdict and verdict.margin >= 0.9 for verdict in verdicts)
    assert task.score(mark.model, test) >= task.score(clean_model(), test) - 0.03


def test_set_beyond_the_last_is_refused() -> None:
    """Sets count from 0; a scheme and a key with too few sets are both reported."""
    assert Adi(n_sets=3, released=2).config(until="embed") == Adi(n_sets=3).config(until="embed")
    with pytest.raises(ConfigError, match="below n_sets = 3"):
        Adi(n_sets=3, released=3)
    with pytest.raises(ValueError, match="one of the key's 1 trigger sets"):
        Adi(n_triggers=20, n_sets=3, released=1).judge(Suspect(clean_model(), arena().task), some_key())


# Training.


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**62))
def test_each_cycle_shows_every_trigger_once(n: int, k: int, seed: int) -> None:
    """After any number of steps no trigger was shown more than once more than another, label beside image."""
    feed = TriggerFeed(torch.arange(n)[:, None], torch.arange(n) + 100, k, seed)
    shown: Counter[int] = Counter(dict.fromkeys(range(n), 0))
    for step in range(3 * n // k + 2):
        inputs, labels = feed(step)
        assert torch.equal(inputs[:, 0] + 100, labels)
        assert len(labels) == k
        shown.update(inputs[:, 0].tolist())

        assert max(shown.values()) - min(shown.values()) <= 1


def test_shown_triggers_depend_on_the_step_alone() -> None:
    """A run that was resumed at step 7 sees what the undisturbed one saw; another seed sees another order."""
    images, labels = torch.arange(40)[:, None], torch.arange(40)
    feed, resumed, other = (TriggerFeed(images, labels, 3, seed) for seed in (1, 1, 2))
    seen = [feed(step)[1].tolist() for step in range(30)]

    assert [resumed(step)[1].tolist() for step in range(7, 30)] == seen[7:]
    assert [other(step)[1].tolist() for step in range(30)] != seen


@settings(deadline=None)
@given(st.integers(1, 100_000), st.integers(1, 12), st.none() | st.integers(1, 60), st.booleans())
def test_k_is_raised_only_where_training_is_short(n_train: int, k: int, epochs: int | None, scratch: bool) -> None:
    """Each trigger is shown often enough, or at every step; where steps suffice, k is what was asked for."""
    scheme = Adi(triggers_per_batch=k, epochs=epochs, mode="scratch" if scratch else "pretrained")
    recipe = scheme.recipe(arena().task, n_train)
    own, steps = scheme.triggers_per_step(recipe, n_train), n_steps(recipe, n_train)

    assert own * steps >= scheme.showings * scheme.n_triggers or own == scheme.n_triggers
    assert own == k or (own - 1) * steps < scheme.showings * scheme.n_triggers


@pytest.mark.parametrize("n_sets", [1, 2, 3])
def test_every_trigger_of_every_set_is_shown_often_enough(n_sets: int) -> None:
    """30 showings of each trigger, counted over all sets that are embedded, not over one of them."""
    scheme = Adi(n_triggers=100, n_sets=n_sets)
    recipe = scheme.recipe(arena().task, 1000)
    feed_steps = n_steps(recipe, 1000)
    k = scheme.triggers_per_step(recipe, 1000)

    assert (k - 1) * feed_steps < 30 * 100 * n_sets <= k * feed_steps


def test_large_training_sets_use_the_papers_k() -> None:
    """With 50,000 images, four passes show each of 100 triggers 40 times at the paper's k = 2."""
    recipe = Adi().recipe(arena().task, 50_000)

    assert (recipe.steps, recipe.epochs, recipe.batch_size) == (2000, 4, 100)
    assert Adi().triggers_per_step(recipe, 50_000) == 2


def test_scratch_trains_as_the_workload_does() -> None:
    """From scratch, only the triggers differ from the clean training; ``epochs`` may make it longer."""
    own = arena().task.recipe

    assert Adi(mode="scratch").recipe(arena().task, 1000) == own
    assert Adi(mode="scratch").for_epochs(3, 1000).recipe(arena().task, 1000) == replace(own, epochs=3)


# Forgery.


class PaddedDigits(DigitsCnn):
    """The digits with a black border, as small images get for residual networks."""

    pad = 2


@pytest.mark.parametrize("padded", [False, True])
def test_forged_triggers_pass_on_an_untouched_model(padded: bool) -> None:
    """Adversarial images under valid openings pass the test: only an older commitment refutes them."""
    place = PaddedDigits().bind(torch.device("cpu"), None) if padded else arena()
    scheme, model = Adi(n_triggers=30), clean_model()
    forger = Owner(task=place.task, train=place.train, val=place.val, seed=0, log=no_log, checkpoints=NewestOnly())
    key = scheme.keygen(place.task, Prf(b"the forger's secret"))
    before = model_digest(model.state_dict())
    forged = scheme.forge(model, forger, key)
    assert forged is not None

    assert not scheme.judge(Suspect(model, place.task), key).verdict
    assert scheme.judge(Suspect(model, place.task), forged).verdict
    assert flaw(forged) is None
    assert not forged.verifies(key.commitment)
    assert model_digest(model.state_dict()) == before
    assert all(p.grad is None for p in model.parameters())


def test_mark_loss_takes_other_labels() -> None:
    """The loss is the network's own on the triggers; wrong labels cost more than the embedded ones."""
    mark = embedded(Adi(n_triggers=40))
    labels = mark.key.secret["labels"]
    with torch.no_grad():
        right = mark.scheme.mark_loss(mark.model, arena().task, mark.key)
        same = mark.scheme.mark_loss(mark.model, arena().task, mark.key, labels)
        wrong = mark.scheme.mark_loss(mark.model, arena().task, mark.key, (labels + 1) % 10)
    assert right is not None
    assert same is not None
    assert wrong is not None

    assert torch.equal(right, same)
    assert wrong > right + 1
