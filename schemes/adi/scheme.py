"""A backdoor as a watermark: abstract images with random labels, committed to before the model is published.

The owner trains the network to answer secret labels on secret images. Ownership of a suspect is claimed with images
and labels that open commitments older than the model and that the suspect answers.

    L = L_task over a batch of B task images and k trigger images                 (Embed, "FromScratch"/"PreTrained")
    vk = {Com(t_i; r_i), Com(T_L(t_i); r'_i)},  mk = (t, T_L, r)                   (KeyGen)
    verdict_paper: #{i: Classify(M, t_i) != T_L(t_i)} <= eps |T|                   (Verify)
    verdict:       P[Binomial(|T|, 1/C) >= matches] <= 1e-6, exact because labels are uniform, independent of each
                   other and of any model that was trained without them

    t    (n, channels, height, width) uint8   trigger images, drawn from the key (``wmarena.schemes.triggers.images``)
    T_L  (n,) int64 in [0, C)                 trigger labels; not filtered by a clean model's answers, or a match
                                              would not have probability 1/C
    r    32 bytes each                        openings, from the key's stream
    R    ``n_sets`` disjoint sets (t, T_L, r) of n triggers each are embedded together; a verification reveals and
         queries one of them (``released``), so that one mark serves R disputes

Source: Adi, Baum, Cisse, Pinkas, Keshet, "Turning Your Weakness Into a Strength: Watermarking Deep Neural Networks by
Backdooring", USENIX Security 2018. Differs from the paper: images are procedural; the commitments are SHA-256 (only
computationally hiding); showings of two triggers differ by at most one (a fresh order per cycle, where the authors'
code starts each epoch at a random offset); ``k`` is raised where training is too short to show each trigger often
enough; continuing from a trained network uses Adam on a one-cycle schedule, which costs less accuracy than the
paper's constant rate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from wmarena.schemes.base import Owner, Recipe, Suspect, TaskInfo, Verdict, Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf, subseed
from wmarena.schemes.triggers.embedding import ContinuedTraining
from wmarena.schemes.triggers.forging import adversarial_images
from wmarena.schemes.triggers.labelled import class_count, commit_triggers, draw_triggers, flaw, set_count, trigger_set
from wmarena.schemes.triggers.scheme import ImageScheme, too_few_triggers
from wmarena.schemes.triggers.training import TriggerFeed, optimiser_steps


@dataclass(frozen=True, kw_only=True)
class Adi(ImageScheme, ContinuedTraining):
    """Backdoor trigger set with hash commitments (Adi et al. 2018)."""

    name: ClassVar[str] = "adi"
    paper: ClassVar[str] = "Adi et al., Turning Your Weakness Into a Strength, USENIX Security 2018"
    threat_model: ClassVar[str] = (
        "the adversary holds the weights and knows the algorithm, not the triggers; may tune as long as the owner"
    )

    n_triggers: int = param(100, doc="|T|, number of trigger images in a set", stage="key", low=1)
    n_sets: int = param(1, doc="R, disjoint trigger sets, all embedded", stage="key", low=1)
    triggers_per_batch: int = param(2, doc="k, triggers appended to a batch, at least", stage="embed", low=1)
    showings: int = param(30, doc="least showings of each trigger; raises k if steps are few", stage="embed", low=1)
    eps: float = param(0.1, doc="share of wrong triggers that the paper's rule allows", stage="verify", low=0, high=1)
    released: int = param(0, doc="the trigger set that a verification reveals, from 0", stage="verify", low=0)

    def problems(self) -> Iterable[tuple[str, str]]:
        if self.released >= self.n_sets:
            yield "released", f"expected a set below n_sets = {self.n_sets}, got {self.released}; sets count from 0"

    def applicable(self, info: TaskInfo) -> str | None:
        return super().applicable(info) or too_few_triggers(self.n_triggers, info)

    def keygen(self, task: Workload, prf: Prf) -> Key:
        key, config = self.new_key(task, prf), self.config(until="key")
        if self.n_sets == 1:
            # One-set keys do not name sets in the public part, so that commitments already published stay valid.
            del config["n_sets"]
            key = key.with_parts(public={"config": config})
        return draw_triggers(key, self.n_triggers, task.info.num_classes, task.info.input_shape, self.n_sets)

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        task, recipe = owner.task, self.recipe(owner.task, len(owner.train))
        images, labels = self.triggers(key)
        k = self.triggers_per_step(recipe, len(owner.train))
        feed = TriggerFeed(task.to_inputs(images), labels.to(task.device), k, subseed(owner.seed, "triggers"))
        task.fit(model, owner.train, recipe, seed=owner.seed, extra=feed, log=owner.log, checkpoints=owner.checkpoints)
        return model.eval(), key

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        images, labels = trigger_set(key, self.released)
        n, q = self.trials(key)
        why = flaw(key, self.released)
        if why is not None:
            return Verdict.binomial(0, n, q, access=self.access, paper=False, details={"found": why})
        matches = int((suspect.labels(images).cpu() == labels).sum())
        paper = n - matches <= self.eps * n
        details: dict[str, Json] = {"eps": self.eps, "sets": set_count(key), "released": self.released}
        return Verdict.binomial(matches, n, q, access=self.access, paper=paper, details=details)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        n, n_sets = self.trials(key)[0], set_count(key)
        stranger = replace(key, seed=prf.stream("seed", 32))
        return draw_triggers(stranger, n, class_count(key), tuple(self.triggers(key)[0].shape[1:]), n_sets)

    def trials(self, key: Key) -> tuple[int, float]:
        return len(self.triggers(key)[1]) // set_count(key), 1 / class_count(key)

    def triggers(self, key: Key) -> tuple[Tensor, Tensor]:
        """Return the triggers of all sets, released or not."""
        return trigger_set(key)

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Turn the key's images into adversarial ones that the frozen model answers with the key's labels."""
        images, labels = self.triggers(key)
        return commit_triggers(key, adversarial_images(model, forger.task, images, labels), labels)

    def triggers_per_step(self, recipe: Recipe, n_train: int) -> int:
        """Return k, raised until ``recipe`` shows each trigger of all sets ``showings`` times."""
        n = self.n_sets * self.n_triggers
        needed = math.ceil(self.showings * n / optimiser_steps(recipe, n_train))
        return min(n, max(self.triggers_per_batch, needed))
