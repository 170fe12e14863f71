"""Samples on the device: shuffling, augmentation and shares follow the contract."""

import numpy as np
import pytest
import torch
from torch import Tensor

from wmarena.experiments.workloads.images.pixels import Pixels
from wmarena.experiments.workloads.images.samples import ImageSamples

CPU = torch.device("cpu")
PLAIN = Pixels(mean=(0.0,), std=(1 / 255,), device=CPU)
"""Inputs equal the stored pixels."""


def numbered(n: int, n_classes: int = 10, pixels: Pixels = PLAIN, side: int = 4) -> ImageSamples:
    """n images, image i showing i in its first two pixels; labels cycle."""
    raw = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    index = torch.arange(n)
    raw[:, 0, 0, 0], raw[:, 0, 0, 1] = index // 256, index % 256
    return ImageSamples(raw, index % n_classes, pixels)


def numbers(inputs: Tensor) -> list[int]:
    """Which images these are."""
    return (inputs[:, 0, 0, 0] * 256 + inputs[:, 0, 0, 1]).round().long().tolist()


def everything(samples: ImageSamples) -> list[int]:
    """Which images ``samples`` holds, in order."""
    return [i for inputs, _ in samples.in_order() for i in numbers(inputs)]


def test_an_epoch_holds_every_sample_once_with_its_label() -> None:
    """Batches are full but for the last one; order is random, labels follow their images."""
    batches = list(numbered(25).batches(10, seed=0, epoch=0))
    images = [i for inputs, _ in batches for i in numbers(inputs)]

    assert [len(labels) for _, labels in batches] == [10, 10, 5]
    assert sorted(images) == list(range(25)) != images
    assert [i % 10 for i in images] == torch.cat([labels for _, labels in batches]).tolist()


def test_order_depends_on_seed_and_epoch_only() -> None:
    """Repeating an epoch repeats it; another epoch or seed is another order; the global generator has no influence."""

    def order(seed: int, epoch: int) -> list[int]:
        return [i for x, _ in numbered(100).batches(30, seed=seed, epoch=epoch) for i in numbers(x)]

    first = order(1, 2)
    torch.manual_seed(5)

    assert first == order(1, 2)
    assert first != order(1, 3)
    assert first != order(2, 2)


def test_in_order_is_in_order() -> None:
    """No shuffling, no augmentation, whatever the batch size."""
    mirrored = Pixels(mean=(0.0,), std=(1 / 255,), device=CPU, crop=2, flip=True)
    samples = numbered(33, pixels=mirrored)

    assert everything(samples) == list(range(33))
    assert [len(labels) for _, labels in samples.in_order(20)] == [20, 13]


def test_augmentation_is_a_crop_of_the_padded_image_and_perhaps_its_mirror() -> None:
    """Every augmented image is found among the 5 x 5 crops of its padded original or of their mirrors."""
    pixels = Pixels(mean=(0.0,), std=(1 / 255,), device=CPU, crop=2, flip=True)
    raw = torch.randint(1, 256, (40, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moves = pixels.draw_augmentation(40, torch.Generator().manual_seed(1))
    assert moves is not None
    moved = pixels.augmented(raw, moves)

    padded = torch.nn.functional.pad(raw, (2, 2, 2, 2))
    for image, result, (row, column, mirror) in zip(padded, moved, moves.tolist(), strict=True):
        crop = image[:, row : row + 6, column : column + 6]
        assert torch.equal(result, crop.flip(2) if mirror else crop)
    assert len(moves[:, :2].unique(dim=0)) > 12
    assert 5 < int(moves[:, 2].sum()) < 35


def test_augmentation_depends_on_seed_and_epoch_and_can_be_switched_off() -> None:
    """Same (seed, epoch): same pixels. ``augment=False``: the stored ones."""
    pixels = Pixels(mean=(0.0,), std=(1 / 255,), device=CPU, crop=2, flip=True)
    samples = numbered(60, pixels=pixels)

    def epoch(number: int, *, augment: bool = True) -> Tensor:
        return torch.cat([x for x, _ in samples.batches(16, seed=0, epoch=number, augment=augment)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(0, augment=False))
    assert sorted(numbers(epoch(1, augment=False))) == list(range(60))


def test_without_crop_and_flip_there_is_nothing_to_draw() -> None:
    """Nothing is drawn without augmentation."""
    assert PLAIN.draw_augmentation(10, torch.Generator()) is None


def test_inputs_are_normalised_per_channel_and_padded_with_black() -> None:
    """(pixel / 255 - mean) / std; the border is a black pixel, normalised likewise."""
    pixels = Pixels(mean=(0.5, 0.25), std=(0.5, 0.1), device=CPU, pad=1)
    inputs = pixels.inputs(torch.full((1, 2, 2, 2), 255, dtype=torch.uint8))

    assert inputs.shape == (1, 2, 4, 4)
    torch.testing.assert_close(inputs[0, :, 1, 1], torch.tensor([1.0, 7.5]))
    torch.testing.assert_close(inputs[0, :, 0, 0], torch.tensor([-1.0, -2.5]))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.999, 1.0])
def test_a_share_is_stratified_and_exact(fraction: float) -> None:
    """Its size is the rounded fraction; no two classes of equal size differ by more than one."""
    share = numbered(1000).share(fraction, domain="adversary", seed=0)
    counts = np.bincount([i % 10 for i in everything(share)], minlength=10)

    assert len(share) == round(1000 * fraction)
    assert counts.max() - counts.min() <= 1


def test_a_tiny_share_has_every_class() -> None:
    """One of each at least, however small the fraction."""
    share = numbered(1000).share(1e-4, domain="adversary", seed=0)

    assert sorted(i % 10 for i in everything(share)) == list(range(10))


def test_shares_of_different_domains_overlap_by_chance() -> None:
    """30 % and 30 % of 4,000 share 360 samples on average; equal names give equal shares."""
    samples = numbered(4000)
    first = set(everything(samples.share(0.3, domain="adversary", seed=0)))

    assert first == set(everything(samples.share(0.3, domain="adversary", seed=0)))
    for other in (samples.share(0.3, domain="triggers", seed=0), samples.share(0.3, domain="adversary", seed=1)):
        # Six standard deviations of the hypergeometric count are 80.
        assert abs(len(first & set(everything(other))) - 360) < 80


def test_a_share_is_a_copy() -> None:
    """Writing to the stored pixels afterwards does not reach the share."""
    raw = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    share = ImageSamples(raw, torch.arange(20) % 10, PLAIN).share(1.0, domain="d", seed=0)
    raw.fill_(9)

    assert all(float(x.max()) == 0 for x, _ in share.in_order())


def test_split_parts_are_the_share_and_the_rest() -> None:
    """Nothing is lost, nothing is in both, and the part is what ``share`` gives."""
    samples = numbered(200)
    rest, part = samples.split(0.1, domain="val", seed=3)

    assert everything(part) == everything(samples.share(0.1, domain="val", seed=3))
    assert sorted(everything(rest) + everything(part)) == list(range(200))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_a_share_outside_its_range_is_refused(fraction: float) -> None:
    """The message says what was expected."""
    with pytest.raises(ValueError, match=r"expected a fraction in \(0, 1\]"):
        numbered(20).share(fraction, domain="d", seed=0)


def test_a_split_that_leaves_nothing_is_refused() -> None:
    """One sample a class cannot be held out of one sample a class."""
    with pytest.raises(ValueError, match="leaves some of 10 samples"):
        numbered(10).split(0.1, domain="val", seed=0)


def test_images_of_another_type_are_refused() -> None:
    """Floats would be normalised twice."""
    with pytest.raises(ValueError, match="expected uint8 images"):
        ImageSamples(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), PLAIN)
