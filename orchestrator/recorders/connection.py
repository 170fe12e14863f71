"""Connection to MLflow: a client with one-line errors without passwords, and the limits of its API."""

import contextlib
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from wmarena.orchestrator.files import addresses
from wmarena.orchestrator.files.errors import first_line
from wmarena.orchestrator.recorders.process import ENVIRONMENT
from wmarena.orchestrator.recorders.tracker import TrackerError

# MLflow reads these when it is imported.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

T = TypeVar("T")

MAX_PARAMS, MAX_METRICS = 100, 900
MAX_DIGEST = 36
MAX_NOTE = 7900
_MAX_KEY = 250
_CONNECT_S = 5.0

REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
"""Errors that concern one entry, not the tracker."""


def key(name: str) -> str:
    """Return a name that MLflow accepts: letters, digits, ``_-./: ``."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:_MAX_KEY]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split ``items`` into parts of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


class MlflowConnection:
    """Connection to a tracking server or database.

    Args:
        uri: full address, including the password.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Yield the client; turn its errors into TrackerError with one line and no passwords."""
        try:
            if self._client is None:
                self._client = self._connect()
            yield self._client
        except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
            refused = getattr(error, "error_code", None) in REFUSALS
            raise TrackerError(addresses.redacted(first_line(error), self._uri), unreachable=not refused) from None

    def _connect(self) -> Any:
        path = addresses.sqlite_file(self._uri)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Stored in the file: a third of the time per run where fsync is slow, and readers never block the writer.
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA journal_mode=WAL")
        server = addresses.host(self._uri)
        if server is not None:
            # MLflow itself would retry for two minutes before it fails.
            socket.create_connection(server, timeout=_CONNECT_S).close()
        return MlflowClient(tracking_uri=self._uri)
