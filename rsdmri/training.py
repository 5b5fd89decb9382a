"""The training loop: averages of the weights, progress in images, a log, and going on where a run stopped.

It knows a :class:`Step`, not what the step trains. A step is a function of (seed, images seen): a run that was killed and started
again by the same command repeats the losses of one that was not.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import distributed
from .checkpoints import load_resume, save_resume, save_tensors
from .config import DistillConfig, PretrainConfig
from .distributed import Replica
from .errors import UsageError
from .interrupts import Interrupted, Request, stop_requests
from .logs import Log
from .progress import Progress
from .sharding import known_to_all, local, placed, whole
from .tensors import PartGenerator, make_generator
from .tracking import Follow

TRAIN_STREAM = 1  # the purpose of the training's generators


class Step(Protocol):
    """One optimisation step on a batch that the step draws itself."""

    @property
    def model(self) -> nn.Module:
        """The network whose average is the result."""
        ...

    def __call__(self, images: int, generators: Sequence[PartGenerator]) -> dict[str, Tensor]:
        """Trains on one batch after ``images`` images were seen, with a generator for each of its parts; returns scalars for the log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimisers' moments: nested dictionaries of tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        ...


class Watch(Protocol):
    """What looks at the average of a training now and then, and may end it."""

    every: int
    """Images between two looks, at the least."""

    @property
    def over(self) -> bool:
        """Whether the training should end."""
        ...

    def begin(self, images: int) -> int:
        """Before the first step, after ``images`` images of earlier runs; returns the images of the last look."""
        ...

    def __call__(self, images: int, seconds: float, average: Mapping[str, Tensor]) -> tuple[bool, dict[str, float]]:
        """Whether the training should end, and what was seen."""
        ...


class Average:
    """Exponential moving average of a network's parameters; buffers are copied.

    The half-life is ``min(half_life, ramp * images seen)``, so that the start is forgotten soon (Karras et al. 2022, F.2).
    """

    def __init__(self, model: nn.Module, half_life: float, ramp: float) -> None:
        self.half_life, self.ramp = half_life, ramp
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """After a step on ``batch`` images, the ``images``-th included."""
        half_life = min(self.half_life, self.ramp * images)
        keep = 0.5 ** (batch / max(half_life, 1e-8))
        state = model.state_dict()
        floating = [name for name in self.values if self.values[name].is_floating_point()]
        torch._foreach_lerp_([self.values[n] for n in floating], [state[n].detach() for n in floating], 1 - keep)
        for name in self.values.keys() - set(floating):
            self.values[name].copy_(state[name])


def train(
    step: Step,
    options: PretrainConfig | DistillConfig,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    stage: str,
    watch: Watch | None = None,
    follow: Callable[[int], Sequence[Follow]] = lambda start: (),
) -> tuple[dict[str, Tensor], int]:
    """Runs ``step`` until ``options.images`` images were seen or ``watch`` ends it; returns the averaged weights and the images seen.

    Writes ``metrics.jsonl``, ``snapshots/`` and ``resume/`` into ``folder``; started again, it goes on from the last of these. Seconds in
    the log are of the training alone. ``follow`` gives, for the images of earlier runs, what else is told every line of the log.

    Raises:
        Interrupted: a signal asked it to stop; everything is saved, at the next line of the log.
        UserError: the training has gone wrong (:func:`rsdmri.logs.gone_wrong`).
    """
    average = Average(step.model, options.ema, options.ema_ramp)
    parts = parts_of(options.batch, options.parts)
    images, seconds = distributed.together(lambda: _restore(step, average, folder))
    distributed.alike("checkpoints", lambda: {str(folder / "resume"): images})
    log = distributed.together(lambda: Log(folder / "metrics.jsonl", images, follow(images)))
    marks = _snapshot_marks(options.images, options.snapshots)
    looks = _Looks(watch, images, log)
    if images and looks.due(images, False):  # one that was left out because a signal came
        looks.look(images, seconds, average)
    began, saved = time.monotonic() - seconds, _Mark(images)
    ended = images >= options.images or looks.over
    with Progress(stage, options.images, "images", start=images) as progress, stop_requests() as request:
        while not ended:
            generators = [make_generator(seed, TRAIN_STREAM, images, device=device, part=part) for part in parts]
            with _global_generator(device, generators[0].initial_seed() + distributed.rank()):
                values = step(images, generators)
            before, images = images, images + options.batch
            average.update(step.model, images, options.batch)
            log.add(values)
            if any(before < mark <= images for mark in marks):
                path = folder / "snapshots" / f"images_{images:012d}.safetensors"
                distributed.by_first(partial(save_tensors, path, _whole(average.values)))
            ended = images >= options.images
            if not (ended or before // options.log < images // options.log):
                progress.update(images, progress.note)
                continue
            seconds = time.monotonic() - began
            progress.update(images, distributed.together(partial(log.write, images, seconds)))
            # Only here, where the log's sums are empty: a checkpoint need not hold them. Clocks differ, and the first one's decides.
            signal, due = _asked(request), distributed.told(saved.due(images, options))[0]
            # A look may take longer than a scheduler waits: one that is told to stop looks when it goes on.
            looking = looks.due(images, ended) and (ended or not signal)
            if looking:
                progress.update(images, looks.look(images, seconds, average))
                began, ended, signal = time.monotonic() - seconds, ended or looks.over, _asked(request)
            if ended or looking or signal or due:
                state = _whole({"step": step.state_dict(), "average": average.values})
                progressed = {"images": images, "seconds": seconds}
                distributed.by_first(partial(save_resume, folder, state, progressed))
                saved = _Mark(images)
            if signal and not ended:
                raise Interrupted(f"{stage}: {signal} came; stopped after {images} images, all kept. The same command goes on.")
    return _whole(average.values), images


def _whole(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as the first process writes them."""
    return whole(tree, distributed.first())


def parts_of(batch: int, parts: int) -> list[tuple[int, int]]:
    """The parts of a batch that are this process's, each a number and how many there are, of which every process has ``parts``."""
    count = distributed.size() * parts
    if batch % count:
        raise UsageError(f"batch {batch} must be divisible by {distributed.size()} processes times {parts} parts")
    return [(distributed.rank() * parts + number, count) for number in range(parts)]


def _asked(request: Request) -> str:
    """The name of the signal that came, or empty; one to one process is one to all."""
    return next((name for name in distributed.told(request.signal) if name), "")


class _Looks:
    """When a watch, if there is one, looks, and whether it has ended the training."""

    def __init__(self, watch: Watch | None, images: int, log: Log) -> None:
        self.watch, self.log = watch, log
        self.last, self.over = (
            (images, False) if watch is None else distributed.by_first(lambda: (watch.begin(images), watch.over))
        )

    def due(self, images: int, ended: bool) -> bool:
        """Whether it is time."""
        return self.watch is not None and (ended or images - self.last >= self.watch.every)

    def look(self, images: int, seconds: float, average: Average) -> str:
        """Looks, and returns what the progress line says of it."""
        assert self.watch is not None
        stopped, seen = distributed.by_first(partial(self.watch, images, seconds, _whole(average.values)))
        self.last, self.over = images, self.over or stopped
        return self.log.tell(images, seen)


class _Mark:
    """When the last checkpoint was made."""

    def __init__(self, images: int) -> None:
        self.images, self.time = images, time.monotonic()

    def due(self, images: int, options: PretrainConfig | DistillConfig) -> bool:
        """Whether the next one should be, by images or by minutes."""
        return images - self.images >= options.save or time.monotonic() - self.time >= 60 * options.save_minutes


@contextmanager
def _global_generator(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout draws from the global generator of its device: here it, too, is a function of the step. Others are left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


def _restore(step: Step, average: Average, folder: Path) -> tuple[int, float]:
    """Images seen and seconds spent by earlier runs in this folder, whose state is loaded."""
    found = load_resume(folder)
    if found is None:
        return 0, 0.0
    state, progress = found
    step.load_state_dict(state["step"])
    for name, value in average.values.items():
        value.copy_(placed(state["average"][name], value))
    return int(progress["images"]), float(progress["seconds"])


def _snapshot_marks(total: int, count: int) -> list[int]:
    """Images seen at which snapshots are taken: evenly spaced, the last one at the end."""
    return [total * (k + 1) // count for k in range(count)]


def adam_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The moments of an optimiser by parameter number; its options belong to the configuration."""
    state: dict[str, Any] = optimizer.state_dict()["state"]
    return {str(number): dict(moments) for number, moments in state.items()}


def load_adam_state(optimizer: torch.optim.Optimizer, moments: dict[str, Any]) -> None:
    """The inverse of :func:`adam_state`."""
    state = optimizer.state_dict()
    state["state"] = {int(number): values for number, values in moments.items()}
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # a fused kernel walks over weights and moments alike: both in one layout
                values[name] = torch.empty_like(parameter).copy_(placed(value, parameter))


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[PartGenerator], tuple[Tensor, dict[str, Tensor]]],
    generators: Sequence[PartGenerator],
    clip: float,
    name: str,
    replica: Replica | None = None,
) -> dict[str, Tensor]:
    """One step down the gradient of the mean of ``loss`` over the parts of a batch, of which one at a time is in memory.

    ``optimizer`` is a fused one. ``loss`` gives the mean over a part's images, and scalars for the log. Returns their means, and under
    ``name`` the norm of the gradient, with a ``replica`` that of all processes, before it was clipped. If that is not finite there is no
    step: one broken batch is left out.
    """
    optimizer.zero_grad(set_to_none=True)
    found = []
    for number, generator in enumerate(generators, 1):
        with replica.training(number == len(generators)) if replica else nullcontext():
            value, said = loss(generator)
            (value / len(generators)).backward()
        found.append({key: scalar.detach() for key, scalar in said.items()})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else float("inf"))
    # A fused optimiser asks the device itself whether to leave the step out, as for torch.amp.GradScaler: the host does not wait.
    norm = local(norm)
    optimizer.found_inf = known_to_all((~norm.isfinite()).float(), parameters[0])  # type: ignore[attr-defined]
    optimizer.step()
    return {key: torch.stack([said[key] for said in found]).mean() for key in found[0]} | {name: norm}
