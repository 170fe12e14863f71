"""The documentation builds without a warning, is complete, and loads nothing from other hosts."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs._build.commands import subcommands
from docs._build.pages import generated_pages, outward_links
from docs._build.specification import page as spec_page
from tests.documents.markdown import blocks, commands
from wmarena.attacks import ATTACKS
from wmarena.experiments.cli import make_parser
from wmarena.experiments.results.caveats import EXPLANATIONS
from wmarena.experiments.results.table import RESULTS_SCHEMA
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.schema import json_schema
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.plugins import plugin_class
from wmarena.schemes import SCHEMES

TREE = Path(__file__).resolve().parents[2]
PAGES = sorted((TREE / "docs").rglob("*.md"))
TEXTS = {str(path.relative_to(TREE)): path.read_text(encoding="utf-8") for path in PAGES}
TABLES = {"scheme": SCHEMES, "attack": ATTACKS, "workload": WORKLOADS}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=TREE,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The generated pages as Markdown."""
    return generated_pages(TREE)


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """``make docs`` calls mkdocs without ``--quiet``, which hides warnings from ``--strict``."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n[nothing](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: broken\n")
    (recipe,) = re.findall(r"^\t.*\$\(BIN\)/mkdocs (build .*)$", (TREE / "Makefile").read_text(), flags=re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *shlex.split(recipe)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("cluster.md", "[ray_cluster.yaml](../ray_cluster.yaml)", "`ray_cluster.yaml`"),
        ("faq.md", "[keys](../SECURITY.md)", "keys (`SECURITY.md` in the repository)"),
        ("howto/tune.md", "[stores](../stores.md)", "[stores](../stores.md)"),
        ("howto/tune.md", "[code](../../deploy/Containerfile)", "code (`deploy/Containerfile` in the repository)"),
    ],
)
def test_links_out_of_the_site_name_the_file(page: str, link: str, shown: str) -> None:
    """Files of the repository that are no pages have no address in the site."""
    assert outward_links(link, page) == shown


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    """No page names a script, style sheet, font or image of another host."""
    loaded = re.compile(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//[^\s"'>]+""")
    pages = list(site.rglob("*.html"))

    assert len(pages) > 15
    assert [found for page in pages for found in loaded.findall(page.read_text(encoding="utf-8"))] == []


def test_examples_stand_in_their_how_tos(site: Path) -> None:
    """A how-to shows the very file that the tests run."""
    for page, name in (("scheme", "class Signs"), ("attack", "class Clip"), ("workload", "class ClassFolders")):
        words = re.sub(r"<[^>]+>", "", (site / "howto" / f"{page}.html").read_text(encoding="utf-8"))
        assert name in words


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table])
def test_the_catalogue_has_every_plugin(generated: dict[str, str], kind: str, name: str) -> None:
    """Each built-in plugin has a section with each of its fields and its own meaning."""
    text = generated[f"catalogue/{kind}s.md"]
    section = text.partition(f"## {name} {{#{name}}}")[2].partition("\n## ")[0]

    assert section
    for field in plugin_class(kind, name).parameters():
        assert f"| `{field}` |" in section


def test_the_reference_has_every_field_of_a_spec(generated: dict[str, str]) -> None:
    """Fields at the top, of the adversary, of the executor and of the calibration all have a row with a meaning."""
    schema = json_schema()
    blocks_of_fields = [schema, *(schema["$defs"][name] for name in ("adversary", "executor"))]
    blocks_of_fields.append(schema["properties"]["calibration"])
    fields = [name for block in blocks_of_fields for name in block["properties"]]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", generated["reference/spec.md"], flags=re.MULTILINE))

    assert [name for name in fields if not rows.get(name) and name != "name"] == []


def test_the_reference_follows_the_schema() -> None:
    """A field that is added to the schema is in the next build."""
    schema = json_schema()
    schema["properties"]["novelty"] = {"type": "integer", "minimum": 3, "description": "something new"}

    assert "| `novelty` | integer ≥ 3 |  | something new |" in spec_page(schema)


def test_the_reference_has_every_command(generated: dict[str, str]) -> None:
    """Each command and each of its options is described."""
    text = generated["reference/commands.md"]
    for name, command in subcommands(make_parser()):
        assert f"## wmarena {name} " in text
        for option in (o for action in command._actions for o in action.option_strings if o not in ("-h", "--help")):
            assert f"`{option}" in text


@pytest.mark.parametrize(
    ("page", "command"), [(page, c) for page, text in TEXTS.items() for c in commands(text, "wmarena")]
)
def test_every_command_of_the_pages_is_understood(page: str, command: str) -> None:
    """The parser of the command line takes each line as it stands."""
    words = shlex.split(command)[1:]

    assert make_parser().parse_args(words).command in words


@pytest.mark.parametrize("text", [b for text in TEXTS.values() for b in blocks(text, "yaml") if b.startswith("name:")])
def test_every_spec_of_the_pages_is_valid(text: str) -> None:
    """A reader may copy it into a file and run it."""
    assert ExperimentSpec.parse(text).name


def test_the_data_dictionary_has_every_column(generated: dict[str, str]) -> None:
    """Each column of results.parquet stands on the page in its place, with a type and a meaning."""
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \|.*\| (.*) \|$", generated["reference/results.md"], flags=re.MULTILINE)

    assert [name for name, _, _ in lines] == RESULTS_SCHEMA.names
    assert all(kind and meaning for _, kind, meaning in lines)


def test_reserved_columns_are_filled_nowhere(generated: dict[str, str]) -> None:
    """The page calls columns reserved as long as the module that fills rows names none of them."""
    found = re.search(r"from `(\w+)` to `(\w+)` are reserved", generated["reference/results.md"])
    assert found is not None
    names = RESULTS_SCHEMA.names
    reserved = names[names.index(found[1]) : names.index(found[2]) + 1]
    filled = (TREE / "experiments" / "results" / "table.py").read_text(encoding="utf-8")

    assert len(reserved) == 11
    assert [name for name in reserved if f'"{name}"' in filled] == []


def test_caveats_have_an_explanation(generated: dict[str, str]) -> None:
    """The page of columns explains each caveat; the words of the concepts are among them."""
    section = generated["reference/results.md"].partition("{#caveats}")[2]
    explained = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, flags=re.MULTILINE))
    named = re.findall(r"`(\w+)`", TEXTS["docs/concepts.md"].partition("{ #caveats }")[2])

    assert explained == EXPLANATIONS
    assert named
    assert set(named) <= set(EXPLANATIONS)
