"""Which journal a store has: the file beside it, or the database at an address."""

import os

from wmarena.orchestrator.files.addresses import shown
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.store.local import Store

ADDRESS = "WMARENA_JOURNAL"
"""Environment variable: address of the journal. A command line, where others see it, need not hold a password then."""


def journal_address(given: str | None = None) -> str | None:
    """The address that was given, else the environment's; None for the store's own file.

    Raises:
        StoreError: it is no address of a PostgreSQL database.
    """
    address = given or os.environ.get(ADDRESS) or None
    if address is not None and not address.startswith(("postgresql://", "postgres://")):
        raise StoreError(
            f"expected a journal as postgresql://USER@HOST/DATABASE, got {shown(address)}; leave it out for the "
            "store's own SQLite file"
        )
    return address


def has_journal(store: Store, address: str | None = None) -> bool:
    """True if there is something to read."""
    return address is not None or store.journal_path.is_file()


def open_journal(store: Store, address: str | None = None) -> Journal:
    """A connection to the journal at ``address``, None for the store's own.

    Raises:
        StoreError: it cannot be read and written, or what is needed to reach it is not installed.
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
