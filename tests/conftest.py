"""What all tests share: one computing thread, the folder with real data sets, if there is one, and real servers."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.import_paths import isolate
from tests.kept import keep_in
from tests.real_servers import postgres_server, s3_server

isolate()  # before any test file is imported

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"

pytest.register_assert_rewrite("tests.attack_contract", "tests.contracts")
torch.set_num_threads(1)

_FOLDER_MARKS = {"browser": "browser", "drills": "drill"}
_SERVERS = {"s3", "postgres"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need beyond this process: a server by its fixture, browser and drills by their folder."""
    tests = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(tests).parts[0]
        if folder in _FOLDER_MARKS:
            item.add_marker(_FOLDER_MARKS[folder])
        if _SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_configure(config: pytest.Config) -> None:
    """Trained networks are kept beside pytest's other notes; ``pytest --cache-clear`` forgets them."""
    cache = getattr(config, "cache", None)
    if cache is not None:
        keep_in(cache.mkdir("wmarena-networks"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """``WMARENA_DATA``, else a ``shared/data`` beside the repository; skips the test where there is neither."""
    root = Path(os.environ.get("WMARENA_DATA") or _BESIDE_THE_REPOSITORY)
    if not root.is_dir():
        pytest.skip("needs data sets on disk: set WMARENA_DATA to a folder that holds them")
    return root


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Gives URLs of empty folders on an S3 server."""
    with s3_server() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Gives URLs of empty databases on a PostgreSQL server."""
    # In the system's own folder: those that pytest makes are closed to the server's user.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with postgres_server(Path(folder) / "server") as database:
            yield database


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes this process another node: the user's cache folder of that name."""

    def of(node: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / node))
        return tmp_path / node

    of("node-a")
    return of
