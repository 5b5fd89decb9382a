"""Images made of observations, and learning from them as if they were clean: what L1-EDM and EM-Diffusion have in common.

``images.h5`` has a group for each size, such as ``384x320``: ``images`` (N, C, H, W) and the ``index`` of each in the data set. It is made in
parts, each of which appears whole; a run that was stopped goes on with the parts that are missing. ``images.json`` beside it says how long
that took and what was chosen on the way: the same images are the same file, however long they took.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import torch

from .domain import Law, Observations, Size
from .errors import UserError
from .files import atomic, read_json, write_json
from .jobs import run_files
from .memory import fits
from .observations import Observation
from .operators import Identity
from .tensors import Image

PART = 32  # observations in a part

Restore = Callable[[Observation, Sequence[int]], Image]  # observations and their places in the data set -> images


class Images:
    """A data set of images that are taken for clean, in the place of the observations they were made of."""

    def __init__(
        self, places: Mapping[int, tuple[Any, int]], names: Sequence[str], buckets: Mapping[Size, Sequence[int]], law: Law
    ) -> None:
        """``places``: of each sample the stack of images, a tensor or a data set of a file, and its row there."""
        self.places, self.names, self.buckets, self._law = places, list(names), buckets, law

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Sequence[int]) -> Observation:
        x = torch.stack([torch.as_tensor(stack[row]) for stack, row in (self.places[i] for i in indices)])
        nothing = torch.zeros(len(x), dtype=x.real.dtype)
        return Observation(x, Identity(nothing), nothing)

    def law(self) -> Law:
        """How the data were corrupted, of which these images show nothing any more: samples are drawn for it, and measured by it."""
        return self._law


def of_one_size(images: Image, names: Sequence[str], law: Law) -> Images:
    """Images (N, C, H, W) as a data set."""
    size = (images.shape[-2], images.shape[-1])
    return Images({row: (images, row) for row in range(len(images))}, names, {size: range(len(images))}, law)


def restore_all(
    data: Observations, restore: Restore, out: Path, of: Mapping[str, Any], stage: str, chosen: Mapping[str, Any] | None = None
) -> None:
    """Writes ``out``, the images of all observations; ``of`` says what they depend on, and parts that were made of other things are not used.

    ``chosen`` goes into the JSON beside it. In one process: what restores a part uses all cores, or the GPU.
    """
    parts = _parts(data)
    run_files(
        lambda number: _write_part(_part_path(out, number), data, parts[number], restore, of),
        range(len(parts)),
        workers=1,
        stage=stage,
        done=lambda number: _is_made(_part_path(out, number), of),
        unit=f"x {PART} images",
    )
    _join(out, len(parts), of, chosen or {})


def is_restored(out: Path, of: Mapping[str, Any]) -> bool:
    """Whether the images of all observations are there, made as ``of`` says, and what is told of them too."""
    return _is_made(out, of) and out.with_suffix(".json").exists()


def about(out: Path) -> dict[str, Any]:
    """What images.json says of a file of images: ``seconds``, and what was chosen for them."""
    return dict(read_json(out.with_suffix(".json")))


def read_images(path: Path, data: Observations, of: Mapping[str, Any]) -> Images:
    """The images of a data set; a :class:`UserError` if they are not there, or were not made as ``of`` says.

    In memory where they are small enough, else read from the file when they are asked for.
    """
    images: dict[int, tuple[Any, int]] = {}
    try:
        file = h5py.File(path, "r")
        found = json.loads(file.attrs["of"])
        small = fits(sum(group["images"].nbytes for group in file.values()))
        for group in file.values():
            stack = torch.from_numpy(group["images"][()]) if small else group["images"]
            images |= {place: (stack, row) for row, place in enumerate(group["index"][()].tolist())}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Make it by the verb restore") from None
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a file of restored images ({error}). Delete it, and restore again.") from None
    wanted = json.loads(json.dumps(of))
    changed = [f"{name} {found.get(name)} then, {value} now" for name, value in wanted.items() if found.get(name) != value]
    if changed or sorted(images) != list(range(len(data))):
        why = "; ".join(changed) or f"{len(images)} images of {len(data)} observations"
        raise UserError(f"{path}: made of other observations or with other options ({why}). Restore them again.")
    return Images(images, data.names, data.buckets, data.law())


def _parts(data: Observations) -> list[Sequence[int]]:
    """The samples of each part, all of one size."""
    return [bucket[start : start + PART] for bucket in data.buckets.values() for start in range(0, len(bucket), PART)]


def _part_path(out: Path, number: int) -> Path:
    return out.parent / "parts" / f"part_{number:05d}.h5"


def _write_part(path: Path, data: Observations, samples: Sequence[int], restore: Restore, of: Mapping[str, Any]) -> str:
    began = time.monotonic()
    images = restore(data.batch(samples), samples).cpu()
    if not images.isfinite().all():
        raise UserError(f"NaN or infinity in the image of {data.names[samples[0]]} or one of the {len(samples) - 1} after it")
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["images"], file["index"] = images.numpy(), list(samples)
        file.attrs["of"], file.attrs["seconds"] = json.dumps(of), time.monotonic() - began
    return ""  # nothing to say of it


def _is_made(path: Path, of: Mapping[str, Any]) -> bool:
    """Whether a file of images, or a part of one, is there and was made as ``of`` says."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs["of"] == json.dumps(of))
    except (OSError, KeyError):  # not there, or broken: made again
        return False


def _join(out: Path, count: int, of: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """All parts as one file, a part in memory at a time, and the parts away."""
    rows: dict[str, int] = {}
    seconds = 0.0
    with atomic(out) as temporary, h5py.File(temporary, "w") as file:
        for number in range(count):
            with h5py.File(_part_path(out, number), "r") as part:
                stack, places = part["images"][()], part["index"][()]
                seconds += float(part.attrs["seconds"])
            name = f"{stack.shape[-2]}x{stack.shape[-1]}"
            if name not in file:
                shape = stack.shape[1:]
                file.create_dataset(f"{name}/images", (0, *shape), stack.dtype, maxshape=(None, *shape), chunks=(1, *shape))
                file.create_dataset(f"{name}/index", (0,), "i8", maxshape=(None,))
            start = rows.get(name, 0)
            rows[name] = start + len(stack)
            for key, values in (("images", stack), ("index", places)):
                dataset = file[f"{name}/{key}"]
                dataset.resize(rows[name], axis=0)
                dataset[start:] = values
        file.attrs["of"] = json.dumps(of)
        write_json(out.with_suffix(".json"), {"seconds": seconds, **chosen})
    shutil.rmtree(out.parent / "parts")
