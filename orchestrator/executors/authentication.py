"""Which authentication a client of an existing cluster uses; set before Ray looks for it, so no Ray here."""

import os
from pathlib import Path


def choose_mode() -> None:
    """Set ``RAY_AUTH_MODE`` unless the user has: a token if there is one where Ray looks for it, else none."""
    os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")


def _has_token() -> bool:
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return True
    return (Path.home() / ".ray" / "auth_token").is_file()


def how_to_authenticate(found: str) -> str:
    """What to do about an answer of a cluster that wants a token; "" if it was about something else."""
    if not any(sign in found for sign in ("401", "403", "uthenticat")):
        return ""
    return "; if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the token's file"
