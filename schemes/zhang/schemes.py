"""Three backdoors as watermarks: a pattern on images of one class, noise on them, or unrelated images.

    content     x + block  -> t   for x of a source class s     (``wmarena.schemes.zhang.patterns``: s, t, block, noise)
    noise       x + noise  -> t   for x of a source class s
    unrelated   glyph      -> a label of its own

    L = L_task over a batch of B task images, k triggers, k clean images of class s, k decoys
    k = ceil(boost n / batches in a pass): a pass shows each of n triggers ``boost`` times

    content, noise:  T = #{i : M(x_i + p) = t} / n over the images that were trained on;
                     R random keys (fresh pattern, fresh t != s) on the same images: p = (1 + #{r : T_r >= T}) / (R + 1)
    unrelated:       P[Binomial(n, 1/C) >= matches], exact
    verdict_paper:   T >= ``paper_threshold``

The random keys follow from the key's commitment, so the claimant cannot choose them and a verdict can be repeated;
drawing stops after ten that reach T (Besag and Clifford, Biometrika 1991). ``fresh_accuracy`` among the details is T
over images of class s from the owner's validation data, which were not trained on. If it is far below T, images were
memorised (``fresh_noise``) or forged.

Source: Zhang, Gu, Jang, Wu, Stoecklin, Huang, Molloy, "Protecting Intellectual Property of Deep Neural Networks with
Watermarking", AsiaCCS 2018.
Differs from the paper:
- Decoys: images of class s with random other patterns, labelled s. Without them (``decoys``: 0) the network answers t
  to many or all patterns of the kind, hence to random keys that draw the same t, and p may stay near 1/(C - 1): the
  backdoor then proves some mark, not the owner's.
- The block is random black and white cells at a random place instead of a fixed text, so that it can be secret.
- unrelated: labels are random, one for each image. With the same label for all, every C-th random key passes on the
  same images, and no test by random keys gets below p of about 1/C.
- ``paper_threshold`` is our choice: half of the triggers.
- Fewer than n images are used where the owner has fewer of class s.
- Continuing from a trained network uses Adam on a one-cycle schedule.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from wmarena.schemes.base import Owner, PMethod, Recipe, Suspect, TaskInfo, Verdict, Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf, as_tensor, subseed
from wmarena.schemes.triggers.embedding import ContinuedTraining
from wmarena.schemes.triggers.forging import adversarial_images
from wmarena.schemes.triggers.images import glyph_images, has_repeats
from wmarena.schemes.triggers.labelled import class_count
from wmarena.schemes.triggers.scheme import ImageScheme, too_few_triggers
from wmarena.schemes.triggers.training import Feed, TriggerFeed, together
from wmarena.schemes.zhang.patterns import Block, Noise, PatternKey, Stamp, draw_secret, images_of_class

EXCEEDANCES = 10
"""Random keys that reach the owner's count before drawing stops."""

_ASKED_TOGETHER = 1000
"""Images of several random keys in one query."""

_FORGERS_PATTERNS = 3
"""Random patterns per step under which a forger keeps an image away from the target."""


@dataclass(frozen=True, kw_only=True)
class _Zhang(ImageScheme, ContinuedTraining, ABC):
    """Base of the three kinds of triggers: embedding."""

    paper: ClassVar[str] = "Zhang et al., Protecting Intellectual Property of DNNs with Watermarking, AsiaCCS 2018"
    threat_model: ClassVar[str] = (
        "the adversary holds the weights and knows the algorithm, not the triggers; may tune with data of their own"
    )

    n_triggers: int = param(100, doc="n, number of triggers, at most", stage="key", low=1)
    boost: int = param(10, doc="times that a pass over the training data shows each trigger", stage="embed", low=1)
    paper_threshold: float = param(
        0.5, doc="share of triggers that the paper's rule requires", stage="verify", low=0, high=1
    )

    def keygen(self, task: Workload, prf: Prf) -> Key:
        key = self.new_key(task, prf)
        return key.with_parts(secret=self._secret(key.prf, task.info.num_classes, task.info.input_shape))

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        key, recipe = self._with_data(owner, key), self.recipe(owner.task, len(owner.train))
        k = self.triggers_per_step(recipe, len(owner.train), len(self.triggers(key)[1]))
        task, feeds = owner.task, list[Feed]()
        for part, (images, labels) in self._lessons(key).items():
            seed = subseed(owner.seed, "triggers", part)
            feeds.append(TriggerFeed(task.to_inputs(images), labels.to(task.device), k, seed))
        extra = together(feeds)
        task.fit(model, owner.train, recipe, seed=owner.seed, extra=extra, log=owner.log, checkpoints=owner.checkpoints)
        return model.eval(), key

    @abstractmethod
    def triggers(self, key: Key) -> tuple[Tensor, Tensor]:
        """Return (images (n, *input_shape) uint8, labels (n,) int64). Raises ValueError if the key has none."""

    def triggers_per_step(self, recipe: Recipe, n_train: int, n: int) -> int:
        """Return k for ``n`` triggers."""
        return math.ceil(self.boost * n / math.ceil(n_train / recipe.batch_size))

    @abstractmethod
    def _secret(self, prf: Prf, num_classes: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw the secret tensors of a key."""

    def _with_data(self, owner: Owner, key: Key) -> Key:
        """Complete ``key`` for embedding or forging. Raises ValueError if the owner lacks the data."""
        return self.with_holder_data(owner, key)

    @abstractmethod
    def _lessons(self, key: Key) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return name -> (images, labels), of which training shows k at each step."""


@dataclass(frozen=True, kw_only=True)
class _Pattern(_Zhang, ABC):
    """A pattern on images of one class, tested by key randomisation."""

    p_method: ClassVar[PMethod] = "key_randomisation"

    decoys: int = param(
        10, doc="random other patterns for each trigger, labelled truly; 0 = as in the paper", stage="embed", low=0
    )
    n_random_keys: int = param(
        99, doc="R, random keys at most; 999 is affordable on a GPU; p is 1/(R+1) at best", stage="verify", low=19
    )

    @property
    @abstractmethod
    def stamp(self) -> Stamp:
        """The family that patterns are drawn from."""

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        mark = PatternKey.of(key)
        n, _ = self.trials(key)
        why = mark.flaw(key, self.stamp, self.n_triggers)
        if why is not None:
            return self._verdict(0, n, [0], {"found": why})
        images, labels = self.triggers(key)
        k = int((suspect.labels(images).cpu() == labels).sum())
        details: dict[str, Json] = {"n_fresh": len(mark.fresh), "fresh_accuracy": None}
        if len(mark.fresh):
            answers = suspect.labels(self.stamp.on(mark.fresh, mark.for_fresh)).cpu()
            details["fresh_accuracy"] = int((answers == mark.own.target).sum()) / len(answers)
        return self._verdict(k, n, self._random_counts(suspect, key, k), details)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """Draw another pattern and target for the same images."""
        mark, stranger = PatternKey.of(key), replace(key, seed=prf.stream("seed", 32))
        return stranger.with_parts(secret=self._pattern(stranger.prf, mark.source, mark.num_classes, mark.shape))

    def trials(self, key: Key) -> tuple[int, None]:
        return len(PatternKey.of(key).images) or self.n_triggers, None

    def triggers(self, key: Key) -> tuple[Tensor, Tensor]:
        mark = PatternKey.of(key)
        if not len(mark.images):
            raise ValueError(f"expected a key with images, got {key!r}; embed it first")
        return self.stamp.on(mark.images, mark.for_images), torch.full((len(mark.images),), mark.own.target)

    def with_holder_data(self, holder: Owner, key: Key) -> Key:
        """Add the holder's images of class s: training images, and validation images as fresh ones."""
        source = PatternKey.of(key).source
        images = images_of_class(holder.train, source, self.n_triggers, key.prf.child("images"))
        if not len(images):
            return key
        fresh = images_of_class(holder.val, source, self.n_triggers, key.prf.child("fresh"))
        return key.with_parts(secret={"images": images} | ({"fresh": fresh} if len(fresh) else {}))

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Change images of class s until the frozen model answers t with the key's pattern, and s with random others.

        The pattern follows from the seed and cannot be optimised. Raises ValueError if the forger has no such image.
        """
        key = self._with_data(forger, key)
        mark, n = PatternKey.of(key), len(PatternKey.of(key).images)
        device = forger.task.device
        own = mark.for_images.to(device).expand(n, *mark.shape)
        pool = self._others(key.prf.child("forge"), mark, 2 * _FORGERS_PATTERNS * n).to(device)

        def patterns(step: int) -> Tensor:
            """Return (n + _FORGERS_PATTERNS n, ...): the key's own for each image, then others in turn."""
            return torch.cat([own, pool.roll(step, dims=0)[: _FORGERS_PATTERNS * n]])

        def to_queries(images: Tensor, step: int) -> Tensor:
            return self.stamp.on(images.repeat(1 + _FORGERS_PATTERNS, 1, 1, 1), patterns(step))

        def to_images(gradient: Tensor, step: int) -> Tensor:
            own_gradient, *others = self.stamp.through(gradient, patterns(step)).chunk(1 + _FORGERS_PATTERNS)
            return own_gradient + torch.stack(others).mean(dim=0)

        # Label s under other patterns: if all patterns gave t, random keys would match as well.
        targets = torch.tensor([mark.own.target] + _FORGERS_PATTERNS * [mark.source]).repeat_interleave(n)
        images = adversarial_images(
            model, forger.task, mark.images, targets, to_queries=to_queries, to_images=to_images
        )
        return key.with_parts(secret={"images": images})

    def _secret(self, prf: Prf, num_classes: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return self._pattern(prf, int(prf.integers("source", 1, num_classes)[0]), num_classes, shape)

    def _pattern(self, prf: Prf, source: int, num_classes: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        own = draw_secret(prf, self.stamp, source, self.n_triggers, num_classes, shape)
        return {"classes": torch.tensor([source, own.target]), "pattern": own.pattern}

    def _with_data(self, owner: Owner, key: Key) -> Key:
        key = self.with_holder_data(owner, key)
        if "images" not in key.secret:
            raise ValueError(
                f"expected training data with an image of the key's source class, got {len(owner.train)} samples "
                "without one; use more data or another seed"
            )
        return key

    def _lessons(self, key: Key) -> Mapping[str, tuple[Tensor, Tensor]]:
        mark = PatternKey.of(key)
        lessons = {"marked": self.triggers(key), "clean": (mark.images, torch.full((len(mark.images),), mark.source))}
        # Without decoys many patterns would give t, and random keys would match as well.
        if self.decoys:
            images = mark.images.repeat(self.decoys, 1, 1, 1)
            others = self._others(key.prf.child("decoys"), mark, len(images))
            lessons["decoys"] = self.stamp.on(images, others), torch.full((len(images),), mark.source)
        return lessons

    def _others(self, prf: Prf, mark: PatternKey, n: int) -> Tensor:
        """Draw (n, *shape) patterns of random keys, one for each of ``n`` images."""
        return torch.cat([self.stamp.draw(prf.child(str(i)), 1, mark.shape) for i in range(n)])

    def _random_counts(self, suspect: Suspect, key: Key, k: int) -> list[int]:
        """Count matches of random keys on the same images, until ten of them reach ``k``."""
        mark = PatternKey.of(key)
        prf = key.cached("random keys", lambda: Prf(bytes.fromhex(key.commitment)))
        together = max(1, _ASKED_TOGETHER // len(mark.images))
        counts: list[int] = []
        # Every random key is judged on the images that the owner trained on, so only pattern and target differ.
        for first in range(0, self.n_random_keys, together):
            numbers = range(first, min(first + together, self.n_random_keys))
            draws = [mark.another(prf.child(f"random key {number}"), self.stamp) for number in numbers]
            stamped = torch.cat([self.stamp.on(mark.images, draw.pattern) for draw in draws])
            answers = suspect.labels(stamped).cpu().view(len(draws), -1)
            for draw, own in zip(draws, answers, strict=True):
                counts.append(int((own == draw.target).sum()))
                if sum(count >= k for count in counts) == EXCEEDANCES:
                    return counts
        return counts

    def _verdict(self, k: int, n: int, random_counts: list[int], details: dict[str, Json]) -> Verdict:
        return Verdict.randomised(
            k,
            n,
            random_counts,
            self.n_random_keys,
            access=self.access,
            paper="found" not in details and k >= self.paper_threshold * n,
            paper_threshold=self.paper_threshold,
            details={**details, "paper_threshold": self.paper_threshold},
        )


@dataclass(frozen=True, kw_only=True)
class ZhangContent(_Pattern):
    """A block of black and white cells on images of one class (Zhang et al. 2018, "content")."""

    name: ClassVar[str] = "zhang_content"

    block_height: int = param(8, doc="pixels; cut to the image where that is smaller", stage="key", low=2)
    block_width: int = param(16, doc="pixels; cut to the image where that is smaller", stage="key", low=2)

    @property
    def stamp(self) -> Stamp:
        return Block(self.block_height, self.block_width)


@dataclass(frozen=True, kw_only=True)
class ZhangNoise(_Pattern):
    """A secret field of Gaussian noise on images of one class (Zhang et al. 2018, "noise")."""

    name: ClassVar[str] = "zhang_noise"

    sigma: float = param(
        0.35, doc="standard deviation of the noise, of pixels in [0, 1]", stage="key", low=0, high=1, low_open=True
    )
    fresh_noise: bool = param(False, doc="a field for each image instead of one for all", stage="key")

    @property
    def stamp(self) -> Stamp:
        return Noise(self.sigma, self.fresh_noise)


@dataclass(frozen=True, kw_only=True)
class ZhangUnrelated(_Zhang):
    """Glyphs with random labels (Zhang et al. 2018, "unrelated")."""

    name: ClassVar[str] = "zhang_unrelated"

    def applicable(self, info: TaskInfo) -> str | None:
        return super().applicable(info) or too_few_triggers(self.n_triggers, info)

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        images, labels = self.triggers(key)
        n, q = self.trials(key)
        details: dict[str, Json] = {"paper_threshold": self.paper_threshold}
        if has_repeats(images):
            details["found"] = "two trigger images are equal: one answer would count twice"
            return Verdict.binomial(0, n, q, access=self.access, paper=False, details=details)
        matches = int((suspect.labels(images).cpu() == labels).sum())
        paper = matches >= self.paper_threshold * n
        return Verdict.binomial(matches, n, q, access=self.access, paper=paper, details=details)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        num_classes, shape = class_count(key), tuple(self.triggers(key)[0].shape[1:])
        stranger = replace(key, seed=prf.stream("seed", 32))
        return stranger.with_parts(secret=self._secret(stranger.prf, num_classes, shape))

    def trials(self, key: Key) -> tuple[int, float]:
        return len(self.triggers(key)[1]), 1 / class_count(key)

    def triggers(self, key: Key) -> tuple[Tensor, Tensor]:
        if not {"images", "labels"} <= set(key.secret):
            raise ValueError(f"expected a key with trigger images and labels, got {key!r}; draw it with keygen")
        return key.secret["images"], key.secret["labels"]

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Turn the glyphs into adversarial images that the frozen model answers with the key's labels."""
        images, labels = self.triggers(key)
        return key.with_parts(secret={"images": adversarial_images(model, forger.task, images, labels)})

    def _secret(self, prf: Prf, num_classes: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        labels = as_tensor(prf.integers("labels", self.n_triggers, num_classes))
        return {"images": glyph_images(prf.child("images"), self.n_triggers, shape), "labels": labels}

    def _lessons(self, key: Key) -> Mapping[str, tuple[Tensor, Tensor]]:
        return {"triggers": self.triggers(key)}
