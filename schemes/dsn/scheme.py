"""Deep Serial Number: a network that works only on inputs stamped with its buyer's number.

A student learns from the private clean network (the teacher) on stamped inputs, while an adversary behind a gradient
reversal keeps its features useless on raw ones. The number is a piece of the owner's signature on the buyer's name
(``wmarena.schemes.serial.numbers``), so it also says who sold to whom; several buyers' students share one teacher.

    f_S(x (+) k^) follows the teacher, f_S(x) says nothing of x     (Eq. 2; losses: ``wmarena.schemes.dsn.training``)
    verdict_paper: A1 >= 0.9 A_T and A0 <= max(3 / C, 0.1)           (``wmarena.schemes.dsn.evidence``)
    verdict:       the same, no other number does as well at the same place, and the number follows from a valid
                   signature

The paper calls accuracies high and near chance without numbers; 0.9 and three times chance are ours. A0 is an upper
bound: a suspect is judged raw, so whoever unlocks the network has removed the mark. The key carries the owner's
validation images, and so is enough to judge with.

Source: Tang, Du, Hu, "Deep Serial Number: Computational Watermarking for DNN Intellectual Property Protection" (arXiv
2011.08960 v1). Differs from the paper: invalid inputs include wrong numbers, else nearly right ones unlock too; the
adversary reads the features before the output layer, and a bounded loss replaces gradient reversal (the paper's:
``neg_mode: raw``, ``lock_at: dense``, ``loss: grl``; why: ``wmarena.schemes.dsn.training``); the rate falls on half a
cosine instead of on plateaus, which the weight of the adversary would trigger; signs and lambda of Eqs 4 and 6 as they
must be; the reversal sits between G_e and G_d.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.schemes.base import (
    Access,
    Owner,
    PMethod,
    Recipe,
    Samples,
    Scheme,
    Suspect,
    TaskInfo,
    Verdict,
    Workload,
    lists,
    untouched,
)
from wmarena.schemes.dsn.evidence import SerialTest, number_facts, rivals_of
from wmarena.schemes.dsn.licence import SerialNumber, licensed_task
from wmarena.schemes.dsn.training import LockFields, LockTraining
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf, subseed
from wmarena.schemes.serial.numbers import MAX_SIDE, SignedNumber, draw_position, ground, issue, places
from wmarena.schemes.serial.search import Oracle, all_positions, answers_of, greedy_search, interleaved

MIN_SHARE = 0.9
"""Of the teacher's accuracy that stamped inputs must keep."""

FORGING_FORWARDS = 200_000
"""Answers that ``forge`` buys."""

_GRINDING_TRIES = 8192
"""Signatures that a finder of a number tries: nine bits need 512 on average."""


@dataclass(frozen=True, kw_only=True)
class Dsn(LockFields, Scheme):
    """Deep Serial Number: works on stamped inputs only (Tang et al. 2020)."""

    name: ClassVar[str] = "dsn"
    access: ClassVar[Access] = "black"
    p_method: ClassVar[PMethod] = "key_randomisation"
    paper: ClassVar[str] = "Tang, Du, Hu, Deep Serial Number, arXiv 2011.08960 v1, 2020"
    threat_model: ClassVar[str] = (
        "the adversary holds the weights and some labelled data, knows the algorithm, not the serial number, and wants "
        "a network that works on raw inputs"
    )

    side: int = param(3, doc="the number has side x side bits (the paper: 3)", stage="key", low=2, high=MAX_SIDE)
    customer: str = param("customer-1", doc="the buyer, named in what the owner signs", stage="key")
    time_stamp: str = param("2020-11-24T00:00:00Z", doc="time of the sale, signed as well", stage="key")
    n_images: int = param(500, doc="validation images that the key carries, at most", stage="embed", low=10)
    n_random_keys: int = param(
        511, doc="R: random numbers to compare with; nine bits always meet all 511 others", stage="verify", low=1
    )

    def applicable(self, info: TaskInfo) -> str | None:
        if info.kind != "classification" or len(info.input_shape) != 3:
            return f"stamps need images with class labels, the task is {info.kind} on inputs {info.input_shape}"
        if min(places(self.side, info.input_shape)) < 1:
            return f"a stamp of {self.side} x {self.side} bits does not fit inputs {info.input_shape}; lower side"
        return None

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        """None: the clean twin is the teacher itself, which was trained on the same data by the same task."""
        return None

    def as_overwriter(self) -> "Dsn":
        return replace(self, mode="labels")

    def for_epochs(self, epochs: int, n_train: int) -> "Dsn":
        return replace(self, epochs=epochs)

    def licensed_task(self, task: Workload, key: Key) -> Workload:
        return licensed_task(task, number_of(key))

    # Keys.

    def keygen(self, task: Workload, prf: Prf) -> Key:
        why = self.applicable(task.info)
        if why is not None:
            raise ValueError(f"expected a task that {self.name} can protect, got {task.name}: {why}")
        public: dict[str, Json] = {
            "config": self.config(until="key"),
            "workload": task.name,
            "num_classes": task.info.num_classes,
            "input_shape": list(task.info.input_shape),
        }
        return self._issued(Key(self.name, prf.stream("seed", 32), public))

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """Another signer's number at another place, with the same images."""
        return self._issued(replace(key, seed=prf.stream("seed", 32)))

    def adopt(self, key: Key, pattern: Tensor, position: tuple[int, int], images: Tensor, labels: Tensor) -> Key:
        """Claim a found number: a key of the finder whose signature is ground to fit it.

        Long numbers cannot be ground: they unlock all the same, but the key proves nothing.
        """
        signed = ground(key.prf, self.customer, self.time_stamp, pattern, _GRINDING_TRIES)
        numbered = _with_number(key, signed, pattern, torch.tensor(position))
        return _with_images(numbered, images, labels, 1.0)

    def place(self, key: Key) -> tuple[int, int]:
        """Row and column of the key's stamp."""
        row, column = number_of(key).position.tolist()
        return row, column

    def _issued(self, key: Key) -> Key:
        shape = _shape(key)
        signed = issue(key.prf, self.customer, self.time_stamp, self.side)
        return _with_number(key, signed, signed.bits(self.side), draw_position(key.prf, self.side, shape))

    # Embedding.

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        """Train a student of ``model``, or ``model`` itself by labels; the key gets images and the teacher's accuracy.

        Raises:
            FloatingPointError: a loss became NaN or infinite.
        """
        number, task = number_of(key), owner.task
        if self.mode == "labels":
            LockTraining(self, model, None, owner, number).run()
            return model, self.with_holder_data(owner, key)
        teacher, student = model.eval(), task.network(subseed(owner.seed, "student"))
        images, labels = self._images(owner.val, owner.seed)
        taught = float((task.predict(teacher, images) == labels.to(task.device)).float().mean())
        LockTraining(self, student, teacher, owner, number).run()
        return student, _with_images(key, images, labels, taught)

    def with_holder_data(self, holder: Owner, key: Key) -> Key:
        """With the holder's validation images; nobody taught, so the bar is a perfect teacher's."""
        return _with_images(key, *self._images(holder.val, holder.seed), 1.0)

    def _images(self, val: Samples, seed: int) -> tuple[Tensor, Tensor]:
        """Validation images (n, *input_shape) and labels (n,), classes taking turns."""
        few = val
        if len(val) > self.n_images:
            few = val.share(self.n_images / len(val), domain="dsn/verification", seed=seed)
        raw, labels = few.raw()
        order = interleaved(labels.cpu())
        return raw.cpu()[order], labels.cpu()[order]

    # Evidence.

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        n, _ = self.trials(key)
        why = flaw(key)
        if why is not None:
            return Verdict.randomised(
                0, n, [0], 1, access=self.access, paper=False, paper_threshold=2.0, details={"found": why}
            )
        number, num_classes, taught = number_of(key), suspect.task.info.num_classes, _taught(key)
        trial = SerialTest(suspect, number, key.secret["images"], key.secret["labels"])
        most = max(3 / num_classes, 0.1)
        locked = trial.raw_accuracy <= most
        others = rivals_of(number.pattern, self.n_random_keys, bytes.fromhex(key.commitment))
        rivals = trial.against(others)
        details: dict[str, Json] = {
            "A1": trial.k / n,
            "A0": trial.raw_accuracy,
            "A_T": taught,
            "A0_most": most,
            "A0_relabelled": trial.relabelled(num_classes),
            **number_facts(trial, number, rivals, others, open_to_all=trial.raw_accuracy >= MIN_SHARE * taught),
        }
        return Verdict.randomised(
            trial.k,
            n,
            rivals.counts.tolist(),
            rivals.n_planned,
            access=self.access,
            paper=locked and trial.k >= MIN_SHARE * taught * n,
            # Where raw inputs are answered well, no accuracy on stamped ones passes.
            paper_threshold=MIN_SHARE * taught if locked else 1 + 1 / n,
            details=details,
        )

    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        info = suspect.task.info
        for what, found in (("num_classes", info.num_classes), ("input_shape", lists(info.input_shape))):
            if key.public.get(what) != found:
                return f"{what} is {found}, the key expects {key.public.get(what)}"
        return None

    def trials(self, key: Key) -> tuple[int, None]:
        labels = key.secret.get("labels")
        return (self.n_images if labels is None else len(labels)), None

    # Hooks.

    def triggers(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """The key's images, stamped, with their true labels; None for a key that was never embedded.

        Spoiling teaches them wrong labels beside the task on raw inputs.
        """
        if "images" not in key.secret:
            return None
        return number_of(key).on(key.secret["images"]), key.secret["labels"]

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor | None:
        """CE(f(x (+) k), y) + max(0, ln C - CE(f(x), y)): small where stamped inputs are answered and raw ones not."""
        triggers = self.triggers(key)
        if triggers is None:
            return None
        stamped, own = triggers
        targets = (own if labels is None else labels).to(task.device)
        raw = task.loss(model, task.to_inputs(key.secret["images"]), targets)
        return task.loss(model, task.to_inputs(stamped), targets) + F.relu(math.log(task.info.num_classes) - raw)

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Search the frozen model for the number that it answers to, and sign it."""
        raw, labels = self._images(forger.val, forger.seed)
        positions = all_positions(self.side, forger.task.info.input_shape)
        with untouched(model):
            oracle = Oracle(answers_of(model), forger.task, raw, labels, FORGING_FORWARDS)
            found = greedy_search(oracle, self.side, positions, key.prf.seed("forge"), MIN_SHARE)
        row, column = found.positions[0].tolist()
        return self.adopt(key, found.patterns[0], (row, column), raw, labels)


def number_of(key: Key) -> SerialNumber:
    """The serial number of a key, and its place.

    Raises:
        ValueError: the key holds none.
    """
    missing = [part for part in ("pattern", "position") if part not in key.secret]
    if missing:
        raise ValueError(f"expected a key with a stamp's {' and '.join(missing)}, got {key!r}; draw it with keygen")
    return SerialNumber(key.secret["pattern"], key.secret["position"])


def flaw(key: Key) -> str | None:
    """Why the key proves nothing whatever a model answers, or None."""
    if "images" not in key.secret:
        return "the key holds no images to verify with: it was never embedded"
    number = number_of(key)
    signed = SignedNumber(
        str(key.public.get("message")),
        bytes.fromhex(str(key.public.get("public_key"))),
        key.secret["signature"].numpy().tobytes(),
    )
    if not signed.valid():
        return "the signature does not fit the message and the public key"
    if not torch.equal(signed.bits(len(number.pattern)), number.pattern):
        return "the serial number is not the one that was signed"
    return None


def _shape(key: Key) -> tuple[int, ...]:
    shape = key.public.get("input_shape")
    if not isinstance(shape, list):
        raise ValueError(f"expected a key with its inputs' shape, got {key!r}; draw it with keygen")
    return tuple(int(str(size)) for size in shape)


def _taught(key: Key) -> float:
    accuracy = key.public.get("teacher_accuracy")
    if not isinstance(accuracy, float):
        raise ValueError(f"expected a key with its teacher's accuracy, got {key!r}; complete it with embed")
    return accuracy


def _with_number(key: Key, signed: SignedNumber, pattern: Tensor, position: Tensor) -> Key:
    signature = torch.frombuffer(bytearray(signed.signature), dtype=torch.uint8)
    return key.with_parts(
        public={"message": signed.message, "public_key": signed.public_key.hex()},
        secret={"pattern": pattern.to(torch.uint8), "position": position.to(torch.int64), "signature": signature},
    )


def _with_images(key: Key, images: Tensor, labels: Tensor, taught: float) -> Key:
    return key.with_parts(public={"teacher_accuracy": taught}, secret={"images": images, "labels": labels})
