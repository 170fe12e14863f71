"""Every command, spec, snippet, name and link of the README is valid."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.documents.markdown import blocks, commands
from wmarena.attacks import ATTACKS
from wmarena.experiments.cli import make_parser
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.workloads import WORKLOADS
from wmarena.schemes import SCHEMES

TREE = Path(__file__).resolve().parents[1]
README = (TREE / "README.md").read_text(encoding="utf-8")
DOCUMENTS = (
    *("README.md", "SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("docs/reproduction.md", "docs/cluster.md", "docs/stores.md"),
)


@pytest.mark.parametrize("command", commands(README, "wmarena"))
def test_every_command_of_the_readme_is_understood(command: str) -> None:
    """The parser of the command line takes each line as it stands."""
    parsed = make_parser().parse_args(shlex.split(command)[1:])

    assert parsed.command == shlex.split(command)[1]


@pytest.mark.parametrize("command", commands(README, "make"))
def test_every_make_target_of_the_readme_exists(command: str) -> None:
    """Make knows the target; nothing is run."""
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=TREE, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks(README, "yaml"))
def test_every_spec_of_the_readme_is_valid(text: str) -> None:
    """A reader may copy it into a file and run it."""
    assert (StudySpec if "\nsearch:" in text else ExperimentSpec).parse(text).name


def test_the_snippets_import_what_exists() -> None:
    """The Python example's imports work; what it calls has the arguments that it gives."""
    (snippet,) = blocks(README, "python")
    compile(snippet, "README.md", "exec")

    names: dict[str, object] = {}
    exec("\n".join(line for line in snippet.splitlines() if line.startswith("from ")), names)
    assert {"ExperimentSpec", "run"} <= set(names)


@pytest.mark.parametrize("name", [*SCHEMES, *(a for a in ATTACKS if a not in ("none", "chain")), *WORKLOADS])
def test_the_catalogue_names_every_plugin(name: str) -> None:
    """What is built in stands in the README's catalogue."""
    assert f"`{name}`" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_have_targets(document: str) -> None:
    """Relative links of the documents name files of the repository."""
    text = (TREE / document).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]

    assert [t for t in targets if not (TREE / document).parent.joinpath(t).exists()] == []


def quoted(program: str) -> list[str]:
    """Commands in backticks that call ``program``, of all documents with figures."""
    found: set[str] = set()
    for document in ("README.md", "docs/reproduction.md", "docs/stores.md"):
        found |= set(re.findall(rf"`({program} [^`…]+)`", (TREE / document).read_text(encoding="utf-8")))
    return sorted(found)


@pytest.mark.parametrize("command", quoted("wmarena run"))
def test_every_figure_names_a_run_that_exists(command: str) -> None:
    """The spec is shipped and takes the overrides."""
    parsed = make_parser().parse_args(shlex.split(command)[1:])

    assert ExperimentSpec.load(parsed.spec, overrides=parsed.overrides).name == parsed.spec


@pytest.mark.parametrize("command", quoted("python -m"))
def test_every_benchmark_that_a_document_names_exists(command: str) -> None:
    """The module can be found; nothing is run."""
    assert importlib.util.find_spec(shlex.split(command)[2]) is not None


@pytest.mark.parametrize("document", ["SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_paths_in_the_documents_exist(document: str) -> None:
    """A module that a document speaks of is there."""
    text = (TREE / document).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:schemes|attacks|orchestrator|experiments|tests|benchmarks)/[\w/.]+)`", text))

    assert paths
    assert sorted(p for p in paths if "NAME" not in p and not (TREE / p).exists()) == []
