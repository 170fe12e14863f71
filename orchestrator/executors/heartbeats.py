"""Signs of life of busy workers, asked for one question at a time and never waited for."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from wmarena.orchestrator.executors.base import Vitals

Promise = TypeVar("Promise")


@dataclass
class _Heartbeat:
    """What is known of one worker.

    Attributes:
        asked: when the open question was put.
        promise: the open question; None: it has been answered.
        heard: when it last answered; None: never.
        still_s: seconds without progress, as of then.
    """

    asked: float
    promise: object | None = None
    heard: float | None = None
    still_s: float = 0.0


class Heartbeats(Generic[Promise]):
    """Asks busy workers for signs of life, one question at a time, and never waits for an answer.

    Silence counts from an unanswered question on, so a driver that was suspended itself suspects nobody. Who is asked
    has said hello before: a worker that is still starting gets no task.

    Args:
        every_s: seconds from one question to the next.
        ask: puts a question to a worker.
        answers: of open questions those that were answered, with the seconds since the task's last progress; a worker
            that died answers with None.
        clock: seconds.
    """

    def __init__(
        self,
        every_s: float,
        ask: Callable[[str], Promise],
        answers: Callable[[Collection[Promise]], Mapping[Promise, float | None]],
        clock: Callable[[], float],
    ) -> None:
        self._every_s = every_s
        self._ask = ask
        self._answers = answers
        self._clock = clock
        self._pulses: dict[str, _Heartbeat] = {}

    def vitals(self, busy: Collection[str]) -> dict[str, Vitals]:
        """Vitals of the workers under way; all others are forgotten."""
        self._pulses = {worker: pulse for worker, pulse in self._pulses.items() if worker in busy}
        self._listen()
        now = self._clock()
        for worker in busy:
            pulse = self._pulses.setdefault(worker, _Heartbeat(now - self._every_s))
            if pulse.promise is None and now - pulse.asked >= self._every_s:
                pulse.asked, pulse.promise = now, self._ask(worker)
        return {worker: self._judge(pulse, now) for worker, pulse in self._pulses.items()}

    def _listen(self) -> None:
        open_questions = {p.promise: p for p in self._pulses.values() if p.promise is not None}
        if not open_questions:
            return
        answered = self._answers(list(open_questions))  # type: ignore[arg-type]
        now = self._clock()
        for promise, still_s in answered.items():
            pulse = open_questions[promise]
            pulse.promise, pulse.heard = None, now
            pulse.still_s = still_s or 0.0

    def _judge(self, pulse: _Heartbeat, now: float) -> Vitals:
        silent_s = 0.0 if pulse.promise is None else now - pulse.asked
        still_s = 0.0 if pulse.heard is None else pulse.still_s + now - pulse.heard
        return Vitals(silent_s, still_s)
