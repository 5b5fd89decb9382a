"""samples.h5: images of a trained network with their seeds.

Sampling that takes hours goes on where it was stopped: every minute, and before they take much memory, images go into a part of the file,
which lies in a hidden folder beside it and appears whole.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from . import distributed
from .config import to_tree
from .errors import UserError
from .files import atomic, sha256
from .generation import Model
from .progress import Progress
from .runs import claimed, observations_path
from .tensors import Image

PART_SECONDS, PART_BYTES = 60.0, 256 << 20  # of images that are not written yet


def write_samples(model: Model, path: Path, stage: str) -> None:
    """samples.h5: images and seeds, with the time and the network calls an image took.

    Raises:
        UserError: the model gives NaN or infinity.
    """
    options, size = model.experiment.sample, distributed.size()
    seeds = range(options.first_seed, options.first_seed + options.n)
    folder = path.parent / f".{path.stem}.parts"
    with claimed(folder):
        parts = _Parts(folder, _of(model))
        made = distributed.by_first(lambda: parts.found(options.n, options.batch))
        # The first call pays for set-up that no image owes; what is compiled is compiled for the size of a batch.
        model.sample(seeds[: 1 if model.experiment.compute.compile == "none" else options.batch], options)
        # Processes take batches in turn: these, and so their rounding, are those of one process.
        with Progress(stage, len(seeds), "images", start=made) as progress:
            for start in range(made, len(seeds), size * options.batch):
                began = time.perf_counter()
                mine = seeds[start + distributed.rank() * options.batch :][: options.batch]
                images = distributed.gathered(model.sample(mine, options) if mine else None)
                seconds = time.perf_counter() - began
                distributed.by_first(partial(parts.add, [part for part in images if part is not None], seconds))
                progress.update(min(start + size * options.batch, len(seeds)))
        distributed.by_first(lambda: parts.join(path, seeds, _attributes(model)))
    if distributed.first():
        with suppress(OSError):  # after the lock in it was closed, because some file systems keep what is open
            (folder / "lock").unlink()
            folder.rmdir()


def _of(model: Model) -> str:
    """What an image of a seed depends on."""
    digest = hashlib.sha256()
    for name, tensor in model.denoiser.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    # An imported network has no operators of its own: they come with the data of the experiment.
    operators = model.run / "operators.h5"
    law = operators if operators.exists() else observations_path(model.experiment)
    files = {path.name: sha256(path) for path in (model.run / "model.json", law) if path.exists()}
    options = {name: value for name, value in to_tree(model.experiment.sample).items() if name != "n"} | {
        "bf16": model.denoiser.bf16
    }
    data = to_tree(model.experiment).get("data")
    return json.dumps({"weights": digest.hexdigest(), "files": files, "sample": options, "data": data}, sort_keys=True)


def _attributes(model: Model) -> dict[str, Any]:
    batch, role = model.experiment.sample.batch, model.description.role
    run = str(model.run.resolve())
    return {"network_calls": model.calls, "role": role, "batch": batch, "processes": distributed.size(), "run": run}


class _Parts:
    """The images of samples.h5 in the making; those of the last minute are in memory."""

    def __init__(self, folder: Path, of: str) -> None:
        self.folder, self.of = folder, of
        self.made = 0  # images in parts
        self.seconds = self.written = 0.0  # that all images took, and those in parts
        self.waiting: list[Tensor] = []
        self.since = time.monotonic()

    def found(self, n: int, batch: int) -> int:
        """How many of n images earlier runs made, in whole batches; parts of anything else go."""
        for path in sorted(self.folder.glob("part_*.h5")):
            try:
                with h5py.File(path, "r") as file:
                    count, seconds = len(file["images"]), float(file.attrs["seconds"])
                    ours = file.attrs["of"] == self.of and path == self._path(self.made)
            except (OSError, KeyError):
                ours = False
            end = self.made + count if ours else 0
            if ours and end <= n and (end == n or end % batch == 0):
                self.made, self.seconds = end, self.seconds + seconds
                self.written = self.seconds
            else:
                path.unlink()
        return self.made

    def add(self, images: Sequence[Tensor], seconds: float) -> None:
        """The next images, which took so long."""
        for stack in images:
            if not stack.isfinite().all():
                raise UserError("the model gives NaN or infinity: the run has diverged; train again with a lower learning rate")
        self.waiting += images
        self.seconds += seconds
        held = sum(stack.numel() * stack.element_size() for stack in self.waiting)
        if time.monotonic() - self.since > PART_SECONDS or held > PART_BYTES:
            self._write()

    def join(self, path: Path, seeds: Sequence[int], attributes: Mapping[str, Any]) -> None:
        """All of them as one file, a part in memory at a time; then the parts go."""
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            start = 0
            for rows in self._rows():
                dataset = file.require_dataset("images", (len(seeds), *rows.shape[1:]), rows.dtype)
                dataset[start : start + len(rows)] = rows
                start += len(rows)
            file["seeds"] = np.array(seeds, np.int64)
            file.attrs.update(attributes, seconds_per_image=self.seconds / len(seeds))
        for part in self.folder.glob("part_*.h5"):
            part.unlink()

    def _rows(self) -> Iterator[Any]:
        for path in sorted(self.folder.glob("part_*.h5")):
            with h5py.File(path, "r") as file:
                yield file["images"][()]
        if self.waiting:
            yield _stored(torch.cat(self.waiting))

    def _path(self, start: int) -> Path:
        return self.folder / f"part_{start:012d}.h5"

    def _write(self) -> None:
        stack = torch.cat(self.waiting)
        with atomic(self._path(self.made)) as temporary, h5py.File(temporary, "w") as file:
            file["images"] = _stored(stack)
            file.attrs.update(of=self.of, seconds=self.seconds - self.written)
        self.made, self.written = self.made + len(stack), self.seconds
        self.waiting, self.since = [], time.monotonic()


def _stored(images: Image) -> Any:
    """(N, H, W) complex, or (N, H, W, C)."""
    return images[:, 0].numpy() if images.is_complex() else images.movedim(1, -1).numpy()


def read_samples(path: Path, count: int | None = None) -> tuple[Image, dict[str, Any]]:
    """Images (N, C, H, W) of a samples.h5, all or the first ``count``, and its attributes with the ``seeds`` of the images among them."""
    try:
        with h5py.File(path, "r") as file:
            images = torch.from_numpy(file["images"][:count])
            attributes = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
            attributes["seeds"] = file["seeds"][:count].tolist()
            if len(attributes["seeds"]) != len(images) or min(attributes["seeds"], default=0) < 0:
                raise KeyError("one seed an image, none negative, expected")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. The verb sample makes it.") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of samples ({error}). The verb sample makes it.") from None
    return (images[:, None] if images.is_complex() else images.movedim(-1, 1)), attributes
