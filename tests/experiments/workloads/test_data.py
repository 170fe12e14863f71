"""Locating and reading data sets: idx, Parquet, clear errors, nothing written."""

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wmarena.experiments.workloads import data
from wmarena.experiments.workloads.data import Container, DamagedData, Dataset, DataSource, Images
from wmarena.experiments.workloads.images.cifar_data import CIFAR10
from wmarena.experiments.workloads.images.digits import DIGITS, enlarge
from wmarena.experiments.workloads.images.encoded import ParquetPair, read_images
from wmarena.experiments.workloads.images.idx import IdxFolder, read_idx
from wmarena.experiments.workloads.images.mnist_data import FASHION_MNIST, MNIST
from wmarena.orchestrator.worker.workload import MissingData

N_TRAIN, N_TEST = 12, 5


def pixels(n: int, seed: int, channels: int = 1, side: int = 4) -> np.ndarray:
    """(n, channels, side, side) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (n, channels, side, side), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, *, compressed: bool) -> None:
    """Four idx files of a small data set."""
    folder.mkdir(parents=True)
    for part, n, seed in (("train", N_TRAIN, 0), ("t10k", N_TEST, 1)):
        for stem, array in (
            (f"{part}-images-idx3-ubyte", pixels(n, seed)[:, 0]),
            (f"{part}-labels-idx1-ubyte", (np.arange(n) % 3).astype(np.uint8)),
        ):
            raw = idx_bytes(array)
            path = folder / (f"{stem}.gz" if compressed else stem)
            path.write_bytes(gzip.compress(raw) if compressed else raw)


def write_parquet(path: Path, images: np.ndarray, *, image_column: str = "image") -> None:
    """Images (n, 3, h, w) as lossless PNG files in one Parquet file; labels cycle over three classes."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    labels = pa.array(np.arange(len(images)) % 3, pa.int8())
    pq.write_table(pa.table({image_column: pa.array(files, pa.binary()), "label": labels}), path)


def small(root_containers: Callable[[Path], tuple[Container, ...]], *, channels: int = 1) -> DataSource:
    """A source for the small data sets that these tests write."""
    shape = (channels, 4, 4)
    return DataSource(name="small", input_shape=shape, n_train=N_TRAIN, n_test=N_TEST, in_root=root_containers)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOADED", {})


@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "plain"])
def test_idx_files_are_read_as_they_were_written(tmp_path: Path, compressed: bool) -> None:
    """Pixels get a channel dimension, labels become int64; the folder is left as it was."""
    write_idx(tmp_path / "raw", compressed=compressed)
    before = sorted(tmp_path.rglob("*"))
    dataset = IdxFolder(tmp_path / "raw").read()

    assert np.array_equal(dataset.train.pixels, pixels(N_TRAIN, 0))
    assert np.array_equal(dataset.test.pixels, pixels(N_TEST, 1))
    assert dataset.test.labels.tolist() == [0, 1, 2, 0, 1]
    assert dataset.train.labels.dtype == np.int64
    assert sorted(tmp_path.rglob("*")) == before


def test_the_fingerprint_is_of_content_not_of_containers(tmp_path: Path) -> None:
    """gzip, plain and Parquet give one fingerprint; one changed pixel or label another."""
    write_idx(tmp_path / "gz", compressed=True)
    write_idx(tmp_path / "plain", compressed=False)
    one, two = IdxFolder(tmp_path / "gz").read(), IdxFolder(tmp_path / "plain").read()
    touched = one.train.pixels.copy()
    touched[3, 0, 1, 1] ^= 1
    relabelled = one.train.labels.copy()
    relabelled[0] = 2

    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != Dataset(Images(touched, one.train.labels), one.test).fingerprint
    assert one.fingerprint != Dataset(Images(one.train.pixels, relabelled), one.test).fingerprint


def test_parquet_images_are_decoded(tmp_path: Path) -> None:
    """Lossless images come back bit for bit, channels first, both splits, labels as int64."""
    train, test = pixels(N_TRAIN, 0, channels=3), pixels(N_TEST, 1, channels=3)
    write_parquet(tmp_path / "c-train.parquet", train)
    write_parquet(tmp_path / "c-test.parquet", test)
    dataset = small(lambda root: (ParquetPair(root, "c"),), channels=3).load(tmp_path)

    assert np.array_equal(dataset.train.pixels, train)
    assert np.array_equal(dataset.test.pixels, test)
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.labels.tolist() == [i % 3 for i in range(N_TRAIN)]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    """No Parquet, a missing column, an image that is none, images of two sizes: each an error with the path."""
    (tmp_path / "text.parquet").write_bytes(b"not parquet at all")
    write_parquet(tmp_path / "column.parquet", pixels(3, 0, channels=3), image_column="picture")
    broken = pa.table({"image": pa.array([b"\x89PNG no"], pa.binary()), "label": pa.array([0], pa.int8())})
    pq.write_table(broken, tmp_path / "image.parquet")
    for name in ("text", "column", "image"):
        with pytest.raises(DamagedData, match=rf"expected a Parquet file .* got .*{name}\.parquet"):
            read_images(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "whole gzip file"),
        (lambda raw: b"plain text", "whole gzip file"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-7]), r"expected 192 values .* got 185"),
        (lambda raw: gzip.compress(gzip.decompress(raw) + b"x"), r"expected 192 values .* got 193"),
        (lambda raw: gzip.compress(b"\x00\x00\x0d\x03" + gzip.decompress(raw)[4:]), "begins with '00000d03'"),
        (lambda raw: gzip.compress(b"\x00\x00"), "begins with '0000'"),
        (lambda raw: gzip.compress(b"\x00\x00\x08\x03\x00"), "begins with '00000803'"),
    ],
    ids=["cut-gzip", "no-gzip", "short", "long", "magic", "tiny", "no-sizes"],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    """The error names the fault, the file and the remedy."""
    write_idx(tmp_path / "raw", compressed=True)
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DamagedData, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_miss_without_any_folder_says_so() -> None:
    """Where neither a data root nor another place is known, the message does not list nothing."""
    source = small(lambda root: (IdxFolder(root),))

    with pytest.raises(MissingData, match=r"got no folder to look in\. Set WMARENA_DATA or --data-root"):
        source.load(None)


def test_found_but_incomplete_data_are_an_error_not_a_miss(tmp_path: Path) -> None:
    """A copy with other sizes than the official one is refused, not passed over."""
    write_idx(tmp_path / "MNIST" / "raw", compressed=True)

    with pytest.raises(DamagedData, match="expected 60000 images"):
        MNIST.load(tmp_path)


def test_missing_data_list_every_path_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the remedy; a missing data root is not created."""

    def offline(root: Path) -> None:
        raise RuntimeError(f"no\nnetwork for {root.name}")

    monkeypatch.setattr(data, "CACHE_ROOT", tmp_path / "cache")
    source = DataSource(
        **{**vars(FASHION_MNIST), "in_system": (IdxFolder(tmp_path / "system"),), "download": offline},
    )
    with pytest.raises(MissingData) as caught:
        source.load(tmp_path / "root")

    text = str(caught.value)
    for place in ("root/FashionMNIST/raw", "system", "cache/FashionMNIST/raw", "no network for cache"):
        assert place in text
    for way_out in ("WMARENA_DATA", "--data-root", "apt install dataset-fashion-mnist"):
        assert way_out in text
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_read_from_where_it_was_put(tmp_path: Path) -> None:
    """After the last local place has been tried, the download fills the data root, and is read there."""
    asked: list[Path] = []

    def download(root: Path) -> None:
        asked.append(root)
        write_idx(root / "raw", compressed=True)

    source = DataSource(**{**vars(small(lambda root: (IdxFolder(root / "raw"),))), "download": download})
    assert not source.available(tmp_path)
    dataset = source.load(tmp_path)

    assert asked == [tmp_path]
    assert len(dataset.train.labels) == N_TRAIN
    assert source.available(tmp_path)


def test_the_users_folder_comes_before_the_systems(tmp_path: Path) -> None:
    """A data root is an explicit choice, so it wins."""
    write_idx(tmp_path / "system", compressed=True)
    write_idx(tmp_path / "root" / "raw", compressed=True)
    labels = np.zeros(N_TEST, dtype=np.uint8)
    (tmp_path / "root" / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    base = small(lambda root: (IdxFolder(root / "raw"),))
    source = DataSource(**{**vars(base), "in_system": (IdxFolder(tmp_path / "system"),)})

    assert source.load(tmp_path / "root").test.labels.max() == 0
    assert source.load(None).test.labels.max() == 2


def test_a_data_set_is_decoded_once_a_process(tmp_path: Path) -> None:
    """The second load is the same object, also through another spelling of the path."""
    write_idx(tmp_path / "raw", compressed=True)
    source = small(lambda root: (IdxFolder(root / "raw"),))

    assert source.load(tmp_path) is source.load(tmp_path / "raw" / "..")


def test_available_neither_reads_nor_downloads(tmp_path: Path) -> None:
    """Digits always are; files count by their presence alone."""
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        (tmp_path / "cifar10" / f"cifar10-{part}.parquet").write_bytes(b"")

    assert DIGITS.available(None)
    assert CIFAR10.available(tmp_path)
    assert not MNIST.available(tmp_path)


def test_damaged_official_batches_are_refused_before_they_are_unpickled(tmp_path: Path) -> None:
    """CIFAR-10's archive holds pickles: a wrong MD5 sum stops the reader."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    with pytest.raises(DamagedData, match="MD5"):
        CIFAR10.load(tmp_path)


def test_digits_are_enlarged_by_exact_interpolation() -> None:
    """Corners, centres and thirds of a ramp are where bilinear interpolation puts them; the range is kept."""
    values = np.zeros((1, 8, 8), dtype=np.int64)
    values[0, :, 3:] = 16
    row = enlarge(values)[0, 0]
    assert row[:8].tolist() == [0] * 8
    assert row[8:10].tolist() == [85, 170]
    assert row[10:].tolist() == [255] * 14
    assert enlarge(np.full((1, 8, 8), 16)).min() == 255


def test_digits_are_complete_and_stratified() -> None:
    """1,300 + 497 images, about 50 of each class in the test set."""
    dataset = DIGITS.load(None)

    assert dataset.train.pixels.shape == (1300, 1, 24, 24)
    assert np.bincount(dataset.test.labels).min() >= 47


@pytest.mark.data
def test_real_copies_are_recognised(data_root: Path) -> None:
    """Fashion-MNIST on disk has its 60,000 and 10,000 images, 6,000 and 1,000 a class."""
    if not FASHION_MNIST.available(data_root):
        pytest.skip("needs Fashion-MNIST under the data root")
    dataset = FASHION_MNIST.load(data_root)

    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.train.pixels.mean() / 255 == pytest.approx(0.286, abs=5e-4)
