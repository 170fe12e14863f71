"""Authentication of clients of an existing Ray cluster; set before Ray is imported, so this module imports no Ray."""

import os
from pathlib import Path


def set_auth_mode() -> None:
    """Set ``RAY_AUTH_MODE`` unless the user has: to ``token`` if Ray will find a token, else ``disabled``."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = given or (Path.home() / ".ray" / "auth_token").is_file()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")


def auth_hint(found: str) -> str:
    """Return advice for a cluster's answer that a token is missing or wrong; "" for other answers."""
    if not any(sign in found for sign in ("401", "403", "uthenticat")):
        return ""
    return "; if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the token's file"
