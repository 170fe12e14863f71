"""What SECURITY.md promises of the code itself: nothing is unpickled, nothing escapes, servers stay on loopback."""

import ast
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from tests.experiments.evidence_factory import Bench
from tests.experiments.gallery import gallery
from wmarena.experiments.commands.browsing import dashboard_server, mlflow_server
from wmarena.experiments.report.page import make_page
from wmarena.experiments.report.writers.build import write_report
from wmarena.experiments.results.table import build_rows
from wmarena.orchestrator.keys.encryption import Cost, Passphrase
from wmarena.orchestrator.keys.storage import save_key
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.local import Store, safe_name
from wmarena.schemes.keys import Key

TREE = Path(__file__).resolve().parents[1]
PACKAGES = ("src", "schemes", "attacks", "orchestrator", "experiments", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (TREE / package).rglob("*.py"))

UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
UNSAFE_CALLS = {
    *("torch.load", "torch.jit.load", "torch.package", "numpy.load", "np.load", "numpy.fromfile", "pandas.read_pickle"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "eval", "exec", "os.system", "os.popen"),
}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def findings(source: str) -> list[str]:
    """What in a module loads code from data, or runs a shell."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [m for m in modules if m.split(".")[0] in UNPICKLING]
    for call, name in calls(tree):
        allowed = name == "torch.load" and any(
            k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
            for k in call.keywords
        )
        shell = any(k.arg in ("shell", "allow_pickle", "trust_remote_code") for k in call.keywords)
        if (name in UNSAFE_CALLS and not allowed) or shell:
            found.append(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found += [b for b in map(ast.unparse, node.bases) if "Loader" in b and b not in ("yaml.SafeLoader",)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(TREE)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    """No pickle, no ``torch.load`` but with ``weights_only=True``, no YAML loader but the safe one, no ``eval``."""
    assert findings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)"),
        *("np.load(f, allow_pickle=True)", "yaml.load(f, Loader=yaml.Loader)", "subprocess.run(c, shell=True)"),
        "class L(yaml.UnsafeLoader): pass",
    ],
)
def test_the_search_would_find_it(source: str) -> None:
    """Each of these is a finding; the allowed forms are none."""
    assert findings(source)
    assert findings("torch.load(f, weights_only=True)\nmodel.eval()\nclass L(yaml.SafeLoader): pass") == []


# The store


def test_a_stores_secret_part_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask: keys and checkpoints in 0700 folders, every file in them 0600, plain and sealed."""
    before = os.umask(0)
    try:
        store = Store(tmp_path / "store").open()
        key = Key("toy", bytes(32)).with_parts(secret={"head": torch.ones(3)})
        for number, passphrase in enumerate([None, Passphrase(b"eight words", Cost(4, 1, 1))]):
            save_key(key, store.key_dir(TaskId(f"{number:064x}")), passphrase)
    finally:
        os.umask(before)
    folders = [store.root / "checkpoints", store.root / "keys", *filter(Path.is_dir, (store.root / "keys").iterdir())]
    files = [p for p in (store.root / "keys").rglob("*") if p.is_file()]

    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}
    assert len(files) == 7  # three of each key, and the lock of their writers


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "..", ".", "", "a/b", "a\0b", "\u2044", "x" * 300, ".hidden", "..\\x"]
)
def test_names_cannot_leave_the_store(name: str, tmp_path: Path) -> None:
    """Whatever an experiment or a run is called, its report is two levels below ``reports``."""
    store = Store(tmp_path)

    assert store.report_dir(name, name).resolve().parent.parent == (tmp_path / "reports").resolve()
    assert "/" not in safe_name(name)
    assert safe_name(name).strip(".")


# The report


HOSTILE = "<script>alert('x')</script>\"'|`$\\<img src=x onerror=y>"


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(field: str) -> Bench:
    """A run with something for every section, in which one sort of text is markup."""
    bench = gallery((0,))
    if field in ("workload", "scheme", "attack", "metric", "strength_name"):
        bench.plan.cells[:] = [
            replace(c, **{field: f"{getattr(c, field)}{HOSTILE}"}) if getattr(c, field) else c for c in bench.plan.cells
        ]
    if field in ("workload", "scheme", "attack", "label"):
        bench.plan.tasks = {
            i: replace(t, **{field: f"{getattr(t, field)}{HOSTILE}"}) for i, t in bench.plan.tasks.items()
        }
    if field in ("device", "details", "caveats", "reason"):
        bench.records.update({i: replace(r, result=_with_markup(r.result, field)) for i, r in bench.records.items()})
    if field == "error":
        bench.fail(bench.plan.cells[0].suspect, f"error: {HOSTILE}")
    return bench


def _with_markup(result: Mapping[str, Any] | None, field: str) -> Mapping[str, Any] | None:
    if result is None or field == "device":
        return result and {**result, "device": HOSTILE, "environment": {"torch": HOSTILE, HOSTILE: "1"}}
    out = {**result}
    for part in ("verdict", "claim", "facts"):
        if part == "verdict" and part in out:
            more: Any = {"details": {**out[part]["details"], HOSTILE: HOSTILE}, "caveats": [HOSTILE], "reason": HOSTILE}
            out[part] = {**out[part], field: more[field]}
        elif part in out and field == "details":
            out[part] = {**out[part], HOSTILE: HOSTILE}
    return out


FIELDS = ["workload", "scheme", "attack", "metric", "strength_name", "label", "device", "details", "caveats", "reason"]


@pytest.fixture(scope="module")
def innocent(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Tags of the page without markup in any name."""
    page = report_of(gallery((0,)), tmp_path_factory.mktemp("innocent"), "plain")
    return set(Tags(page.read_text(encoding="utf-8")).tags)


def report_of(bench: Bench, folder: Path, text: str) -> Path:
    """The whole report of a run; ``text`` is its name, description and spec."""
    page = make_page(
        rows=build_rows(bench.plan, bench.records, experiment=text, run_id="20261121-093000-abc123"),
        plan=bench.plan,
        records=bench.records,
        spec_text=f"name: {text}\n",
        run_info={"id": text, "experiment": text, "info": {"description": text, "notes": [text], "left_out": [text]}},
        store=None,
    )
    return write_report(folder, page)


@pytest.mark.parametrize("field", [*FIELDS, "error", "spec"])
def test_a_report_escapes_whatever_a_user_gives(field: str, tmp_path: Path, innocent: set[str]) -> None:
    """Markup in any name, text or number's label opens no tag in page, Markdown or drawings; the page loads nothing."""
    bench = gallery((0,)) if field == "spec" else hostile(field)
    path = report_of(bench, tmp_path / "report", HOSTILE if field == "spec" else "plain")
    page = path.read_text(encoding="utf-8")
    found = Tags(page)

    assert found.tags.count("script") == 1
    assert {"onerror", "onclick", "onload"} & found.attributes == set()
    assert "default-src 'none'" in page
    assert set(found.tags) <= innocent
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"^```.*?^```$|`[^`\n]*`", "", markdown, flags=re.DOTALL | re.MULTILINE)
    drawings = list(tmp_path.rglob("*.svg"))
    assert drawings
    for drawing in drawings:
        assert {e.tag.rpartition("}")[2] for e in ElementTree.parse(drawing).iter()} & {"script", "img"} == set()
    outside = [p for p in tmp_path.rglob("*") if (tmp_path / "report") not in (p, *p.parents)]
    assert outside == []


def test_the_hostile_names_were_there(tmp_path: Path) -> None:
    """The test above is not empty: the page shows the name of the scheme as text."""
    page = report_of(hostile("scheme"), tmp_path / "report", "plain").read_text(encoding="utf-8")

    assert "<script>alert('x')</script>" in Tags(page).text


# Servers


def test_every_server_binds_to_loopback() -> None:
    """MLflow, optuna-dashboard and a local Ray are all that we start; all name 127.0.0.1, no module all addresses.

    That Ray heeds it is seen on its sockets, in ``tests/orchestrator/executors/test_local_cluster.py``.
    """
    for server in (mlflow_server("sqlite:///x", 5000), dashboard_server("optuna-dashboard", "x.log", 5001)):
        assert server.command[server.command.index("--host") + 1] == "127.0.0.1"

    starts = {}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text
        for call, name in calls(ast.parse(text)):
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg}
            if name == "ray.init" and keywords.get("address") != "self._address":
                starts[path.name] = keywords
            assert name not in ("socketserver.TCPServer", "HTTPServer", "uvicorn.run", "ray.serve.run")
    assert list(starts) == ["cluster.py"]
    assert starts["cluster.py"]["_node_ip_address"] == "'127.0.0.1'"
    assert starts["cluster.py"]["include_dashboard"] == "False"
