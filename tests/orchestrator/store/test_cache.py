"""The local cache of a shared store: checked content, bounded size."""

import hashlib
from pathlib import Path

import pytest

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.store.cache import FileCache
from wmarena.orchestrator.store.shared import CACHE_GIB, SharedStore


def keep(cache: FileCache, raw: bytes) -> str:
    """Put bytes there; returns their hash."""
    sha256 = hashlib.sha256(raw).hexdigest()
    cache.keep(sha256, "model", raw)
    return sha256


def test_what_is_kept_is_found_by_its_content(tmp_path: Path) -> None:
    """By any process that uses the folder; nothing is found under another hash."""
    sha256 = keep(FileCache(tmp_path, 100), b"weights")
    other = FileCache(tmp_path, 100)

    assert other.read(sha256, "model") == b"weights"
    assert (other.path(sha256, "model") or Path()).read_bytes() == b"weights"
    assert other.path("0" * 64, "model") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """The folder stays within its bytes; what was used lately, and what is being kept now, stays."""
    cache = FileCache(tmp_path, 100)
    first, second = keep(cache, b"1" * 40), keep(cache, b"2" * 40)
    assert cache.path(first, "model") is not None
    third = keep(cache, b"3" * 40)

    assert cache.read(second, "model") is None
    assert cache.read(first, "model") is not None
    assert cache.read(third, "model") is not None
    fourth = keep(cache, b"4" * 500)
    assert [p.stat().st_size for p in tmp_path.rglob("model")] == [500]
    assert cache.path(fourth, "model") is not None


def test_a_damaged_copy_is_removed(tmp_path: Path) -> None:
    """It is not returned, and can be stored again."""
    cache = FileCache(tmp_path, 100)
    sha256 = keep(cache, b"weights")
    (path,) = tmp_path.rglob("model")
    path.write_bytes(b"rotten")

    assert cache.path(sha256, "model") is None
    assert not path.exists()
    keep(cache, b"weights")
    path.write_bytes(b"rotten")
    assert cache.read(sha256, "model") is None


def test_the_limit_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else is refused with the way out."""
    monkeypatch.setenv(CACHE_GIB, "much")
    with pytest.raises(StoreError, match="expected a number of GiB in WMARENA_CACHE_GIB, got 'much'"):
        SharedStore("s3://bucket/x")
