"""Opens a store's journal: its SQLite file, or the database at an address."""

import os

from wmarena.orchestrator.files.addresses import shown
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.store.local import Store

ADDRESS = "WMARENA_JOURNAL"
"""Environment variable with the journal's address, so that no password is on the command line."""


def journal_address(given: str | None = None) -> str | None:
    """Return the given address, else that of the environment; None for the store's own file.

    Raises:
        StoreError: it is not a PostgreSQL address.
    """
    address = given or os.environ.get(ADDRESS) or None
    if address is not None and not address.startswith(("postgresql://", "postgres://")):
        raise StoreError(
            f"expected a journal as postgresql://USER@HOST/DATABASE, got {shown(address)}; leave it out for the "
            "store's own SQLite file"
        )
    return address


def has_journal(store: Store, address: str | None = None) -> bool:
    """Return whether the store has a journal."""
    return address is not None or store.journal_path.is_file()


def open_journal(store: Store, address: str | None = None) -> Journal:
    """Connect to the journal at ``address``, None for the store's own.

    Raises:
        StoreError: it cannot be read and written, or psycopg is not installed.
    """
    if address is None:
        return Journal(store.journal_path)
    try:
        # Imported here: an optional dependency.
        from wmarena.orchestrator.journal.shared import PostgresJournal
    except ImportError as error:
        raise StoreError(
            f"expected psycopg for the journal {shown(address)}, got none ({error}); pip install 'wmarena[postgres]'"
        ) from None
    return PostgresJournal(address)
