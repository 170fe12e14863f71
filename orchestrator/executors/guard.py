"""How Ray guards a cluster: what it reads of its environment, and a local cluster that admits nobody else."""

import contextlib
import os
import secrets
from collections.abc import Iterator

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A cluster begun and ended inside listens on loopback alone, and admits only who has its token.

    Ray takes 127.0.0.1 for the machine's own address, and then listens on all of them, unless it holds that there are
    no clusters here (its default on macOS). A mode or a token in the environment counts; otherwise there is a fresh
    token, in environments and nowhere else. What Ray has read of its environment it is made to read again.
    """
    wanted = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        wanted["RAY_AUTH_MODE"] = "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    before, possible = {name: os.environ.get(name) for name in wanted}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    read_again(possible=False)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ.update({} if value is None else {name: value})
        read_again(possible=possible)


def read_again(*, possible: bool | None = None) -> None:
    """Make Ray read its environment anew; ``possible`` says whether it may hold that there are clusters here."""
    if possible is not None:
        ray_constants.ENABLE_RAY_CLUSTER = possible
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
