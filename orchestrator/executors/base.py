"""The small face of an executor: idle workers, submit, wait. It runs tasks and decides nothing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from wmarena.orchestrator.plan.task import Failure, Task, TaskId


@dataclass(frozen=True)
class Completion:
    """One attempt has ended.

    Attributes:
        outcome: the task's result, or why there is none.
        seconds: wall seconds on the worker.
        alone: False if the attempt died together with others of the same call (then nobody is to blame yet).
    """

    task_id: TaskId
    worker: str
    outcome: Mapping[str, Any] | Failure
    seconds: float
    alone: bool = True


@dataclass(frozen=True)
class Vitals:
    """Signs of life of a worker under way.

    Attributes:
        silent_s: seconds for which its process has left a question unanswered; 0 if it answers.
        still_s: seconds since its task began, offered a checkpoint or asked whether to stop.
    """

    silent_s: float = 0.0
    still_s: float = 0.0


class NoWorkers(RuntimeError):
    """The resources that the run needs are not there (or no longer): the message says what was found."""


class Executor(ABC):
    """Workers, each doing one call at a time. A context manager: entering starts the workers."""

    name: str

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()  # half a start must not leave workers behind
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    @abstractmethod
    def workers(self) -> Sequence[str]:
        """Names of all workers, those that are still starting included."""

    @abstractmethod
    def start(self) -> None:
        """Check resources, make workers, wait for the first. Raises NoWorkers before anything runs if there is none."""

    @abstractmethod
    def idle(self) -> Sequence[str]:
        """Workers that can take a call now, one with a GPU for itself first: started, not busy, not leaving."""

    @abstractmethod
    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Start one call: several tasks only where each is tiny."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Completion]:
        """Attempts that ended, blocking up to ``timeout`` seconds for the first."""

    def vitals(self) -> Mapping[str, Vitals]:
        """Signs of life of workers under way, without waiting; none of those that cannot hang unnoticed."""
        return {}

    @abstractmethod
    def replace(self, worker: str) -> None:
        """Kill a worker that hangs and start another in its place; nothing is heard of its tasks any more."""

    def announce_stop(self) -> None:
        """The run is about to stop. Called inside a signal handler: set a flag at most."""
        return

    @abstractmethod
    def cancel(self, patience_s: float) -> list[Completion]:
        """Ask everything under way to stop at its next checkpoint; returns what still ended."""

    # Where workers share GPUs, a task may need one for itself; elsewhere nobody is asked.

    @property
    def shares_gpus(self) -> bool:
        """True if several workers use one GPU."""
        return False

    def has_whole_gpu(self, worker: str) -> bool:
        """True if ``worker`` has a GPU for itself where others share one: for tasks that need it, and no others."""
        return False

    def reserve_gpu(self, wanted: bool) -> bool:
        """Have one worker with a GPU for itself, or no longer; those that share the GPU step aside.

        Returns:
            True while there is one, perhaps not started yet; False if there is none, or none can be had.
        """
        return False

    @abstractmethod
    def stop(self) -> None:
        """Let go of all workers."""
