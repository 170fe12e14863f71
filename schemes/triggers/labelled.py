"""Secret sets of labelled images, drawn from a key, with a commitment to each image and label.

    t_i    image, (channels, height, width) uint8     T_L(t_i)  label, uniform on [0, C)
    r, r'  32-byte openings from the key's stream     vk = {Com(t_i; r_i), Com(T_L(t_i); r'_i)}

Source: Adi et al., USENIX Security 2018, KeyGen and Verify. Each image and label has its own commitment, so that an
owner can open a few triggers in one dispute and keep the others secret.

Set r of R occupies rows [r n, (r + 1) n) of the key's tensors and lists. Set 0 is drawn from the key's own stream, each
other set (images, labels, openings) from its own stream: opening one set reveals nothing of the others.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from wmarena.schemes.commitment import commit, tensor_bytes, verifies
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json
from wmarena.schemes.prf import Prf, as_tensor
from wmarena.schemes.triggers.images import abstract_images, has_repeats

_PARTS = ("images", "labels")


def draw_triggers(key: Key, n: int, num_classes: int, input_shape: tuple[int, ...], n_sets: int = 1) -> Key:
    """Complete ``key`` with ``n_sets`` sets of ``n`` images and labels from its own seed."""
    public: dict[str, Json] = {"num_classes": num_classes, "input_shape": list(input_shape)}
    if n_sets > 1:
        public["sets"] = n_sets
    streams = [_stream(key, index) for index in range(n_sets)]
    images = torch.cat([abstract_images(prf.child("images"), n, input_shape) for prf in streams])
    labels = torch.cat([as_tensor(prf.integers("labels", n, num_classes)) for prf in streams])
    return commit_triggers(key.with_parts(public=public), images, labels)


def commit_triggers(key: Key, images: Tensor, labels: Tensor) -> Key:
    """Put triggers into the secret part of ``key``, and a commitment to each image and label into its public part.

    Args:
        images: (n_sets n, channels, height, width) uint8.
        labels: (n_sets n,) int64.
    """
    secret = {"images": images, "labels": labels}
    commitments: dict[str, Json] = {
        part: [
            commit(value, opening)
            for index, own in enumerate(torch.tensor_split(tensor, set_count(key)))
            for value, opening in _pieces(key, index, part, own)
        ]
        for part, tensor in secret.items()
    }
    return key.with_parts(public={"commitments": commitments}, secret=secret)


def trigger_set(key: Key, index: int | None = None) -> tuple[Tensor, Tensor]:
    """Return (images (m, channels, height, width) uint8, labels (m,) int64) of one set, or of all sets of a key.

    Raises ValueError: the key holds no triggers, or no such set.
    """
    missing = [part for part in _PARTS if part not in key.secret]
    if missing:
        raise ValueError(f"expected a key with trigger {' and '.join(missing)}, got {key!r}; draw it with keygen")
    images, labels = key.secret["images"], key.secret["labels"]
    if index is None:
        return images, labels
    if not 0 <= index < set_count(key):
        raise ValueError(f"expected one of the key's {set_count(key)} trigger sets, got set {index}; sets count from 0")
    n = len(labels) // set_count(key)
    return images[index * n : (index + 1) * n], labels[index * n : (index + 1) * n]


def set_count(key: Key) -> int:
    """Return R, the number of trigger sets; keys of one set do not mention it."""
    count = key.public.get("sets", 1)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"expected a key with a number of trigger sets, got {count!r}; draw it with keygen")
    return count


def class_count(key: Key) -> int:
    """Return C, the number of labels that the key's triggers were drawn from."""
    count = key.public.get("num_classes")
    if not isinstance(count, int):
        raise ValueError(f"expected a key with its number of classes, got {key!r}; draw it with keygen")
    return count


def input_shape(key: Key) -> tuple[int, ...]:
    """Return the shape of the raw inputs that a key was drawn for."""
    shape = key.public.get("input_shape")
    if not isinstance(shape, list):
        raise ValueError(f"expected a key with its input shape, got {key!r}; draw it with keygen")
    return tuple(int(str(size)) for size in shape)


def flaw(key: Key, index: int = 0) -> str | None:
    """Return why a set can prove nothing (a commitment does not open, a trigger repeats), or None.

    Only this set's commitments are opened.
    """
    images, labels = trigger_set(key)
    commitments = key.public.get("commitments")
    n = len(labels) // set_count(key)
    first, last = index * n, (index + 1) * n
    for part, tensor in zip(_PARTS, (images, labels), strict=True):
        published = commitments.get(part) if isinstance(commitments, Mapping) else None
        if not isinstance(published, list) or len(published) != len(labels) or len(tensor) != len(labels):
            return f"{len(tensor)} {part} for {len(labels)} triggers, without a commitment to each"
        # Openings are redrawn from the seed, so the claimant cannot choose them.
        pieces = _pieces(key, index, part, tensor[first:last])
        for number, (digest, (value, opening)) in enumerate(zip(published[first:last], pieces, strict=True), first):
            if not verifies(str(digest), value, opening):
                return f"commitment {number} of the {part} does not open"
    if has_repeats(images[first:last]):
        return "two trigger images are equal: one answer would count twice"
    return None


def _stream(key: Key, index: int) -> Prf:
    """Return the stream from which set ``index`` is drawn."""
    return key.prf if index == 0 else key.prf.child(f"set/{index}")


def _pieces(key: Key, index: int, part: str, tensor: Tensor) -> Iterator[tuple[bytes, bytes]]:
    """Yield (raw bytes, opening) of each image or label of one set."""
    openings = _stream(key, index).stream(f"openings/{part}", 32 * len(tensor))
    for number, piece in enumerate(tensor):
        yield tensor_bytes(piece), openings[32 * number : 32 * (number + 1)]
