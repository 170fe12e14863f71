"""The files of an execution's report that a tracker gets."""

from pathlib import Path

from wmarena.orchestrator.plan.identity import digest, file_digest
from wmarena.orchestrator.plan.plan_file import PLAN_FILE

STUDY_FILES = ("report.html", "report.md", "study.yaml", "trials.parquet", "trials.csv", "figures")
"""Files of a report folder that belong to a study."""
_FILES = tuple(dict.fromkeys((PLAN_FILE, "results.parquet", "results.csv", *STUDY_FILES)))
"""Files of a report folder that the tracker gets."""


def report_of(folder: Path) -> tuple[list[Path], str]:
    """Return (existing files and folders of a report, digest of their content)."""
    present = [folder / name for name in _FILES if (folder / name).exists()]
    files = sorted(f for p in present for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    return present, digest("report", [[str(f.relative_to(folder)), file_digest(f)] for f in files])


def figures_of(folder: Path) -> list[str]:
    """Return a report's PNG images as paths among the tracker's artifacts."""
    return [f"figures/{path.name}" for path in sorted((folder / "figures").glob("*.png"))]
