"""Heartbeats of busy workers: one open request per worker, never waited for."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from wmarena.orchestrator.executors.base import Vitals

Question = TypeVar("Question")


@dataclass
class _Heartbeat:
    """Heartbeat state of one worker."""

    asked_at: float  # time of the last request
    question: object | None = None  # the open request; None: it was answered
    answered_at: float | None = None  # time of the last answer; None: never
    still_s: float = 0.0  # seconds without progress at that time


class Heartbeats(Generic[Question]):
    """Requests heartbeats from busy workers, one at a time per worker, and never waits for an answer.

    Silence is counted from an unanswered request, so a driver that was suspended itself does not suspect its workers.
    Only started workers are asked: one that is still starting gets no task.

    Args:
        every_s: seconds between two requests.
        ask: sends a request to a worker.
        answers: returns the answered requests with the seconds since the task's last progress; None for a dead worker.
        clock: seconds.
    """

    def __init__(
        self,
        every_s: float,
        ask: Callable[[str], Question],
        answers: Callable[[Collection[Question]], Mapping[Question, float | None]],
        clock: Callable[[], float],
    ) -> None:
        self._every_s = every_s
        self._ask = ask
        self._answers = answers
        self._clock = clock
        self._heartbeats: dict[str, _Heartbeat] = {}

    def vitals(self, busy: Collection[str]) -> dict[str, Vitals]:
        """Return the vitals of the busy workers; forget all others."""
        self._heartbeats = {worker: beat for worker, beat in self._heartbeats.items() if worker in busy}
        self._collect()
        now = self._clock()
        for worker in busy:
            beat = self._heartbeats.setdefault(worker, _Heartbeat(now - self._every_s))
            if beat.question is None and now - beat.asked_at >= self._every_s:
                beat.asked_at, beat.question = now, self._ask(worker)
        return {worker: self._vitals_of(beat, now) for worker, beat in self._heartbeats.items()}

    def _collect(self) -> None:
        open_questions = {p.question: p for p in self._heartbeats.values() if p.question is not None}
        if not open_questions:
            return
        answered = self._answers(list(open_questions))  # type: ignore[arg-type]
        now = self._clock()
        for question, still_s in answered.items():
            beat = open_questions[question]
            beat.question, beat.answered_at = None, now
            beat.still_s = still_s or 0.0

    def _vitals_of(self, beat: _Heartbeat, now: float) -> Vitals:
        # Progress is known as of the last answer; the time since then is added.
        silent_s = 0.0 if beat.question is None else now - beat.asked_at
        still_s = 0.0 if beat.answered_at is None else beat.still_s + now - beat.answered_at
        return Vitals(silent_s, still_s)
