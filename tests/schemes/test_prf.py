"""One seed gives one key, for ever: golden values notice any change of a stream."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from wmarena.schemes.prf import Prf, as_tensor, derive, subseed

SEED = bytes(range(32))
labels = st.text(max_size=20)
seeds = st.binary(min_size=16, max_size=64)


def test_stream_is_shake256_of_seed_and_label() -> None:
    """The definition that other implementations follow."""
    assert Prf(SEED).stream("pi", 100) == hashlib.shake_256(SEED + b"\x00pi").digest(100)


def test_golden_values() -> None:
    """Values that were published in keys: they must never change."""
    prf = Prf(SEED)

    assert prf.stream("golden", 8).hex() == "dbeca43e9e6dc386"
    assert prf.bits("golden", 16).tolist() == [1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0]
    assert prf.integers("golden", 5, 10).tolist() == [7, 6, 2, 2, 3]
    assert prf.distinct_integers("golden", 5, 8).tolist() == [3, 0, 6, 1, 7]
    assert prf.permutation("golden", 6).tolist() == [1, 4, 5, 0, 2, 3]
    assert prf.uniform("golden", 2).tolist() == [0.5264194976176843, 0.06379443920586292]
    assert prf.normal("golden", (2, 2)).ravel().tolist() == pytest.approx(
        [-0.005034489870035769, 0.3406153464770482, -1.222637061577915, -0.12578396762519028], rel=1e-14
    )
    assert prf.seed("golden") == 4855362873982088813
    assert prf.child("golden").stream("golden", 8).hex() == "34c8e317d497f2b1"
    assert subseed(0, "order", 3) == 2723741169552378311
    assert derive(SEED, "owner", "adi", "0").hex()[:16] == "5ebf760dc4112640"


@settings(deadline=None)
@given(seeds, labels, labels)
def test_labels_separate_streams(seed: bytes, one: str, other: str) -> None:
    """Two labels never share a stream, nor do a seed and its child."""
    prf = Prf(seed)

    assert (prf.stream(one, 32) == prf.stream(other, 32)) == (one == other)
    assert prf.child(one).stream(other, 32) != prf.stream(other, 32)


@settings(deadline=None)
@given(seeds, st.integers(0, 60), st.integers(0, 60), st.integers(1, 2**62))
def test_longer_draws_begin_with_shorter_ones(seed: bytes, n: int, more: int, high: int) -> None:
    """Asking for more values never changes those already drawn."""
    prf = Prf(seed)

    assert prf.stream("x", n + more)[:n] == prf.stream("x", n)
    assert prf.bits("x", n + more)[:n].tolist() == prf.bits("x", n).tolist()
    assert prf.integers("x", n + more, high)[:n].tolist() == prf.integers("x", n, high).tolist()
    assert prf.uniform("x", n + more)[:n].tolist() == prf.uniform("x", n).tolist()


@settings(deadline=None)
@given(seeds, st.integers(0, 100), st.integers(1, 2**62))
def test_integers_are_in_range(seed: bytes, n: int, high: int) -> None:
    """n integers on [0, high), also where rejection is at its most frequent."""
    drawn = Prf(seed).integers("x", n, high)

    assert drawn.shape == (n,)
    assert drawn.dtype == np.int64
    assert bool(((drawn >= 0) & (drawn < high)).all())


@settings(deadline=None)
@given(seeds, st.integers(1, 60).flatmap(lambda high: st.tuples(st.integers(0, high), st.just(high))))
def test_distinct_integers_are_the_first_new_ones(seed: bytes, case: tuple[int, int]) -> None:
    """No repeats, in drawing order: repeats of the plain draw are passed over. All of [0, high) can be asked for."""
    n, high = case
    distinct = Prf(seed).distinct_integers("x", n, high).tolist()
    plain = Prf(seed).integers("x", 4000, high).tolist()

    assert distinct == list(dict.fromkeys(plain))[:n]


@settings(deadline=None)
@given(seeds, st.integers(0, 200))
def test_permutation_holds_every_number_once(seed: bytes, n: int) -> None:
    """A permutation of 0..n-1."""
    assert sorted(Prf(seed).permutation("x", n).tolist()) == list(range(n))


def test_draws_are_distributed_as_promised() -> None:
    """Bits, integers, uniforms and normals pass a goodness-of-fit test at 0.1 %."""
    prf = Prf(SEED)
    digits = np.bincount(prf.integers("integers", 20_000, 7), minlength=7)

    assert chisquare(np.bincount(prf.bits("bits", 20_000))).pvalue > 1e-3
    assert chisquare(digits).pvalue > 1e-3
    assert kstest(prf.uniform("uniform", 20_000), "uniform").pvalue > 1e-3
    assert kstest(prf.normal("normal", (100, 200)).ravel(), "norm").pvalue > 1e-3


def test_normal_takes_an_odd_number_of_values() -> None:
    """Box and Muller's pairs are cut, not padded, where the count is odd."""
    drawn = Prf(SEED).normal("x", (3, 5))

    assert drawn.shape == (3, 5)
    assert len(set(drawn.ravel().tolist())) == 15


def test_global_generators_play_no_part() -> None:
    """Values do not depend on torch's or numpy's global state, and leave it alone."""
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    first = Prf(SEED).normal("x", (4,)).tolist()
    torch_untouched = torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    np.random.seed(2)

    assert torch_untouched
    assert Prf(SEED).normal("x", (4,)).tolist() == first


def test_short_seeds_and_empty_ranges_are_refused() -> None:
    """Fewer than 16 bytes are no secret; no integer is below 0; ten distinct values do not fit below nine."""
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Prf(b"short")
    with pytest.raises(ValueError, match="0 < high"):
        Prf(SEED).integers("x", 1, 0)
    with pytest.raises(ValueError, match="n <= high"):
        Prf(SEED).distinct_integers("x", 10, 9)


def test_secret_is_not_shown() -> None:
    """A PRF that ends up in a log shows nothing."""
    assert SEED.hex() not in repr(Prf(SEED))
    assert repr(SEED) not in f"{Prf(SEED)}"


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.lists(st.text(max_size=5) | st.integers(0, 99), max_size=3))
def test_subseeds_fit_torch(seed: int, path: list[str | int]) -> None:
    """A sub-seed is accepted by torch's generators and differs from its parent's other purposes."""
    own = subseed(seed, *path)

    assert 0 <= own < 2**63
    torch.Generator().manual_seed(own)
    assert own != subseed(seed, *path, "more")


def test_derived_keys_do_not_collide() -> None:
    """Parts are length-prefixed: moving a letter from one part to the next gives another key."""
    derived = {derive(SEED, *parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"))}

    assert len(derived) == 5
    assert all(len(key) == 32 for key in derived)


def test_tensors_keep_their_kind() -> None:
    """Reals become float32, integers and bits int64."""
    prf = Prf(SEED)

    assert as_tensor(prf.normal("x", (3,))).dtype == torch.float32
    assert as_tensor(prf.integers("x", 3, 9)).dtype == torch.int64
    assert as_tensor(prf.bits("x", 3)).dtype == torch.int64
