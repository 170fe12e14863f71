"""Attacks that may fine-tune after they changed weights."""

import pytest

from wmarena.attacks.base import Attack
from wmarena.attacks.compression.pruning import FinePrune, PruneNeurons, PruneWeights
from wmarena.attacks.compression.quantize import Quantize
from wmarena.attacks.tuning.weight_noise import WeightNoise
from wmarena.experiments.spec.labels import telling


@pytest.mark.parametrize(
    ("attack", "own"),
    [
        (PruneWeights, ["sparsity"]),
        (PruneNeurons, ["fraction", "rank"]),
        (FinePrune, ["ratio", "max_drop"]),
        (Quantize, ["bits", "symmetric", "per_channel"]),
        (WeightNoise, ["noise", "shift"]),
    ],
)
def test_an_attacks_own_fields_come_before_those_of_fine_tuning(attack: type[Attack], own: list[str]) -> None:
    """Tables of parameters begin with what the attack is about."""
    assert list(attack.parameters()) == [*own, "epochs", "lr"]


def test_labels_list_an_attacks_own_fields_first() -> None:
    """Labels of a grid follow the order of declaration."""
    attacks = [FinePrune(max_drop=drop, epochs=n) for drop, n in ((0.02, 5), (0.04, 10))]

    labels = telling([a.label for a in attacks], [a.config(until="attack") for a in attacks])

    assert labels == ["fine_prune[max_drop=0.02,epochs=5]", "fine_prune[max_drop=0.04,epochs=10]"]
