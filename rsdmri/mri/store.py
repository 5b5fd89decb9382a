"""The files of a prepared data set in the making, a slice at a time.

observations.h5   one group per number of coils and matrix, such as ``coils_15_640x368``: ``kspace`` (N, coils, H, W) zero where not
                  measured, ``mask`` (N, W), ``maps``, ``scale``, ``noise_std`` (scaled units, per real component), ``noise_bound``
                  (it is only an upper bound), ``name``;
                  its attributes ``acs``, and ``own_masks`` where not all masks were drawn by the common rule
references.h5     one group per matrix, such as ``640x368``: ``images`` (N, H, W) complex and ``name``, in the same scale, which comes
                  of so many ``acs`` lines (an attribute); only ``rsdmri.evaluation`` opens it, and ``em`` that of other data
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..config import to_tree
from ..files import atomic
from .coils import SMALLEST_CALIB
from .config import MRIExperiment
from .fourier import ifft2c
from .masks import columns as columns_of
from .masks import kept_acs
from .operators import combine

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
    noise_bound: bool
    calib: int
    image: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """An array as a file holds it: compressed, with its checksum."""

    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Packed:
    """A slice that only has to be copied into the files: all work on it is done. ``bins`` and ``counts``: its histogram of magnitudes."""

    name: str
    kspace: Chunk
    mask: Tensor
    maps: Chunk
    scale: float
    noise_std: float
    noise_bound: bool
    calib: int
    image: Chunk | None
    bins: Tensor
    counts: Tensor

    @property
    def own_mask(self) -> bool:
        """Whether the scan came undersampled."""
        return self.image is None


def pack(item: Slice) -> Packed:
    """The slice in the form of the files."""
    magnitude = combine(item.maps[None], ifft2c(item.kspace[None])).abs().float().flatten()
    bins, counts = (magnitude.view(torch.int32) >> LOST_BITS).unique(return_counts=True)
    image = None if item.image is None else _chunk(item.image)
    same = {name: getattr(item, name) for name in ("name", "mask", "scale", "noise_std", "noise_bound", "calib")}
    return Packed(**same, kspace=_chunk(item.kspace), maps=_chunk(item.maps), image=image, bins=bins, counts=counts)


def _chunk(value: Tensor) -> Chunk:
    """What HDF5 itself makes of an array, in a file that is in memory alone."""
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = _dataset(file, "chunk", tuple(value.shape))
        dataset.resize(1, axis=0)
        dataset[0] = value.numpy()
        file.flush()
        _, data = dataset.id.read_direct_chunk((0,) * dataset.ndim)
    return Chunk(tuple(value.shape), data)


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file that appears under its name when it is complete."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        yield file


class Store:
    """observations.h5 in the making."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.items: list[tuple[str, str]] = []  # group, name of the slice
        self.columns: dict[str, dict[str, list[Any]]] = {}
        # Of each slice: columns, those measured, whether the scan came undersampled, lines that its maps saw.
        self.facts: list[tuple[int, int, bool, int]] = []
        self.noise: list[tuple[float, bool]] = []  # of each slice, and whether that is an upper bound
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.counts = torch.zeros(1 << (32 - LOST_BITS), dtype=torch.int64)  # of observed magnitudes

    def add(self, item: Packed) -> None:
        coils, height, width = item.kspace.shape
        self.sizes[height, width] += 1
        name = f"coils_{coils}_{size_name((height, width))}"
        group = self.file.require_group(name)
        _append(group, "kspace", item.kspace)
        _append(group, "maps", item.maps)
        columns = self.columns.setdefault(
            name, {"mask": [], "scale": [], "noise_std": [], "noise_bound": [], "name": [], "own_mask": []}
        )
        for field, values in columns.items():
            values.append(getattr(item, field))
        self.items.append((name, item.name))
        self.noise.append((item.noise_std, item.noise_bound))
        self.facts.append((width, int(item.mask.sum()), item.own_mask, item.calib))
        self.counts[item.bins.long()] += item.counts

    def summary(self, asked: float) -> list[str]:
        """The accelerations that were achieved, the noise, and the matrices if there are several."""
        own = [width / count for width, count, is_own, _ in self.facts if is_own]
        drawn = [width / count for width, count, is_own, _ in self.facts if not is_own]
        lines = [f"R = {_range(drawn)} drawn for {len(drawn)} slices; data.accel is {asked:g}"] if drawn else []
        if own:
            came = f"{len(own)} of {len(self.items)} slices came undersampled and keep their masks"
            lines.append(f"{came} (R = {_range(own)}); data.accel is {asked:g}")
        stds, bounds = [std for std, _ in self.noise], sum(bound for _, bound in self.noise)
        noise = f"noise {np.median(stds):.3g} of the signal (data.noise_std gives it)"
        lines.append(f"{noise}; an upper bound in {bounds} of {len(stds)} slices, whose signal is strong" if bounds else noise)
        if len(self.sizes) > 1:
            sizes = sorted(self.sizes, key=lambda size: (-self.sizes[size], size))
            listed = ", ".join(f"{self.sizes[size]} of {size[0]} x {size[1]}" for size in sizes[:6])
            lines.append(
                f"slices of {len(sizes)} matrices ({listed}): training takes each batch from one of them; {sizes[0][0]} x {sizes[0][1]} is"
                " sampled and evaluated (data.matrix brings all to one)"
            )
        return lines

    def finish(self, experiment: MRIExperiment) -> None:
        """What is known only at the end."""
        for name, columns in self.columns.items():
            group = self.file[name]
            masks = torch.stack(columns["mask"])
            group["mask"] = masks.numpy()
            group["scale"] = np.array(columns["scale"])
            group["noise_std"] = np.array(columns["noise_std"], np.float32)
            group["noise_bound"] = np.array(columns["noise_bound"])
            group["name"] = columns["name"]
            width = masks.shape[-1]
            group.attrs["acs"] = kept_acs(width, experiment.data.acs)
            # The mask law is known only where every mask was drawn by it, and from all columns.
            by_rule = bool((masks.sum(1) == columns_of(width, experiment.data.accel)).all()) and not any(columns["own_mask"])
            group.attrs["own_masks"] = not (by_rule and experiment.data.mask == "random")
        data, attributes = experiment.data, self.file.attrs
        attributes.update(accel=data.accel, display_max=data.display_max or self._display_max())
        of_acs = all(SMALLEST_CALIB <= calib <= kept_acs(width, data.acs) for width, _, _, calib in self.facts)
        attributes["maps"] = "ones" if data.singlecoil else "acs" if of_acs else "full"
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
        self.names: dict[str, list[str]] = {}

    def add(self, item: Packed) -> None:
        assert item.image is not None
        group = size_name((item.image.shape[0], item.image.shape[1]))
        _append(self.file.require_group(group), "images", item.image)
        self.names.setdefault(group, []).append(item.name)

    def finish(self, experiment: MRIExperiment) -> None:
        for group, names in self.names.items():
            self.file[f"{group}/name"] = names
            self.file[group].attrs["acs"] = kept_acs(self.file[f"{group}/images"].shape[-1], experiment.data.acs)


def size_name(size: tuple[int, int]) -> str:
    """``640x368``: a matrix in the name of a group."""
    return f"{size[0]}x{size[1]}"


def _range(accelerations: list[float]) -> str:
    """From the least to the most, in words."""
    least, most = min(accelerations), max(accelerations)
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def _append(group: h5py.Group, name: str, chunk: Chunk) -> None:
    """One more row of a dataset."""
    dataset = group[name] if name in group else _dataset(group, name, chunk.shape)
    row = len(dataset)
    dataset.resize(row + 1, axis=0)
    dataset.id.write_direct_chunk((row, *[0] * len(chunk.shape)), chunk.data)
    dataset.flush()  # a full disk is noticed here, and not after the last slice


def _dataset(group: h5py.Group, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """Empty, of rows of a shape: a chunk a row, because training reads slices; compressed, because most of k-space is zero; with a
    checksum."""
    return group.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        dtype=np.complex64,
        chunks=(1, *shape),
        compression="gzip",
        compression_opts=1,
        fletcher32=True,
    )
