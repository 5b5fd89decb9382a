"""One progress line a stage: a redrawn line on a terminal, a plain line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TextIO, TypeVar

T = TypeVar("T")

LOG_SECONDS = 15.0  # between two lines in a log file: dense enough to watch, sparse enough to read
REDRAW_SECONDS = 0.2


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``, ``4000`` -> ``1:06:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """The progress of one stage, counted in any unit; says how much is done, how fast, and the time left.

    ``start`` is what an earlier run had already done: it counts as done, not as speed.
    """

    def __init__(self, stage: str, total: int, unit: str = "", start: int = 0, stream: TextIO | None = None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.start = self.done = start
        self.note = ""
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self._show()
        return self

    def update(self, done: int, note: str = "") -> None:
        """Sets how much is done and a short note (a loss, a file name)."""
        self.done, self.note = done, note
        if time.monotonic() - self.shown >= (REDRAW_SECONDS if self.live else LOG_SECONDS):
            self._show()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._show()
        if self.live:
            self.stream.write("\n")
        self.stream.flush()

    def _show(self) -> None:
        self.shown = time.monotonic()
        elapsed = self.shown - self.began
        rate = (self.done - self.start) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.stage:<10}", f"{self.done}/{self.total} {self.unit}".strip()]
        if self.done >= self.total:
            parts.append(f"in {clock(elapsed)}")
        elif rate > 0:
            parts.append(f"{clock((self.total - self.done) / rate)} left")
        if rate > 0:
            parts.append(f"{rate:.3g}/s")
        line = "  ".join([*parts, self.note])[:79].rstrip()
        self.stream.write(f"\r{line:<79}" if self.live else f"{line}\n")
        self.stream.flush()


def track(items: Iterable[T], stage: str, total: int, unit: str = "") -> Iterator[T]:
    """Iterates over ``items`` and shows how far it is."""
    with Progress(stage, total, unit) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress.update(done)
