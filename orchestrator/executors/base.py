"""Interface of executors: idle workers, submit, wait. An executor runs tasks and makes no decisions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from wmarena.orchestrator.plan.task import Failure, Task, TaskId


@dataclass(frozen=True)
class Completion:
    """One attempt has ended.

    Attributes:
        outcome: the task's result or failure.
        seconds: wall seconds on the worker.
        alone: False if the attempt failed together with others of the same call, so that any of them may be the cause.
    """

    task_id: TaskId
    worker: str
    outcome: Mapping[str, Any] | Failure
    seconds: float
    alone: bool = True


@dataclass(frozen=True)
class Vitals:
    """Signs of life of a busy worker.

    Attributes:
        silent_s: seconds for which its process has left a heartbeat request unanswered; 0 if it answers.
        still_s: seconds since its task's last progress: its start, a checkpoint offer or a poll for cancellation.
    """

    silent_s: float = 0.0
    still_s: float = 0.0


class NoWorkers(RuntimeError):
    """The run's resources are missing or lost; the message says what was found."""


class Executor(ABC):
    """Workers, each doing one call at a time. A context manager: entering starts the workers."""

    name: str

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()  # a failed start must not leave workers running
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    @abstractmethod
    def workers(self) -> Sequence[str]:
        """Names of all workers, including those that are starting."""

    @abstractmethod
    def start(self) -> None:
        """Check resources, start workers, wait for the first. Raises NoWorkers if there is none."""

    @abstractmethod
    def idle(self) -> Sequence[str]:
        """Return workers that can take a call now, one with a whole GPU first: started, not busy, not leaving."""

    @abstractmethod
    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Start one call, of several tasks only if each is tiny."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Completion]:
        """Return ended attempts, blocking up to ``timeout`` seconds for the first."""

    def vitals(self) -> Mapping[str, Vitals]:
        """Return signs of life of busy workers without waiting; empty if workers cannot hang unnoticed."""
        return {}

    @abstractmethod
    def replace(self, worker: str) -> None:
        """Kill a hanging worker and start another in its place; its tasks never complete."""

    def announce_stop(self) -> None:
        """Announce that the run will stop. Called inside a signal handler: set a flag at most."""
        return

    @abstractmethod
    def cancel(self, patience_s: float) -> list[Completion]:
        """Ask running tasks to stop at their next checkpoint; return attempts that ended meanwhile."""

    # Where workers share GPUs, a task may need a whole one.

    @property
    def shares_gpus(self) -> bool:
        """True if several workers use one GPU."""
        return False

    def has_whole_gpu(self, worker: str) -> bool:
        """Return whether ``worker`` has a whole GPU where others share one: it gets only tasks that need it."""
        return False

    def reserve_gpu(self, wanted: bool) -> bool:
        """Reserve a whole GPU for one worker, or release it; workers that share the GPU leave.

        Returns:
            True while there is such a worker, perhaps still starting; False if there is none or no GPU can be cleared.
        """
        return False

    @abstractmethod
    def stop(self) -> None:
        """Stop all workers."""
