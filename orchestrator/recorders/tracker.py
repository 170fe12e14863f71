"""The small face of a tracker: what a mirror needs of MLflow, in our own words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from wmarena.orchestrator.recorders.fields import DataSetInput, MetricPoint, TrackerEntry

Ending = Literal["done", "failed", "killed"]


class TrackerError(Exception):
    """The tracker refused something, or cannot be reached; the message is for people and holds no password.

    Attributes:
        unreachable: True if whatever is tried next would fail as well.
    """

    def __init__(self, message: str, *, unreachable: bool) -> None:
        self.unreachable = unreachable
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """An entry as the tracker knows it: the id of its run and of the model that it made or judged, if any."""

    run: str
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """Where a model's file is; ``fetch`` brings it to this machine, None if it is damaged or gone."""

    uri: str
    fetch: Callable[[], Path | None]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """An entry with all that is sent along.

    Attributes:
        parent: the tracker's id of the execution.
        note: Markdown.
        points: training curves.
        consumes: the tracker's id of the model that the entry starts from, or None.
        model: the tracker's id of the entry's own model if another entry has introduced it, or None.
        weights: the entry's own model, or None where it made none or it is gone.
    """

    entry: TrackerEntry
    parent: str
    note: str = ""
    points: Sequence[MetricPoint] = ()
    consumes: str | None = None
    model: str | None = None
    weights: ModelFile | None = None


@dataclass(frozen=True, kw_only=True)
class ParentRun:
    """One run of a plan, as the parent of its entries; ``tags`` include the one that it is found by."""

    run_id: str
    started_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ParentRunResults:
    """What is known of an execution once it is over.

    Attributes:
        params: what was asked; known only now, for a plan may grow.
        data: what its tasks computed on.
        figures: images that are or will be beside it, as paths among its files; the note is shown with them.
    """

    ending: Ending
    ended_ms: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    note: str
    params: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[DataSetInput] = ()
    figures: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class StudyEntry:
    """A run that stands for no task: a study, or a trial of one. It is found by all its tags together."""

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
    """Every method raises ``TrackerError``, and nothing else, when the tracker refuses or is away."""

    @property
    def address(self) -> str:
        """Where it is, for people: no password."""
        ...

    @property
    def clients(self) -> int:
        """How many entries may be sent at once."""
        ...

    def open(self, experiment: str) -> tuple[str, str]:
        """Find or create an experiment. Returns its id, and a name of the place that no other place ever has."""
        ...

    def find_execution(self, run_id: str) -> str | None:
        """The id of an execution that was started before, or None."""
        ...

    def start_execution(self, execution: ParentRun) -> str:
        """Begin an execution; returns its id."""
        ...

    def close_execution(self, parent: str, closing: ParentRunResults) -> None:
        """End an execution; may be repeated."""
        ...

    def find(self, entry: TrackerEntry, parent: str) -> TrackedRun | None:
        """The entry if it was written whole before; what was left half-written is removed."""
        ...

    def send(self, delivery: Delivery) -> TrackedRun:
        """Write an entry whole."""
        ...

    def find_page(self, page: StudyEntry) -> str | None:
        """The id of a page that was written whole before; what was left half-written is removed."""
        ...

    def write_page(self, page: StudyEntry, parent: str | None) -> str:
        """Write a page whole, below ``parent`` if there is one; returns its id."""
        ...

    def add_metrics(self, run: str, metrics: Mapping[str, float]) -> None:
        """More numbers on a run that is there."""
        ...

    def write_text(self, parent: str, name: str, text: str) -> None:
        """Put a text file beside an execution."""
        ...

    def write_file(self, parent: str, path: Path) -> None:
        """Put a file, or a folder with its files, beside an execution."""
        ...
