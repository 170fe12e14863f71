"""Tracker addresses: made absolute, and shown without passwords."""

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

_SQLITE = "sqlite:///"
_SECRET = re.compile(r"key|secret|token|password|credential|signature", re.IGNORECASE)
"""Names of query parameters whose values are secret."""


def resolve(uri: str | None, store_root: Path) -> str:
    """Return the full address: by default the store's SQLite file; relative SQLite files are made absolute."""
    if not uri:
        return f"{_SQLITE}{store_root.absolute() / 'mlflow.db'}"
    path = sqlite_file(uri)
    query = "".join(uri.partition("?")[1:])
    return uri if path is None else f"{_SQLITE}{path.expanduser().absolute()}{query}"


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a SQLite address, else None."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def is_remote(uri: str) -> bool:
    """Return whether the address is a tracking server's, which then decides where artifacts go."""
    return urlsplit(uri).scheme in ("http", "https", "databricks", "databricks-uc")


def has_credentials(uri: str) -> bool:
    """Return whether the address contains a user or a secret query parameter."""
    parts = urlsplit(uri)
    return "@" in parts.netloc or any(secret or "@" in value for _, value, secret in _parameters(parts))


def shown(uri: str) -> str:
    """Return the address without user, password and secret parameters, for messages and destination names."""
    if not has_credentials(uri):
        return uri
    parts = urlsplit(uri)
    query = urlencode([(name, value) for name, value, secret in _parameters(parts) if not secret])
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def redacted(text: str, uri: str) -> str:
    """Return ``text`` (a tracker's error) without the user, password and secret parameters of ``uri``."""
    parts = urlsplit(uri)
    secrets = [parts.netloc.rpartition("@")[0], parts.password]
    secrets += [value for _, value, secret in _parameters(parts) if secret]
    for word in filter(None, secrets):
        text = text.replace(word, "***")
    return text


def host(uri: str) -> tuple[str, int] | None:
    """Return (host, port) of a PostgreSQL address; None for others, or if the address has no host."""
    parts = urlsplit(uri)
    if not parts.scheme.startswith("postgresql") or not parts.hostname:
        return None
    return parts.hostname, parts.port or 5432


def _parameters(parts: SplitResult) -> list[tuple[str, str, bool]]:
    """Return (name, value, whether it is secret) of the query parameters."""
    found = parse_qsl(parts.query, keep_blank_values=True)
    return [(name, value, _SECRET.search(name) is not None) for name, value in found]
