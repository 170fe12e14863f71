"""Interface of trackers: what a mirror needs of MLflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from wmarena.orchestrator.recorders.fields import DataSetInput, MetricPoint, TrackerEntry

Ending = Literal["done", "failed", "killed"]


class TrackerError(Exception):
    """The tracker refused a request or cannot be reached; the message holds no password.

    Attributes:
        unreachable: True if further requests would fail as well.
    """

    def __init__(self, message: str, *, unreachable: bool) -> None:
        self.unreachable = unreachable
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """Tracker ids of an entry: its run, and the model that it made or judged, if any."""

    run: str
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """Location of a model's file; ``fetch`` downloads it, and returns None if it is damaged or missing."""

    uri: str
    fetch: Callable[[], Path | None]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """An entry with the data sent along."""

    entry: TrackerEntry
    parent: str  # the tracker's id of the execution
    note: str = ""  # Markdown
    points: Sequence[MetricPoint] = ()  # training curves
    consumes: str | None = None  # the tracker's id of the model that the entry starts from, or None
    model: str | None = None  # the tracker's id of the entry's own model if another entry has introduced it, or None
    weights: ModelFile | None = None  # the entry's own model, or None if it made none or it is missing


@dataclass(frozen=True, kw_only=True)
class ParentRun:
    """An execution as the parent run of its entries; ``tags`` include the one used to find it."""

    run_id: str
    started_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ParentRunResults:
    """Results of an execution that is over."""

    ending: Ending
    ended_ms: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    note: str
    params: Mapping[str, str] = field(default_factory=dict)  # what was compared; a growing plan knows it at the end
    data: Sequence[DataSetInput] = ()  # data sets of its tasks
    figures: Sequence[str] = ()  # paths of its images among its artifacts; shown below the note


@dataclass(frozen=True, kw_only=True)
class StudyEntry:
    """Run of a study or of one of its trials. It is found by all its tags together."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    points: Sequence[MetricPoint] = ()
    note: str = ""
    ending: Ending
    started_ms: int | None = None
    ended_ms: int | None = None


class Tracker(Protocol):
    """Interface of a tracker; every method raises ``TrackerError`` if the tracker refuses or is unreachable."""

    @property
    def address(self) -> str:
        """Address for messages, without password."""

    @property
    def clients(self) -> int:
        """Number of entries that may be sent concurrently."""

    def open(self, experiment: str) -> tuple[str, str]:
        """Find or create an experiment; return its id, and a unique name of the place."""

    def find_execution(self, run_id: str) -> str | None:
        """Return the id of an execution that was started before, or None."""

    def start_execution(self, execution: ParentRun) -> str:
        """Start an execution; return its id."""

    def close_execution(self, parent: str, closing: ParentRunResults) -> None:
        """End an execution; may be repeated."""

    def find(self, entry: TrackerEntry, parent: str) -> TrackedRun | None:
        """Return the entry if it was written completely before; remove half-written ones."""

    def send(self, delivery: Delivery) -> TrackedRun:
        """Write an entry completely."""

    def find_study_entry(self, entry: StudyEntry) -> str | None:
        """Return the run of a study or trial that was written completely before; remove half-written ones."""

    def write_study_entry(self, entry: StudyEntry, parent: str | None) -> str:
        """Write the run of a study or trial, below ``parent`` if there is one; return its id."""

    def add_metrics(self, run: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to an existing run."""

    def write_text(self, parent: str, name: str, text: str) -> None:
        """Attach a text file to an execution."""

    def write_file(self, parent: str, path: Path) -> None:
        """Attach a file or folder to an execution."""
