"""Several processes that do one piece of work: the first one writes and speaks, all fail together.

Every process draws the whole batch and computes its part of it (:class:`rsdmri.tensors.PartGenerator`), so that what is learned does not
depend on how many they are. Networks are replicas whose gradients are averaged by DistributedDataParallel; they and their optimisers stay
equal, and a checkpoint of the first process is that of all. Or they are split between the processes (rsdmri.sharding).

With one process there is no group, and everything here does nothing.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .config import differences
from .denoiser import Denoiser
from .errors import Elsewhere, UserError
from .launch import Place
from .sharding import split

T = TypeVar("T")

MEETING = timedelta(minutes=10)  # for each other, at the start and in a step: who is gone does not hold up a job for long
WAITING = timedelta(days=2)  # for the first process while it evaluates or writes: no collective of the GPUs is open meanwhile
#: How collectives say that another process is gone, or does not come.
GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
    "ncclRemoteError",
    "Timed out waiting",
)


_place: Place | None = None
_control: Any = None  # a group on CPUs for words and waiting, apart from that of the gradients


@contextmanager
def joined(place: Place) -> Iterator[None]:
    """Within the block this process is one of ``place.size``. Only the first one is heard, but for errors that are another's own."""
    global _place, _control
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun keeps the store, where processes meet, itself.
    where = "env://" if "TORCHELASTIC_RUN_ID" in os.environ else f"tcp://{place.address}:{place.port}"
    try:
        dist.init_process_group(backend, init_method=where, rank=place.rank, world_size=place.size, timeout=MEETING)
        control = dist.new_group(backend="gloo", timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        lost = f"process {place.rank} of {place.size} cannot reach the others at {place.address}:{place.port} ({error})"
        raise UserError(f"{lost}. Were all started?") from None
    _place, _control = place, control
    try:
        with ExitStack() as quiet:
            if not place.first:
                nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield
        dist.barrier(group=_control)  # nobody leaves while another still listens
        dist.destroy_process_group()  # after an error it could wait for others for ever: then the end of the process closes everything
    except RuntimeError as error:
        if not any(sign in str(error) for sign in GONE):
            raise
        message = f"another of {place.size} processes has ended, or does not answer ({str(error).splitlines()[0]}). What was saved is kept."
        raise UserError(message) from None
    finally:
        _place, _control = None, None


def size() -> int:
    """How many processes there are."""
    return _place.size if _place else 1


def rank() -> int:
    """Which of them this is."""
    return _place.rank if _place else 0


def local_rank() -> int | None:
    """Which of those of its machine this is; None if it is alone."""
    return _place.local if _place else None


def first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def told(value: T) -> list[T]:
    """What every process says, in their order; any small object."""
    if _place is None:
        return [value]
    found: list[Any] = [None] * _place.size
    dist.all_gather_object(found, value, group=_control)
    return found


def gathered(value: T) -> list[T]:
    """The same for the first process alone, of large objects; an empty list for the others."""
    if _place is None:
        return [value]
    found: list[Any] | None = [None] * _place.size if first() else None
    dist.gather_object(value, found, dst=0, group=_control)
    return found or []


def together(action: Callable[[], T]) -> T:
    """What ``action``, which every process runs, gives this one. If it fails in one, it fails in all, and the first of these says why."""
    value, error = _tried(action)
    _raise_together(error)
    return value  # type: ignore[return-value]


def by_first(action: Callable[[], T]) -> T:
    """What ``action`` gives the first process, which alone runs it while the others wait; it is told to all, and so is its failure."""
    value, error = _tried(action) if first() else (None, None)
    _raise_together(error)
    if _place is not None:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=_control)
        value = box[0]
    return value  # type: ignore[return-value]


def alike(what: str, values: Callable[[], Mapping[str, Any]]) -> None:
    """A :class:`UserError`, in all processes, if what ``values`` gives, which may be nested, differs: they would train different things.

    A process that is alone does not ask.
    """
    if _place is None:
        return
    said = told(together(values))
    others = [number for number, other in enumerate(said) if other != said[0]]
    if others:
        found = "; ".join(f"{'.'.join(names)}: {mine}, not {its}" for names, mine, its in differences(said[others[0]], said[0]))
        message = f"the {what} of process {others[0]} are not those of process 0 ({found})"
        _raise_together(UserError(f"{message}. All processes need the same command and the same files."))


def apart(device: torch.device) -> None:
    """A :class:`UserError`, in all processes, if two train on one GPU, or some on GPUs and some not: they would wait for each other."""
    if _place is None:
        return
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    _raise_together(doubled(told((platform.node(), gpu))))


def doubled(places: Sequence[tuple[str, str]]) -> UserError | None:
    """What is wrong with machines and GPUs, one a process (empty for a CPU)."""
    for number, place in enumerate(places):
        if bool(place[1]) != bool(places[0][1]):
            there = [
                f"process {n} on {node} has {'a GPU' if gpu else 'none'}" for n, (node, gpu) in ((0, places[0]), (number, place))
            ]
            return UserError(f"{', '.join(there)}: look at the drivers there, or train on CPUs alone with --device cpu")
        if place[1] and place in places[:number]:
            both = f"processes {places.index(place)} and {number} have the same GPU of {place[0]}"
            return UserError(f"{both}: start at most one process a GPU, and let the scheduler give each its own")
    return None


def mean(values: Tensor) -> Tensor:
    """The mean over all processes of values that each has for its part of a batch."""
    if _place is None:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / _place.size


def _tried(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    if _place is None:
        return action(), None
    try:
        return action(), None
    except Exception as error:  # raised again when the others know
        return None, error


def _raise_together(error: BaseException | None) -> None:
    if _place is None:
        return
    failed = [number for number, sad in enumerate(told(error is not None)) if sad]
    if failed and error is not None and failed[0] == rank():
        raise error
    if failed:
        raise Elsewhere(f"process {rank()}: process {failed[0]} has failed")


class Replica:
    """A denoiser that every process trains a part of the batch with.

    The wrapper of DistributedDataParallel is called only where the network is trained: where another one's loss passes through it, frozen,
    the network itself is. State dicts keep their names. A ``sharded`` network has no wrapper, and its weights become others: optimisers
    are made afterwards.
    """

    def __init__(self, denoiser: Denoiser, sharded: bool = False) -> None:
        self.denoiser = denoiser
        self.wrapper: DistributedDataParallel | None = None
        self.shards: Any = None
        if _place is not None and sharded:
            self.shards = split(denoiser.network, _place.size)
        elif _place is not None:
            device = next(denoiser.parameters()).device
            ids = [device.index] if device.type == "cuda" else None
            self.wrapper = DistributedDataParallel(denoiser.network, device_ids=ids, gradient_as_bucket_view=True)

    @contextmanager
    def training(self, last: bool) -> Iterator[None]:
        """Forward and backward passes of one part of this process's batch; at the end of the ``last`` one gradients are averaged over all
        processes."""
        if self.shards is not None:
            self.shards.set_requires_gradient_sync(last)
        if self.wrapper is None:
            yield
            return
        self.denoiser.called = self.wrapper.__call__  # bound, so that it does not become a part of the denoiser
        try:
            with nullcontext() if last else self.wrapper.no_sync():
                yield
        finally:
            self.denoiser.called = None
