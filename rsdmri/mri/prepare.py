"""K-space and coil maps become the fixed corrupted data set.

observations.h5   one group per number of coils: ``kspace`` (N, coils, H, W) zero where not measured, ``mask`` (N, W), ``maps``, ``scale``,
                  ``noise_std`` (scaled units, per real component), ``name``
references.h5     ``images`` (N, H, W) complex and ``name``, in the same scale; only ``evaluate`` opens it

K-space is divided by the 99th percentile of the RSS image of its own ACS lines, which a test scan has too.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..config import to_tree
from ..errors import UserError
from ..files import atomic
from ..progress import track
from .coils import SMALLEST_CALIB
from .config import MRIExperiment
from .fourier import crop, fft2c, ifft2c, rss
from .maps import read_maps
from .masks import acs_lines, check_acceleration, check_thinning, default_acs, volume_columns
from .masks import columns as columns_of
from .operators import combine
from .readers import KSpace, find_files, read

DISPLAY_QUANTILE = 0.999
LOST_BITS = 13  # of a float32 in the histogram of magnitudes: its bins are 1/1024 wide


@dataclass(frozen=True)
class Slice:
    """One prepared slice, in scaled units; ``image`` is known only where the scan is fully sampled."""

    name: str
    kspace: Tensor
    mask: Tensor
    maps: Tensor
    scale: float
    noise_std: float
    calib: int
    image: Tensor | None


def prepare(experiment: MRIExperiment, out: Path) -> None:
    """Writes observations.h5 and, where clean images exist, references.h5, a slice at a time: nothing has to fit in memory."""
    data = experiment.data
    files = find_files(data.kspace)
    apart = find_files(data.references) if data.references else []
    maps = data.maps or experiment.folder / "espirit"
    with ExitStack() as stack:
        store = Store(stack.enter_context(_new(out / "observations.h5")))
        clean: References | None = None
        for file in track(files, "prepare", len(files), "files"):
            for item in slices(file, maps, experiment):
                store.add(item)
                if item.image is not None and not apart:
                    clean = clean or References(stack.enter_context(_new(out / "references.h5")))
                    clean.add(item)
        if not store.items:
            raise UserError("no slice with signal in any file: nothing to learn from")
        for file in track(apart, "references", len(apart), "files") if apart else []:
            for item in slices(file, maps, experiment):
                if item.image is None:
                    raise UserError(
                        f"{file}: undersampled, and data.references must be fully sampled: clean images need every column"
                    )
                store.check_size(item)
                clean = clean or References(stack.enter_context(_new(out / "references.h5")))
                clean.add(item)
        store.finish(experiment)
        if clean is not None:
            clean.finish()
        else:
            (out / "references.h5").unlink(missing_ok=True)  # of an earlier data set
    own = [count for count, is_own in store.masks if is_own]
    if own:
        width = store.size[1]
        print(
            f"prepare: {len(own)} of {len(store.items)} slices came undersampled and keep their masks"
            f" (R = {width / max(own):.3g} to {width / min(own):.3g}); data.accel is {data.accel:g}",
            file=sys.stderr,
        )


@contextmanager
def _new(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file that appears under its name when it is complete."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        yield file


def slices(file: Path, maps_folder: Path, experiment: MRIExperiment) -> Iterator[Slice]:
    """The slices with signal of one file, corrupted as the experiment says."""
    scan = read(file, singlecoil=experiment.data.singlecoil)
    maps = read_maps(maps_folder, file)
    maps.check_source(file)
    if maps.maps.ndim == 5:
        raise UserError(
            f"{file}: its maps have {maps.maps.shape[1]} sets, and training takes one: run rsdmri-espirit with --sets 1"
        )
    if maps.maps.shape != scan.kspace.shape:
        raise UserError(
            f"{file}: k-space {tuple(scan.kspace.shape)} and its maps {tuple(maps.maps.shape)} differ; run rsdmri-espirit again"
        )
    kspace, sensitivities = _cut(scan, maps.maps, experiment.data.size)
    width = kspace.shape[-1]
    acs = default_acs(width) if experiment.data.acs is None else experiment.data.acs
    mask = _mask(scan, width, acs, experiment)
    noise_std = _noise_std(scan, experiment)
    for number in range(len(kspace)):
        if not maps.valid[number]:
            continue
        measured = torch.where(mask, kspace[number], 0)
        scale = _scale(measured, acs)
        if not scale > 0:
            raise UserError(f"{file}: slice {number} has no signal in its ACS lines; without them it cannot be scaled")
        coils = sensitivities[number]
        yield Slice(
            name=f"{scan.name}/{number}",
            kspace=measured / scale,
            mask=mask,
            maps=coils,
            scale=scale,
            noise_std=noise_std / scale,
            calib=maps.calib,
            image=combine(coils[None], ifft2c(kspace[number][None]))[0, 0] / scale if scan.fully_sampled else None,
        )


def _scale(measured: Tensor, acs: int) -> float:
    """The 99th percentile of the RSS image of the ACS lines of k-space (coils, H, W)."""
    low = torch.zeros_like(measured)
    block = acs_lines(measured.shape[-1], max(acs, 1))
    low[..., block] = measured[..., block]
    return float(torch.quantile(rss(ifft2c(low), 0), 0.99))


def _cut(scan: KSpace, maps: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """K-space and maps on the wanted matrix. Along the columns that needs every column: aliased images cannot be cut."""
    height, width = scan.kspace.shape[-2:]
    if size is None or size == (height, width):
        return scan.kspace, maps
    if size[0] > height or size[1] > width:
        raise UserError(f"{scan.path}: {height} x {width} found, which data.size {size[0]} {size[1]} cannot be cut from")
    if size[1] != width and not scan.fully_sampled:
        raise UserError(f"{scan.path}: undersampled scans keep their {width} columns; set data.size to H {width}")
    return fft2c(crop(ifft2c(scan.kspace), size)), crop(maps, size)


def _mask(scan: KSpace, width: int, acs: int, experiment: MRIExperiment) -> Tensor:
    """The mask that a fully sampled scan is given, or the one that an undersampled scan came with."""
    if scan.mask.ndim != 1:
        raise UserError(f"{scan.path}: sampled in two directions; masks of whole columns (1-D Cartesian) are supported")
    accel, thinned = experiment.data.accel, experiment.objective.kind == "ambient"
    try:
        if scan.fully_sampled:
            # A column that the scanner filled with zeros was never acquired, and is none of those that are drawn.
            encoded = torch.nn.functional.interpolate(scan.encoded.float()[None, None], size=width)[0, 0].bool()
            check_acceleration(int(encoded.sum()), accel, acs, thinned)
            mask = volume_columns(scan.name, width, accel, acs, experiment.seed, encoded)
        else:
            mask = scan.mask
        if not mask[acs_lines(width, acs)].all():
            raise UserError(f"the {acs} central columns are not all measured; set data.acs to what the scan has")
        if thinned:
            check_thinning(mask, accel, acs)
    except UserError as error:
        raise UserError(f"{scan.path}: {error}") from None
    return mask


def _noise_std(scan: KSpace, experiment: MRIExperiment) -> float:
    """The noise of k-space per real component, in the file's units: given, recorded in the file, or read off the edges.

    At the ends of the readout there is hardly signal: of complex normal noise, median |k|^2 = 2 ln 2 sigma^2. Ends that the scanner
    filled with zeros are passed over.
    """
    if experiment.data.noise_std is not None:
        return experiment.data.noise_std
    if scan.noise_std is not None:
        return scan.noise_std
    acquired = scan.kspace[..., scan.mask] if scan.mask.ndim == 1 else scan.kspace
    acquired = acquired[..., (acquired != 0).any(-1).flatten(0, -2).any(0), :]
    edge = max(acquired.shape[-2] // 32, 1)
    power = torch.cat([acquired[..., :edge, :], acquired[..., -edge:, :]], dim=-2).abs().square().flatten()
    return float((power[power > 0].median() / (2 * np.log(2))).sqrt())


class Store:
    """observations.h5 in the making."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.items: list[tuple[str, str]] = []  # group, name of the slice
        self.columns: dict[str, dict[str, list[Any]]] = {}
        self.masks: list[tuple[int, bool]] = []  # columns measured; whether the scan came undersampled
        self.calib = sys.maxsize
        self.size = (0, 0)
        self.first = ""
        self.counts = torch.zeros(1 << (32 - LOST_BITS), dtype=torch.int64)  # of observed magnitudes

    def add(self, item: Slice) -> None:
        self.check_size(item)
        name = f"coils_{len(item.kspace)}"
        group = self.file.require_group(name)
        _append(group, "kspace", item.kspace)
        _append(group, "maps", item.maps)
        columns = self.columns.setdefault(name, {"mask": [], "scale": [], "noise_std": [], "name": []})
        for field, values in columns.items():
            values.append(getattr(item, field))
        self.items.append((name, item.name))
        self.masks.append((int(item.mask.sum()), item.image is None))
        self.calib = min(self.calib, item.calib)
        magnitude = combine(item.maps[None], ifft2c(item.kspace[None])).abs().float().flatten()
        self.counts += torch.bincount(magnitude.view(torch.int32) >> LOST_BITS, minlength=len(self.counts))

    def check_size(self, item: Slice) -> None:
        """All images of a data set have one size."""
        size = (item.kspace.shape[-2], item.kspace.shape[-1])
        self.size, self.first = (self.size, self.first) if self.first else (size, item.name)
        if size != self.size:
            listed = f"{self.first}: {self.size[0]} x {self.size[1]}; {item.name}: {size[0]} x {size[1]}"
            raise UserError(f"the scans have several sizes ({listed}): choose one with data.size H W, at most the smallest")

    def finish(self, experiment: MRIExperiment) -> None:
        """What is known only at the end."""
        for name, columns in self.columns.items():
            group = self.file[name]
            group["mask"] = torch.stack(columns["mask"]).numpy()
            group["scale"] = np.array(columns["scale"])
            group["noise_std"] = np.array(columns["noise_std"], np.float32)
            group["name"] = columns["name"]
        data, attributes = experiment.data, self.file.attrs
        width = self.size[1]
        acs = default_acs(width) if data.acs is None else data.acs
        # The mask law is known only where every mask was drawn by it, and from all columns.
        by_law = all((count, own) == (columns_of(width, data.accel), False) for count, own in self.masks)
        attributes.update(acs=acs, accel=data.accel, own_masks=not by_law, display_max=self._display_max())
        attributes["maps"] = "ones" if data.singlecoil else "acs" if SMALLEST_CALIB <= self.calib <= acs else "full"
        attributes["config"] = json.dumps(to_tree(experiment))

    def _display_max(self) -> float:
        """One constant of the data set for showing magnitudes: the 99.9th percentile of the observed ones, to a part in 1,000.

        Positive floats have the order of their bits: without the last ones, these number the bins of a histogram.
        """
        above = self.counts.flip(0).cumsum(0).flip(0)  # values in this bin or a higher one
        rank = max(int(int(above[0]) * (1 - DISPLAY_QUANTILE)), 1)
        bin = int((above >= rank).sum()) - 1
        middle = torch.tensor((bin << LOST_BITS) + (1 << (LOST_BITS - 1)), dtype=torch.int32)
        return float(middle.view(torch.float32))


class References:
    """references.h5 in the making."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.names: list[str] = []

    def add(self, item: Slice) -> None:
        assert item.image is not None
        _append(self.file, "images", item.image)
        self.names.append(item.name)

    def finish(self) -> None:
        self.file["name"] = self.names


def _append(group: h5py.Group, name: str, value: Tensor) -> None:
    """One more row of a dataset."""
    if name not in group:
        shape = tuple(value.shape)
        # A chunk a slice, because training reads slices; compressed, because most of k-space is zero; with a checksum.
        group.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            dtype=np.complex64,
            chunks=(1, *shape),
            compression="gzip",
            compression_opts=1,
            fletcher32=True,
        )
    dataset = group[name]
    dataset.resize(len(dataset) + 1, axis=0)
    dataset[-1] = value.numpy()
    dataset.flush()  # a full disk is noticed here, and not after the last slice
