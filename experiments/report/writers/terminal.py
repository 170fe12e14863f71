"""Terminal output of the summary at the end of a run."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from wmarena.experiments.report.labels import Labels
from wmarena.experiments.report.sections.fidelity import TensorStore, paired_fidelity
from wmarena.experiments.report.sections.overview import SchemeSummary, summaries, verdict_sentences
from wmarena.experiments.report.sentences import SUMMARY_HEAD, summary_cells
from wmarena.experiments.results.rows import ResultRow


def summary_lines(rows: Sequence[ResultRow]) -> list[str]:
    """Describe the table in sentences: survival, controls, missing rows."""
    return verdict_sentences(_found(rows, None))


def summary_table(rows: Sequence[ResultRow], store: TensorStore | None = None) -> Table:
    """Build a table with one line per scheme and workload; names are not parsed as markup."""
    found = _found(rows, store)
    workloads = list(dict.fromkeys(s.victim.workload for s in found))
    table = Table(
        box=box.SIMPLE_HEAD, title=Text(", ".join(workloads)) if len(workloads) == 1 else None, title_justify="left"
    )
    heads = SUMMARY_HEAD if len(workloads) == 1 else ("Workload", *SUMMARY_HEAD)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 or head in ("Scheme", "Worst attack") else "right")
    for summary in found:
        cells = summary_cells(summary)
        shown = cells if len(workloads) == 1 else (summary.victim.workload, *cells)
        table.add_row(*(Text(cell, style="bold red" if summary.victim.ambiguous else "") for cell in shown))
    return table


def _found(rows: Sequence[ResultRow], store: TensorStore | None) -> list[SchemeSummary]:
    return summaries(rows, Labels(rows), paired_fidelity(rows, store))
