"""MRI as an application of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ..domain import Law
from ..errors import UserError
from ..files import atomic
from ..observations import Observation
from ..operators import LinearOperator, MaskedOperator
from ..tensors import Image, PerSample, make_generator
from .config import MRIExperiment
from .masks import draw_columns, thin_columns
from .operators import MultiCoilMRI
from .prepare import prepare

BANK_STREAM = 5  # the purpose of the generator that chooses the maps a run keeps


@dataclass(frozen=True)
class MRILaw:
    """Coil maps of the data, one drawn at random, and a mask drawn by the law of the data's masks, independent of it.

    ``maps`` (N, coils, H, W), ``noise_std`` (N,); ``masks`` (N, W) only if the scans came with masks of their own: then one of
    these is drawn.
    """

    maps: Tensor
    noise_std: Tensor
    accel: float
    acs: int
    display_max: float
    masks: Tensor | None = None
    thinning: str = "redrawn"

    def thin(self, operator: MaskedOperator, generator: torch.Generator | None) -> MaskedOperator:
        mask = operator.mask
        if self.thinning == "redrawn":
            return operator.with_mask(thin_columns(mask, self.accel, self.acs, generator))
        rows = [thin_columns(row[None], self.accel, self.acs, _of_mask(row)) for row in mask.cpu()]
        return operator.with_mask(torch.cat(rows).to(mask.device))

    def draw(self, n: int, generator: torch.Generator) -> tuple[MultiCoilMRI, PerSample]:
        device = generator.device
        chosen = torch.randint(len(self.maps), (n,), device=device, generator=generator).cpu()
        if self.masks is None:
            mask = draw_columns(n, self.maps.shape[-1], self.accel, self.acs, generator)
        else:
            which = torch.randint(len(self.masks), (n,), device=device, generator=generator).cpu()
            mask = self.masks[which][:, None, None, :].to(device)
        return MultiCoilMRI(self.maps[chosen].to(device), mask), self.noise_std[chosen].to(device)

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            file["maps"], file["noise_std"] = self.maps.numpy(), self.noise_std.numpy()
            if self.masks is not None:
                file["masks"] = self.masks.numpy()
            file.attrs.update(accel=self.accel, acs=self.acs, display_max=self.display_max, thinning=self.thinning)


class MRIObservations:
    """observations.h5 in memory; slices with fewer coils than the most are filled up with zero maps, which change nothing."""

    def __init__(self, path: Path, bank: int, thinning: str = "redrawn") -> None:
        parts: dict[str, list[Tensor]] = {"kspace": [], "maps": [], "mask": [], "noise_std": []}
        try:
            with h5py.File(path, "r") as file:
                groups = [group for group in file.values() if isinstance(group, h5py.Group)]
                coils = max(group["maps"].shape[1] for group in groups)
                for group in groups:
                    for name in ("kspace", "maps"):
                        data = torch.from_numpy(group[name][()])
                        parts[name].append(torch.nn.functional.pad(data, (0, 0, 0, 0, 0, coils - data.shape[1])))
                    for name in ("mask", "noise_std"):
                        parts[name].append(torch.from_numpy(group[name][()]))
                self.attributes = {name: file.attrs[name] for name in ("accel", "acs", "display_max", "own_masks")}
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. Make it: rsdmri-prepare") from None
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not a prepared data set ({error}). Run rsdmri-prepare again.") from None
        self.kspace, self.maps, self.mask, self.noise_std = (torch.cat(parts[name]) for name in parts)
        self.bank, self.thinning = bank, thinning

    def __len__(self) -> int:
        return len(self.kspace)

    @property
    def size(self) -> tuple[int, int]:
        return self.kspace.shape[-2], self.kspace.shape[-1]

    def batch(self, indices: Sequence[int]) -> Observation:
        i = torch.as_tensor(indices)
        operator = MultiCoilMRI(self.maps[i], self.mask[i][:, None, None, :])
        return Observation(self.kspace[i], operator, self.noise_std[i])

    def law(self) -> MRILaw:
        order = torch.randperm(len(self), generator=make_generator(0, BANK_STREAM))[: self.bank]
        attributes = self.attributes
        return MRILaw(
            maps=self.maps[order],
            noise_std=self.noise_std[order],
            accel=float(attributes["accel"]),
            acs=int(attributes["acs"]),
            display_max=float(attributes["display_max"]),
            masks=self.mask[order] if attributes["own_masks"] else None,
            thinning=self.thinning,
        )


class MRI:
    """The application: complex images of one channel, column masks, measured coil maps."""

    name = "mri"
    channels = 1
    complex_images = True
    operator: type[LinearOperator] = MultiCoilMRI

    def prepare(self, experiment: MRIExperiment, out: Path) -> None:
        prepare(experiment, out)

    def observations(self, path: Path, experiment: MRIExperiment) -> MRIObservations:
        data = MRIObservations(path, experiment.data.bank, experiment.data.thinning)
        _check_same(path, float(data.attributes["accel"]), int(data.attributes["acs"]), experiment)
        return data

    def references(self, path: Path) -> Image:
        with h5py.File(path, "r") as file:
            return torch.from_numpy(file["images"][()])[:, None]

    def law(self, path: Path, experiment: MRIExperiment | None = None) -> MRILaw:
        try:
            with h5py.File(path, "r") as file:
                law = MRILaw(
                    maps=torch.from_numpy(file["maps"][()]),
                    noise_std=torch.from_numpy(file["noise_std"][()]),
                    accel=float(file.attrs["accel"]),
                    acs=int(file.attrs["acs"]),
                    display_max=float(file.attrs["display_max"]),
                    masks=torch.from_numpy(file["masks"][()]) if "masks" in file else None,
                    thinning=str(file.attrs["thinning"]),
                )
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not the operators of a run ({error})") from None
        if experiment is not None:
            _check_same(path, law.accel, law.acs, experiment)
        return law

    def display(self, x: Image, law: Law) -> Tensor:
        assert isinstance(law, MRILaw)
        magnitude = (x[:, 0].abs() / law.display_max).clamp(0, 1)
        return (magnitude * 255).round() / 255


def _check_same(path: Path, accel: float, acs: int, experiment: MRIExperiment) -> None:
    """The mask law belongs to the data: an experiment that asks for another one is wrong, not a variant."""
    asked = experiment.data
    if asked.accel != accel or (asked.acs is not None and asked.acs != acs):
        raise UserError(
            f"{path}: made at R = {accel:g} with {acs} ACS lines, and R = {asked.accel:g}"
            + (f" with {asked.acs}" if asked.acs is not None else "")
            + " is asked for. Give the same, or run rsdmri-prepare (and what follows it) again."
        )


def _of_mask(mask: Tensor) -> torch.Generator:
    """A generator that is a function of a mask: the same M̃ for the same M."""
    return make_generator(0, *np.packbits(mask.numpy().ravel()).tolist())
