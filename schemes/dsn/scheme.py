"""Deep Serial Number: a network that works only on inputs stamped with its buyer's number.

A student learns from the private clean network (the teacher) on stamped inputs, while an adversary behind a gradient
reversal keeps its features useless on raw ones. The number is part of the owner's signature on the buyer's name
(``wmarena.schemes.serial.numbers``), so it identifies both; several buyers' students share one teacher.

    f_S(x (+) k^) follows the teacher, f_S(x) reveals nothing of x  (Eq. 2; losses: ``wmarena.schemes.dsn.training``)
    verdict_paper: A1 >= 0.9 A_T and A0 <= max(3 / C, 0.1)           (``wmarena.schemes.dsn.evidence``)
    verdict:       the same, no other number matches as many images at the same position, and the number follows from a
                   valid signature

The paper calls accuracies high and near chance without numbers; 0.9 and three times chance are ours. A0 is an upper
bound: a suspect is judged without stamps, so unlocking the network removes the mark. The key carries the owner's
validation images; nothing else is needed to judge.

Source: Tang, Du, Hu, "Deep Serial Number: Computational Watermarking for DNN Intellectual Property Protection" (arXiv
2011.08960 v1). Differs from the paper: invalid inputs include wrong numbers, else nearly right ones unlock too; the
adversary reads the features before the output layer, and a bounded loss replaces gradient reversal (the paper's:
``neg_mode: raw``, ``lock_at: dense``, ``loss: grl``; reasons: ``wmarena.schemes.dsn.training``); the rate falls on half
a cosine instead of on plateaus, which the weight of the adversary would trigger; signs and lambda of Eqs 4 and 6 are
corrected; the reversal stands between G_e and G_d.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.schemes.base import Owner, PMethod, Recipe, Samples, Suspect, TaskInfo, Verdict, Workload, untouched
from wmarena.schemes.dsn.evidence import SerialTest, number_facts, rivals_of
from wmarena.schemes.dsn.licence import SerialNumber, licensed_task
from wmarena.schemes.dsn.training import LockFields, LockTraining
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf, subseed
from wmarena.schemes.serial.numbers import MAX_SIDE, SignedNumber, draw_position, grind, issue, places
from wmarena.schemes.serial.search import Oracle, all_positions, answers_of, greedy_search, interleaved
from wmarena.schemes.triggers.labelled import input_shape
from wmarena.schemes.triggers.scheme import ImageScheme

MIN_SHARE = 0.9
"""Share of the teacher's accuracy that stamped inputs must keep."""

FORGING_FORWARDS = 200_000
"""Forward passes of ``forge``."""

_GRINDING_TRIES = 8192
"""Signatures that the finder of a number tries; nine bits need 512 on average."""


@dataclass(frozen=True, kw_only=True)
class Dsn(LockFields, ImageScheme):
    """Deep Serial Number: works on stamped inputs only (Tang et al. 2020)."""

    name: ClassVar[str] = "dsn"
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
        why = super().applicable(info)
        if why is None and min(places(self.side, info.input_shape)) < 1:
            return f"a stamp of {self.side} x {self.side} bits does not fit inputs {info.input_shape}; lower side"
        return why

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        """Return None: the teacher, trained on the same data by the same task, is the twin."""
        return None

    def as_overwriter(self) -> "Dsn":
        return replace(self, mode="labels")

    def for_epochs(self, epochs: int, n_train: int) -> "Dsn":
        return replace(self, epochs=epochs)

    def licensed_task(self, task: Workload, key: Key) -> Workload:
        return licensed_task(task, number_of(key))

    # Keys.

    def keygen(self, task: Workload, prf: Prf) -> Key:
        return self._issued(self.new_key(task, prf))

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """Draw another signer's number and position, with the same images."""
        return self._issued(replace(key, seed=prf.stream("seed", 32)))

    def adopt(self, key: Key, pattern: Tensor, position: tuple[int, int], images: Tensor, labels: Tensor) -> Key:
        """Claim a found number with a signature of the finder that fits it, found by trying counters.

        For long numbers no signature is found: they still unlock, but the key proves nothing.
        """
        signed = grind(key.prf, self.customer, self.time_stamp, pattern, _GRINDING_TRIES)
        numbered = _with_number(key, signed, pattern, torch.tensor(position))
        return _with_images(numbered, images, labels, 1.0)

    def place(self, key: Key) -> tuple[int, int]:
        """Return the row and column of the key's stamp."""
        row, column = number_of(key).position.tolist()
        return row, column

    def _issued(self, key: Key) -> Key:
        signed = issue(key.prf, self.customer, self.time_stamp, self.side)
        return _with_number(key, signed, signed.bits(self.side), draw_position(key.prf, self.side, input_shape(key)))

    # Embedding.

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        """Train a student of ``model``, or ``model`` itself by labels; the key gets images and the teacher's accuracy.

        Raises FloatingPointError: a loss became NaN or infinite.
        """
        number, task = number_of(key), owner.task
        if self.mode == "labels":
            LockTraining(self, model, None, owner, number).run()
            return model, self.with_holder_data(owner, key)
        teacher, student = model.eval(), task.network(subseed(owner.seed, "student"))
        images, labels = self._images(owner.val, owner.seed)
        teacher_accuracy = float((task.predict(teacher, images) == labels.to(task.device)).float().mean())
        LockTraining(self, student, teacher, owner, number).run()
        return student, _with_images(key, images, labels, teacher_accuracy)

    def with_holder_data(self, holder: Owner, key: Key) -> Key:
        """Add the holder's validation images; without a teacher its accuracy counts as 1."""
        return _with_images(key, *self._images(holder.val, holder.seed), 1.0)

    def _images(self, val: Samples, seed: int) -> tuple[Tensor, Tensor]:
        """Return validation images (n, *input_shape) and labels (n,), interleaved by class."""
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
        number, num_classes, teacher_accuracy = number_of(key), suspect.task.info.num_classes, _teacher_accuracy(key)
        test = SerialTest(suspect, number, key.secret["images"], key.secret["labels"])
        most = max(3 / num_classes, 0.1)
        locked = test.raw_accuracy <= most
        # The rivals follow from the commitment, so the claimant cannot choose them.
        others = rivals_of(number.pattern, self.n_random_keys, bytes.fromhex(key.commitment))
        rivals = test.against(others)
        details: dict[str, Json] = {
            "A1": test.k / n,
            "A0": test.raw_accuracy,
            "A_T": teacher_accuracy,
            "A0_most": most,
            "A0_relabelled": test.relabelled(num_classes),
            **number_facts(test, number, rivals, others, open_to_all=test.raw_accuracy >= MIN_SHARE * teacher_accuracy),
        }
        return Verdict.randomised(
            test.k,
            n,
            rivals.counts.tolist(),
            rivals.n_planned,
            access=self.access,
            paper=locked and test.k >= MIN_SHARE * teacher_accuracy * n,
            # If raw inputs are answered well, no accuracy on stamped ones passes.
            paper_threshold=MIN_SHARE * teacher_accuracy if locked else 1 + 1 / n,
            details=details,
        )

    def trials(self, key: Key) -> tuple[int, None]:
        labels = key.secret.get("labels")
        return (self.n_images if labels is None else len(labels)), None

    # Hooks.

    def triggers(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """Return the key's images, stamped, with their true labels; None for a key that was never embedded.

        Spoiling teaches them wrong labels beside the task on raw inputs.
        """
        if "images" not in key.secret:
            return None
        return number_of(key).on(key.secret["images"]), key.secret["labels"]

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor | None:
        """Return CE(f(x (+) k), y) + max(0, ln C - CE(f(x), y)): small if only stamped inputs are answered."""
        if "images" not in key.secret:
            return None
        targets = key.secret["labels"] if labels is None else labels
        raw = task.loss(model, task.to_inputs(key.secret["images"]), targets.to(task.device))
        stamped = super().mark_loss(model, task, key, labels)
        return None if stamped is None else stamped + F.relu(math.log(task.info.num_classes) - raw)

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
    """Return the serial number of a key, and its place. Raises ValueError: the key holds none."""
    missing = [part for part in ("pattern", "position") if part not in key.secret]
    if missing:
        raise ValueError(f"expected a key with a stamp's {' and '.join(missing)}, got {key!r}; draw it with keygen")
    return SerialNumber(key.secret["pattern"], key.secret["position"])


def flaw(key: Key) -> str | None:
    """Return why the key can prove nothing, or None."""
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


def _teacher_accuracy(key: Key) -> float:
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


def _with_images(key: Key, images: Tensor, labels: Tensor, teacher_accuracy: float) -> Key:
    return key.with_parts(public={"teacher_accuracy": teacher_accuracy}, secret={"images": images, "labels": labels})
