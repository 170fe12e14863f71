"""Ctrl-C and SIGTERM: the first asks the run to stop in order, the second stops it at once."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Stop:
    """Whether a run has been asked to stop."""

    asked = False

    @contextmanager
    def listening(self, announce: Callable[[], None], patience_s: float) -> Iterator[None]:
        """While inside, the first signal sets ``asked`` and calls ``announce``; further ones are KeyboardInterrupt.

        Only the main thread can hear signals, and SIGINT stays ignored where it is (a job in the background).
        """

        def hear(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            announce()
            logger.warning(
                "stopping: tasks under way go on to their end or next checkpoint, at most %g s on Ray; "
                "once more stops at once",
                patience_s,
            )

        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        with _handling(dict.fromkeys(numbers, hear)):
            yield


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM is KeyboardInterrupt like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling({signal.SIGTERM: interrupt}):
        yield


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def _handling(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Sets handlers, and those of before again; does nothing in other threads than the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
