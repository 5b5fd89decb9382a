"""Many files, several processes: what fails is named at the end, what is done is skipped, what works goes on."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from traceback import extract_tb
from typing import Any, TypeAlias, TypeVar

from .errors import NotWritable, UsageError, UserError
from .progress import Progress

T = TypeVar("T")
R = TypeVar("R")
Result: TypeAlias = tuple[R | None, str | None]  # what the function returned, None for what was done already; an error

#: One thread a worker: the workers themselves fill the cores. Read by the libraries when a worker imports them.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class FilesFailed(UserError):
    """Some inputs failed; ``errors`` says which and why, ``results`` what the others returned."""

    def __init__(self, errors: Mapping[Any, str], results: Mapping[Any, Any], total: int, unit: str) -> None:
        others = ", the others are done" if len(errors) < total else ""
        super().__init__("\n".join([f"{len(errors)} of {total} {unit} failed{others}:", *errors.values()]))
        self.errors, self.results = errors, results


@dataclass(frozen=True)
class Outcome:
    """What became of one input: a few words for the progress line, and what its user should know at the end."""

    text: str
    warnings: tuple[str, ...] = ()


def short(outcome: Outcome) -> str:
    """The words for the progress line."""
    return outcome.text


def say_warnings(stage: str, outcomes: Mapping[Any, Outcome]) -> None:
    """Everything that the users of these inputs should know, on standard error."""
    for item, outcome in outcomes.items():
        for warning in outcome.warnings:
            print(f"{stage}: {item}: {warning}", file=sys.stderr)


def default_shard(environment: Mapping[str, str]) -> str:
    """``i/n`` of a SLURM job array, in which this is one task; else ``0/1``, everything."""
    try:
        number, first, step, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) if f"SLURM_ARRAY_TASK_{name}" in environment else default
            for name, default in (("ID", None), ("MIN", 0), ("STEP", 1), ("COUNT", None))
        )
    except ValueError:
        return "0/1"
    if number is None or first is None or step is None or count is None:
        return "0/1"
    if (number - first) // step >= count:
        raise UsageError(
            f"the ids of this SLURM array are not evenly spaced (id {number} of {count}, from {first}): give --shard i/n"
        )
    return f"{(number - first) // step}/{count}"


def shard(items: Sequence[T], text: str) -> list[T]:
    """The part ``i/n`` of the items: every n-th from the i-th, counted from 0."""
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--shard {text}: expected i/n, such as 0/8") from None
    if not 0 <= number < count:
        raise UsageError(f"--shard {text}: i must lie in 0 .. n - 1")
    return list(items[number::count])


def run_files(
    function: Callable[[T], R],
    inputs: Sequence[T],
    *,
    workers: int,
    stage: str,
    done: Callable[[T], bool] | None = None,
    unit: str = "files",
    note: Callable[[R], str] = str,
) -> dict[T, R]:
    """Calls ``function`` on every input, a path or a name, and returns what it returns; inputs that are ``done`` already are skipped.

    ``note`` is what the progress line says of a result. A ``function`` that writes does so atomically: then a run that was
    interrupted goes on where it stopped. ``workers`` 0: one a core; with 1 everything happens in this process, else ``function``
    and ``done`` must be picklable. What one input raises does not stop the others; at the end :class:`FilesFailed` lists what
    failed and why. Only a disk that cannot be written ends the run at once.
    """
    failures: dict[T, str] = {}
    results: dict[T, R] = {}
    attempt = partial(_attempt, function, done)
    workers = min(workers or cores(), len(inputs))
    with Progress(stage, len(inputs), unit) as progress:
        finished = 0

        def report(item: T, result: Result[R]) -> None:
            nonlocal finished
            finished += 1
            value, error = result
            if error is not None:
                failures[item] = error
            elif value is not None:
                results[item] = value
            progress.update(finished, f"{len(failures)} failed" if error is not None else "" if value is None else note(value))

        if workers <= 1:
            for item in inputs:
                report(item, attempt(item))
        else:
            _in_pool(attempt, inputs, workers, report)
    if failures:
        raise FilesFailed({item: failures[item] for item in inputs if item in failures}, results, len(inputs), unit)
    return results


def in_order(function: Callable[[T], Iterable[R]], inputs: Sequence[T], workers: int) -> Iterator[Iterable[R]]:
    """What ``function`` gives for every input, in their order; the first error ends it.

    ``workers`` 0: one a core; with 1 everything happens in this process as it is asked for, else ``function`` must be picklable, and at most
    one result more than there are workers waits to be taken.
    """
    workers = min(workers or cores(), len(inputs))
    if workers <= 1:
        yield from map(function, inputs)
        return
    with _processes(workers) as pool:
        waiting: deque[tuple[T, Future[list[R]]]] = deque()
        left = iter(inputs)
        while True:
            waiting.extend((item, pool.submit(_listed, function, item)) for item in islice(left, workers + 1 - len(waiting)))
            if not waiting:
                return
            item, future = waiting.popleft()
            try:
                found = future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"{item}, or one after it: its process was killed (out of memory?). Take fewer workers."
                ) from None
            yield found


def _listed(function: Callable[[T], Iterable[R]], item: T) -> list[R]:
    return list(function(item))


def cores() -> int:
    """The cores that this process may use: of a SLURM task those of the task, not of the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _attempt(function: Callable[[T], R], done: Callable[[T], bool] | None, item: T) -> Result[R]:
    """One input. An error that a user can mend is its text; any other says where it arose."""
    try:
        return (None, None) if done is not None and done(item) else (function(item), None)
    except NotWritable:  # the next output would not find room either
        raise
    except UserError as error:
        return None, str(error)
    except Exception as error:
        frame = extract_tb(error.__traceback__)[-1]
        return (
            None,
            f"{item}: {type(error).__name__}: {error} (unexpected; {os.path.basename(frame.filename)}, line {frame.lineno})",
        )


def _in_pool(
    attempt: Callable[[T], Result[R]], inputs: Sequence[T], workers: int, report: Callable[[T, Result[R]], None]
) -> None:
    """All inputs over processes. A process that is killed takes the whole pool with it: what is left goes on in one at a time,
    so that the input that kills its process is known and is the only one that fails."""
    left = list(inputs)
    while left:
        left = _pool(attempt, left, workers, report)
        if left and workers == 1:  # inputs go through one process in their order: the first that is left killed it
            item = left.pop(0)
            report(item, (None, f"{item}: its process was killed (out of memory?). Free some and run again."))
        workers = 1


def _pool(attempt: Callable[[T], Result[R]], inputs: list[T], workers: int, report: Callable[[T, Result[R]], None]) -> list[T]:
    """One pool; returns the inputs that are left if it broke, in their order."""
    left = dict(enumerate(inputs))
    futures: dict[Future[Result[R]], int] = {}
    with _processes(workers) as pool:
        with suppress(BrokenProcessPool):
            futures.update((pool.submit(attempt, item), number) for number, item in enumerate(inputs))
        for future in as_completed(futures):
            with suppress(BrokenProcessPool):
                result = future.result()
                report(left.pop(futures[future]), result)
    return list(left.values())


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes of one thread each; an error or an interrupt does not wait for what has not begun."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    # spawn: a forked HDF5 or OpenMP is a broken one.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
