"""A local Ray cluster that only this process's token opens, and Ray's cached environment."""

import contextlib
import os
import secrets
from collections.abc import Iterator

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]


@contextlib.contextmanager
def token_guarded() -> Iterator[None]:
    """Restrict a cluster started and ended inside to loopback and to clients with its token.

    Given 127.0.0.1, Ray still listens on all addresses of the machine unless clusters are disabled (its default on
    macOS). A mode or a token in the environment is used; otherwise a fresh token is set, in environment variables only.
    Ray caches its environment, so it has to reload it.
    """
    wanted = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        wanted["RAY_AUTH_MODE"] = "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    before, possible = {name: os.environ.get(name) for name in wanted}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    reload_environment(possible=False)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ.update({} if value is None else {name: value})
        reload_environment(possible=possible)


def reload_environment(*, possible: bool | None = None) -> None:
    """Make Ray read its environment again; ``possible`` enables or disables clusters."""
    if possible is not None:
        ray_constants.ENABLE_RAY_CLUSTER = possible
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
