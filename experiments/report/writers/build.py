"""A report as files: the page, its Markdown twin, figures, tables, the spec. Built from stored evidence alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmarena.experiments.report.charts.drawings import write_drawings
from wmarena.experiments.report.page import make_page
from wmarena.experiments.report.sections.fidelity import TensorStore
from wmarena.experiments.report.writers.html import html_page
from wmarena.experiments.report.writers.markdown import markdown_page
from wmarena.experiments.report.writers.tables import write_tables
from wmarena.experiments.results.calibration import Calibration
from wmarena.experiments.results.rows import ResultRow
from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import TaskId


def write_report(
    folder: Path,
    *,
    rows: Sequence[ResultRow],
    plan: Plan,
    records: Mapping[TaskId, Record],
    spec_text: str,
    run_info: Mapping[str, Any],
    store: TensorStore | None,
    calibrations: Sequence[Calibration] = (),
) -> Path:
    """Write ``report.html``, ``report.md``, ``spec.yaml``, ``figures/`` and ``tables/``; returns the page's path.

    Args:
        folder: where to; created if missing, files in it are replaced one by one, each whole.
        rows: the results table (``wmarena.experiments.results.table.build_rows``).
        plan, records: what was planned and what became of it: seconds, failures, environments.
        spec_text: the spec as it was given.
        run_info: the journal's row of the execution; every plain value in it or in its ``info`` is shown, and
            ``description`` stands under the title.
        store: where predictions and training curves are read from; None leaves out what needs them.
        calibrations: how keys that nobody embedded behave (``wmarena.experiments.results.table.calibrated``).
    """
    # Loading matplotlib takes longer than planning a run: commands that draw nothing do not pay for it.
    from wmarena.experiments.report.charts.figures import write_figures

    page = make_page(rows, plan, records, spec_text, run_info, store, calibrations)
    write_figures(page, folder / "figures")
    write_drawings(page, folder / "figures")
    write_tables(page, folder / "tables")
    write_whole(folder / "spec.yaml", spec_text.encode())
    write_whole(folder / "report.md", markdown_page(page).encode())
    target = folder / "report.html"
    write_whole(target, html_page(page).encode())
    return target
