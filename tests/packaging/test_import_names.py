"""Each module has one name: ``wmarena.…``. The folders in the repository's root are not importable alone."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.import_guard import FOLDERS
from tests.import_paths import TREE, users_environment

LINKS = TREE / "src" / "wmarena"
ASK_A_WORKER = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
@ray.remote
def refusal():
    from tests.packaging.test_import_names import refusal
    return refusal("schemes")
print(ray.get(refusal.remote()))
"""


def refusal(name: str) -> str:
    """The message of the ImportError of ``import name`` in this process; empty if the import succeeds."""
    try:
        __import__(name)
    except ImportError as error:
        return str(error)
    return ""


def test_this_process_holds_no_bare_module() -> None:
    """No test file and no plugin has imported a module under its second name."""
    assert [name for name in sys.modules if name.split(".")[0] in FOLDERS] == []


def test_the_root_is_not_on_the_path() -> None:
    """Neither pytest nor a test has put the root of the repository on ``sys.path``."""
    assert TREE not in [Path(entry).resolve() for entry in sys.path]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bare_import_is_refused_here(name: str) -> None:
    """In test processes, a bare import is an error that names the right module."""
    assert f"expected wmarena.{name}" in refusal(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bare_import_is_refused_in_a_child_process(name: str) -> None:
    """A Python process that a test starts in the root of the repository refuses bare names, too."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=TREE, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 1
    assert f"expected wmarena.{name}" in done.stderr


def test_a_bare_import_is_refused_in_a_spawned_worker() -> None:
    """A worker of a process pool imports test modules by name, and refuses bare names."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert "expected wmarena.schemes" in pool.submit(refusal, "schemes").result(timeout=120)


@pytest.mark.ray
def test_a_bare_import_is_refused_in_a_ray_worker() -> None:
    """Ray puts the driver's current directory on its workers' path; they refuse bare names all the same."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_A_WORKER], cwd=TREE, capture_output=True, text=True, timeout=300, check=False
    )

    assert "expected wmarena.schemes" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("name", [*FOLDERS, "tests", "benchmarks", "docs", "src"])
def test_only_wmarena_is_importable_elsewhere(name: str, tmp_path: Path) -> None:
    """Outside the repository, the installation provides ``wmarena`` and none of the other folders."""
    done = subprocess.run(
        [sys.executable, "-c", f"import wmarena; import {name}"],
        cwd=tmp_path,
        env=users_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


def test_the_links_name_the_four_folders() -> None:
    """``src/wmarena`` holds one relative link per folder; a checkout without links says so here."""
    links = {path.name: os.readlink(path) for path in LINKS.iterdir() if path.is_symlink()}

    expected = {name: f"../../{name}" for name in FOLDERS}
    assert links == expected, "clone again with symbolic links: git clone -c core.symlinks=true"


def test_an_editable_install_is_one_folder_on_the_path() -> None:
    """Type checkers and editors follow a path, but no import hook; the folder holds nothing but ``wmarena``."""
    record = json.loads(distribution("wmarena").read_text("direct_url.json") or "{}")
    if not record.get("dir_info", {}).get("editable"):
        pytest.skip("wmarena is not installed with pip install -e")
    added = [Path(str(f.locate())) for f in distribution("wmarena").files or () if f.suffix == ".pth"]
    (line,) = [line for path in added for line in path.read_text(encoding="utf-8").splitlines()]

    assert Path(line).is_dir()
    names = {path.name for path in Path(line).iterdir()} - {"__pycache__"}
    assert {name for name in names if not name.endswith(".egg-info")} == {"wmarena"}


def test_every_module_reports_the_path_of_its_package() -> None:
    """Modules are found through the links and keep those paths, so one file is never two modules."""
    import wmarena
    import wmarena.schemes.base

    (package,) = wmarena.__path__
    assert Path(str(wmarena.schemes.base.__file__)).parent == Path(package) / "schemes"
