"""What an entry is compared with: a verify task consumes a suspect and a key, but not its clean twin.

The journal's table cells of an execution name the twin.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.reader import JournalReader
from wmarena.orchestrator.plan.task import TaskId


@dataclass(frozen=True, kw_only=True)
class ComparisonLink:
    """Tasks that a verify task (a row of the table) or an embed task is compared with."""

    clean: TaskId  # train task of the compute-matched clean twin
    scratch: TaskId | None = None  # train task on the adversary's data alone
    strength_name: str | None = None  # the attack's monotone strength, with its value
    strength: float | None = None

    @property
    def tasks(self) -> list[TaskId]:
        """Tasks whose results the comparison needs."""
        return [self.clean] if self.scratch is None else [self.clean, self.scratch]


_NAMES = tuple(f.name for f in fields(ComparisonLink))


class ComparisonLinks:
    """The links of one execution, read while its plan grows.

    Attributes:
        known: verify or embed task -> its link.
    """

    def __init__(self, journal: JournalReader, run: str) -> None:
        self.known: dict[TaskId, ComparisonLink] = {}
        self._journal = journal
        self._run = run
        self._last = -1

    def refresh(self) -> Mapping[TaskId, ComparisonLink]:
        """Read the cells added since the last call; return ``known``.

        Raises:
            StoreError: the journal was altered.
        """
        for position, cell in self._journal.run_cells(self._run, after=self._last):
            self._last = position
            try:
                self.known[TaskId(cell["embed"])] = ComparisonLink(clean=cell["clean"])
                self.known[TaskId(cell["verify"])] = ComparisonLink(**{name: cell[name] for name in _NAMES})
            except (LookupError, TypeError) as error:
                raise StoreError(
                    f"expected table cells of {self._run} in a valid journal, got one with {type(error).__name__}: "
                    f"{error!s:.80}; move the journal away: finished tasks are found again by their artifacts"
                ) from None
        return self.known
