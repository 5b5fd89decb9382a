"""MRI as an application of the engine."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from ..config import to_tree
from ..domain import Law, Size
from ..errors import UserError
from ..files import atomic
from ..memory import fits
from ..observations import Observation
from ..operators import LinearOperator, MaskedOperator
from ..tensors import Image, PerSample, generator_of, make_generator, randint
from .config import MRIExperiment
from .masks import check_thinning, draw_columns, kept_acs, thin_columns
from .operators import MultiCoilMRI
from .prepare import prepare
from .reconstruction import choose_lam, default_lam, l1_wavelet
from .rows import Rows, held, readers
from .store import size_name
from .wavelets import Wavelet

CHOOSING = 8  # slices from which the weight of L1-wavelet is chosen
BANK_STREAM = 5  # the purpose of the generator that chooses the maps a run keeps
AGAIN = "Give the same, or run rsdmri-prepare (and what follows it) again."


@dataclass(frozen=True)
class Bank:
    """Scans of one matrix: ``maps`` (N, coils, H, W), ``noise_std`` (N,), their ACS lines, and of how many slices they were chosen.

    ``masks`` (N, W) only if the scans came with masks of their own.
    """

    maps: Tensor
    noise_std: Tensor
    acs: int
    slices: int
    masks: Tensor | None = None

    def to(self, device: torch.device) -> "Bank":
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, maps=self.maps.to(device), noise_std=self.noise_std.to(device), masks=masks)


@dataclass(frozen=True)
class MRILaw:
    """Coil maps of the data, one drawn at random, and a mask drawn by the law of the data's masks, independent of it.

    Scans that came with masks of their own give theirs: one of these is drawn.
    """

    banks: Mapping[Size, Bank]
    accel: float
    display_max: float
    thinning: str = "redrawn"

    @property
    def operator(self) -> type[LinearOperator]:
        return MultiCoilMRI

    @property
    def sizes(self) -> dict[Size, int]:
        return {size: bank.slices for size, bank in self.banks.items()}

    def thin(self, operator: MaskedOperator, generator: torch.Generator | None) -> MaskedOperator:
        assert isinstance(operator, MultiCoilMRI)
        mask, acs = operator.mask, self._bank(_size(operator.maps)).acs
        if self.thinning == "redrawn":
            return operator.with_mask(thin_columns(mask, self.accel, acs, generator))
        rows = [thin_columns(row[None], self.accel, acs, generator_of(row)) for row in mask.cpu()]
        return operator.with_mask(torch.cat(rows).to(mask.device))

    def draw(self, n: int, size: Size, generator: torch.Generator) -> tuple[MultiCoilMRI, PerSample]:
        bank, device = self._bank(size), generator.device
        chosen = randint(len(bank.maps), (n,), generator).to(bank.maps.device)
        operator = MultiCoilMRI(bank.maps[chosen].to(device), self._masks(n, bank, generator))
        return operator, bank.noise_std[chosen].to(device)

    def rescan(self, operator: MultiCoilMRI, generator: torch.Generator) -> MultiCoilMRI:
        return operator.with_mask(self._masks(len(operator), self._bank(_size(operator.maps)), generator))

    def _bank(self, size: Size) -> Bank:
        if size not in self.banks:
            known = ", ".join(f"{h} x {w}" for h, w in self.banks)
            raise UserError(f"images of {size[0]} x {size[1]}, and this run has coil maps of {known}")
        return self.banks[size]

    def _masks(self, n: int, bank: Bank, generator: torch.Generator) -> Tensor:
        if bank.masks is None:
            return draw_columns(n, bank.maps.shape[-1], self.accel, bank.acs, generator)
        which = randint(len(bank.masks), (n,), generator).to(bank.masks.device)
        return bank.masks[which][:, None, None, :].to(generator.device)

    def to(self, device: torch.device) -> "MRILaw":
        return replace(self, banks={size: bank.to(device) for size, bank in self.banks.items()})

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            for size, bank in self.to(torch.device("cpu")).banks.items():
                group = file.create_group(size_name(size))
                group["maps"], group["noise_std"] = bank.maps.numpy(), bank.noise_std.numpy()
                if bank.masks is not None:
                    group["masks"] = bank.masks.numpy()
                group.attrs.update(acs=bank.acs, slices=bank.slices)
            file.attrs.update(accel=self.accel, display_max=self.display_max, thinning=self.thinning)


class MRIObservations:
    """observations.h5: in memory where it is small enough, else slices are read from the file when they are asked for.

    Slices with fewer coils than the most of their matrix are filled up with zero maps, which change nothing.
    """

    def __init__(self, path: Path, bank: int, thinning: str = "redrawn") -> None:
        self.bank, self.thinning = bank, thinning
        try:
            file = h5py.File(path, "r")
            groups = [group for group in file.values() if isinstance(group, h5py.Group)]
            groups.sort(key=lambda group: (str(group["maps"].shape[1]), _size(group["maps"])))  # of one matrix: by coils alone
            sizes = [_size(group["maps"]) for group in groups]
            self.acs = {size: int(group.attrs["acs"]) for size, group in zip(sizes, groups, strict=True)}
            self.own_masks = {size for size, group in zip(sizes, groups, strict=True) if group.attrs["own_masks"]}
            self.coils = {
                size: max(g["maps"].shape[1] for s, g in zip(sizes, groups, strict=True) if s == size) for size in sizes
            }
            self.mask = [torch.from_numpy(row) for group in groups for row in group["mask"][()]]
            self.noise_std = torch.cat([torch.from_numpy(group["noise_std"][()]) for group in groups])
            self.names = [name.decode() for group in groups for name in group["name"][()]]
            asked = json.loads(file.attrs["config"])
            self.noise_asked = asked["data"]["noise_std"]
            self.attributes = {name: file.attrs[name] for name in ("accel", "display_max")}
            datasets = [group[name] for group in groups for name in ("kspace", "maps")]
            small = fits(sum(dataset.nbytes for dataset in datasets))
            self.readers = readers()
            # Arrays and rows of a file give a slice in the same way.
            stores: list[Any] = [*(held(datasets, self.readers) if small else map(Rows, datasets))]
            self.stores = list(zip(stores[::2], stores[1::2], strict=True))
            self.places = [(store, row) for store, (kspace, _) in enumerate(self.stores) for row in range(len(kspace))]
            self.buckets = _buckets([sizes[store] for store, _ in self.places])
            if small:
                file.close()
                self.readers = None  # they would cost more than they save
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. Make it: rsdmri-prepare") from None
        except (OSError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a prepared data set ({error}). Run rsdmri-prepare again.") from None

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Sequence[int]) -> Observation:
        wanted = [(i, which) for which in (0, 1) for i in indices]
        read = map if self.readers is None else self.readers.map
        found = [self._with_all_coils(row) for row in read(lambda one: self._row(*one), wanted)]
        kspace, maps = torch.stack(found[: len(indices)]), torch.stack(found[len(indices) :])
        mask = torch.stack([self.mask[i] for i in indices])[:, None, None, :]
        return Observation(kspace, MultiCoilMRI(maps, mask), self.noise_std[torch.as_tensor(indices)])

    def _row(self, index: int, which: int) -> Any:
        """K-space (0) or maps (1) of one slice, (coils, H, W), as it is stored."""
        store, row = self.places[index]
        return self.stores[store][which][row]

    def _with_all_coils(self, row: Any) -> Tensor:
        """The same with the coils of the largest of its matrix."""
        data = torch.from_numpy(row)
        missing = self.coils[_size(data)] - len(data)
        return torch.nn.functional.pad(data, (0, 0, 0, 0, 0, missing)) if missing else data

    def law(self) -> MRILaw:
        order = torch.randperm(len(self), generator=make_generator(0, BANK_STREAM)).tolist()
        return MRILaw(
            banks={size: self._bank(size, order) for size in self.buckets},
            accel=float(self.attributes["accel"]),
            display_max=float(self.attributes["display_max"]),
            thinning=self.thinning,
        )

    def _bank(self, size: Size, order: Sequence[int]) -> Bank:
        """The maps that a run keeps of one matrix, its share of ``data.bank``: the first of ``order``."""
        bucket = set(self.buckets[size])
        share = max(1, round(min(self.bank, len(self)) * len(bucket) / len(self)))
        chosen = [i for i in order if i in bucket][:share]
        return Bank(
            maps=torch.stack([self._with_all_coils(self._row(i, 1)) for i in chosen]),
            noise_std=self.noise_std[chosen],
            acs=self.acs[size],
            slices=len(bucket),
            masks=torch.stack([self.mask[i] for i in chosen]) if size in self.own_masks else None,
        )


class MRI:
    """The application: complex images of one channel, column masks, measured coil maps."""

    program = "rsdmri-"
    channels = 1
    complex_images = True

    def prepare(self, experiment: MRIExperiment, out: Path) -> None:
        prepare(experiment, out)

    def observations(self, path: Path, experiment: MRIExperiment) -> MRIObservations:
        data = MRIObservations(path, experiment.data.bank, experiment.data.thinning)
        asked, accel = experiment.data, float(data.attributes["accel"])
        _check_same(path, accel, data.acs.values(), experiment)
        size, option = (asked.size, "size") if asked.size else (asked.matrix, "matrix")
        for height, width in data.buckets:
            if size not in (None, (height, width)):
                raise UserError(f"{path}: images of {height} x {width}, and data.{option} {size} is asked for. {AGAIN}")
        if asked.noise_std not in ("auto", data.noise_asked):
            raise UserError(f"{path}: made with data.noise_std {data.noise_asked}, and {asked.noise_std} is asked for. {AGAIN}")
        if experiment.objective.kind == "ambient":
            # Also of data that were prepared for another objective.
            for size, bucket in data.buckets.items():
                for mask in {int(data.mask[i].sum()): data.mask[i] for i in bucket}.values():
                    check_thinning(mask, accel, data.acs[size])
        return data

    def references(self, path: Path, size: Size) -> tuple[Image, list[str]]:
        try:
            with h5py.File(path, "r") as file:
                if size_name(size) not in file:
                    return torch.zeros(0, 1, *size, dtype=torch.complex64), []
                group = file[size_name(size)]
                return torch.from_numpy(group["images"][()])[:, None], [name.decode() for name in group["name"][()]]
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not a file of references ({error}). Run rsdmri-prepare again.") from None

    def check_scale(self, references: Path, experiment: MRIExperiment, size: Size) -> None:
        with h5py.File(references, "r") as file:
            acs = file[size_name(size)].attrs.get("acs")
        wanted = kept_acs(size[1], experiment.data.acs)
        if acs != wanted:
            found = "an unknown number" if acs is None else str(acs)
            raise UserError(
                f"{references}: scaled by {found} of ACS lines, and the data by {wanted}, so that their images are not equally bright."
                f" Prepare the clean scans again with --data.acs {wanted}."
            )

    def law(self, path: Path, experiment: MRIExperiment | None = None) -> MRILaw:
        try:
            with h5py.File(path, "r") as file:
                banks = {_size(group["maps"]): _read_bank(group) for group in file.values()}
                law = MRILaw(
                    banks=dict(sorted(banks.items(), key=lambda item: (-item[1].slices, item[0]))),
                    accel=float(file.attrs["accel"]),
                    display_max=float(file.attrs["display_max"]),
                    thinning=str(file.attrs["thinning"]),
                )
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the operators of a run of this version ({error}). Train it again.") from None
        if experiment is not None:
            _check_same(path, law.accel, [bank.acs for bank in banks.values()], experiment)
            if law.thinning != experiment.data.thinning:
                raise UserError(f"{path}: the teacher was trained with data.thinning '{law.thinning}'. Give the same.")
        return law

    def configured_law(self, experiment: MRIExperiment) -> MRILaw:
        return self.observations(experiment.folder / "prepare" / "observations.h5", experiment).law()

    def law_needs_data(self, experiment: MRIExperiment) -> bool:
        return True  # coil maps come with the data

    def volume_of(self, name: str) -> str:
        return name.rpartition("/")[0]

    def corruption(self, experiment: MRIExperiment) -> dict[str, Any]:
        data = to_tree(experiment)["data"]
        return {name: data[name] for name in ("accel", "acs", "mask", "coils", "noise_std")}

    def restoration(self, experiment: MRIExperiment) -> dict[str, Any]:
        options = to_tree(experiment.l1)
        return {
            "method": "l1",
            **options,
            "lam": default_lam(experiment.data.accel) if options["lam"] is None else options["lam"],
        }

    def restorer(self, data: MRIObservations, experiment: MRIExperiment, device: torch.device) -> tuple[Any, dict[str, Any]]:
        options, lam = experiment.l1, self.restoration(experiment)["lam"]
        wavelet = Wavelet(options.wavelet, options.levels)
        if lam == "auto":
            bucket = next(iter(data.buckets.values()))
            some = data.batch(bucket[:: -(-len(bucket) // CHOOSING)]).to(device)
            assert isinstance(some.operator, MultiCoilMRI)
            lam = choose_lam(some.operator, some.y, wavelet, options.iterations)
            print(f"restore: l1.lam auto is {lam:g}", file=sys.stderr)
        return partial(restored, lam=lam, wavelet=wavelet, iterations=options.iterations, device=device), {"lam": lam}

    def values(self, law: Law) -> dict[str, Any]:
        assert isinstance(law, MRILaw)
        return {"values": "magnitude", "white": law.display_max}

    def display(self, x: Image, law: Law) -> Tensor:
        assert isinstance(law, MRILaw)
        magnitude = (x[:, 0].abs() / law.display_max).clamp(0, 1)
        return (magnitude * 255).round() / 255


def restored(
    obs: Observation, samples: Sequence[int], *, lam: float, wavelet: Wavelet, iterations: int, device: torch.device
) -> Image:
    """Slices by L1-wavelet, zero where there are no maps."""
    obs = obs.to(device)
    assert isinstance(obs.operator, MultiCoilMRI)
    return l1_wavelet(obs.operator, obs.y, lam, wavelet, iterations) * obs.operator.support()


def _read_bank(group: h5py.Group) -> Bank:
    """One matrix of operators.h5."""
    return Bank(
        maps=torch.from_numpy(group["maps"][()]),
        noise_std=torch.from_numpy(group["noise_std"][()]),
        acs=int(group.attrs["acs"]),
        slices=int(group.attrs["slices"]),
        masks=torch.from_numpy(group["masks"][()]) if "masks" in group else None,
    )


def _size(array: Any) -> Size:
    """Rows and columns of maps, or of a dataset of them."""
    return int(array.shape[-2]), int(array.shape[-1])


def _buckets(sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """The samples of each size, the most frequent first."""
    found: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        found.setdefault(size, []).append(index)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _check_same(path: Path, accel: float, acs: Iterable[int], experiment: MRIExperiment) -> None:
    """The mask law belongs to the data: an experiment that asks for another one is wrong, not a variant."""
    asked = experiment.data
    if asked.accel != accel or (asked.acs is not None and any(lines != asked.acs for lines in acs)):
        raise UserError(
            f"{path}: made at R = {accel:g} with {', '.join(map(str, sorted(set(acs))))} ACS lines, and R = {asked.accel:g}"
            + (f" with {asked.acs}" if asked.acs is not None else "")
            + f" is asked for. {AGAIN}"
        )
