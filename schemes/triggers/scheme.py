"""Base of black-box schemes that verify by the labels of secret images."""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from wmarena.schemes.base import Access, Scheme, Suspect, TaskInfo, Workload, lists
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import LEVEL, binomial_threshold


@dataclass(frozen=True, kw_only=True)
class ImageScheme(Scheme, ABC):
    """A scheme whose key holds images, and labels of a classification task."""

    access: ClassVar[Access] = "black"

    def applicable(self, info: TaskInfo) -> str | None:
        if info.kind != "classification" or len(info.input_shape) != 3:
            return f"triggers are images with class labels, the task is {info.kind} on inputs {info.input_shape}"
        return None

    def new_key(self, task: Workload, prf: Prf) -> Key:
        """Return a key with a new seed, without images. Raises ValueError: the scheme cannot protect the task."""
        why = self.applicable(task.info)
        if why is not None:
            raise ValueError(f"expected a task that {self.name} can protect, got {task.name}: {why}")
        public: dict[str, Json] = {
            "config": self.config(until="key"),
            "workload": task.name,
            "num_classes": task.info.num_classes,
            "input_shape": lists(task.info.input_shape),
        }
        return Key(self.name, prf.stream("seed", 32), public)

    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        info = suspect.task.info
        for what, found in (("num_classes", info.num_classes), ("input_shape", lists(info.input_shape))):
            if key.public.get(what) != found:
                return f"{what} is {found}, the key expects {key.public.get(what)}"
        return None

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor | None:
        triggers = self.triggers(key)
        if triggers is None:
            return None
        images, own = triggers
        targets = own if labels is None else labels
        return task.loss(model, task.to_inputs(images), targets.to(task.device))


def too_few_triggers(n: int, info: TaskInfo) -> str | None:
    """Return why ``n`` triggers with uniform labels cannot prove anything, or None."""
    if binomial_threshold(n, 1 / info.num_classes) > n:
        return f"{n} triggers over {info.num_classes} classes cannot reach p <= {LEVEL:g}; raise n_triggers"
    return None
