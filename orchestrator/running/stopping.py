"""Ctrl-C and SIGTERM: the first signal stops the run at the next checkpoints, the second at once."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Stop:
    """Flag that a run has been asked to stop."""

    asked = False

    @contextmanager
    def listening(self, announce: Callable[[], None], patience_s: float) -> Iterator[None]:
        """Set ``asked`` and call ``announce`` at the first signal; raise KeyboardInterrupt at further ones.

        Only the main thread gets signals. SIGINT stays ignored where it is (a background job).
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            announce()
            logger.warning(
                "stopping: running tasks continue to their end or next checkpoint, at most %g s on Ray; "
                "a second signal stops at once",
                patience_s,
            )

        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        with _handling(dict.fromkeys(numbers, handle)):
            yield


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling({signal.SIGTERM: interrupt}):
        yield


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def _handling(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Install signal handlers, then restore the previous ones; do nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
