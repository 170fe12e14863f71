"""Workloads as configurations: defaults, ranges, splits, identity."""

import importlib
from pathlib import Path

import pytest
import torch

from wmarena.experiments.workloads import WORKLOADS
from wmarena.experiments.workloads.images.base import ImageWorkload
from wmarena.experiments.workloads.images.cifar import Cifar10ResNet18
from wmarena.experiments.workloads.images.digits import DigitsCnn, DigitsMlp
from wmarena.experiments.workloads.images.mnist import FashionLeNet5
from wmarena.schemes.params import ConfigError

CPU = torch.device("cpu")


def table() -> list[type[ImageWorkload]]:
    """Every class that the table names."""
    found = []
    for target in WORKLOADS.values():
        module, name = target.split(":")
        found.append(getattr(importlib.import_module(module), name))
    return found


def test_the_table_names_its_classes() -> None:
    """Each entry leads to a class of that name with a summary."""
    assert [workload.name for workload in table()] == list(WORKLOADS)
    assert all(workload.summary().endswith(".") for workload in table())


@pytest.mark.parametrize("workload", table(), ids=lambda w: w.name)
def test_configurations_round_trip(workload: type[ImageWorkload]) -> None:
    """config() describes the object completely; every field acts on training."""
    config = workload().config()

    assert workload.from_config(config) == workload()
    assert workload().config(until="train") == config


def test_overridden_defaults_keep_meaning_and_range() -> None:
    """A subclass's default does not lose the field's documentation."""
    assert Cifar10ResNet18().milestones == (20, 40)
    assert Cifar10ResNet18.parameters()["lr"] == FashionLeNet5.parameters()["lr"]
    with pytest.raises(ConfigError, match=r"lr: expected a value in \(0, inf\), got 0"):
        Cifar10ResNet18(lr=0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_size": 1200}, r"train_size: expected at most 1150 \(val_size is 150\), got 1200"),
        ({"val_size": 1295}, r"train_size: expected at most 5 \(val_size is 1295\), got None"),
        ({"train_size": 20, "reserve": 0.8}, "reserve: expected to leave 10 of 20 training images, got 0.8"),
        ({"test_size": 498}, "test_size: expected at most 497, got 498"),
        ({"milestones": [2]}, "milestones: expected none with schedule 'one_cycle'"),
        ({"precision": "auto"}, "precision: expected one of float32, bf16, got 'auto'"),
    ],
    ids=["train_size", "val_size", "reserve", "test_size", "milestones", "precision"],
)
def test_impossible_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    """Before any data is read."""
    with pytest.raises(ConfigError, match=message):
        DigitsMlp(**fields)  # type: ignore[arg-type]


def test_splits_are_shared_by_networks_and_do_not_overlap() -> None:
    """The same data set and sizes give the same splits to every network; reserve only where it was asked for."""
    mlp, cnn = (w(train_size=400, reserve=0.25).bind(CPU, None) for w in (DigitsMlp, DigitsCnn))
    images = []
    for one, two in ((mlp.train, cnn.train), (mlp.val, cnn.val), (mlp.reserve, cnn.reserve), (mlp.test, cnn.test)):
        assert one is not None
        assert two is not None
        x, y = (torch.cat([batch for batch, _ in part.in_order()]) for part in (one, two))
        assert torch.equal(x, y)
        images.append({row.numpy().tobytes() for row in x})

    assert [len(part) for part in images] == [300, 150, 100, 497]
    assert len(set().union(*images)) == sum(map(len, images))
    assert DigitsMlp().bind(CPU, None).reserve is None


def test_a_smaller_test_set_is_part_of_the_whole() -> None:
    """Quick runs report on a stratified part of the same images."""
    labels = torch.cat([y for _, y in DigitsMlp(test_size=100).bind(CPU, None).test.in_order()])

    assert torch.bincount(labels).min() >= 9
    assert len(labels) == 100


def test_the_fingerprint_is_of_the_data_alone() -> None:
    """Two workloads on one data set share it, whatever their fields and folders."""
    prints = {DigitsMlp().fingerprint(None), DigitsCnn(epochs=1).fingerprint(Path("/nowhere"))}

    assert len(prints) == 1
    assert len(prints.pop()) == 64
