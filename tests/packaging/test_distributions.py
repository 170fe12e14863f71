"""The source archive and the wheel: what they contain, and that they work where nothing of the checkout is."""

import json
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from tests.experiments.spec_texts import TINY
from tests.import_guard import FOLDERS
from tests.import_paths import TREE, users_environment
from tests.packaging.distributions import Distributions, build, names, only, unpack

DATA = (".yaml", ".j2", ".css", ".js", ".typed")
"""Suffixes of files other than Python modules that the packages read."""

pytestmark = pytest.mark.package


def packaged_files(*suffixes: str) -> set[str]:
    """The files of the four folders with one of these suffixes, named as in the wheel."""
    found = (path for folder in FOLDERS for path in (TREE / folder).rglob("*") if path.suffix in suffixes)
    return {f"wmarena/{path.relative_to(TREE).as_posix()}" for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_wmarena_and_its_metadata(distributions: Distributions) -> None:
    """Installing the wheel adds one package to site-packages: no tests, no bare folder."""
    tops = {name.split("/")[0] for name in names(distributions.wheel)}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"wmarena"}
    assert len(tops) == 2


def test_the_wheel_holds_every_module(distributions: Distributions) -> None:
    """All Python files of the four folders are found through the links."""
    found = {name for name in names(distributions.wheel) if name.endswith(".py")}

    assert found - {"wmarena/__init__.py", "wmarena/__main__.py"} == packaged_files(".py")


def test_the_wheel_holds_every_data_file(distributions: Distributions) -> None:
    """Specs, templates, style sheets and scripts are there, and the marker for type checkers."""
    found = {name for name in names(distributions.wheel) if name.endswith(DATA)}

    assert found == packaged_files(*DATA) | {"wmarena/py.typed"}
    assert {"wmarena/experiments/specs/quickstart.yaml", "wmarena/py.typed"} <= found


def test_the_source_archive_holds_files_instead_of_links(distributions: Distributions) -> None:
    """It can be unpacked where links do not exist."""
    with tarfile.open(distributions.sdist) as archive:
        members = archive.getmembers()

    assert [m.name for m in members if m.issym() or m.islnk()] == []
    assert any(m.name.endswith("/src/wmarena/schemes/base.py") for m in members)


def test_the_source_archive_makes_the_wheel(distributions: Distributions, tmp_path: Path) -> None:
    """A wheel built from the unpacked archive holds the same files as a wheel built from the clone."""
    (tmp_path / "unpacked").mkdir()
    made = {}
    for place, source in (
        ("sdist", unpack(distributions.sdist, tmp_path / "unpacked")),
        ("clone", distributions.clone),
    ):
        (tmp_path / place).mkdir()
        build(source, tmp_path / place, "--wheel")
        made[place] = names(only(tmp_path / place, "*.whl"))

    assert made["sdist"] == made["clone"] == names(distributions.wheel)


class Environment:
    """A new virtual environment, and a folder beside it to work in."""

    def __init__(self, root: Path) -> None:
        venv.create(root / "env", with_pip=True)
        self.python = root / "env" / "bin" / "python"
        self.folder = root / "work"
        self.folder.mkdir()

    @property
    def site_packages(self) -> Path:
        """Where packages are installed."""
        return only(self.python.parents[1] / "lib", "python*") / "site-packages"

    def run(self, *arguments: str) -> str:
        """What Python prints with these arguments; fails where the process fails."""
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=users_environment(),
            capture_output=True,
            text=True,
            timeout=3000,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


def test_the_wheel_runs_a_spec_and_writes_the_report(distributions: Distributions, tmp_path: Path) -> None:
    """Installed in an environment of its own, the wheel lists its specs, runs one and writes the report.

    The environment takes the dependencies from this one, so that the test takes seconds.
    """
    there = Environment(tmp_path)
    there.run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(distributions.wheel))
    dependencies = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (there.site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    (there.folder / "tiny.yaml").write_text(TINY)

    origin = there.run("-c", "import wmarena.schemes.base as base; print(base.__file__)").strip()
    arguments = ("--store", "store", "--tracking-uri", "none", "--json", "run", "tiny.yaml", "--executor", "inline")
    summary = json.loads(there.run("-m", "wmarena", *arguments))

    assert Path(origin).is_relative_to(there.site_packages)
    assert json.loads(there.run("-m", "wmarena", "--json", "plan", "quickstart"))
    assert summary["failed"] == 0
    assert "</html>" in (there.folder / summary["report"]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_the_quickstart_runs_from_nothing(distributions: Distributions, tmp_path: Path, kind: str) -> None:
    """Installed with its dependencies in an empty environment, each archive runs the quickstart: 6 GB, minutes."""
    there = Environment(tmp_path)
    archive = distributions.sdist if kind == "sdist" else distributions.wheel
    there.run("-m", "pip", "install", "--quiet", str(archive))

    there.run("-m", "pip", "check")
    summary = json.loads(there.run("-m", "wmarena", "--store", "store", "--json", "run", "quickstart"))

    assert summary["failed"] == 0
    assert (there.folder / summary["report"]).is_file()
    code = "from importlib.metadata import distribution; print(distribution('wmarena').read_text('RECORD'))"
    provided = there.run("-c", code)
    tops = {line.split("/")[0] for line in provided.split() if not line.startswith("..")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wmarena"}


USE = """\
from wmarena import ExperimentSpec, run
from wmarena.attacks.base import Attack
from wmarena.orchestrator.plan.identity import code_digest
from wmarena.schemes.base import Scheme, Verdict

spec: ExperimentSpec = ExperimentSpec.load("quickstart")
schemes: tuple[Scheme, ...] = spec.schemes
attack: type[Attack] = Attack
digest: str = code_digest(["wmarena.schemes.base"])
wrong: int = run(spec).report
"""


@pytest.mark.slow
def test_types_are_known_in_another_folder(tmp_path: Path) -> None:
    """After ``pip install -e .``, ``mypy --strict`` knows all types of the package, and finds the one error."""
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", sys.executable, "use.py"],
        cwd=tmp_path,
        env=users_environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )

    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("use.py:10:")
    assert "[assignment]" in errors[0]
