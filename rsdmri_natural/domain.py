"""Photographs as an application of the engine: random inpainting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from rsdmri.domain import Law, Size
from rsdmri.errors import UserError
from rsdmri.files import atomic
from rsdmri.observations import Observation, observe
from rsdmri.operators import LinearOperator, MaskedOperator
from rsdmri.tensors import Image, PerSample

from .config import NaturalExperiment
from .images import read_images
from .masks import draw_pixels, image_generator, thin_pixels
from .operators import Inpainting


@dataclass(frozen=True)
class InpaintingLaw:
    """Pixel masks drawn anew, and the noise of the data."""

    size: tuple[int, int]
    missing: float
    noise_std: float
    delta: float

    def thin(self, operator: MaskedOperator, generator: torch.Generator | None) -> MaskedOperator:
        return operator.with_mask(thin_pixels(operator.mask, self.delta, generator))

    @property
    def sizes(self) -> dict[Size, int]:
        return {self.size: 1}

    def draw(self, n: int, size: Size, generator: torch.Generator) -> tuple[Inpainting, PerSample]:
        operator = Inpainting(draw_pixels(n, size, self.missing, generator))
        return operator, torch.full((n,), self.noise_std, device=generator.device)

    def rescan(self, operator: Inpainting, generator: torch.Generator) -> Inpainting:
        return operator.with_mask(draw_pixels(len(operator), self.size, self.missing, generator))

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update(size=self.size, missing=self.missing, noise_std=self.noise_std, delta=self.delta)


class InpaintingObservations:
    """observations.h5 in memory."""

    def __init__(self, path: Path, delta: float) -> None:
        self.delta = delta
        try:
            with h5py.File(path, "r") as file:
                self.y = torch.from_numpy(file["inpainting/y"][()])
                self.mask = torch.from_numpy(file["inpainting/mask"][()])
                self.names = [name.decode() for name in file["inpainting/name"][()]]
                self.missing, self.noise_std = float(file.attrs["missing"]), float(file.attrs["noise_std"])
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not a prepared data set ({error}). Make it: rsdmri-natural prepare") from None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def size(self) -> tuple[int, int]:
        return self.y.shape[-2], self.y.shape[-1]

    @property
    def buckets(self) -> dict[Size, range]:
        return {self.size: range(len(self))}

    def batch(self, indices: Sequence[int]) -> Observation:
        i = torch.as_tensor(indices)
        return Observation(self.y[i], Inpainting(self.mask[i]), torch.full((len(i),), self.noise_std))

    def law(self) -> InpaintingLaw:
        return InpaintingLaw(self.size, self.missing, self.noise_std, self.delta)


class Natural:
    """The application: real images of three channels in [-1, 1]."""

    name = "natural"
    channels = 3
    complex_images = False
    operator: type[LinearOperator] = Inpainting

    def prepare(self, experiment: NaturalExperiment, out: Path) -> None:
        data = experiment.data
        if data.images is None:
            raise UserError("no photographs given: name an .npz (data.images)")
        images = read_images(data.images, data.split, data.size)
        split = data.reference_split or data.split
        references = images if split == data.split else read_images(data.images, split, data.size)
        parts = [self._corrupt(images[i : i + 1], f"{data.split}/{i}", experiment) for i in range(len(images))]
        with atomic(out / "observations.h5") as temporary, h5py.File(temporary, "w") as file:
            group = file.create_group("inpainting")
            group.create_dataset("y", data=torch.cat([obs.y for obs in parts]).numpy(), compression="gzip", compression_opts=1)
            masks = torch.cat([operator.mask for operator in (obs.operator for obs in parts) if isinstance(operator, Inpainting)])
            group.create_dataset("mask", data=masks.numpy(), compression="gzip", compression_opts=1)
            group["name"] = [f"{data.split}/{i}" for i in range(len(images))]
            file.attrs.update(missing=data.missing, noise_std=data.noise_std)
        with atomic(out / "references.h5") as temporary, h5py.File(temporary, "w") as file:
            file["images"] = references.numpy()
            file["name"] = [f"{split}/{i}" for i in range(len(references))]

    @staticmethod
    def _corrupt(image: Image, name: str, experiment: NaturalExperiment) -> Observation:
        generator = image_generator(name, experiment.seed)
        size = (image.shape[-2], image.shape[-1])
        operator = Inpainting(draw_pixels(1, size, experiment.data.missing, generator))
        return observe(image, operator, torch.full((1,), experiment.data.noise_std), generator)

    def observations(self, path: Path, experiment: NaturalExperiment) -> InpaintingObservations:
        data = InpaintingObservations(path, experiment.data.delta)
        asked = experiment.data
        values = {name: (getattr(data, name), getattr(asked, name)) for name in ("missing", "noise_std")}
        _check_same(path, {**values, "size": (data.size, (asked.size, asked.size))})
        return data

    def references(self, path: Path, size: Size) -> tuple[Image, list[str]]:
        try:
            with h5py.File(path, "r") as file:
                return torch.from_numpy(file["images"][()]), [name.decode() for name in file["name"][()]]
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not a file of references ({error}). Run rsdmri-natural prepare again.") from None

    def law(self, path: Path, experiment: NaturalExperiment | None = None) -> InpaintingLaw:
        try:
            with h5py.File(path, "r") as file:
                height, width = (int(n) for n in file.attrs["size"])
                law = InpaintingLaw((height, width), *(float(file.attrs[name]) for name in ("missing", "noise_std", "delta")))
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not the operators of a run ({error})") from None
        if experiment is not None:
            asked = experiment.data
            _check_same(path, {name: (getattr(law, name), getattr(asked, name)) for name in ("missing", "noise_std", "delta")})
        return law

    def display(self, x: Image, law: Law) -> Tensor:
        return ((x.clamp(-1, 1) + 1) * 127.5).round().movedim(1, -1) / 255


def _check_same(path: Path, values: Mapping[str, tuple[Any, Any]]) -> None:
    """The corruption belongs to the data: an experiment that asks for another one is wrong, not a variant. (found, asked)"""
    other = [f"data.{name} {found} (not {asked})" for name, (found, asked) in values.items() if found != asked]
    if other:
        raise UserError(
            f"{path}: made with {', '.join(other)}. Give the same, or run rsdmri-natural prepare (and what follows it) again."
        )
