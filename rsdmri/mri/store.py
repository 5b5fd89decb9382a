"""The files of a prepared data set in the making, a slice at a time.

observations.h5   one group per number of coils: ``kspace`` (N, coils, H, W) zero where not measured, ``mask`` (N, W), ``maps``, ``scale``,
                  ``noise_std`` (scaled units, per real component), ``name``
references.h5     ``images`` (N, H, W) complex and ``name``, in the same scale; only ``evaluate`` opens it
"""

import json
import sys
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
    calib: int
    image: Tensor | None


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
        self.masks: list[tuple[int, bool]] = []  # columns measured; whether the scan came undersampled
        self.calib = sys.maxsize
        self.size = (0, 0)
        self.counts = torch.zeros(1 << (32 - LOST_BITS), dtype=torch.int64)  # of observed magnitudes

    def add(self, item: Slice) -> None:
        self.size = (item.kspace.shape[-2], item.kspace.shape[-1])  # the same of all: prepare sees to it
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

    def summary(self, asked: float) -> list[str]:
        """The accelerations that were achieved."""
        width = self.size[1]
        own = [count for count, is_own in self.masks if is_own]
        drawn = [count for count, is_own in self.masks if not is_own]
        lines = [f"R = {_range(width, drawn)} drawn for {len(drawn)} slices; data.accel is {asked:g}"] if drawn else []
        if own:
            came = f"{len(own)} of {len(self.items)} slices came undersampled and keep their masks"
            lines.append(f"{came} (R = {_range(width, own)}); data.accel is {asked:g}")
        return lines

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
        acs = kept_acs(width, data.acs)
        # The mask law is known only where every mask was drawn by it, and from all columns.
        by_rule = all((count, own) == (columns_of(width, data.accel), False) for count, own in self.masks)
        by_law = by_rule and data.mask == "random"
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


def _range(width: int, counts: list[int]) -> str:
    """The accelerations of masks of so many columns, in words."""
    least, most = width / max(counts), width / min(counts)
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


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
