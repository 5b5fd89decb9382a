"""Photographs as an application of the engine."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.domain import Law, Size
from rsdmri.errors import UserError
from rsdmri.files import atomic
from rsdmri.memory import fits
from rsdmri.noise_level import of_images
from rsdmri.observations import Observation, observe
from rsdmri.operators import Identity, LinearOperator, MaskedOperator
from rsdmri.progress import track
from rsdmri.tensors import Image, PerSample, generator_of

from .config import FIELDS, NaturalData, NaturalExperiment
from .images import load_images
from .masks import draw_boxes, draw_pixels, image_generator
from .operators import Blur, Inpainting, SuperResolution, enlarged, gaussian_kernel, motion_kernels

CHUNK = 256  # images at a time in prepare
ESTIMATED_FROM = 2000  # images from which the noise is estimated


def draw_operator(data: NaturalData, n: int, size: Size, generator: torch.Generator) -> LinearOperator:
    """n operators of the data's law for images of ``size``, on the device of ``generator``."""
    device = generator.device
    if data.corruption == "inpainting":
        return Inpainting(draw_pixels(n, size, data.missing, generator))
    if data.corruption == "box":
        return Inpainting(draw_boxes(n, size, data.box, generator))
    if data.corruption == "super_resolution":
        return SuperResolution(torch.zeros(n, dtype=torch.float32, device=device), data.factor)
    if data.corruption == "motion":
        return Blur(motion_kernels(n, data.kernel_width, generator).float())
    if data.corruption == "blur":
        kernel = gaussian_kernel(data.kernel_width, data.kernel_std, data.kernel == "published")
        return Blur(kernel.float().to(device, non_blocking=True).expand(n, -1, -1))
    return Identity(torch.zeros(n, dtype=torch.float32, device=device))


@dataclass(frozen=True)
class NaturalLaw:
    """Masks and kernels drawn anew, and the noise of the data."""

    data: NaturalData
    operator: type[LinearOperator]

    @property
    def sizes(self) -> dict[Size, int]:
        return {self.data.image_size: 1}

    def draw(self, n: int, size: Size, generator: torch.Generator) -> tuple[LinearOperator, PerSample]:
        noise_std = torch.full((n,), self.data.noise_on_image, dtype=torch.float32, device=generator.device)
        return draw_operator(self.data, n, size, generator), noise_std

    def rescan(self, operator: LinearOperator, generator: torch.Generator) -> LinearOperator:
        # Nothing of a corruption belongs to the photograph.
        return draw_operator(self.data, len(operator), self.data.image_size, generator)

    def thin(self, operator: MaskedOperator, generator: torch.Generator | None) -> MaskedOperator:
        mask = operator.mask
        if self.data.thinning == "redrawn":
            return operator.with_mask(self._thinned(mask, generator or torch.default_generator))
        rows = [self._thinned(row[None], generator_of(row)) for row in mask.cpu()]
        return operator.with_mask(torch.cat(rows).to(mask.device))

    def _thinned(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        if self.data.corruption == "box":
            return mask & draw_boxes(len(mask), self.data.image_size, self.data.box, generator)
        return mask & draw_pixels(len(mask), self.data.image_size, self.data.delta, generator)

    def to(self, device: torch.device) -> "NaturalLaw":
        return self  # it draws from numbers alone

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["data"] = json.dumps(corruption_of(self.data))


def law_of(data: NaturalData) -> NaturalLaw:
    """The law of corruption that a configuration describes."""
    return NaturalLaw(data, type(draw_operator(data, 1, data.image_size, torch.Generator())))


def corruption_of(data: NaturalData) -> dict[str, Any]:
    """The fields of a configuration that say how the data were corrupted."""
    names = ("corruption", "size", "noise_std", "measured", *FIELDS[data.corruption])
    return {name: getattr(data, name) for name in names}


def resolved(data: NaturalData, found: Mapping[str, Any]) -> NaturalData:
    """A configuration whose noise was estimated when the data were prepared, with what was ``found``."""
    return dataclasses.replace(data, noise_std=found["noise_std"]) if data.noise_std == "auto" else data


def _estimated(data: NaturalData, pixels: NDArray[np.uint8]) -> NaturalData:
    """The same of measured images, from at most so many of them, spread over the whole."""
    if data.noise_std != "auto":
        return data
    some = _scaled(pixels[:: -(-len(pixels) // ESTIMATED_FROM)])
    try:
        level = of_images(some)
    except UserError as error:
        raise UserError(f"{data.images}: {error}") from None
    signal = float((some.var() - level.std**2).clamp(min=0).sqrt())
    said = "at most " if level.bound(signal) else ""
    reason = ", an upper bound: their contrast is more than 10 times as strong" if said else ""
    print(f"prepare: the noise of the images is {said}{level.std:.3g} ({level.source}){reason}", file=sys.stderr)
    return dataclasses.replace(data, noise_std=level.std)


class NaturalObservations:
    """observations.h5: in memory where it is small enough, else images are read from the file when they are asked for."""

    def __init__(self, path: Path, data: NaturalData) -> None:
        try:
            file = h5py.File(path, "r")
            found = json.loads(file.attrs["data"])
            self.names = [name.decode() for name in file["name"][()]]
            self.noise_std = torch.from_numpy(file["noise_std"][()])
            self.drawn = {name: torch.from_numpy(file[name][()]) for name in ("mask", "kernel") if name in file}
            self.y = file["y"][()] if fits(file["y"].nbytes) else file["y"]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. Make it: rsdmri-natural prepare") from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a prepared data set ({error}). Run rsdmri-natural prepare again.") from None
        self.data = data = resolved(data, found)
        of_teacher = {name: found.get(name) for name in ("delta", "thinning")}  # they belong to it, not to the data
        _check_same(path, found, {**corruption_of(data), **of_teacher})

    def __len__(self) -> int:
        return len(self.y)

    @property
    def buckets(self) -> dict[Size, range]:
        return {self.data.image_size: range(len(self))}

    def batch(self, indices: Sequence[int]) -> Observation:
        i = torch.as_tensor(indices)
        y = torch.from_numpy(np.stack([self.y[index] for index in indices]))
        return Observation(y, self._operator(i), self.noise_std[i])

    def _operator(self, i: Tensor) -> LinearOperator:
        if "mask" in self.drawn:
            return Inpainting(self.drawn["mask"][i])
        if "kernel" in self.drawn:
            return Blur(self.drawn["kernel"][i])
        return draw_operator(self.data, len(i), self.data.image_size, torch.Generator())  # of these nothing is drawn

    def law(self) -> NaturalLaw:
        return law_of(self.data)


class Natural:
    """The application: real images of three channels in [-1, 1]."""

    program = "rsdmri-natural "
    channels = 3
    complex_images = False

    def prepare(self, experiment: NaturalExperiment, out: Path) -> None:
        data = experiment.data
        if data.images is None:
            raise UserError("no photographs given: name a folder, a .zip or an .npz (data.images)")
        low = data.factor if data.measured and data.corruption == "super_resolution" else 1
        cache = experiment.runs / "images"
        images, names = load_images(data.images, data.split, data.size // low, cache, data.skip_bad, exact=data.measured)
        # Before anything is written: a split that is not there leaves nothing behind.
        split = data.reference_split or data.split
        known = split != data.split or not data.measured
        references = load_images(data.images, split, data.size, cache, data.skip_bad) if known else None
        data = _estimated(data, images)
        law = law_of(data)
        (out / "references.h5").unlink(missing_ok=True)  # of an earlier data set
        with atomic(out / "observations.h5") as temporary, h5py.File(temporary, "w") as file:
            file["name"] = names
            file["noise_std"] = np.full(len(names), data.noise_on_image, np.float32)
            for start in track(range(0, len(names), CHUNK), "prepare", -(-len(names) // CHUNK), f"x {CHUNK} images"):
                end = min(start + CHUNK, len(names))
                obs = Observation.cat([_corrupted(images[i], names[i], law, experiment.seed) for i in range(start, end)])
                for name, part in {"y": obs.y, **_drawn(obs.operator)}.items():
                    _store(file, name, part, start, len(names))
            file.attrs["data"] = json.dumps(corruption_of(data))
        if references is None:
            return
        with atomic(out / "references.h5") as temporary, h5py.File(temporary, "w") as file:
            file["images"], file["name"] = references

    def observations(self, path: Path, experiment: NaturalExperiment) -> NaturalObservations:
        return NaturalObservations(path, experiment.data)

    def references(self, path: Path, size: Size) -> tuple[Image, list[str]]:
        try:
            with h5py.File(path, "r") as file:
                images, names = file["images"], file["name"][()]
                if images.shape[1:3] != size:
                    return torch.zeros(0, 3, *size), []
                return _scaled(images[()]), [name.decode() for name in names]
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not a file of references ({error}). Run rsdmri-natural prepare again.") from None

    def check_scale(self, references: Path, experiment: NaturalExperiment, size: Size) -> None:
        """Photographs have one scale."""

    def law(self, path: Path, experiment: NaturalExperiment | None = None) -> NaturalLaw:
        try:
            with h5py.File(path, "r") as file:
                found = json.loads(file.attrs["data"])
            law = law_of(NaturalData(**found))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the operators of a run ({error})") from None
        if experiment is not None:
            _check_same(path, found, corruption_of(resolved(experiment.data, found)))
        return law

    def configured_law(self, experiment: NaturalExperiment) -> NaturalLaw:
        if self.law_needs_data(experiment):
            return self.observations(experiment.folder / "prepare" / "observations.h5", experiment).law()
        return law_of(experiment.data)

    def law_needs_data(self, experiment: NaturalExperiment) -> bool:
        return experiment.data.noise_std == "auto"

    def volume_of(self, name: str) -> str:
        return name

    def corruption(self, experiment: NaturalExperiment) -> dict[str, Any]:
        return corruption_of(experiment.data)

    def restoration(self, experiment: NaturalExperiment) -> dict[str, Any]:
        raise UserError("photographs are not restored without a learned prior here; EM-Diffusion (the verb em) learns one")

    def restorer(
        self, data: NaturalObservations, experiment: NaturalExperiment, device: torch.device
    ) -> tuple[Any, dict[str, Any]]:
        return self.restoration(experiment), {}

    def values(self, law: Law) -> dict[str, Any]:
        return {"values": "symmetric"}

    def display(self, x: Image, law: Law) -> Tensor:
        return ((x.clamp(-1, 1) + 1) * 127.5).round().movedim(1, -1) / 255


def _scaled(pixels: NDArray[np.uint8]) -> Image:
    """uint8 (N, H, W, 3) to images (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, 1).float().div_(127.5).sub_(1)  # in place: there may be many


def _corrupted(pixels: NDArray[np.uint8], name: str, law: NaturalLaw, seed: int) -> Observation:
    """One photograph as it is observed: a function of its name, drawn once, here."""
    data, generator = law.data, image_generator(name, seed)
    operator, noise_std = law.draw(1, data.image_size, generator)
    image = _scaled(pixels[None])
    if not data.measured:
        return observe(image, operator, noise_std, generator)
    if isinstance(operator, SuperResolution):
        y, noise_std = enlarged(image, noise_std / data.factor, data.factor, generator)
        return Observation(y, operator, noise_std)
    return Observation(image, operator, noise_std)


def _drawn(operator: LinearOperator) -> dict[str, Tensor]:
    """What belongs to an image alone, under its name in observations.h5."""
    if isinstance(operator, Inpainting):
        return {"mask": operator.mask}
    return {"kernel": operator.kernel} if isinstance(operator, Blur) else {}


def _store(file: h5py.File, name: str, part: Tensor, start: int, total: int) -> None:
    """Rows of a dataset. Not compressed: training reads single images from it, and noise is not compressible."""
    if name not in file:
        file.create_dataset(name, (total, *part.shape[1:]), part.numpy().dtype)
    file[name][start : start + len(part)] = part.numpy()


def _check_same(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """The corruption belongs to the data: an experiment that asks for another one is wrong, not a variant."""
    names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
    other = [f"data.{name} {found.get(name)} (not {asked.get(name)})" for name in names]
    if other:
        raise UserError(
            f"{path}: made with {', '.join(other)}. Give the same, or run rsdmri-natural prepare (and what follows it) again."
        )
