"""Output of commands: one JSON document or text for people on stdout, everything else on stderr."""

import json
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.journal.opening import has_journal, journal_address, open_journal
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.opening import open_store

NO_RECORDS = "none"
"""Tracking URI for runs without MLflow."""

_PIPE_WIDTH = 160
"""Columns of output that is not on a terminal, so that tables keep their lines."""


@dataclass(frozen=True)
class Terminal:
    """Global options, and the two streams.

    Attributes:
        store: a folder or a URL.
        keys: folder of keys; None for the store's own.
        journal_url: address of a shared journal; None for the environment's, else the store's own.
        tracking_uri: None for the store's own database.
        json: True if stdout gets one JSON document and nothing else.
    """

    store: str
    keys: Path | None
    journal_url: str | None
    tracking_uri: str | None
    data_root: Path | None
    json: bool
    out: Console
    err: Console

    @classmethod
    def of(cls, args: Namespace) -> "Terminal":
        """Make the terminal of one command line."""
        return cls(
            store=args.store,
            journal_url=args.journal,
            keys=Path(args.keys) if args.keys else None,
            tracking_uri=args.tracking_uri or None,
            data_root=Path(args.data_root).expanduser() if args.data_root else None,
            json=args.json,
            out=Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH),
            err=Console(file=sys.stderr, highlight=False),
        )

    def open_store(self) -> Store:
        """Open the store; create nothing."""
        return open_store(self.store, self.keys)

    def journal(self, store: Store) -> Journal:
        """Connect to the journal."""
        return open_journal(store, journal_address(self.journal_url))

    def has_journal(self, store: Store) -> bool:
        """Return True if the store's journal exists."""
        return has_journal(store, journal_address(self.journal_url))

    def document(self, value: Any) -> None:
        """Write ``value`` as the one JSON document."""
        sys.stdout.write(_writable(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")

    def text(self, text: str) -> None:
        """Write plain text for people or other programs: no wrapping, no markup."""
        sys.stdout.write(_writable(text) + "\n")

    def paths(self, **named: str | None) -> None:
        """Write one line for each file or address that exists."""
        for name, path in named.items():
            if path is not None:
                self.text(f"{name:<9}{path}")

    def summary(self, summary: Any) -> None:
        """Write a run's or study's summary as the JSON document, without the address of a store that is not shared."""
        document = asdict(summary)
        if document["shared_report"] is None:
            del document["shared_report"]
        self.document(document)

    def note(self, text: str) -> None:
        """Write a message to stderr."""
        self.err.print(_writable(text), markup=False, soft_wrap=True)


def _writable(text: str) -> str:
    """Escape lone surrogates, which names from a forged file may contain and no stream can encode."""
    return text.encode("utf-8", "backslashreplace").decode()
