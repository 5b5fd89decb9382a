"""Many files, several processes: what fails is named at the end, what is done is skipped, what works goes on."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

from .errors import UsageError, UserError
from .progress import Progress

Result: TypeAlias = tuple[Path, str, str | None]  # the file, a note, an error

#: One thread a worker: the workers themselves fill the cores. Read by the libraries when a worker imports them.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}


def shard(files: Sequence[Path], text: str) -> list[Path]:
    """The part ``i/n`` of the files: every n-th from the i-th, counted from 0."""
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--shard {text}: expected i/n, such as 0/8") from None
    if not 0 <= number < count:
        raise UsageError(f"--shard {text}: i must lie in 0 .. n - 1")
    return list(files[number::count])


def run_files(function: Callable[[Path], str], files: Sequence[Path], *, workers: int, stage: str) -> None:
    """Calls ``function`` (picklable) on every file; raises a :class:`UserError` at the end that lists the files that failed.

    ``function`` returns a short note for the progress line. ``workers`` 0: one a core.
    """
    failures: dict[Path, str] = {}
    workers = min(workers or os.cpu_count() or 1, len(files))
    with Progress(stage, len(files), "files") as progress:
        results = _in_process(function, files) if workers <= 1 else _in_pool(function, files, workers)
        for done, (file, note, error) in enumerate(results, 1):
            if error is not None:
                failures[file] = error
            progress.update(done, note)
    if failures:
        listed = "\n".join(failures.values())
        raise UserError(f"{len(failures)} of {len(files)} files failed; the others are done:\n{listed}")


def _attempt(function: Callable[[Path], str], file: Path) -> Result:
    """One file; an error a user can mend becomes its text, any other goes on as it is."""
    try:
        return file, function(file), None
    except UserError as error:
        return file, "", str(error)


def _in_process(function: Callable[[Path], str], files: Sequence[Path]) -> Iterator[Result]:
    for file in files:
        yield _attempt(function, file)


def _in_pool(function: Callable[[Path], str], files: Sequence[Path], workers: int) -> Iterator[Result]:
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        # spawn: a forked HDF5 or OpenMP is a broken one.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(_attempt, function, file): file for file in files}
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    file = futures[future]
                    yield file, "", f"{file}: a worker died (out of memory?). Try again with --workers 1."
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
