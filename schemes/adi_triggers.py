"""A secret set of labelled images: drawn from a key, committed to piece by piece, fed to training.

    t_i    image, (channels, height, width) uint8     T_L(t_i)  label, uniform on [0, C)
    r, r'  32-byte openings from the key's stream     vk = {Com(t_i; r_i), Com(T_L(t_i); r'_i)}

Source: Adi et al., USENIX Security 2018, KeyGen and Verify. An image or label is committed to by itself, so that an
owner may open a few triggers in one dispute and keep the rest for the next.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from schemes.base import Batch
from schemes.commitment import commit, opens, tensor_bytes
from schemes.keys import Key
from schemes.params import Json
from schemes.prf import as_tensor, subseed
from schemes.trigger_images import abstract_images

_PARTS = ("images", "labels")


def draw_triggers(key: Key, n: int, num_classes: int, input_shape: tuple[int, ...]) -> Key:
    """``key`` completed with ``n`` images and labels from its own seed."""
    public: dict[str, Json] = {"num_classes": num_classes, "input_shape": list(input_shape)}
    images = abstract_images(key.prf.child("images"), n, input_shape)
    return commit_triggers(key.with_parts(public=public), images, as_tensor(key.prf.integers("labels", n, num_classes)))


def commit_triggers(key: Key, images: Tensor, labels: Tensor) -> Key:
    """``key`` with these triggers in its secret part and a commitment to each image and label in its public part.

    Args:
        images: (n, channels, height, width) uint8.
        labels: (n,) int64.
    """
    secret = {"images": images, "labels": labels}
    commitments: dict[str, Json] = {
        part: [commit(value, opening) for value, opening in _pieces(key, part, tensor)]
        for part, tensor in secret.items()
    }
    return key.with_parts(public={"commitments": commitments}, secret=secret)


def trigger_set(key: Key) -> tuple[Tensor, Tensor]:
    """(images (n, channels, height, width) uint8, labels (n,) int64) of a key.

    Raises:
        ValueError: the key holds no triggers.
    """
    missing = [part for part in _PARTS if part not in key.secret]
    if missing:
        raise ValueError(f"expected a key with trigger {' and '.join(missing)}, got {key!r}; draw it with keygen")
    return key.secret["images"], key.secret["labels"]


def class_count(key: Key) -> int:
    """C, the number of labels that the key's triggers were drawn from."""
    count = key.public.get("num_classes")
    if not isinstance(count, int):
        raise ValueError(f"expected a key with its number of classes, got {key!r}; draw it with keygen")
    return count


def flaw(key: Key) -> str | None:
    """Why the key proves nothing whatever a model answers (a commitment does not open, a trigger repeats), or None."""
    images, labels = trigger_set(key)
    commitments = key.public.get("commitments")
    for part, tensor in zip(_PARTS, (images, labels), strict=True):
        published = commitments.get(part) if isinstance(commitments, Mapping) else None
        if not isinstance(published, list) or len(published) != len(labels) or len(tensor) != len(labels):
            return f"{len(tensor)} {part} for {len(labels)} triggers, without a commitment to each"
        for index, (digest, (value, opening)) in enumerate(zip(published, _pieces(key, part, tensor), strict=True)):
            if not opens(str(digest), value, opening):
                return f"commitment {index} of the {part} does not open"
    in_order = sorted(tensor_bytes(image) for image in images)
    if any(first == second for first, second in pairwise(in_order)):
        return "two trigger images are equal: one answer would count twice"
    return None


def _pieces(key: Key, part: str, tensor: Tensor) -> Iterator[tuple[bytes, bytes]]:
    """(raw bytes, opening) of each image or label."""
    openings = key.prf.stream(f"openings/{part}", 32 * len(tensor))
    for index, piece in enumerate(tensor):
        yield tensor_bytes(piece), openings[32 * index : 32 * (index + 1)]


class TriggerFeed:
    """``k`` triggers for each training step: a function of the step alone, so that a resumed run sees the same ones.

    Each cycle shows every trigger once, in an order drawn anew: no trigger falls behind another by more than one.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, k: int, seed: int) -> None:
        self._inputs = inputs
        self._labels = labels
        self._k = k
        self._seed = seed

    def __call__(self, step: int) -> Batch:
        """(inputs (k, ...), labels (k,)) of a global step."""
        n = len(self._labels)
        positions = range(step * self._k, (step + 1) * self._k)
        chosen = torch.tensor([_order(self._seed, p // n, n)[p % n] for p in positions], device=self._labels.device)
        return self._inputs[chosen], self._labels[chosen]


@lru_cache(maxsize=4)
def _order(seed: int, cycle: int, n: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(subseed(seed, "cycle", cycle))
    return tuple(torch.randperm(n, generator=generator).tolist())
