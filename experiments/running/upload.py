"""Packs what is uploaded to a cluster: the installed code, and one spec.

Only listed packages and file types are copied, so stores, data, keys and environments are never uploaded. The cluster
runs the submitter's code with its own Python and libraries; plugins of other packages must be installed there.
"""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("wmarena", "wmarena.schemes", "wmarena.attacks", "wmarena.orchestrator", "wmarena.experiments")
"""Listed one by one: in a checkout the four below ``wmarena`` are links, which ``rglob`` does not follow."""

SPEC = "spec.yaml"
_KINDS = frozenset({".py", ".typed", ".yaml", ".j2", ".css", ".js"})


def pack(spec_text: str, folder: Path) -> None:
    """Fill an empty folder with the packages, their version, and the spec as ``spec.yaml``."""
    for package in PACKAGES:
        for path, relative in _sources(package):
            target = folder.joinpath(*package.split("."), relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    number = version("wmarena")
    metadata = folder / f"wmarena-{number}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: wmarena\nVersion: {number}\n")
    (folder / SPEC).write_text(spec_text, encoding="utf-8")


def _sources(package: str) -> Iterator[tuple[Path, Path]]:
    """Yield (file, path relative to the package) of every file of a package."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"expected the package {package} to be installed, got none; reinstall wmarena")
    root = Path(found.submodule_search_locations[0])
    for path in sorted(root.rglob("*")):
        nested = package == "wmarena" and path.parent != root
        if path.suffix in _KINDS and path.is_file() and not path.is_symlink() and not nested:
            yield path, path.relative_to(root)
