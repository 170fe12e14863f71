"""Servers that tests start: free ports, and waiting until something answers."""

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable


def free_ports() -> int:
    """A port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def fetched(address: str, alive: Callable[[], bool], timeout_s: float = 180.0) -> tuple[str, bytes]:
    """(content type, body) of a page, as soon as its server answers; fails when the server ends before."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.headers.get_content_type(), answer.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert alive(), f"the server of {address} has ended"
            assert time.monotonic() < deadline, f"nothing answers at {address}"
            time.sleep(0.2)


def answers(port: int) -> bool:
    """True if something listens on this machine's port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
