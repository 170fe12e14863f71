"""A guard for tests: whoever imports ``schemes`` instead of ``wmarena.schemes`` gets an ImportError.

Importing this file installs the guard. The test process imports it as ``tests.import_guard``. The processes which tests
start import it as ``sitecustomize`` when Python starts (see ``tests.import_paths``), so it uses the standard library
only.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FOLDERS = ("schemes", "attacks", "orchestrator", "experiments")
"""Folders in the root of the repository which are packages below ``wmarena`` only."""


class BareNameGuard(MetaPathFinder):
    """Refuses a top-level package that has the name of one of the four folders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for a bare name, wherever it would be found; leave all other names to the next finder."""
        if fullname in FOLDERS:
            raise ImportError(f"expected wmarena.{fullname}, got {fullname}: a module must have one name only")
        return None


if not any(type(finder).__name__ == BareNameGuard.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, BareNameGuard())
