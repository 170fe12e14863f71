"""A picture in locked weights: what is locked, what is read, and the valley around it."""

import base64
import copy
import functools
import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from tests.contracts import SchemeContract
from tests.marks import Embedded, arena, clean_model, embed, embedded, strangers
from tests.victims import NewestOnly, no_log
from wmarena.experiments.workloads import training
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.experiments.workloads.networks.small import SmallMlp
from wmarena.schemes.base import Cancelled, Checkpoints, Owner, Recipe, Scheme, Suspect, Verdict
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf, subseed
from wmarena.schemes.tartaglione.emblem import MIN_SIDE, emblem
from wmarena.schemes.tartaglione.payload import Payload, as_pixels, image_of, layers_of
from wmarena.schemes.tartaglione.scheme import Tartaglione, correlation, steepness
from wmarena.schemes.tartaglione.training import LockedTraining, Replicas, ValleySettings, direction, learning_rate

SECRET = Prf(b"the owner of these tests")
STEEP = Tartaglione(replicas=1, epochs=5)
CONTINUED = Tartaglione(mode="pretrained", epochs=6, replicas=1)


class TestTartaglioneFromScratch(SchemeContract):
    n_strangers = 100

    @pytest.fixture
    def scheme(self) -> Scheme:
        return STEEP


class TestTartaglionePretrained(SchemeContract):
    n_strangers = 100

    @pytest.fixture
    def scheme(self) -> Scheme:
        return CONTINUED


@pytest.fixture(scope="module")
def mark() -> Embedded:
    """The picture in a steep valley."""
    return embedded(STEEP)


@functools.cache
def drawn() -> Key:
    """A key of the default scheme; its picture has 432 values."""
    return Tartaglione().keygen(arena().task, SECRET)


def judge(model: nn.Module, key: Key) -> Verdict:
    """Evidence on a network of the digits."""
    return Tartaglione().judge(Suspect(model, arena().task), key)


def owner(checkpoints: Checkpoints | None = None, task: ImageTask | None = None) -> Owner:
    """The owner of the digits."""
    place = arena()
    return Owner(
        task=task or place.task,
        train=place.train,
        val=place.val,
        seed=3,
        log=no_log,
        checkpoints=checkpoints or NewestOnly(),
    )


def valley(**changes: Any) -> ValleySettings:
    """The gap's settings with one replica, from the first epoch on."""
    return replace(ValleySettings(objective="gap", lambda1=3.0, replicas=1, sigma_rel=1.0, warm_up=0), **changes)


def scalars(model: nn.Module, key: Key) -> list[float]:
    """Weights at a key's positions, in the picture's order: the public layers laid end to end, spelt out."""
    flat = torch.cat([model.get_parameter(layer.name).detach().reshape(-1) for layer in layers_of(key)])
    places = key.prf.distinct_integers("positions", image_of(key).size, len(flat))
    amplitudes = np.concatenate([np.full(layer.size, layer.amplitude) for layer in layers_of(key)])
    return [float(flat[place]) / float(amplitudes[place]) for place in places]


# The picture.


@pytest.mark.parametrize(
    ("side", "channels", "digest"), [(12, 3, "2c8b13c081da"), (38, 3, "5a421162c6b9"), (21, 1, "5407aec573a1")]
)
def test_emblem_is_the_same_everywhere(side: int, channels: int, digest: str) -> None:
    """Its bytes are fixed at any size: another drawing would make another key."""
    picture = emblem(side, channels)

    assert picture.shape == (side, side, channels)
    assert picture.dtype == np.uint8
    assert hashlib.sha256(picture.tobytes()).hexdigest()[:12] == digest


def test_emblem_spells_its_letters() -> None:
    """At 13 pixels a cell is a pixel: W and M stand five columns wide with one between them, brightest of all."""
    bright = (emblem(13, 3) == 255).all(axis=2)
    rows = ["".join("#" if on else "." for on in row) for row in bright]

    assert rows[3] == ".#...#.#...#."
    assert rows[8] == ".##.##.#...#."
    assert not bright[[0, 1, 2, 10, 11, 12]].any()


@pytest.mark.parametrize(("side", "channels"), [(MIN_SIDE - 1, 3), (20, 2)])
def test_illegible_emblems_are_refused(side: int, channels: int) -> None:
    """Too few pixels for the strokes, or an unknown number of colours."""
    with pytest.raises(ValueError, match=r"expected a side of 12 or more and 1 or 3 channels"):
        emblem(side, channels)


@pytest.mark.parametrize(("colours", "shape"), [("rgb", (12, 12, 3)), ("grey", (21, 21, 1))])
def test_picture_fills_the_share(colours: str, shape: tuple[int, ...]) -> None:
    """Two per cent of 23,824 weights are 476: the largest square picture in colours has 432 values, in grey 441."""
    key = Tartaglione.from_config({"colours": colours}).keygen(arena().task, SECRET)

    assert image_of(key).shape == shape
    assert sum(layer.size for layer in layers_of(key)) == 23_824


def test_too_small_a_share_is_refused_with_the_way_out() -> None:
    """The message names a share that is large enough."""
    with pytest.raises(ValueError, match=r"raise share to 0\.0182 or more, or set colours to grey"):
        Tartaglione(share=0.01).keygen(arena().task, SECRET)

    assert image_of(Tartaglione(share=0.0182).keygen(arena().task, SECRET)).shape == (12, 12, 3)


# Positions.


def test_positions_are_distinct_and_in_every_layer_by_size() -> None:
    """No scalar is used twice; over 60 keys a layer's part of the positions is its part of the weights."""
    counts: dict[str, int] = {}
    for number in range(60):
        payload = Payload.of(replace(drawn(), seed=SECRET.stream(str(number), 32)))
        for part in payload.parts:
            places = set(zip(*(axis.tolist() for axis in part.index), strict=True))
            assert len(places) == len(part.places)
            counts[part.name] = counts.get(part.name, 0) + len(places)
        assert sorted(torch.cat([p.places for p in payload.parts]).tolist()) == list(range(432))

    total = sum(layer.size for layer in layers_of(drawn()))
    assert set(counts) == {"stage1.0.weight", "stage2.0.weight", "stage3.0.weight", "head.weight"}
    for layer in layers_of(drawn()):
        expected = 60 * 432 * layer.size / total
        assert abs(counts[layer.name] - expected) < 5 * math.sqrt(expected)


def test_reading_is_spelt_out(mark: Embedded) -> None:
    """s~ are the weights at the positions over twice their layer's initial spread, whatever the memory layout."""
    rearranged = copy.deepcopy(mark.model).to(memory_format=torch.contiguous_format)
    own = mark.model.get_parameter("stage3.0.weight")
    assert own.stride() != rearranged.get_parameter("stage3.0.weight").stride()

    for model in (mark.model, rearranged, clean_model()):
        assert Payload.of(mark.key).read(model) == pytest.approx(scalars(model, mark.key), rel=1e-6)


def test_white_is_two_initial_deviations() -> None:
    """No locked weight lies further out than two standard deviations of its layer's initial weights."""
    fresh = arena().task.network(seed=0)
    for layer in layers_of(drawn()):
        assert layer.amplitude == pytest.approx(2 * float(fresh.get_parameter(layer.name).detach().std()), rel=1e-2)
    for part in Payload.of(drawn()).parts:
        assert float(part.values.abs().max()) <= part.amplitude * (1 + 1e-6)


def test_key_never_changes() -> None:
    """Commitment of a seed's key: another draw or another layout of the public part would be noticed here."""
    assert drawn().commitment[:16] == "ce8b381f8c55d182"


# Evidence.


def test_marked_network_shows_the_picture(mark: Embedded) -> None:
    """Decoded pixels are the emblem's, byte for byte: r = 1, no wrong sign, no error to give in dB."""
    verdict = mark.judge()
    shape = verdict.details["decoded_shape"]
    assert isinstance(shape, list)
    pixels = np.frombuffer(base64.b64decode(str(verdict.details["decoded"])), dtype=np.uint8)

    assert (shape, verdict.n, verdict.p_method) == ([12, 12, 3], 432, "gauss")
    assert np.array_equal(pixels.reshape(12, 12, 3), emblem(12, 3))
    assert verdict.statistic == pytest.approx(1.0, abs=1e-9)
    assert verdict.details["rmse"] == pytest.approx(0.0, abs=1e-6)
    assert (verdict.details["bit_error_rate"], verdict.details["psnr"]) == (0.0, None)


def test_grey_pictures_are_shown_in_three_equal_colours() -> None:
    """A report can draw what was decoded without asking which kind it is."""
    key = Tartaglione(colours="grey").keygen(arena().task, SECRET)
    model = copy.deepcopy(clean_model())
    Payload.of(key).write(model)
    details = judge(model, key).details
    pixels = np.frombuffer(base64.b64decode(str(details["decoded"])), dtype=np.uint8).reshape(21, 21, 3)

    assert details["decoded_shape"] == [21, 21, 3]
    assert all(np.array_equal(pixels[:, :, channel], emblem(21, 1)[:, :, 0]) for channel in range(3))


@pytest.mark.parametrize(
    ("r", "verdict", "paper"), [(0.6, True, True), (0.4, True, False), (0.24, True, False), (0.2, False, False)]
)
def test_two_rules(r: float, verdict: bool, paper: bool) -> None:
    """Of 432 values a correlation of 0.226 is evidence at one in a million; the picture is visible from 0.5 on."""
    key = drawn()
    payload = Payload.of(key)
    s = payload.signal - payload.signal.mean()
    noise = np.random.default_rng(0).standard_normal(len(s))
    noise -= noise.mean() + s * (noise @ s) / (s @ s)
    wanted = r * s / np.linalg.norm(s) + math.sqrt(1 - r * r) * noise / np.linalg.norm(noise)
    parts = tuple(
        replace(p, values=torch.from_numpy(wanted[p.places.numpy()] * p.amplitude).float()) for p in payload.parts
    )
    model = copy.deepcopy(clean_model())
    replace(payload, parts=parts).write(model)
    found = judge(model, key)

    assert found.statistic == pytest.approx(r, abs=1e-5)
    assert found.threshold == pytest.approx(0.2264, abs=1e-3)
    assert (found.verdict, found.verdict_paper) == (verdict, paper)


def test_strangers_correlate_as_chance_does() -> None:
    """atanh(r) sqrt(n - 3) of keys that nobody embedded is standard normal: on the marked network and the clean one."""
    for verdicts in strangers(STEEP, 100):
        z = [math.atanh(v.statistic) * math.sqrt(v.n - 3) for v in verdicts]

        assert kstest(z, "norm").pvalue > 1e-3


@pytest.mark.parametrize("value", [0.0, 0.3, math.nan, math.inf])
def test_weights_without_a_pattern_are_no_evidence(value: float) -> None:
    """Constant, missing and infinite weights correlate with nothing; they are not an error."""
    model = copy.deepcopy(clean_model())
    with torch.no_grad():
        for layer in layers_of(drawn()):
            model.get_parameter(layer.name).fill_(value * layer.amplitude)
    found = judge(model, drawn())

    assert not found.verdict
    assert abs(found.statistic) < 0.2
    assert all(math.isfinite(v) for v in found.details.values() if isinstance(v, float))


def test_correlation_is_pearsons() -> None:
    """The textbook's number; 0 for a constant."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50))

    assert correlation(a, a + b) == pytest.approx(np.corrcoef(a, a + b)[0, 1])
    assert correlation(a, np.ones(50)) == 0.0


def test_another_layer_shape_is_a_misfit(mark: Embedded) -> None:
    """A suspect with another output layer is evidence with the reason 'structure', not an error."""
    other = copy.deepcopy(mark.model)
    other.register_module("head", nn.Linear(64, 7))
    found = mark.judge(other)

    assert (found.reason, found.verdict, found.n) == ("structure", False, 432)
    assert "head.weight has shape" in str(found.details["found"])


# Forging and spoiling.


def test_forged_picture_passes_where_the_emblem_does_not() -> None:
    """Whoever chooses the picture after the network is known finds it in any network; its digest is another."""
    honest = drawn()
    forged = Tartaglione().forge(clean_model(), owner(), honest)

    assert not judge(clean_model(), honest).verdict
    assert judge(clean_model(), forged).verdict_paper
    assert judge(clean_model(), forged).statistic > 0.999
    assert forged.seed == honest.seed
    assert forged.public["image_sha256"] != honest.public["image_sha256"]
    assert honest.public["image_sha256"] == hashlib.sha256(emblem(12, 3).tobytes()).hexdigest()


def test_carriers_are_the_positions(mark: Embedded) -> None:
    """The masks cover as many scalars as the picture has values; only changes inside them change what is read."""
    inside, outside = copy.deepcopy(mark.model), copy.deepcopy(mark.model)
    n = 0
    for carrier in STEEP.carriers(mark.model, mark.key):
        assert carrier.mask is not None
        n += int(carrier.mask.sum())
        with torch.no_grad():
            inside.get_parameter(carrier.name).masked_fill_(carrier.mask, 0.0)
            outside.get_parameter(carrier.name).masked_fill_(~carrier.mask, 0.0)

    assert n == 432
    assert np.array_equal(Payload.of(mark.key).read(outside), Payload.of(mark.key).read(mark.model))
    assert not Payload.of(mark.key).read(inside).any()


# Embedding.


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_locked_scalars_never_move(optimiser: str) -> None:
    """Momentum and weight decay leave the picture bit-equal, while its neighbours in the same tensors move."""
    payload = Payload.of(drawn())
    model = copy.deepcopy(clean_model())
    payload.write(model)
    before = copy.deepcopy(model)
    recipe = Recipe(optimiser="sgd" if optimiser == "sgd" else "adam", lr=1e-2, batch_size=100, weight_decay=0.1)
    LockedTraining(model, owner(), payload, recipe, valley()).run()

    assert payload.intact(model)
    for part in payload.parts:
        new, old = model.get_parameter(part.name).detach(), before.get_parameter(part.name).detach()
        assert torch.equal(new == old, part.mask(new))


def test_moved_scalars_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without re-writing after each step weight decay moves the picture, and training raises an error."""
    payload = Payload.of(drawn())
    model = copy.deepcopy(clean_model())
    payload.write(model)
    monkeypatch.setattr(Payload, "write", lambda self, model: None)
    recipe = Recipe(optimiser="sgd", lr=1e-2, batch_size=100, weight_decay=0.1)

    with pytest.raises(RuntimeError, match="expected locked scalars to keep their values"):
        LockedTraining(model, owner(), payload, recipe, valley(objective="naive")).run()


@pytest.mark.parametrize("schedule", ["constant", "one_cycle", "step"])
def test_with_nothing_locked_it_is_the_workloads_training(schedule: str) -> None:
    """The loop without picture and replicas equals the workload's own, bit for bit."""
    place = arena()
    recipe = replace(place.task.recipe, epochs=2, milestones=(1,) if schedule == "step" else ())
    recipe = replace(recipe, schedule=schedule)  # type: ignore[arg-type]
    mine, theirs = (copy.deepcopy(clean_model()).train() for _ in range(2))
    empty = Payload((), np.zeros(0))
    LockedTraining(mine, owner(), empty, recipe, valley(objective="naive")).run()
    place.task.fit(theirs, place.train, recipe, seed=3)

    assert model_digest(mine.state_dict()) == model_digest(theirs.state_dict())


@pytest.mark.parametrize("schedule", ["constant", "one_cycle", "step"])
def test_rates_are_the_workloads(schedule: str) -> None:
    """Every step's learning rate is the one that workloads train with."""
    recipe = Recipe(optimiser="sgd", lr=0.3, batch_size=1, milestones=(2, 4))
    recipe = replace(recipe, schedule=schedule)  # type: ignore[arg-type]
    for n_steps in (1, 3, 40):
        for step in range(n_steps):
            expected = training.learning_rate(recipe, step, steps_per_epoch=8, n_steps=n_steps)
            assert learning_rate(recipe, step, steps_per_epoch=8, n_steps=n_steps) == expected


def test_replicas_differ_in_locked_scalars_alone(mark: Embedded) -> None:
    """A replica's loss is that of a copy whose locked scalars were moved by sigma times the same draws."""
    task, payload = mark.arena.task, Payload.of(mark.key)
    batch = next(mark.arena.val.in_order(100))
    with torch.no_grad():
        losses = Replicas(mark.model, task, payload, 0.5).losses(batch, 2, seed=7)
        noise = torch.randn(2, 432, generator=torch.Generator().manual_seed(7))
        for number in range(2):
            moved = copy.deepcopy(mark.model)
            for part in payload.parts:
                weight = moved.get_parameter(part.name)
                weight[part.index] += 0.5 * part.amplitude / 2 * noise[number][part.places]
            assert float(losses[1 + number]) == pytest.approx(float(task.loss(moved, *batch)), rel=1e-5)
        assert float(losses[0]) == float(task.loss(mark.model, *batch))


def test_direction_is_the_clipped_rule() -> None:
    """g_0 - c h with c = lambda where that is small, else so that |c h| is ``clip`` times |g_0|."""
    g_0, h = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([0.0, 10.0]), torch.tensor([0.0])]
    gentle, clipped = direction(g_0, h, 0.1, 2.0), direction(g_0, h, 3.0, 0.5)

    assert [g.tolist() for g in gentle] == [[3.0, -1.0], [4.0]]
    assert torch.cat(clipped).tolist() == pytest.approx([3.0, -2.5, 4.0])


def test_step_is_the_gap_rule(mark: Embedded) -> None:
    """One step of SGD moves the free weights by -lr (g_0 - c (grad mean_r l_r - grad L_0)), gradients taken apart."""
    place, payload = arena(), Payload.of(mark.key)
    recipe = Recipe(optimiser="sgd", lr=0.01, momentum=0.0, batch_size=200, steps=1)
    model = copy.deepcopy(mark.model)
    LockedTraining(model, owner(), payload, recipe, valley(lambda1=0.2, sigma_rel=0.1)).run()
    expected = _gap_step(mark, 0.2, recipe.lr, next(place.train.batches(200, seed=3, epoch=0)))

    moved, wanted = (
        torch.cat([(after[name] - before).detach().flatten() for name, before in mark.model.named_parameters()])
        for after in (dict(model.named_parameters()), expected)
    )
    assert float((moved - wanted).norm()) < 1e-4 * float(wanted.norm())


def _gap_step(mark: Embedded, lambda1: float, lr: float, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The weights after that step, by deep copies instead of functional calls."""
    task, payload = mark.arena.task, Payload.of(mark.key)

    def gradients(model: nn.Module) -> list[Tensor]:
        found = list(torch.autograd.grad(task.loss(model, *batch), list(model.parameters())))
        for (name, _), gradient in zip(model.named_parameters(), found, strict=True):
            for part in payload.parts:
                if part.name == name:
                    gradient[part.index] = 0.0
        return found

    seed = subseed(3, "tartaglione/replicas", 0)
    noise = torch.randn(1, 432, generator=torch.Generator().manual_seed(seed))[0]
    centre = copy.deepcopy(mark.model).train()
    g_0 = gradients(centre)
    # The pass in training mode has moved the batch-norm statistics that the others are frozen at.
    replica = copy.deepcopy(centre.eval())
    with torch.no_grad():
        for part in payload.parts:
            replica.get_parameter(part.name)[part.index] += 0.1 * part.amplitude / 2 * noise[part.places]
    h = [a - b for a, b in zip(gradients(replica), gradients(centre), strict=True)]
    norms = [math.sqrt(sum(float(t.square().sum()) for t in group)) for group in (g_0, h)]
    c = min(lambda1, 2 * norms[0] / norms[1])
    named = zip(mark.model.named_parameters(), g_0, h, strict=True)
    return {name: (p - lr * (g - c * push)).detach() for (name, p), g, push in named}


def test_replicas_at_chance_are_pushed_no_further(mark: Embedded) -> None:
    """With noise that ruins every replica, only the gap's own L(Gamma_0) has a gradient."""
    run = LockedTraining(
        copy.deepcopy(mark.model).eval(), owner(), Payload.of(mark.key), arena().task.recipe, valley(sigma_rel=300.0)
    )
    batch = next(arena().train.batches(100, seed=0, epoch=0))
    pushed, own = run._free(run._push(batch, 0)), run._free(arena().task.loss(run.model, *batch))

    assert float(run.replicas.losses(batch, 1, 0)[1].detach()) > math.log(10)
    for push, gradient in zip(pushed, own, strict=True):
        torch.testing.assert_close(push, -gradient)


@pytest.mark.training
def test_valley_is_steeper_than_of_a_mere_lock() -> None:
    """With default settings the loss rises three times as much as with a mere lock, for three points at most."""
    steep, naive = embedded(Tartaglione(lambda1=3.0)), embedded(Tartaglione(objective="naive"))
    task, test = steep.arena.task, steep.arena.test
    rises = [steepness(m.model, task, m.key, test, n_replicas=16) for m in (steep, naive)]

    assert rises[0] >= 3 * abs(rises[1])
    assert task.score(steep.model, test) >= task.score(naive.model, test) - 0.03


def test_warm_up_trains_without_replicas() -> None:
    """During warm-up "gap" and "naive" give the same network; "naive" ignores lambda."""
    key = drawn()
    networks = [
        embed(replace(Tartaglione(epochs=1), **changes), key, NewestOnly())[0]
        for changes in ({"warm_up": 1}, {"objective": "naive"}, {"objective": "naive", "lambda1": 3.0})
    ]

    assert len({model_digest(network.state_dict()) for network in networks}) == 1


def test_steepness_is_logged_every_epoch() -> None:
    """The last point of the curve is the steepness of the final network."""
    rows: list[tuple[int, dict[str, float]]] = []

    def log(step: int, **metrics: float) -> None:
        rows.append((step, metrics))

    place, model = arena(), copy.deepcopy(clean_model())
    scheme = Tartaglione(mode="pretrained", epochs=2, objective="naive")
    scheme.embed(model, replace(owner(), log=log), drawn())
    last = steepness(model, place.task, drawn(), place.val, n_replicas=4, seed=3)

    assert [(step, set(metrics)) for step, metrics in rows] == [(n, {"loss", "lr", "steepness"}) for n in (1, 2)]
    assert rows[-1][1]["steepness"] == pytest.approx(last, abs=1e-6)


class _Dropping(SmallMlp):
    """The perceptron with dropout on its inputs."""

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return super().taps(nn.functional.dropout(inputs, 0.5, self.training))


def test_dropout_resumes_too() -> None:
    """Noise from the global generator is the same after an interruption, and in another process's place."""
    task = replace(arena("digits_mlp").task, build=lambda: _Dropping(24 * 24))  # type: ignore[type-var]
    assert isinstance(task, ImageTask)
    scheme = Tartaglione(epochs=3, objective="naive")
    key = scheme.keygen(task, SECRET)

    def run(checkpoints: Checkpoints) -> str:
        torch.manual_seed(torch.seed() % 1000)
        return model_digest(scheme.embed(task.network(0), owner(checkpoints, task), key)[0].state_dict())

    whole, stopped = run(NewestOnly()), NewestOnly(stop_at=1)
    with pytest.raises(Cancelled):
        run(stopped)
    assert run(stopped) == whole


@pytest.mark.parametrize(
    ("changes", "lambda1", "warm_up"),
    [
        ({}, 0.3, 2),
        ({"objective": "paper"}, 0.1, 2),
        ({"objective": "naive"}, 0.0, 2),
        ({"epochs": 100}, 0.3, 10),
        ({"mode": "pretrained"}, 0.3, 0),
        ({"lambda1": 2.0, "warm_up": 5}, 2.0, 5),
    ],
)
def test_defaults_follow_objective_and_mode(changes: dict[str, Any], lambda1: float, warm_up: int) -> None:
    """lambda is 0.3 for the gap and 0.1 for the paper's rule; a quarter of the epochs, ten at most, is warm-up."""
    scheme = Tartaglione.from_config(changes)
    found = scheme._valley(scheme.recipe(arena().task, 1000))

    assert (found.lambda1, found.warm_up) == (lambda1, warm_up)


def test_recipe_is_the_workloads_or_continues_by_adam() -> None:
    """From scratch as the workload trains; continuing by Adam's one cycle at half its rate; or the rate given."""
    task = arena().task

    assert Tartaglione().recipe(task, 1000) == task.recipe
    assert Tartaglione().as_overwriter().recipe(task, 1000).lr == task.recipe.lr / 2
    assert Tartaglione().as_overwriter().recipe(task, 1000).steps == 250
    assert Tartaglione(lr=0.02, epochs=3).recipe(task, 1000) == replace(task.recipe, lr=0.02, epochs=3)


def test_pixels_come_back() -> None:
    """Every grey level survives the way through s, and values beyond [-1, 1] are cut off."""
    levels = np.arange(256)

    assert np.array_equal(as_pixels(2.0 * levels / 255 - 1, (16, 16)).ravel(), levels)
    assert as_pixels(np.array([-3.0, 3.0]), (2,)).tolist() == [0, 255]
