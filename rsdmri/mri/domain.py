"""MRI as an application of the engine."""

import json
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
from .masks import check_thinning, draw_columns, thin_columns
from .operators import MultiCoilMRI
from .prepare import prepare

BANK_STREAM = 5  # the purpose of the generator that chooses the maps a run keeps
AGAIN = "Give the same, or run rsdmri-prepare (and what follows it) again."
IN_MEMORY = 4 << 30  # bytes of k-space and maps up to which a data set is held in memory


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
        operator = MultiCoilMRI(self.maps[chosen].to(device), self._masks(n, generator))
        return operator, self.noise_std[chosen].to(device)

    def rescan(self, operator: MultiCoilMRI, generator: torch.Generator) -> MultiCoilMRI:
        return operator.with_mask(self._masks(len(operator), generator))

    def _masks(self, n: int, generator: torch.Generator) -> Tensor:
        if self.masks is None:
            return draw_columns(n, self.maps.shape[-1], self.accel, self.acs, generator)
        which = torch.randint(len(self.masks), (n,), device=generator.device, generator=generator).cpu()
        return self.masks[which][:, None, None, :].to(generator.device)

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            file["maps"], file["noise_std"] = self.maps.numpy(), self.noise_std.numpy()
            if self.masks is not None:
                file["masks"] = self.masks.numpy()
            file.attrs.update(accel=self.accel, acs=self.acs, display_max=self.display_max, thinning=self.thinning)


class MRIObservations:
    """observations.h5: in memory where it is small enough, else slices are read from the file when they are asked for.

    Slices with fewer coils than the most are filled up with zero maps, which change nothing.
    """

    def __init__(self, path: Path, bank: int, thinning: str = "redrawn") -> None:
        self.bank, self.thinning = bank, thinning
        try:
            file = h5py.File(path, "r")
            groups = [group for group in file.values() if isinstance(group, h5py.Group)]
            self.coils = max(group["maps"].shape[1] for group in groups)
            self.size = (int(groups[0]["maps"].shape[-2]), int(groups[0]["maps"].shape[-1]))
            self.mask = torch.cat([torch.from_numpy(group["mask"][()]) for group in groups])
            self.noise_std = torch.cat([torch.from_numpy(group["noise_std"][()]) for group in groups])
            self.names = [name.decode() for group in groups for name in group["name"][()]]
            asked = json.loads(file.attrs["config"])
            self.noise_asked = asked["data"]["noise_std"]
            self.attributes = {name: file.attrs[name] for name in ("accel", "acs", "display_max", "own_masks")}
            small = sum(group[name].nbytes for group in groups for name in ("kspace", "maps")) <= IN_MEMORY
            pairs = [(group["kspace"], group["maps"]) for group in groups]
            # Arrays and datasets give a slice in the same way.
            self.stores = [(kspace[()], maps[()]) for kspace, maps in pairs] if small else pairs
            self.places = [(store, row) for store, (kspace, _) in enumerate(self.stores) for row in range(len(kspace))]
            if small:
                file.close()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. Make it: rsdmri-prepare") from None
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a prepared data set ({error}). Run rsdmri-prepare again.") from None

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Sequence[int]) -> Observation:
        kspace, maps = (torch.stack([self._slice(i, which) for i in indices]) for which in (0, 1))
        i = torch.as_tensor(indices)
        return Observation(kspace, MultiCoilMRI(maps, self.mask[i][:, None, None, :]), self.noise_std[i])

    def _slice(self, index: int, which: int) -> Tensor:
        """K-space (0) or maps (1) of one slice, (coils, H, W), with the coils of the largest."""
        store, row = self.places[index]
        data = torch.from_numpy(self.stores[store][which][row])
        return torch.nn.functional.pad(data, (0, 0, 0, 0, 0, self.coils - len(data)))

    def law(self) -> MRILaw:
        order = torch.randperm(len(self), generator=make_generator(0, BANK_STREAM))[: self.bank]
        attributes = self.attributes
        return MRILaw(
            maps=torch.stack([self._slice(int(i), 1) for i in order]),
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
        asked, accel, acs = experiment.data, float(data.attributes["accel"]), int(data.attributes["acs"])
        _check_same(path, accel, acs, experiment)
        if asked.size not in (None, data.size):
            raise UserError(
                f"{path}: images of {data.size[0]} x {data.size[1]}, and data.size {asked.size} is asked for. {AGAIN}"
            )
        if asked.noise_std is not None and asked.noise_std != data.noise_asked:
            raise UserError(f"{path}: made with data.noise_std {data.noise_asked}, and {asked.noise_std} is asked for. {AGAIN}")
        if experiment.objective.kind == "ambient":
            # Also of data that were prepared for another objective.
            for mask in {int(mask.sum()): mask for mask in data.mask}.values():
                check_thinning(mask, accel, acs)
        return data

    def references(self, path: Path) -> tuple[Image, list[str]]:
        try:
            with h5py.File(path, "r") as file:
                return torch.from_numpy(file["images"][()])[:, None], [name.decode() for name in file["name"][()]]
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not a file of references ({error}). Run rsdmri-prepare again.") from None

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
            if law.thinning != experiment.data.thinning:
                raise UserError(f"{path}: the teacher was trained with data.thinning '{law.thinning}'. Give the same.")
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
            + f" is asked for. {AGAIN}"
        )


def _of_mask(mask: Tensor) -> torch.Generator:
    """A generator that is a function of a mask: the same M̃ for the same M."""
    return make_generator(0, *np.packbits(mask.numpy().ravel()).tolist())
