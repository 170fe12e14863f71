"""Bits in a mean filter: what is read, what is written, which layer."""

import copy
import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.marks import Embedded, arena, clean_model, embed, embedded
from tests.victims import NewestOnly
from wmarena.schemes.base import Suspect, Verdict
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.keys import Key
from wmarena.schemes.params import ConfigError
from wmarena.schemes.prf import Prf
from wmarena.schemes.uchida import Uchida

SECRET = Prf(b"the owner of these tests")
Projection = Literal["random", "direct", "diff"]
PROJECTIONS: tuple[Projection, ...] = ("random", "direct", "diff")


def judge(scheme: Uchida, model: nn.Module, key: Key) -> Verdict:
    """Evidence on a network of the digits."""
    return scheme.judge(Suspect(model, arena().task), key)


def drawn(key: Key) -> tuple[np.ndarray, np.ndarray]:
    """(X (T, M), b (T,)) of a key with random directions, written down once more."""
    shape = key.public["shape"]
    assert isinstance(shape, list)
    m = math.prod(int(str(side)) for side in shape[1:])
    return key.prf.normal("matrix", (128, m)), key.prf.bits("bits", 128)


def carrier(model: nn.Module, key: Key) -> Tensor:
    """The weight that carries the bits."""
    return model.get_parameter(str(key.public["layer"]))


def written(errors: int) -> tuple[nn.Module, Key]:
    """A network whose mean filter reads a key's bits with so many errors, found by linear algebra, not by training."""
    key = Uchida().keygen(arena().task, SECRET)
    directions, bits = drawn(key)
    signs = 2.0 * bits - 1
    signs[:errors] *= -1
    mean_filter = np.linalg.lstsq(directions, signs, rcond=None)[0]
    model = copy.deepcopy(clean_model())
    with torch.no_grad():
        weight = carrier(model, key)
        weight += torch.from_numpy(mean_filter).float().view(weight.shape[1:]) - weight.mean(dim=0)
    return model, key


@pytest.fixture(scope="module")
def mark() -> Embedded:
    """The default mark in a network."""
    return embedded(Uchida())


# Reading.


def test_bits_are_signs_of_projections(mark: Embedded) -> None:
    """b'_j = [X_j . w >= 0], w the mean over output channels, flattened row by row: spelt out in loops."""
    directions, bits = drawn(mark.key)
    for model in (mark.model, clean_model()):
        weight = carrier(model, mark.key).detach().double().numpy()
        out, n_in, height, width = weight.shape
        mean_filter = [
            sum(weight[o, i, y, x] for o in range(out)) / out
            for i in range(n_in)
            for y in range(height)
            for x in range(width)
        ]
        read = [sum(x * w for x, w in zip(row, mean_filter, strict=True)) >= 0 for row in directions]

        assert judge(Uchida(), model, mark.key).k == sum(int(r) == b for r, b in zip(read, bits, strict=True))


@pytest.mark.parametrize(("errors", "verdict", "paper"), [(0, 1, 1), (1, 1, 0), (36, 1, 0), (37, 0, 0), (128, 0, 0)])
def test_two_rules(errors: int, verdict: bool, paper: bool) -> None:
    """The paper wants every bit; 92 of 128 are evidence at one in a million."""
    found = judge(Uchida(), *written(errors))

    assert (found.k, found.n, found.null_q) == (128 - errors, 128, 0.5)
    assert (found.verdict, found.verdict_paper) == (verdict, paper)
    assert found.details["bit_error_rate"] == errors / 128


def test_order_of_output_channels_does_not_matter(mark: Embedded) -> None:
    """The mean over output channels survives their permutation; permuting the inputs destroys the mark."""
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    outputs, inputs = copy.deepcopy(mark.model), copy.deepcopy(mark.model)
    with torch.no_grad():
        weight = carrier(mark.model, mark.key)
        carrier(outputs, mark.key).copy_(weight[torch.randperm(len(weight))])
        carrier(inputs, mark.key).copy_(weight[:, shuffled])

    assert judge(Uchida(), outputs, mark.key).k == 128
    assert not judge(Uchida(), inputs, mark.key).verdict


def test_scale_does_not_matter(mark: Embedded) -> None:
    """Signs do not see a positive factor; a negative one turns every bit round."""
    doubled, mirrored = copy.deepcopy(mark.model), copy.deepcopy(mark.model)
    with torch.no_grad():
        carrier(doubled, mark.key).mul_(2)
        carrier(mirrored, mark.key).mul_(-1)

    assert judge(Uchida(), doubled, mark.key).statistic == 1.0
    assert judge(Uchida(), mirrored, mark.key).statistic == 0.0


# Keys.


def test_key_never_changes() -> None:
    """The commitment of a seed's key: another draw or another layout of the public part would be noticed here."""
    assert Uchida().keygen(arena().task, SECRET).commitment[:16] == "a1fa92dd829bd79f"


def test_bits_are_balanced_like_coins() -> None:
    """Bits are random, not all ones: a thousand keys' shares of ones scatter as coins do."""
    prf = Prf(bytes(32))
    keys = (Uchida(bits=64).keygen(arena().task, prf.child(str(i))) for i in range(200))
    share = np.mean([key.prf.bits("bits", 64).mean() for key in keys])

    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(200 * 64)


def test_directions_are_not_for_the_forger_to_choose() -> None:
    """A key holds no tensor: X and b follow from the seed, and there is no forged key to be solved for."""
    key = Uchida().keygen(arena().task, SECRET)

    assert dict(key.secret) == {}
    assert {"matrix", "directions", "b"}.isdisjoint(key.public)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_projection_carries_its_bits(projection: Projection) -> None:
    """Random, direct and differential directions all end without an error."""
    marked = embedded(Uchida(projection=projection))

    assert marked.judge().verdict_paper
    assert not marked.judge(clean_model()).verdict


@pytest.mark.parametrize(("projection", "per_row"), [("direct", [1.0]), ("diff", [-1.0, 1.0])])
def test_sparse_directions_share_no_weight(projection: Projection, per_row: list[float]) -> None:
    """One 1 a row, or one 1 and one -1; no weight serves two bits, so no two bits contradict each other."""
    key = Uchida(projection=projection).keygen(arena().task, SECRET)
    model = copy.deepcopy(clean_model())
    weight = carrier(model, key)
    gradients = []
    for bit in range(128):
        labels = torch.full((128,), 0.5)
        with torch.no_grad():
            weight.zero_()
        labels[bit] = 1.0
        loss = Uchida().mark_loss(model, arena().task, key, labels)
        (gradient,) = torch.autograd.grad(loss, weight)
        # At w = 0 every probability is 1/2, so only the chosen bit pulls: by -1/2 of its row, over T and channels.
        gradients.append(gradient.sum(dim=0).flatten() * -2 * 128)
    directions = torch.stack(gradients)

    assert all(sorted(row[row != 0].tolist()) == per_row for row in directions.round())
    assert int((directions.round() != 0).sum(dim=0).max()) == 1


def test_too_few_bits_are_refused() -> None:
    """With 19 bits even a perfect reading is no evidence."""
    with pytest.raises(ConfigError, match="bits"):
        Uchida(bits=19)


# Layers.


@pytest.mark.parametrize(
    ("workload", "fields", "layer"),
    [
        ("digits_cnn", {"bits": 64}, "stage2.0.weight"),
        ("digits_cnn", {"bits": 128}, "stage3.0.weight"),
        ("digits_cnn", {"bits": 200}, "stage3.0.weight"),
        ("digits_cnn", {"bits": 64, "layer": "stage3.0"}, "stage3.0.weight"),
        ("digits_cnn", {"bits": 20, "layer": "stage2.0.weight"}, "stage2.0.weight"),
        ("digits_mlp", {"bits": 128}, "hidden1.weight"),
        ("digits_mlp", {"bits": 64, "layer": "hidden3"}, "hidden3.weight"),
    ],
)
def test_layer_is_the_first_with_room(workload: str, fields: dict[str, str | int], layer: str) -> None:
    """The first convolution with M >= 2T, else the largest with room, else a linear layer; or the one named."""
    key = Uchida.from_config(fields).keygen(arena(workload).task, SECRET)

    assert key.public["layer"] == layer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 289}, r"M >= 289 .*stage3.0.weight \(M = 288\).*lower bits"),
        ({"bits": 145, "projection": "diff"}, "M >= 290"),
        ({"bits": 145, "layer": "stage2.0"}, "expected stage2.0 of digits_cnn with M >= 145"),
        ({"bits": 20, "layer": "head"}, "expected head"),
        ({"bits": 20, "layer": "stage9"}, "expected stage9"),
    ],
)
def test_lack_of_room_is_explained(fields: dict[str, str | int], message: str) -> None:
    """More bits than a layer has input weights, the output layer, an unknown name: refused with the sizes there are."""
    with pytest.raises(ValueError, match=message):
        Uchida.from_config(fields).keygen(arena().task, SECRET)


def test_other_shape_is_a_misfit(mark: Embedded) -> None:
    """A suspect whose layer has another shape, or that lacks it, is evidence with the reason 'structure'."""
    widened = copy.deepcopy(mark.model)
    stage = widened.get_submodule("stage3")
    stage.register_module("0", nn.Conv2d(32, 64, 5, padding=2, bias=False))
    found = judge(Uchida(), widened, mark.key)

    assert (found.reason, found.verdict, found.n) == ("structure", False, 128)
    assert "stage3.0.weight has shape" in str(found.details["found"])


# Writing.


def test_loss_is_the_papers_over_t(mark: Embedded) -> None:
    """T times the hook's value is E_R = -sum b log y + (1 - b) log(1 - y), y = sigmoid(X w)."""
    directions, bits = drawn(mark.key)
    weight = carrier(clean_model(), mark.key).detach().double().numpy()
    y = 1 / (1 + np.exp(-directions @ weight.mean(axis=0).ravel()))
    expected = -(bits * np.log(y) + (1 - bits) * np.log(1 - y)).sum()
    with torch.no_grad():
        loss = Uchida().mark_loss(clean_model(), arena().task, mark.key)

    assert 128 * loss.item() == pytest.approx(expected, rel=1e-4)


def test_weight_zero_is_the_twin() -> None:
    """With lambda1 = 0 the embedding is its compute-matched twin, bit for bit."""
    scheme, place = Uchida(lambda1=0.0, epochs=1), arena()
    unmarked, _ = embed(scheme, scheme.keygen(place.task, SECRET), NewestOnly(), seed=3)
    twin = copy.deepcopy(clean_model())
    place.task.fit(twin, place.train, scheme.twin_recipe(place.task, len(place.train)), seed=3)

    assert model_digest(unmarked.state_dict()) == model_digest(twin.state_dict())


def test_small_training_sets_get_enough_steps() -> None:
    """One pass over much data, at least 200 steps over little; given epochs are kept."""
    task = arena().task

    assert Uchida().twin_recipe(task, 50_000).steps == 500
    assert Uchida().twin_recipe(task, 1000).steps == 200
    assert Uchida(epochs=3).twin_recipe(task, 1000).steps == 30


def test_rate_follows_the_workload() -> None:
    """Half the workload's own Adam rate; 1e-3 where the workload trains by SGD; or the one given."""
    task = arena().task
    by_sgd = replace(arena().task, recipe=replace(task.recipe, optimiser="sgd", lr=0.1))  # type: ignore[type-var]

    assert Uchida().twin_recipe(task, 1000).lr == task.recipe.lr / 2
    assert Uchida().twin_recipe(by_sgd, 1000).lr == 1e-3
    assert Uchida(lr=2e-4).twin_recipe(by_sgd, 1000).lr == 2e-4
