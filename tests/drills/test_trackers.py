"""An MLflow server that is unreachable during a whole run."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.drills.drill import FULL, Drill


@contextmanager
def address(kind: str) -> Iterator[str]:
    """Yield the address of a server that refuses connections, or accepts them and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen(128)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["silent", "refusing"] if FULL else ["silent"])
def test_an_unreachable_tracker_costs_a_warning(
    inline: Drill, undisturbed: Drill, kind: str, counts: Counter[str]
) -> None:
    """The run ends with all results, exit 0, and says how the records get there later."""
    with address(kind) as uri:
        inline.tracking_uri = uri
        driver = inline.run()
    inline.check(undisturbed)

    assert "wmarena report --sync" in driver.said
    assert driver.summary["executed"] == len(undisturbed.ask("SELECT id FROM task"))
    counts["runs without a tracker"] += 1
