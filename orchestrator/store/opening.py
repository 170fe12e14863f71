"""Opens the store at an address: a folder, or a URL that several nodes share."""

import re
from pathlib import Path

from wmarena.orchestrator.store.local import Store

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://?")


def is_url(address: str) -> bool:
    """Return whether the address is ``scheme://...``; a Path drops one of the slashes."""
    return _URL.match(address) is not None


def open_store(address: str | Path, keys: Path | None = None) -> Store:
    """Return the store at an address; create nothing.

    Args:
        keys: the folder of keys; None for ``keys/`` in a folder store, and for sealed keys in a shared one.

    Raises:
        StoreError: the URL holds credentials.
    """
    if not isinstance(address, str) or not is_url(address):
        return Store(address, keys)
    # Imported here: a folder needs no pyarrow.
    from wmarena.orchestrator.store.shared import SharedStore

    return SharedStore(address, keys)
