"""Commitments hide, bind and open; digests see every byte, name, shape and type."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmarena.schemes.commitment import commit, merkle_root, model_digest, tensor_bytes, tensor_digest, verifies

openings = st.binary(min_size=32, max_size=32)


@settings(deadline=None)
@given(st.binary(max_size=100), openings)
def test_commitment_is_sha256_of_length_value_and_opening(value: bytes, opening: bytes) -> None:
    """The definition that other implementations follow; it opens for what was committed to."""
    published = commit(value, opening)

    assert published == hashlib.sha256(len(value).to_bytes(8, "big") + value + opening).hexdigest()
    assert verifies(published, value, opening)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=100), openings, st.data())
def test_one_flipped_bit_does_not_open(value: bytes, opening: bytes, data: st.DataObject) -> None:
    """Neither another value nor another opening opens a commitment, nor value bytes moved into the opening."""
    published = commit(value, opening)
    index, bit = data.draw(st.integers(0, len(value) + 31)), data.draw(st.integers(0, 7))
    both = bytearray(value + opening)
    both[index] ^= 1 << bit

    assert not verifies(published, bytes(both[: len(value)]), bytes(both[len(value) :]))
    assert not verifies(published, value + opening[:1], opening[1:] + b"\x00")


def test_short_openings_are_refused() -> None:
    """Fewer than 32 bytes would not hide the value."""
    with pytest.raises(ValueError, match="32 bytes"):
        commit(b"value", b"short")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=9), st.data())
def test_root_sees_every_leaf(leaves: list[bytes], data: st.DataObject) -> None:
    """Adding, dropping or changing a leaf changes the root."""
    root = merkle_root(leaves)

    assert merkle_root([*leaves, b""]) != root
    if leaves:
        index = data.draw(st.integers(0, len(leaves) - 1))
        assert merkle_root(leaves[:index] + leaves[index + 1 :]) != root
        assert merkle_root([*leaves[:index], leaves[index] + b"x", *leaves[index + 1 :]]) != root


def test_inner_nodes_are_no_leaves() -> None:
    """Two leaves cannot be passed off as one that is their parent."""
    first, second = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in (b"a", b"b"))

    assert merkle_root([b"a", b"b"]) == hashlib.sha256(b"\x01" + first + second).hexdigest()
    assert merkle_root([first + second]) != merkle_root([b"a", b"b"])
    assert merkle_root([b"b", b"a"]) != merkle_root([b"a", b"b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_bytes_of_any_tensor(dtype: torch.dtype) -> None:
    """Every type has raw bytes, strided, scalar and empty tensors too."""
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)

    assert len(tensor_bytes(values)) == 6 * values.element_size()
    assert tensor_bytes(values.T) == tensor_bytes(values.T.contiguous())
    assert len(tensor_bytes(values[0, 0])) == values.element_size()
    assert tensor_bytes(values[:0]) == b""


def test_tensor_digest_sees_name_shape_and_type() -> None:
    """The same bytes under another name, shape or type are another tensor."""
    zeros = torch.zeros(4)
    others = [("b", zeros), ("a", zeros.view(2, 2)), ("a", zeros.view(torch.int32)), ("a", zeros + 1)]

    assert tensor_digest("a", zeros) == tensor_digest("a", torch.zeros(4))
    assert len({tensor_digest("a", zeros)} | {tensor_digest(n, t) for n, t in others}) == 5


def test_model_digest_is_sorted_by_name() -> None:
    """The order in which a network registers its tensors does not matter, what they hold does."""
    first, second = torch.ones(2), torch.zeros(2)

    assert model_digest({"a": first, "b": second}) == model_digest({"b": second, "a": first})
    assert model_digest({"a": first, "b": second}) != model_digest({"a": second, "b": first})
