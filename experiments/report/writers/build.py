"""Writing a report: the page, the same as Markdown, figures, tables, the spec."""

from pathlib import Path

from wmarena.experiments.report.charts.drawings import write_drawings
from wmarena.experiments.report.page import ReportPage
from wmarena.experiments.report.writers.html import html_page
from wmarena.experiments.report.writers.markdown import markdown_page
from wmarena.experiments.report.writers.tables import write_tables
from wmarena.orchestrator.files.atomic import write_whole


def write_report(folder: Path, page: ReportPage) -> Path:
    """Write ``report.html``, ``report.md``, ``spec.yaml``, ``figures/`` and ``tables/``; return the page's path.

    Args:
        folder: created if missing; files in it are replaced one by one, each atomically.
        page: content of the report (``wmarena.experiments.report.page.make_page``).
    """
    # Loading matplotlib takes longer than planning a run, and commands that draw nothing do not need it.
    from wmarena.experiments.report.charts.figures import write_figures

    write_figures(page, folder / "figures")
    write_drawings(page, folder / "figures")
    write_tables(page, folder / "tables")
    write_whole(folder / "spec.yaml", page.spec_text.encode())
    write_whole(folder / "report.md", markdown_page(page).encode())
    target = folder / "report.html"
    write_whole(target, html_page(page).encode())
    return target
