"""Being told to stop: by a scheduler that needs the machine, or before the time of a job is over. What is done is saved first.

SLURM sends SIGTERM when it preempts a job and, with ``#SBATCH --signal=USR1@300``, SIGUSR1 five minutes before its end.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A run was told to stop and did, with everything saved: the same command goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Request:
    """The name of the signal that came, or empty."""

    signal = ""


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Within the block these signals are noted, and do not end the process; a second one does, as if none had been noted.

    Other threads than the main one cannot listen to signals: there nothing is ever noted.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        came = signal.Signals(number)
        request.signal = came.name
        signal.signal(came, before[came])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
