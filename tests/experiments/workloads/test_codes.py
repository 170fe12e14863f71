"""Integers as QR codes: geometry, injectivity, agreement with the encoder."""

import numpy as np
import pytest
import segno
import torch

from wmarena.experiments.workloads.images.codes import LIMIT, MODULES, qr_codes


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 28, 28), (3, 32, 32), (3, 64, 70)])
def test_modules_are_the_encoder_s_matrix(shape: tuple[int, int, int]) -> None:
    """Sampled at module centres the image is segno's version 1-M code of mask 0; the border is white."""
    value = 123_456_789
    image = qr_codes([value], shape)[0].numpy()
    code = segno.make_qr("0123456789", version=1, error="m", mask=0, mode="numeric", boost_error=False)
    scale = min(shape[1:]) // MODULES
    top, left = ((side - MODULES * scale) // 2 for side in shape[1:])
    inside = image[:, top : top + MODULES * scale, left : left + MODULES * scale]

    assert (code.designator, code.mask, code.mode) == ("1-M", 0, "numeric")
    for channel in inside:
        blocks = channel.reshape(MODULES, scale, MODULES, scale)
        assert (blocks.min(axis=(1, 3)) == blocks.max(axis=(1, 3))).all()
        assert ((blocks[:, 0, :, 0] == 0) == np.array(code.matrix, dtype=bool)).all()
    outside = image.copy()
    outside[:, top : top + MODULES * scale, left : left + MODULES * scale] = 255
    assert (outside == 255).all()


def test_codes_are_distinct() -> None:
    """Neighbours, powers of two and the largest integer all differ, by error correction in many modules."""
    values = [*range(200), *(2**k + 200 for k in range(10, 30)), LIMIT - 1]
    flat = qr_codes(values, (1, 24, 24)).flatten(1).to(torch.int64)
    distance = (flat[:, None] != flat[None]).sum(dim=2) + 1000 * torch.eye(len(values), dtype=torch.int64)

    assert int(distance.min()) >= 10


def test_the_result_is_raw_pixels_of_the_asked_shape() -> None:
    """uint8, one image an integer, also for none."""
    assert qr_codes([1, 2, 3], (3, 32, 32)).shape == (3, 3, 32, 32)
    assert qr_codes([], (1, 28, 28)).shape == (0, 1, 28, 28)
    assert qr_codes([7], (1, 28, 28)).dtype == torch.uint8


def test_images_too_small_for_a_code_are_refused() -> None:
    """8x8 has no room for 21 modules."""
    with pytest.raises(ValueError, match="at least 21x21 pixels for QR codes, got 8x8"):
        qr_codes([1], (1, 8, 8))


@pytest.mark.parametrize("value", [-1, LIMIT])
def test_integers_outside_the_range_are_refused(value: int) -> None:
    """Ten digits and a sign that is not written would break injectivity."""
    with pytest.raises(ValueError, match=rf"expected integers in \[0, 2\^30\), got {value}"):
        qr_codes([0, value], (1, 24, 24))
