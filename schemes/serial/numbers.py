"""Serial numbers: derivation from a signature, position of the stamp, printing on inputs.

    v      = customer || time stamp || counter                    what the owner signs, public
    sig    = Ed25519(owner's private key, v)                      64 bytes, secret: it determines the number
    k^     = first side^2 bits of SHA-256(sig), row by row        (side, side) in {0, 1}, 1 is white
    x (+) k: pixel (i, j) of the stamp's square becomes 1 or 0, in every channel; all others stay   (Eq. 7)

A number of equal bits (all black, all white) is replaced by signing with the next counter: on a black border an
all-black stamp changes nothing, so raw images would count as stamped. Stamps are printed on pixels before
normalisation; ``Ink`` prints the same values on normalised inputs after augmentation, so that no crop or mirror cuts a
stamp off. On images much larger than 32 pixels each bit is a block: 3x3 bits cover about 21
of 224 pixels.

Source: Tang, Du, Hu, "Deep Serial Number" (arXiv 2011.08960 v1). Differs from the paper: it does not say how bits
follow from the signature (we take a hash's first ones), and its numbers have 9 bits; ``side`` 5 and 8 give 25 and 64.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from torch import Tensor

from wmarena.schemes.base import Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf

MAX_SIDE = 16
"""A SHA-256 digest has 256 bits."""

_REFERENCE_WIDTH = 32
_SEPARATOR = "||"


@runtime_checkable
class SerialScheme(Protocol):
    """A scheme whose models need a serial number in every input, as a search for the number sees it."""

    @property
    def side(self) -> int:
        """The number has side x side bits; public."""
        ...

    def adopt(self, key: Key, pattern: Tensor, position: tuple[int, int], images: Tensor, labels: Tensor) -> Key:
        """Put a found number, and labelled images to verify it with, into ``key``.

        Args:
            pattern: (side, side) in {0, 1}.
            position: row and column of the stamp's upper left pixel.
            images, labels: raw inputs (n, *input_shape) without a stamp, and classes (n,).
        """
        ...

    def place(self, key: Key) -> tuple[int, int]:
        """Return the row and column of the key's stamp."""
        ...


# Signatures.


@dataclass(frozen=True)
class SignedNumber:
    """A serial number with its signature; message and public key may be published."""

    message: str
    public_key: bytes
    signature: bytes

    def bits(self, side: int) -> Tensor:
        """Return (side, side) uint8: the number."""
        digest = np.frombuffer(hashlib.sha256(self.signature).digest(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(digest)[: side * side].reshape(side, side).copy())

    def valid(self) -> bool:
        """Return True if the signature is the key's on the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(self.signature, self.message.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


def sign(prf: Prf, customer: str, time_stamp: str, counter: int) -> SignedNumber:
    """Sign with the private key of ``prf``; Ed25519 is deterministic, so only the key decides."""
    private = Ed25519PrivateKey.from_private_bytes(prf.stream("signing key", 32))
    message = _SEPARATOR.join((customer, time_stamp, str(counter)))
    return SignedNumber(message, private.public_key().public_bytes_raw(), private.sign(message.encode()))


def issue(prf: Prf, customer: str, time_stamp: str, side: int) -> SignedNumber:
    """Return the first signed number, by counter, whose bits are not all equal."""
    for counter in range(10_000):
        signed = sign(prf, customer, time_stamp, counter)
        if 0 < int(signed.bits(side).sum()) < side * side:
            return signed
    raise AssertionError("expected different bits from one of 10,000 signatures, got equal bits from all")


def grind(prf: Prf, customer: str, time_stamp: str, pattern: Tensor, n_tries: int) -> SignedNumber:
    """Search a signature whose bits are ``pattern`` over counters; return counter 0's if none of ``n_tries`` fits.

    Short numbers do not bind their signer: 9 bits take 512 tries.
    """
    side = len(pattern)
    tries = (sign(prf, customer, time_stamp, counter) for counter in range(n_tries))
    fitting = (signed for signed in tries if torch.equal(signed.bits(side), pattern.to("cpu", torch.uint8)))
    return next(fitting, sign(prf, customer, time_stamp, 0))


# Geometry.


def block_size(input_shape: tuple[int, ...]) -> int:
    """Return the pixels along one side of one bit: 1 up to 47 pixels of width, 7 for 224."""
    return max(1, round(input_shape[-1] / _REFERENCE_WIDTH))


def places(side: int, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) that the stamp's upper left pixel may have; not positive where it does not fit."""
    extent = side * block_size(input_shape)
    return input_shape[-2] - extent + 1, input_shape[-1] - extent + 1


def draw_position(prf: Prf, side: int, input_shape: tuple[int, ...]) -> Tensor:
    """Draw (2,) int64 row and column, uniform over all positions that fit."""
    rows, columns = places(side, input_shape)
    place = int(prf.integers("position", 1, rows * columns)[0])
    return torch.tensor(divmod(place, columns))


def numbers(patterns: Tensor) -> Tensor:
    """Encode patterns (n, side, side) as (n,) int64, the first bit the highest; for sides up to 7."""
    flat = patterns.flatten(1).to(torch.int64)
    weights = 2 ** torch.arange(flat.shape[1] - 1, -1, -1, device=flat.device)
    return (flat * weights).sum(dim=1)


def patterns_of(values: Tensor, side: int) -> Tensor:
    """Return (n, side, side) uint8: the inverse of ``numbers``."""
    shifts = torch.arange(side * side - 1, -1, -1, device=values.device)
    return ((values[:, None] >> shifts) & 1).to(torch.uint8).reshape(-1, side, side)


def stamp(images: Tensor, patterns: Tensor, positions: Tensor, *, block: int, black: Tensor, white: Tensor) -> Tensor:
    """Copy ``images`` and print a stamp on each.

    Args:
        images: (n, c, h, w), of any type.
        patterns: (n or 1, side, side) in {0, 1}; floats in [0, 1] mix the two values, differentiably.
        positions: (n or 1, 2) int64 rows and columns.
        black, white: (c,) values of the two bits.
    """
    bits = patterns.to(images.device).repeat_interleave(block, -2).repeat_interleave(block, -1)[..., None]
    mixed = torch.lerp(black, white, bits) if bits.is_floating_point() else torch.where(bits > 0, white, black)
    along = torch.arange(bits.shape[1], device=images.device)
    rows, columns = (corner[:, None] + along for corner in positions.to(images.device).unbind(1))
    image = torch.arange(len(images), device=images.device)[:, None, None]
    out = images.clone()
    # Indices around a slice: the assigned values are (n, extent, extent, c).
    out[image, :, rows[:, :, None], columns[:, None, :]] = mixed
    return out


def stamp_raw(raw: Tensor, patterns: Tensor, positions: Tensor) -> Tensor:
    """Copy raw images (n, c, h, w) uint8 and print a stamp on each: white is 255."""
    black = torch.zeros(raw.shape[1], dtype=torch.uint8, device=raw.device)
    block = block_size(tuple(raw.shape[1:]))
    return stamp(raw, patterns, positions, block=block, black=black, white=black + 255)


class Ink:
    """A printer of stamps on a task's normalised inputs, with the values of normalised stamped pixels.

    ``Ink(task)(task.to_inputs(x), k, p)`` equals ``task.to_inputs(stamp_raw(x, k, p))``.
    """

    def __init__(self, task: Workload) -> None:
        shape = task.info.input_shape
        raw = torch.zeros((1, *shape), dtype=torch.uint8)
        dark, bright = task.to_inputs(raw)[0], task.to_inputs(raw + 255)[0]
        # A border that the workload adds is black in both.
        inside = (dark != bright)[0].nonzero()
        self.offset = inside[0]
        row, column = self.offset.tolist()
        self.black, self.white = dark[:, row, column], bright[:, row, column]
        self.block = block_size(shape)

    def __call__(self, inputs: Tensor, patterns: Tensor, positions: Tensor) -> Tensor:
        """Return (n, c, h, w) stamped copies; see ``stamp``."""
        places_on_inputs = positions.to(self.offset.device) + self.offset
        return stamp(inputs, patterns, places_on_inputs, block=self.block, black=self.black, white=self.white)
