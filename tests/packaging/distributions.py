"""Distributions as a release makes them: built from the files of a clean clone."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.import_paths import TREE, users_environment


@dataclass(frozen=True)
class Distributions:
    """What ``python -m build`` has made.

    Attributes:
        sdist: the source archive.
        wheel: the wheel, built from the source archive.
        clone: the files that both were built from.
    """

    sdist: Path
    wheel: Path
    clone: Path


def clean_clone(target: Path) -> Path:
    """Copy the files that git knows or would add, links as links: what a clone holds once they are committed."""
    command = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git, and a checkout that git knows")
    for name in filter(None, listed.split("\0")):
        source = TREE / name
        if source.is_symlink() or source.is_file():  # a file that was deleted is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    return target


def build(source: Path, target: Path, *options: str) -> None:
    """Run ``python -m build`` on a source folder, with the build backend of this environment."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(target), str(source)],
        cwd=target,
        env=users_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def only(folder: Path, pattern: str) -> Path:
    """The one file of that pattern."""
    (found,) = folder.glob(pattern)
    return found


def names(wheel: Path) -> set[str]:
    """The names of all files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename for info in archive.infolist() if not info.is_dir()}


def unpack(sdist: Path, target: Path) -> Path:
    """Unpack a source archive; the folder with its contents."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (root,) = target.iterdir()
    return root
