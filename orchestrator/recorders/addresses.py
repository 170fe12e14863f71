"""Where a tracker is: addresses made absolute, and shown without passwords."""

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

_SQLITE = "sqlite:///"


def resolve(uri: str | None, store_root: Path) -> str:
    """The address in full: the store's own SQLite file by default, relative SQLite files made absolute."""
    if not uri:
        return f"{_SQLITE}{store_root.absolute() / 'mlflow.db'}"
    path = sqlite_file(uri)
    return uri if path is None else _SQLITE + str(path.expanduser().absolute()) + _query(uri)


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite address, else None."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def _query(uri: str) -> str:
    return "".join(uri.partition("?")[1:])


def is_remote(uri: str) -> bool:
    """True if a tracking server answers there, which then decides where artifacts go."""
    return urlsplit(uri).scheme in ("http", "https", "databricks", "databricks-uc")


def shown(uri: str) -> str:
    """The address without user and password: for messages, and as the name of the destination."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def redacted(text: str, uri: str) -> str:
    """``text`` (an error of the tracker) without the user and password of ``uri``."""
    credentials = urlsplit(uri).netloc.rpartition("@")[0]
    for secret in filter(None, (credentials, urlsplit(uri).password)):
        text = text.replace(secret, "***")
    return text
