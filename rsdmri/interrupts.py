"""Being told to stop: by a scheduler that needs the machine, or before the time of a job is over. What is done is saved first.

SLURM sends SIGTERM when it preempts a job and, with ``#SBATCH --signal=USR1@300``, SIGUSR1 five minutes before its end.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
REPEATED = 5.0  # seconds: srun and torchrun both hand a signal on, and one that comes twice is one


class Interrupted(BaseException):
    """A command was told to stop and did, with what was finished saved: the same command goes on.

    Like KeyboardInterrupt it is no error of the input that was at work.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Request:
    """The name of the signal that came, or empty."""

    signal = ""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block these signals raise :class:`Interrupted` wherever the main thread is, but where :func:`stop_requests` notes them."""

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Interrupted(f"{name} came; what was finished is kept. The same command goes on.")

    with _handled(lambda before: stop):
        yield


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Within the block these signals are noted, and do not end the process; one that comes again later does, as if none had been noted."""
    request, first = Request(), dict[int, float]()

    def noting(before: dict[signal.Signals, Any]) -> Callable[[int, FrameType | None], None]:
        def note(number: int, frame: FrameType | None) -> None:
            came = signal.Signals(number)
            request.signal = came.name
            if time.monotonic() - first.setdefault(number, time.monotonic()) > REPEATED:
                signal.signal(came, before[came])
                signal.raise_signal(came)

        return note

    with _handled(noting):
        yield request


@contextmanager
def _handled(handler: Callable[[dict[signal.Signals, Any]], Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Within the block ``handler``, which is given the handlers before, is told of these signals.

    Other threads than the main one cannot listen to signals: there nothing ever comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    told = handler(before)
    for number in SIGNALS:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
