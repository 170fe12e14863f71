"""The import path of tests: the installed ``wmarena``, and links to ``tests``, ``benchmarks`` and ``docs``.

Tests and the processes which they start import each other as ``tests.…``, but the root of the repository must not be on
their path: there, ``import schemes`` would load a second copy of ``wmarena.schemes``. So a temporary folder holds links
to the three packages, and the import guard as ``sitecustomize``, which Python imports at the start of each process.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tests.import_guard  # noqa: F401  installs the guard in this process

TREE = Path(__file__).resolve().parents[1]
PACKAGES = ("tests", "benchmarks", "docs")
_VARIABLE = "WMARENA_TESTS_PATH"
"""Where another process finds the folder that the first one has made."""


def isolate() -> None:
    """Replace the root of the repository by the folder of links, here and in processes which are started from here."""
    folder = os.environ.get(_VARIABLE) or _make_folder()
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder and Path(entry).resolve() != TREE)]
    kept = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [entry for entry in kept if entry != folder and Path(entry).resolve() != TREE]
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *kept])


def users_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user's process: no path of the tests, no setting for Ray, MLflow or WMArena."""
    settings = ("PYTHON", "RAY_", "MLFLOW_", "WMARENA_", "COV_CORE_", "COVERAGE_", "PYTEST_")
    kept = {name: value for name, value in (environment or os.environ).items() if not name.startswith(settings)}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def _make_folder() -> str:
    folder = Path(tempfile.mkdtemp(prefix="wmarena-tests-"))
    for package in PACKAGES:
        (folder / package).symlink_to(TREE / package, target_is_directory=True)
    (folder / "sitecustomize.py").symlink_to(TREE / "tests" / "import_guard.py")
    os.environ[_VARIABLE] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(folder)
