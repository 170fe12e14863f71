"""Transfer learning: the stolen model is tuned to another data set; the mark may not survive the change of task.

    variant   head                                        trained
    ftll      kept; the target has as many classes        output layer
    ftal      kept; the target has as many classes        all layers
    rtll      new, of the target's number of classes      output layer
    rtal      new, of the target's number of classes      all layers

The tuned network is judged with the victim's own head put back, which the owner has stored: black-box marks cannot be
read through other classes. White-box marks are read as they are. The model's use to the adversary is
``target_accuracy``, on the target's validation samples with the head that was trained.

SGD, momentum 0.9, weight decay 5e-4, batch 100, at a constant rate, so epoch e does not depend on the number of epochs.
Inputs of the target are normalised and augmented as in the target's own workload.

Source: Adi et al. 2018, section 5 (CIFAR to STL-10, RTAL). Differs from the paper: all four variants. For networks
that guard a serial number, its authors replace every dense layer; here it is the last one for all networks.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from wmarena.attacks.base import AttackView, Finding
from wmarena.attacks.fine_tuning import TuningAttack, Variant, reinitialise
from wmarena.schemes.base import Samples, TaskInfo, untouched
from wmarena.schemes.params import ConfigError, param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class Transfer(TuningAttack):
    """Tune the stolen model to another data set, then give it its old head back."""

    name: ClassVar[str] = "transfer"

    target: str = param(doc="workload whose data set is the new task", stage="attack")
    target_size: int | None = param(
        None, doc="class-stratified part of its training samples; none = all", stage="attack", low=1
    )
    variant: Variant = param(
        "rtal", doc="ft: keep the head, rt: a new one; ll: train the last layer, al: all layers", stage="attack"
    )

    def data_sets(self) -> tuple[str, ...]:
        return (self.target,)

    def run(self, model: nn.Module, view: AttackView) -> Finding:
        train, val, info = view.auxiliary_data(self.target)
        self._check_fit(train, info, view)
        original = view.task.head(model)
        head = self._new_head(original, info.num_classes, view)
        plug(model, original, head)
        self.tune(model, head, self._part(train, view), view)
        accuracy = top_1(model, val)
        plug(model, head, original)
        return Finding(model, {"target_accuracy": accuracy, "target_classes": info.num_classes})

    def _new_head(self, original: nn.Module, num_classes: int, view: AttackView) -> nn.Module:
        """Return the head that is trained: a copy of the victim's, or a new one drawn from the attack's seed."""
        head = copy.deepcopy(original)
        if not self.renews_head:
            return head
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                [("variant", f"expected a linear output layer to renew, got {type(head).__name__}; use ftal or ftll")]
            )
        new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None).to(head.weight)
        # A resumed run replaces this head by the checkpoint's.
        reinitialise(new, subseed(view.seed, "head"))
        return new

    def _part(self, samples: Samples, view: AttackView) -> Samples:
        """Return the target's samples, or a share of ``target_size``."""
        if self.target_size is None or self.target_size >= len(samples):
            return samples
        fraction = self.target_size / len(samples)
        return samples.share(fraction, domain="adversary/target", seed=subseed(view.seed, "target"))

    def _check_fit(self, samples: Samples, info: TaskInfo, view: AttackView) -> None:
        """Check the target against the victim's network; raises ConfigError naming the wrong field."""
        own, wanted = shape(view.data), shape(samples)
        if own != wanted:
            raise ConfigError([("target", f"expected inputs of shape {own}, got {wanted} from {self.target}")])
        n_own = view.task.info.num_classes
        if not self.renews_head and info.num_classes != n_own:
            raise ConfigError(
                [
                    (
                        "variant",
                        f"expected {n_own} classes for the head that {self.variant} keeps, got {info.num_classes} of "
                        f"{self.target}; use rtal or rtll",
                    )
                ]
            )


def plug(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` in ``model`` by ``new``, in place. Raises ValueError: ``old`` is no part of ``model``."""
    name = next((n for n, m in model.named_modules() if m is old), "")
    if not name:
        raise ValueError(
            f"expected an output layer inside the model, got a {type(old).__name__} that is not part of it"
        )
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def top_1(model: nn.Module, samples: Samples) -> float:
    """Return the share of samples whose largest output is their class, in eval mode."""
    with untouched(model), torch.no_grad():
        hits = [int((model(inputs).argmax(dim=1) == labels).sum()) for inputs, labels in samples.in_order()]
    return sum(hits) / len(samples)


def shape(samples: Samples) -> tuple[int, ...]:
    """Return the shape of one input as the network gets it."""
    with torch.no_grad():
        inputs, _ = next(iter(samples.in_order()))
    return tuple(inputs.shape[1:])
