"""Files for the hosting site, for citation and for minimum versions: valid, and in step with pyproject.toml."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from tests.import_paths import TREE

PROJECT: dict[str, Any] = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW: dict[str, Any] = yaml.safe_load((TREE / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
FORMS = sorted(path for path in (TREE / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
HOOKS: dict[str, Any] = yaml.safe_load((TREE / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
SCHEMAS = [
    ("github-workflows", TREE / ".github" / "workflows" / "ci.yml"),
    ("github-issue-config", TREE / ".github" / "ISSUE_TEMPLATE" / "config.yml"),
    ("citation-file-format", TREE / "CITATION.cff"),
    *(("github-issue-forms", path) for path in FORMS),
]


def requirements() -> list[str]:
    """The direct dependencies, and those of each extra."""
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    return [*PROJECT["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]


def lower_bounds() -> list[tuple[str, str]]:
    """(name, lowest version) of each direct dependency and of each extra."""
    requirements = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    matches = (re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement) for requirement in requirements)
    return [(match[1], match[2]) for match in matches if match]


def pins() -> list[tuple[str, str]]:
    """(name, version) of each line of ``constraints/minimum.txt``."""
    lines = (TREE / "constraints" / "minimum.txt").read_text(encoding="utf-8").splitlines()
    return [(name, version) for name, _, version in (line.partition("==") for line in lines) if version]


def make_targets(job: dict[str, Any]) -> set[str]:
    """The targets of all ``make`` commands of a job."""
    commands = [shlex.split(step["run"]) for step in job["steps"] if step.get("run", "").startswith("make ")]
    return {word for command in commands for word in command[1:] if "=" not in word}


@pytest.mark.parametrize(("schema", "path"), SCHEMAS, ids=lambda value: getattr(value, "name", value))
def test_the_file_follows_its_schema(schema: str, path: Path) -> None:
    """The hosting site, or a citation tool, understands the file."""
    pytest.importorskip("check_jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_lower_bound_is_pinned() -> None:
    """``constraints/minimum.txt`` has each package once, and each direct dependency at its lower bound."""
    pinned = {name.lower().replace("_", "-"): Version(version) for name, version in pins()}
    bounds = {name.lower(): Version(version) for name, version in lower_bounds()}

    assert len(pinned) == len(pins())
    assert {name: pinned.get(name) for name in bounds} == bounds
    assert max(Counter(name for name, _ in lower_bounds()).values()) == 1


def test_every_dependency_has_a_lower_bound() -> None:
    """Only the stubs of PyYAML, which have no interface of their own, go without."""
    bounded = {name for name, _ in lower_bounds()}
    named = {re.split(r"[\[><=~!;\s]", requirement, maxsplit=1)[0] for requirement in requirements()}

    assert named - bounded == {"wmarena", "types-PyYAML"}


def test_the_citation_names_this_version() -> None:
    """Version, licence and name are those of pyproject.toml."""
    citation = yaml.safe_load((TREE / "CITATION.cff").read_text(encoding="utf-8"))

    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["title"].lower() == PROJECT["name"]


def test_the_workflow_calls_targets_that_exist() -> None:
    """Each ``make`` target of the workflow is one of the Makefile: CI and contributors run the same commands."""
    makefile = (TREE / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    wanted = set().union(*(make_targets(job) for job in WORKFLOW["jobs"].values()))

    assert wanted
    assert wanted <= known


def test_the_workflow_tests_every_supported_python() -> None:
    """The lowest version of ``requires-python`` is the first of the matrix and that of the minimum job."""
    versions = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    minimum = [
        s["with"]["python-version"] for s in WORKFLOW["jobs"]["minimum"]["steps"] if "python" in s.get("uses", "")
    ]

    assert versions[0] == lowest
    assert minimum == [lowest]
    assert {f"Programming Language :: Python :: {version}" for version in versions} <= set(PROJECT["classifiers"])


def test_the_workflow_may_only_read() -> None:
    """The token of the workflow cannot write, and no pull request runs with the repository's secrets."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in WORKFLOW[True]  # YAML reads the key "on" as true


def test_the_hooks_call_tools_of_the_environment() -> None:
    """A commit is checked with the versions that ``make check`` uses, so hooks download nothing."""
    hooks = [hook for repo in HOOKS["repos"] for hook in repo["hooks"]]
    programs = {shlex.split(hook["entry"])[0] for hook in hooks}

    assert {repo["repo"] for repo in HOOKS["repos"]} == {"local"}
    assert {hook["id"] for hook in hooks} >= {"ruff", "ruff-format", "mypy"}
    assert all(program == "make" or program.startswith(".venv/bin/") for program in programs)
