"""How MLflow is reached: a client, made at the first question, whose errors are one line without passwords."""

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from typing import Any

from wmarena.orchestrator.files import addresses
from wmarena.orchestrator.recorders.limits import REFUSALS
from wmarena.orchestrator.recorders.process import ENVIRONMENT
from wmarena.orchestrator.recorders.tracker import TrackerError

# MLflow reads these while it is imported.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

_CONNECT_S = 5.0


class MlflowConnection:
    """A server or a database.

    Args:
        uri: its whole address, password included.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None

    @contextlib.contextmanager
    def speaking(self) -> Iterator[Any]:
        """The client; what goes wrong with it becomes a TrackerError in one line, without passwords."""
        try:
            if self._client is None:
                self._client = self._connect()
            yield self._client
        except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            refused = getattr(error, "error_code", None) in REFUSALS
            raise TrackerError(addresses.redacted(line, self._uri), unreachable=not refused) from None

    def _connect(self) -> Any:
        path = addresses.sqlite_file(self._uri)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Kept in the file: a third of the time per run where fsync is slow, and readers never block the writer.
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA journal_mode=WAL")
        server = addresses.host(self._uri)
        if server is not None:
            # MLflow itself would try for two minutes before it says that nobody is there.
            socket.create_connection(server, timeout=_CONNECT_S).close()
        return MlflowClient(tracking_uri=self._uri)
