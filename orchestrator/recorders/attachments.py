"""The report of an execution as files that a tracker gets."""

from pathlib import Path

from wmarena.orchestrator.plan.identity import digest, file_digest
from wmarena.orchestrator.plan.plan_file import PLAN_FILE

STUDY_FILES = ("report.html", "report.md", "study.yaml", "trials.parquet", "trials.csv", "figures")
"""What of a report folder belongs to a study as a whole."""
_FILES = tuple(dict.fromkeys((PLAN_FILE, "results.parquet", "results.csv", *STUDY_FILES)))
"""What of a report folder goes to the tracker, and nothing else."""


def report_of(folder: Path) -> tuple[list[Path], str]:
    """(what there is of a report, a digest of its content)."""
    present = [folder / name for name in _FILES if (folder / name).exists()]
    files = sorted(f for p in present for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    return present, digest("report", [[str(f.relative_to(folder)), file_digest(f)] for f in files])


def figures_of(folder: Path) -> list[str]:
    """Its images that every browser shows inline, as paths among the tracker's artifacts."""
    return [f"figures/{path.name}" for path in sorted((folder / "figures").glob("*.png"))]
