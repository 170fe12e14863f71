"""An undisturbed run to compare with, and the counts that ``make drill`` prints."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.drill import FULL, LONG, SPEC, STARTED, Drill

_COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """The drill's spec, run in one process without faults; read-only."""
    drill = Drill(tmp_path_factory.mktemp("undisturbed"), SPEC, options=("--executor", "inline"))
    drill.run()
    return drill


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """The long spec, undisturbed."""
    drill = Drill(tmp_path_factory.mktemp("long"), LONG, options=("--executor", "inline"))
    drill.run()
    return drill


@pytest.fixture(autouse=True)
def no_driver_is_left() -> Iterator[None]:
    """Kill drivers that a failed drill left, suspended or not; Ray's processes end with their driver."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def drill(tmp_path: Path) -> Drill:
    """An empty store and the drill's spec, on two Ray workers."""
    return Drill(tmp_path, options=("--workers", "2"))


@pytest.fixture
def inline(tmp_path: Path) -> Drill:
    """An empty store and the drill's spec, in one process."""
    return Drill(tmp_path, options=("--executor", "inline"))


@pytest.fixture
def counts() -> Counter[str]:
    """Count events; printed at the end of ``make drill``."""
    return _COUNTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print counts, and drills skipped for lack of a capability."""
    if not FULL:
        return
    terminalreporter.section("drills")
    for what, n_times in sorted(_COUNTS.items()):
        terminalreporter.write_line(f"{n_times:6d} {what}")
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"skipped {report.nodeid}: {reason.removeprefix('Skipped: ')}")
