"""The workloads of Deep Serial Number: shapes, splits of the networks, MNIST and GTSRB on files, whole tracks."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wmarena.experiments.workloads import data
from wmarena.experiments.workloads.data import DamagedData, DataSource
from wmarena.experiments.workloads.images.base import ImageWorkload
from wmarena.experiments.workloads.images.gtsrb import GtsrbDsn
from wmarena.experiments.workloads.images.gtsrb_data import GTSRB, GTSRB_STATISTICS
from wmarena.experiments.workloads.images.mnist_data import MNIST
from wmarena.experiments.workloads.images.mnist_dsn import MnistDsn
from wmarena.experiments.workloads.splits import Splits, split
from wmarena.orchestrator.worker.workload import BoundWorkload, MissingData
from wmarena.schemes.base import Samples, SplitAt

CPU = torch.device("cpu")
WORKLOADS = [MnistDsn(), GtsrbDsn()]
both = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)

N_CLASSES, N_TRACKS, N_FRAMES, N_TEST = 43, 5, 3, 86
"""Of the small copy of GTSRB; every second class has one track more."""

N_SMALL = sum(N_TRACKS + label % 2 for label in range(N_CLASSES)) * N_FRAMES


class SmallGtsrb(GtsrbDsn):
    """GTSRB's workload on a copy with three frames of five or six signs a class."""

    source: ClassVar[DataSource] = replace(GTSRB, n_train=N_SMALL, n_test=N_TEST)


class SmallMnist(MnistDsn):
    """MNIST's workload on a copy with 60 and 20 images."""

    source: ClassVar[DataSource] = replace(MNIST, n_train=60, n_test=20, download=None)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOADED", {})


def images(workload: ImageWorkload, n: int) -> Tensor:
    """(n, c, h, w) normal noise of the workload's shape."""
    return torch.randn(n, *workload.info.input_shape, generator=torch.Generator().manual_seed(0))


# Networks.


@pytest.mark.parametrize(
    ("workload", "shapes"),
    [
        (MnistDsn(), [(32, 14, 14), (32, 7, 7), (120,)]),
        (GtsrbDsn(), [(32, 16, 16), (64, 8, 8), (128, 4, 4), (512,)]),
    ],
    ids=["mnist_dsn", "gtsrb_dsn"],
)
def test_networks_have_the_papers_layers(workload: ImageWorkload, shapes: list[tuple[int, ...]]) -> None:
    """Channels and widths of appendix A; taps halve the image at every pooling and end at the hidden dense layer."""
    task = workload.task(CPU)
    model = task.network(0)
    inputs = images(workload, 2)

    assert [tuple(tap.shape[1:]) for tap in task.stages(model, inputs)] == shapes
    assert model(inputs).shape == (2, workload.num_classes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_parameters_are_what_the_layers_add_up_to() -> None:
    """Two 3x3 convolutions and two dense layers; six and two: counted from the widths alone."""

    def convolution(n_in: int, n_out: int) -> int:
        return 9 * n_in * n_out + n_out

    def dense(n_in: int, n_out: int) -> int:
        return n_in * n_out + n_out

    grey = convolution(1, 32) + convolution(32, 32) + dense(32 * 49, 120) + dense(120, 10)
    pairs = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    colour = sum(convolution(*pair) for pair in pairs) + dense(128 * 16, 512) + dense(512, 43)
    counted = [sum(p.numel() for p in w.build().parameters()) for w in WORKLOADS]

    assert counted == [grey, colour]


@both
@pytest.mark.parametrize("at", ["dense", "head"])
def test_parts_make_the_whole(workload: ImageWorkload, at: SplitAt) -> None:
    """Extractor and predictor, one after the other, are the network; they share its parameters and hold them all."""
    task = workload.task(CPU)
    model = task.network(0).eval()
    inputs = images(workload, 3)
    extractor, predictor = task.split(model, at)
    n_dense = sum(isinstance(m, nn.Linear) for m in predictor.modules())

    assert torch.equal(predictor(extractor(inputs)), model(inputs))
    assert extractor(inputs).dim() == (4 if at == "dense" else 2)
    assert n_dense == (2 if at == "dense" else 1)
    assert {id(p) for p in model.parameters()} == {id(p) for part in (extractor, predictor) for p in part.parameters()}


@both
def test_training_on_a_part_trains_the_network(workload: ImageWorkload) -> None:
    """A step on extractor and predictor is a step on the network: nothing was copied."""
    task = workload.task(CPU)
    model = task.network(0)
    inputs, targets = images(workload, 8), torch.arange(8)
    extractor, predictor = task.split(model, "dense")
    before = float(task.loss(model, inputs, targets).detach())
    optimiser = torch.optim.SGD([*extractor.parameters(), *predictor.parameters()], lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(predictor(extractor(inputs)), targets))
        optimiser.step()

    assert float(task.loss(model, inputs, targets).detach()) < before


@both
def test_recipes_are_one_cosine_cycle_of_adam(workload: ImageWorkload) -> None:
    """The rate falls to zero; no augmentation, which could move a sign or a stroke out of the picture."""
    recipe = workload.recipe

    assert (recipe.optimiser, recipe.schedule) == ("adam", "one_cycle")
    assert (workload.crop, workload.flip) == (0, False)


# GTSRB on files. The colour of a frame says which sign it shows.


def frame(label: int, track: int, number: int) -> np.ndarray:
    """(32, 32, 3) uint8: red is the class, green the track, blue the frame, lightly shaded."""
    shade = np.tile(np.arange(32) // 16, (32, 1))
    return np.stack([label * 5 + shade, track * 20 + shade, number * 30 + shade], axis=2).astype(np.uint8)


def rows() -> list[tuple[int, int, int]]:
    """(class, track, frame) of every training image, by class."""
    return [
        (label, track, number)
        for label in range(N_CLASSES)
        for track in range(N_TRACKS + label % 2)
        for number in range(N_FRAMES)
    ]


def encoded(picture: np.ndarray) -> bytes:
    """A lossless PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_gtsrb(root: Path, tracks: pa.Array | None = None) -> Path:
    """A small copy under ``root``; ``tracks`` replaces the column, which is left out if it is empty."""
    folder = root / "gtsrb"
    folder.mkdir()
    labels = pa.array([label for label, _, _ in rows()], pa.int8())
    columns = {"image": pa.array([encoded(frame(*row)) for row in rows()], pa.binary()), "label": labels}
    own = pa.array([track for _, track, _ in rows()], pa.int16()) if tracks is None else tracks
    pq.write_table(pa.table({**columns, **({"track": own} if len(own) else {})}), folder / "gtsrb-train.parquet")
    shown = [i % N_CLASSES for i in range(N_TEST)]
    test = {
        "image": pa.array([encoded(frame(i, 9, 0)) for i in shown], pa.binary()),
        "label": pa.array(shown, pa.int8()),
    }
    pq.write_table(pa.table(test), folder / "gtsrb-test.parquet")
    return root


def bind(root: Path, **fields: int | float | None) -> BoundWorkload:
    """The small copy's bound, a class's validation data being one sign of about five."""
    return SmallGtsrb(**{"val_size": N_SMALL // 5, **fields}).bind(CPU, root)  # type: ignore[arg-type]


def signs(samples: Samples | None) -> set[tuple[int, int]]:
    """The (class, track) pairs that some samples show, read off their pixels; their labels agree."""
    assert samples is not None
    raw, labels = samples.raw()
    found = {(int(image[0, 0, 0]) // 5, int(image[1, 0, 0]) // 20) for image in raw}
    assert {label for label, _ in found} == set(labels.tolist())
    return found


def test_tracked_images_are_decoded_with_their_groups(tmp_path: Path) -> None:
    """Pixels, classes and signs come back as written: one group for each (class, track), of three frames."""
    dataset = SmallGtsrb.source.load(write_gtsrb(tmp_path))
    groups = dataset.train.groups

    assert groups is not None
    assert np.array_equal(dataset.train.pixels, np.stack([frame(*row).transpose(2, 0, 1) for row in rows()]))
    assert dataset.train.labels.tolist() == [label for label, _, _ in rows()]
    assert len(np.unique(groups)) == N_SMALL // N_FRAMES
    for group in np.unique(groups):
        assert len({rows()[i][:2] for i in np.flatnonzero(groups == group)}) == 1
    assert dataset.test.groups is None


def test_validation_has_signs_that_are_not_in_training(tmp_path: Path) -> None:
    """No (class, track) is in two of training, validation and reserve; none is torn or lost; every class is in each."""
    bound = bind(write_gtsrb(tmp_path), reserve=0.25)
    parts = [signs(samples) for samples in (bound.train, bound.val, bound.reserve)]
    sizes = [len(samples) for samples in (bound.train, bound.val, bound.reserve) if samples is not None]

    assert set.union(*parts) == {row[:2] for row in rows()}
    assert sum(len(part) for part in parts) == len(rows()) // N_FRAMES
    assert sizes == [len(part) * N_FRAMES for part in parts]
    assert [len({label for label, _ in part}) for part in parts] == [N_CLASSES] * 3


def test_sizes_are_met_to_within_a_few_signs(tmp_path: Path) -> None:
    """A fifth of the images is asked for as validation data, a quarter of the rest as reserve."""
    bound = bind(write_gtsrb(tmp_path), reserve=0.25)

    assert bound.reserve is not None
    assert len(bound.val) == pytest.approx(N_SMALL / 5, abs=2 * N_FRAMES)
    assert len(bound.reserve) == pytest.approx(0.25 * 0.8 * N_SMALL, abs=2 * N_FRAMES)
    assert len(bound.test) == N_TEST


def test_splits_are_the_same_every_time(tmp_path: Path) -> None:
    """Bound twice, the parts are equal bit for bit; validation data do not depend on the training size."""
    write_gtsrb(tmp_path)
    first, again, smaller = bind(tmp_path, reserve=0.25), bind(tmp_path, reserve=0.25), bind(tmp_path, train_size=90)

    for name in ("train", "val", "reserve", "test"):
        one, two = (getattr(bound, name).raw() for bound in (first, again))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    assert torch.equal(first.val.raw()[0], smaller.val.raw()[0])
    assert len(smaller.train) == 90
    assert not signs(smaller.train) & signs(smaller.val)


def test_chosen_signs_are_golden() -> None:
    """No seed is involved, and no library's generator: the same groups on every machine."""
    labels = np.repeat([0, 1, 2], [12, 12, 12])
    groups = np.arange(36) // 3
    found = split(labels, labels[:3], train_size=None, val_size=9, reserve=0.3, test_size=None, groups=groups)

    assert np.unique(groups[found.val]).tolist() == [0, 5, 11]
    assert np.unique(groups[found.reserve]).tolist() == [1, 7, 9]


def test_a_few_steps_on_files_lower_the_loss(tmp_path: Path) -> None:
    """Bound to files, sixty steps of Adam on colours beat any constant answer, with finite weights and a score."""
    bound = bind(write_gtsrb(tmp_path), batch_size=16, lr=3e-3)
    model = bound.task.network(0)
    curve: list[float] = []

    bound.task.fit(
        model,
        bound.train,
        replace(bound.task.recipe, steps=60, schedule="constant"),
        seed=0,
        log=lambda step, **metrics: curve.append(metrics["loss"]),
    )

    assert curve[-1] < min(curve[0], math.log(N_CLASSES)) - 0.2
    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())
    assert 0 <= bound.task.score(model, bound.val) <= 1


@pytest.mark.parametrize(
    ("tracks", "message"),
    [
        (pa.array([]), "expected a column `track`"),
        (pa.array(["first"] * N_SMALL), "expected a column `track`"),
        (pa.array([1000] * N_SMALL), r"expected tracks in \[0, 1000\)"),
        (pa.array([-1] * N_SMALL), r"expected tracks in \[0, 1000\)"),
        (pa.array([None, *[1] * (N_SMALL - 1)], pa.int16()), "expected a column `track`"),
        (pa.array([0.5] * N_SMALL), "expected a column `track`"),
    ],
    ids=["missing", "text", "too-many", "negative", "unknown", "fractions"],
)
def test_damaged_tracks_are_named(tmp_path: Path, tracks: pa.Array, message: str) -> None:
    """Without tracks, or with ones that are no counts, frames of one sign could be on both sides of a split."""
    write_gtsrb(tmp_path, tracks)

    with pytest.raises(DamagedData, match=message) as caught:
        SmallGtsrb.source.load(tmp_path)
    assert "gtsrb-train.parquet" in str(caught.value)


def test_a_part_of_the_data_set_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """The official sizes are asked for: a copy with fewer images is refused, naming both."""
    write_gtsrb(tmp_path)

    with pytest.raises(DamagedData, match=rf"expected 39209 images .* got \({N_SMALL}, 3, 32, 32\)"):
        GtsrbDsn().bind(CPU, tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_files_name_the_path_and_the_remedy(tmp_path: Path, part: str) -> None:
    """One of two files is not enough; the message says where they belong, what is in them, and how to point there."""
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb" / f"gtsrb-{part}.parquet").unlink()
    before = sorted(tmp_path.rglob("*"))

    assert not GtsrbDsn.available(tmp_path)
    with pytest.raises(MissingData) as caught:
        GtsrbDsn().bind(CPU, tmp_path)
    for word in ("GTSRB", f"{tmp_path}/gtsrb/gtsrb-{{train,test}}.parquet", "WMARENA_DATA", "32x32", "`track`"):
        assert word in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


# MNIST on files.


def test_mnist_on_files_trains_a_few_steps(tmp_path: Path) -> None:
    """Bound to idx files, ten steps of the own recipe lower the loss and leave a score."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem, n in (("train", 60), ("t10k", 20)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        pixels = np.broadcast_to(labels[:, None, None] * 25, (n, 28, 28)).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())
    bound = SmallMnist(val_size=10, batch_size=25).bind(CPU, tmp_path)
    model = bound.task.network(0)
    curve: list[float] = []

    bound.task.fit(
        model,
        bound.train,
        replace(bound.task.recipe, steps=10),
        seed=0,
        log=lambda step, **metrics: curve.append(metrics["loss"]),
    )

    assert [len(samples) for samples in (bound.train, bound.val, bound.test)] == [50, 10, 20]
    assert bound.train.raw()[0].shape == (50, 1, 28, 28)
    assert curve[-1] < curve[0]
    assert 0 <= bound.task.score(model, bound.test) <= 1


# Real data.


@pytest.mark.data
def test_the_real_gtsrb_is_whole_and_split_by_signs(data_root: Path) -> None:
    """39,209 and 12,630 images of 43 classes; 1,307 signs of 30 frames at most, none on both sides of a split."""
    if not GtsrbDsn.available(data_root):
        pytest.skip("needs GTSRB under the data root")
    dataset = GTSRB.load(data_root)
    groups = dataset.train.groups
    assert groups is not None
    workload = GtsrbDsn(reserve=0.3)
    parts: Splits = split(
        dataset.train.labels,
        dataset.test.labels,
        train_size=workload.train_size,
        val_size=workload.val_size,
        reserve=workload.reserve,
        test_size=workload.test_size,
        groups=groups,
    )
    shown = [set(groups[index].tolist()) for index in (parts.train, parts.val, parts.reserve)]
    counts = np.bincount(dataset.train.labels)
    pixels = dataset.train.pixels[::20] / 255

    assert (len(dataset.train.labels), len(dataset.test.labels)) == (39_209, 12_630)
    assert (counts.min(), counts.max(), len(counts)) == (210, 2250, 43)
    assert (len(np.unique(groups)), np.unique(groups, return_counts=True)[1].max()) == (1307, 30)
    assert sum(len(part) for part in shown) == len(set.union(*shown)) == 1307
    assert len(parts.val) == pytest.approx(3900, abs=30)
    assert len(parts.reserve) == pytest.approx(0.3 * (39_209 - 3900), abs=60)
    assert np.allclose(pixels.mean(axis=(0, 2, 3)), GTSRB_STATISTICS[0], atol=1e-2)
    assert np.allclose(pixels.std(axis=(0, 2, 3)), GTSRB_STATISTICS[1], atol=1e-2)


@pytest.mark.data
def test_the_real_mnist_trains_a_few_steps(data_root: Path) -> None:
    """Bound to the real files, a part of 500 images, twenty steps beat chance clearly."""
    if not MnistDsn.available(data_root):
        pytest.skip("needs MNIST under the data root")
    bound = MnistDsn(train_size=500, val_size=100, test_size=300, batch_size=50).bind(CPU, data_root)
    model = bound.task.network(0)
    bound.task.fit(model, bound.train, replace(bound.task.recipe, steps=20), seed=0)

    assert (len(bound.train), len(bound.val), len(bound.test)) == (500, 100, 300)
    assert bound.task.score(model, bound.test) > 0.4
