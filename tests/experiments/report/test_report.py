"""The report as files: complete, self-contained, escaped; missing results are marked."""

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tests.experiments.evidence_factory import Bench, PredictionStore, showcase, verdict
from tests.experiments.gallery import FilledStore, calibrated, gallery
from wmarena.experiments.report.page import ReportPage, make_page
from wmarena.experiments.report.sections.curves import curve_panel
from wmarena.experiments.report.writers.build import write_report
from wmarena.experiments.report.writers.html import html_page, matrix_cell
from wmarena.experiments.report.writers.markdown import summary_markdown, table
from wmarena.experiments.report.writers.terminal import summary_lines, summary_table
from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.results.table import build_rows

VOID = {"meta", "input", "br", "wbr", "link", "img", "hr"}
FAILURE = "got nan at step 113"
"""What the showcase's failed attack says."""

HOSTILE = "<script>alert('x')</script>\"'|`$\\"


@pytest.fixture(scope="module")
def bench() -> Bench:
    """A whole run of three schemes, one attack failed."""
    return showcase()


def rows_of(bench: Bench, experiment: str = "showcase") -> list[ResultRow]:
    """The bench's table."""
    return build_rows(bench.plan, bench.records, experiment=experiment, run_id="20261121-093000-abc123")


def page_of(bench: Bench, *, experiment: str = "showcase", spec: str = "name: showcase\n", **info: Any) -> ReportPage:
    """Build the bench's report page."""
    return make_page(rows_of(bench, experiment), bench.plan, bench.records, spec, info, PredictionStore(bench))


class Reader(HTMLParser):
    """Checks that tags nest, and collects them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.data: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)

    def attributes(self, name: str) -> list[str]:
        """Every value of an attribute."""
        return [str(attrs[name]) for _, attrs in self.tags if name in attrs]


def all_failed() -> Bench:
    """The one clean training failed, and everything with it."""
    bench = Bench()
    for scheme in ("adi", "uchida"):
        owner = bench.embed(scheme, 0)
        bench.judge(owner, owner, verdict(100))
        bench.judge(owner, bench.clean(0), verdict(9), control="clean")
    bench.fail(next(iter(bench.plan)).id)
    return bench


def no_strengths() -> Bench:
    """One attack without a strength."""
    bench = Bench()
    bench.attacked(bench.embed("adi", 0), "spoil", {}, 0.89, verdict(12))
    return bench


def no_attack() -> Bench:
    """A marked model, nothing else."""
    bench = Bench()
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100))
    return bench


def no_exact_null() -> Bench:
    """A control judged by random keys, whose threshold is the largest statistic there is."""
    bench = Bench()
    owner = bench.embed("dsn", 0, covertness_mean_abs_dev=None)
    inexact = {"p_method": "key_randomisation", "null_q": None, "level": 0.01, "threshold": 1.0}
    bench.judge(owner, bench.clean(0), verdict(10, **inexact), control="clean")
    return bench


def two_workloads() -> Bench:
    """A second workload joins a whole run."""
    bench = showcase((0,), wound=False)
    bench.workload = {"name": "digits_cnn"}
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100))
    return bench


AWKWARD: tuple[Callable[[], Bench], ...] = (
    *(all_failed, no_strengths, no_attack, no_exact_null, two_workloads),
    Bench,  # no rows at all
)
"""Runs that lack sections of a report, or have several workloads."""


# The page


def test_every_file_is_there(bench: Bench, tmp_path: Path) -> None:
    """Page, Markdown, spec, figures and tables lie in one folder, and nothing else."""
    rows = rows_of(bench)
    common = {"plan": bench.plan, "records": bench.records, "run_info": {"description": "Which survives?"}}

    path = write_report(tmp_path, make_page(rows=rows, spec_text="name: x\n", store=PredictionStore(bench), **common))

    assert path == tmp_path / "report.html"
    both = [f"{name}.{kind}" for name in ("curves-fashion_lenet5", "fidelity", "survival-fashion_lenet5")
            for kind in ("png", "svg")]  # fmt: skip
    drawn = [f"{name}.svg" for name in ("controls", "costs-fashion_lenet5", "seconds", "strengths-fashion_lenet5",
                                        "tradeoff-fashion_lenet5")]  # fmt: skip
    tables = ["aumc", "controls", "costs", "curves", "failures", "families", "fidelity", "forgeries", "overwriting",
              "seconds", "summary", "survival"]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(both + drawn)
    assert sorted(p.stem for p in (tmp_path / "tables").iterdir()) == tables
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["report.html", "report.md", "spec.yaml"]
    assert (tmp_path / "figures" / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "figures" / "survival-fashion_lenet5.svg").getroot().tag.endswith("svg")


def test_equal_evidence_gives_equal_files(tmp_path: Path) -> None:
    """Written twice, every file of a report has the same bytes: no dates, no random ids."""
    bench = showcase((0,))
    common = {"rows": rows_of(bench), "plan": bench.plan, "records": bench.records, "run_info": {}, "store": None}
    for name in ("a", "b"):
        write_report(tmp_path / name, make_page(spec_text="", **common))

    first = sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file())

    assert first
    assert [p for p in first if p.read_bytes() != (tmp_path / "b" / p.relative_to(tmp_path / "a")).read_bytes()] == []


def test_the_page_is_self_contained(bench: Bench) -> None:
    """No link, source, style or script leaves the page; its policy forbids what is not inline."""
    text = html_page(page_of(bench))
    page = Reader(text)

    assert {v for name in ("src", "href", "action") for v in page.attributes(name) if not v.startswith("#")} == set()
    assert re.findall(r"url\(|@import|<link|<iframe|<img", text) == []
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    allowed = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in page.attributes("content")


def test_the_page_is_well_formed(bench: Bench) -> None:
    """Every tag is closed where it was opened, ids are unique, every link within the page has its target."""
    page = Reader(html_page(page_of(bench)))

    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {v.removeprefix("#") for v in page.attributes("href")} <= set(ids)


def test_sections_come_in_order(bench: Bench) -> None:
    """The summary is first, how to reproduce it last."""
    text = html_page(page_of(bench))

    order = ["summary", "survival", "curves", "strengths", "costs", "overwriting", "fidelity", "controls", "forgeries"]
    assert re.findall(r'<section id="(\w+)"', text) == [*order, "seconds", "gaps", "caveats", "reproduce"]


def test_hostile_names_are_only_text() -> None:
    """A name, description, error, spec or parameter with markup in it opens no tag, anywhere."""
    bench = Bench(workload={"name": HOSTILE})
    for seed in (0, 1):
        owner = bench.embed(HOSTILE, seed)
        for mode in (HOSTILE, "b"):
            params = {"scheme_params": {"mode": mode}, "strength_name": HOSTILE}
            for strength in (1.0, 2.0):
                attack = {"v": HOSTILE, HOSTILE: strength, "for": mode}
                bench.attacked(owner, HOSTILE, attack, 0.89, verdict(90), strength=strength, **params)
    bench.fail(bench.plan.cells[0].suspect, f"error: {HOSTILE}")
    page = page_of(bench, experiment=HOSTILE, spec=HOSTILE, description=HOSTILE, code_version=HOSTILE)

    reader = Reader(html_page(page))

    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert [name for _, attrs in reader.tags for name in attrs if name.startswith("on")] == []
    assert HOSTILE in "".join(reader.data)


@pytest.mark.parametrize("make", AWKWARD)
def test_awkward_runs_have_a_report(make: Callable[[], Bench], tmp_path: Path) -> None:
    """Whatever a run lacks, its page is well formed, its Markdown and figures are written."""
    bench = make()
    rows = rows_of(bench)
    common = {"plan": bench.plan, "records": bench.records, "run_info": {}, "store": None}

    path = write_report(tmp_path, make_page(rows=rows, spec_text="", **common))

    page = Reader(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert re.search(r"\b(nan|None|inf)\b", " ".join(page.data)) is None
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# ")
    assert "Summary" in "".join(page.data)


def test_a_single_seed_is_reported() -> None:
    """A table of one seed warns that luck cannot be tooltip from skill."""
    assert "One seed only" in html_page(page_of(showcase((0,))))
    assert "One seed only" not in html_page(page_of(showcase((0, 1))))


def test_every_row_is_on_the_page_with_its_task(bench: Bench) -> None:
    """Each number can be traced: the whole task id stands behind the short one."""
    page = Reader(html_page(page_of(bench)))

    assert {row.task_id for row in rows_of(bench)} <= set(page.attributes("title"))


def test_a_matrix_cell_has_its_values_as_text(bench: Bench) -> None:
    """A cell holds mean, range and seeds survived as text; an unplanned pair and a failed one are tooltip apart."""
    page = page_of(bench)
    (line,) = (line for a, line in page.sections[0].matrix.items() if a.attack.name == "spoil")
    _, adi, _ = line

    text = str(matrix_cell(adi))

    assert 'class="removed"' in text
    assert re.search(r"<b>−0\.2\d</b><small>−0\.\d\d…−0\.\d\d</small><small>survived 0/3</small>", text)
    assert "not planned" in str(matrix_cell(None))
    (unattacked,) = (line for a, line in page_of(all_failed()).sections[0].matrix.items() if a.attack.name == "none")
    assert "no result" in str(matrix_cell(unattacked[0]))


def test_a_panel_shows_every_seed_and_both_limits(bench: Bench) -> None:
    """A curve panel is XML with a point per seed and strength, the threshold and the budget."""
    section = page_of(bench).sections[0]
    (attack_label,) = (a for a in section.curves if a.attack.name == "overwrite")

    root = ElementTree.fromstring(str(curve_panel(attack_label, section.comparisons, section.victims)))

    classes = [str(element.get("class")) for element in root.iter()]
    assert sum(c.startswith("mark ") for c in classes) == 3 * 3 * 3
    assert sum(c.startswith("line ") for c in classes) == 3
    assert (classes.count("threshold"), classes.count("budget")) == (1, 1)
    assert root.get("aria-label")


def test_facts_come_from_the_journal(bench: Bench) -> None:
    """Plan, data, environments and every plain value of the run's record are shown; nested ones are not."""
    page = page_of(bench, started=0.0, info={"code_version": "0.1.0+g1234567", "cells": [1, 2]})

    facts = dict(page.facts)

    assert facts["plan"] == bench.plan.digest
    assert facts["started"] == "1970-01-01 00:00:00 UTC"
    assert facts["code version"] == "0.1.0+g1234567"
    assert facts["data of fashion_lenet5"] == "da7a"
    assert "torch 2.11.0" in facts["environments"]
    assert "cells" not in facts


def test_failures_are_reported_with_their_cause(bench: Bench) -> None:
    """The failed attack, its message and the row it cost stand in the report."""
    page = page_of(bench)

    (loss,) = page.failed_tasks

    assert (loss.rows, page.counts["failed"], page.counts["skipped"]) == (1, 1, 1)
    assert "got nan at step 113" in html_page(page)


# The sections that only some runs have


@pytest.fixture(scope="module")
def full() -> Bench:
    """A run with something for every section."""
    return gallery()


@pytest.fixture(scope="module")
def full_page(full: Bench) -> ReportPage:
    """Build its report page."""
    return make_page(rows_of(full), full.plan, full.records, "", {}, FilledStore(full), calibrated())


@pytest.fixture(scope="module")
def full_report(full: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report as files."""
    folder = tmp_path_factory.mktemp("full")
    common = {"plan": full.plan, "records": full.records, "run_info": {}, "spec_text": ""}
    write_report(folder, make_page(rows=rows_of(full), store=FilledStore(full), calibrations=calibrated(), **common))
    return folder


def test_every_finding_has_its_section(full_page: ReportPage) -> None:
    """Overwriting, null models, serial numbers and emblems are shown where there are any, and linked."""
    text = html_page(full_page)

    order = ["summary", "survival", "curves", "strengths", "costs", "overwriting", "fidelity", "controls", "nulls"]
    order += ["stamps", "spelled", "forgeries", "seconds", "gaps", "caveats", "reproduce"]
    assert re.findall(r'<section id="(\w+)"', text) == order
    page = Reader(text)
    assert page.open == []
    assert {v.removeprefix("#") for v in page.attributes("href")} == set(order)
    assert re.search(r"\b(nan|None|inf)\b", " ".join(page.data).replace(FAILURE, "")) is None


def test_pictures_are_in_the_page_itself(full_page: ReportPage) -> None:
    """Emblems are data, with a text beside each; the policy allows such images, and nothing else from anywhere."""
    page = Reader(html_page(full_page))

    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert images
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    (policy,) = (v for v in page.attributes("content") if "default-src" in v)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[^']+'; img-src data:", policy
    )


def test_every_figure_and_table_is_a_file(full_report: Path) -> None:
    """Drawings stand alone as SVG without the page's variables, emblems as PNG, tables as CSV with lines."""
    drawings = {p.stem: p.read_text(encoding="utf-8") for p in (full_report / "figures").glob("*.svg")}
    own = ["controls", "costs", "nulls", "seconds", "stamps", "strengths", "tradeoff", "valley"]

    found = {name: text for name, text in drawings.items() if name.partition("-")[0] in own}

    assert sorted(name.partition("-")[0] for name in found) == own
    for text in found.values():
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text
    assert len(list((full_report / "figures").glob("emblem-*.png"))) == 2
    tables = {p.stem: len(p.read_text(encoding="utf-8").splitlines()) for p in (full_report / "tables").iterdir()}
    assert {"emblems", "false_positives", "overwriting", "stamps", "valley"} <= set(tables)
    assert min(tables.values()) > 1


def test_the_markdown_has_the_same_sections(full_report: Path) -> None:
    """Costs, overwriting, null models, serial numbers and emblems are there for readers without a browser."""
    text = (full_report / "report.md").read_text(encoding="utf-8")

    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)

    assert titles[:6] == ["Summary", "Survival", "What removal costs", "All attacks together", "Who overwrites whom",
                          "Fidelity"]  # fmt: skip
    assert titles[6:10] == ["Controls", "False positives", "Stamps that unlock", "What the weights spell"]
    assert re.search(r"\b(nan|None|inf)\b", text.replace(FAILURE, "")) is None


def test_a_report_does_not_reveal_the_true_serial_number(full: Bench, full_report: Path) -> None:
    """Whichever number is the true one, every file but the table of all rows has the same bytes."""
    rows = rows_of(full)
    for i, row in enumerate(rows):
        accuracies = row.detail("verdict").get("stamp_accuracies")
        if accuracies:
            turned = {**row.detail("verdict"), "stamp_accuracies": accuracies[200:] + accuracies[:200]}
            rows[i] = replace(row, details=json.dumps({"verdict": turned}))
    other = make_page(rows, full.plan, full.records, "", {}, FilledStore(full), calibrated())

    assert html_page(other) == (full_report / "report.html").read_text(encoding="utf-8")


def test_invalid_details_give_no_picture(bench: Bench) -> None:
    """Details that do not decode, or whose shape does not fit, leave the section out instead of breaking the page."""
    broken = [
        *({"decoded": "no base64!"}, {"decoded": "AAAA", "decoded_shape": [9, 9, 3]}, {"decoded_shape": "x"}),
        *({"decoded": "AAAA", "decoded_shape": [-1, -3]}, {"decoded": 5, "decoded_shape": 5}),
    ]
    details = [json.dumps({"verdict": found}) for found in broken]
    rows = [replace(row, details=text) for row, text in zip(rows_of(bench), details, strict=False)]

    page = make_page(rows, bench.plan, bench.records, "", {}, None)

    assert page.decoded_images == ()


# Markdown, tables, terminal


def test_markdown_tables_keep_their_columns() -> None:
    """Pipes, newlines and markup inside cells do not break a table."""
    text = table(["a|b", "c"], [["<x>\ny", "*|*"]])

    assert text == "| a\\|b | c |\n| --- | ---: |\n| &lt;x> y | \\*\\|\\* |"


def test_the_readme_table_is_the_summary(bench: Bench) -> None:
    """One line per scheme, with accuracy, difference, test, attacks survived and controls."""
    text = summary_markdown(rows_of(bench), PredictionStore(bench))

    lines = [line for line in text.splitlines() if line.startswith("| adi")]
    assert len(lines) == 1
    assert "6 of 7" in lines[0]
    assert "spoil: removed on 3 of 3 seeds for 0.3\u202fpp" in lines[0]
    assert "9 of 9 silent" in lines[0]
    assert re.search(r"−0\.15\u202fpp \(p 0\.\d+…0\.\d+\)", lines[0])


def test_tables_hold_numbers(bench: Bench, tmp_path: Path) -> None:
    """The survival table as CSV has one line per cell of the matrix, with plain numbers."""
    common = {"plan": bench.plan, "records": bench.records, "run_info": {}, "store": None}
    write_report(tmp_path, make_page(rows=rows_of(bench), spec_text="", **common))

    with (tmp_path / "tables" / "survival.csv").open(newline="") as f:
        lines = {(line["scheme"], line["attack"]): line for line in csv.DictReader(f)}

    spoiled = lines["adi", "spoil"]
    assert (spoiled["standing"], spoiled["survived"], spoiled["removed"]) == ("removed", "0", "3")
    assert float(spoiled["margin_min"]) <= float(spoiled["margin_mean"]) <= float(spoiled["margin_max"]) < 0
    assert lines["mtlsign", "spoil"]["rows_unfinished"] == "1"
    assert len(lines) == 3 * 8 - 2


def test_the_terminal_shows_names_as_they_are() -> None:
    """Square brackets in names are no markup; ambiguous schemes say so."""
    bench = Bench()
    owner = bench.embed("[bold]adi[/]", 0)
    bench.judge(owner, owner, verdict(100))
    bench.judge(owner, bench.clean(0), verdict(90), control="clean")
    console = Console(file=io.StringIO(), width=200)

    console.print(summary_table(rows_of(bench)))

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]adi[/]" in shown
    assert "ambiguous" in shown
    assert "1 of 1 negative control fired" in " ".join(summary_lines(rows_of(bench)))


def test_rows_need_no_plan_params_for_names(bench: Bench) -> None:
    """Rows read back from JSON give the same page as rows just built."""
    rows = rows_of(bench)
    again = [ResultRow.from_record(json.loads(json.dumps(row.to_record()))) for row in rows]

    assert summary_markdown(again) == summary_markdown(rows)
