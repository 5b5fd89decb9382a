"""K-space and coil maps become the fixed corrupted data set.

observations.h5   one group per number of coils: ``kspace`` (N, coils, H, W) zero where not measured, ``mask`` (N, W), ``maps``, ``scale``,
                  ``noise_std`` (scaled units, per real component), ``name``
references.h5     ``images`` (N, H, W) complex and ``name``, in the same scale; only ``evaluate`` opens it

K-space is divided by the 99th percentile of the RSS image of its own ACS lines, which a test scan has too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ..config import to_tree
from ..errors import UserError
from ..files import atomic
from ..progress import track
from .coils import SMALLEST_CALIB, combine
from .config import MRIExperiment
from .fourier import crop, fft2c, ifft2c, rss
from .maps import read_maps
from .masks import acs_lines, check_acceleration, columns, default_acs, volume_columns
from .readers import KSpace, find_files, read

DISPLAY_QUANTILE = 0.999


@dataclass(frozen=True)
class Slice:
    """One prepared slice, in scaled units; ``image`` is known only where the scan is fully sampled."""

    name: str
    kspace: Tensor
    mask: Tensor
    maps: Tensor
    scale: float
    noise_std: float
    image: Tensor | None


def prepare(experiment: MRIExperiment, out: Path) -> None:
    """Writes observations.h5 and, where clean images exist, references.h5."""
    data = experiment.data
    files = find_files(data.kspace)
    maps = data.maps or experiment.folder / "espirit"
    found: dict[int, list[Slice]] = {}
    calibs: set[int] = set()
    for file in track(files, "prepare", len(files), "files"):
        for item in slices(file, maps, experiment, calibs):
            found.setdefault(len(item.kspace), []).append(item)
    if not found:
        raise UserError("no slice with signal in any file: nothing to learn from")
    everything = [item for group in found.values() for item in group]
    _check_one_size(everything)
    references = _references(everything, maps, experiment)
    (out / "references.h5").unlink(missing_ok=True)  # of an earlier data set
    _write_observations(out / "observations.h5", found, experiment, min(calibs))
    if references:
        _write_references(out / "references.h5", references)


def slices(file: Path, maps_folder: Path, experiment: MRIExperiment, calibs: set[int]) -> Iterator[Slice]:
    """The slices with signal of one file, corrupted as the experiment says; adds the maps' calibration width to ``calibs``."""
    scan = read(file)
    maps = read_maps(maps_folder, file)
    if maps.maps.shape != scan.kspace.shape:
        raise UserError(
            f"{file}: k-space {tuple(scan.kspace.shape)} and its maps {tuple(maps.maps.shape)} differ; run rsdmri-espirit again"
        )
    calibs.add(maps.calib)
    kspace, sensitivities = _cut(scan, maps.maps, experiment.data.size)
    width = kspace.shape[-1]
    acs = default_acs(width) if experiment.data.acs is None else experiment.data.acs
    mask = _mask(scan, width, acs, experiment)
    noise_std = _noise_std(scan, experiment)
    for number in range(len(kspace)):
        if maps.valid[number]:
            yield _slice(scan, number, kspace[number], sensitivities[number], mask, acs, noise_std)


def _slice(scan: KSpace, number: int, kspace: Tensor, maps: Tensor, mask: Tensor, acs: int, noise_std: float) -> Slice:
    measured = torch.where(mask, kspace, 0)
    low = torch.zeros_like(measured)
    block = acs_lines(kspace.shape[-1], max(acs, 1))
    low[..., block] = measured[..., block]
    scale = float(torch.quantile(rss(ifft2c(low), 0), 0.99))
    if not scale > 0:
        raise UserError(f"{scan.path}: slice {number} has no signal in its ACS lines; without them it cannot be scaled")
    image = combine(maps[None], ifft2c(kspace[None]))[0, 0] / scale if scan.fully_sampled else None
    return Slice(f"{scan.name}/{number}", measured / scale, mask, maps, scale, noise_std / scale, image)


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
    if not scan.fully_sampled:
        if not scan.mask[acs_lines(width, acs)].all():
            raise UserError(f"{scan.path}: the {acs} central columns are not all measured; set data.acs to what the scan has")
        return scan.mask
    try:
        check_acceleration(width, experiment.data.accel, acs, thinned=experiment.objective.kind == "ambient")
    except UserError as error:
        raise UserError(f"{scan.path}: {error}") from None
    # A column that the scanner filled with zeros was never acquired, whatever the mask says.
    drawn = volume_columns(scan.name, width, experiment.data.accel, acs, experiment.seed)
    return drawn & torch.nn.functional.interpolate(scan.encoded.float()[None, None], size=width)[0, 0].bool()


def _noise_std(scan: KSpace, experiment: MRIExperiment) -> float:
    """The noise of k-space per real component, in the file's units: given, recorded in the file, or read off the edges.

    At the ends of the readout there is hardly signal: of complex normal noise, median |k|^2 = 2 ln 2 sigma^2.
    """
    if experiment.data.noise_std is not None:
        return experiment.data.noise_std
    if scan.noise_std is not None:
        return scan.noise_std
    edge = max(scan.kspace.shape[-2] // 32, 1)
    rows = torch.cat([scan.kspace[..., :edge, :], scan.kspace[..., -edge:, :]], dim=-2)
    if scan.mask.ndim == 1:
        rows = rows[..., scan.mask]
    power = rows.abs().square().flatten()
    return float((power[power > 0].median() / (2 * np.log(2))).sqrt()) if (power > 0).any() else 0.0


def _check_one_size(items: list[Slice]) -> None:
    sizes = sorted({tuple(item.kspace.shape[-2:]) for item in items})
    if len(sizes) > 1:
        listed = ", ".join(f"{h} x {w}" for h, w in sizes)
        raise UserError(f"the scans have several sizes ({listed}): choose one with data.size H W, at most the smallest")


def _write_observations(path: Path, groups: dict[int, list[Slice]], experiment: MRIExperiment, calib: int) -> None:
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        for coils, items in sorted(groups.items()):
            group = file.create_group(f"coils_{coils}")
            for name in ("kspace", "maps"):
                stack = torch.stack([getattr(item, name) for item in items]).numpy()
                # A chunk a slice, because training reads slices; compressed, because most of k-space is zero; with a checksum.
                group.create_dataset(
                    name, data=stack, chunks=(1, *stack.shape[1:]), compression="gzip", compression_opts=1, fletcher32=True
                )
            group["mask"] = torch.stack([item.mask for item in items]).numpy()
            group["scale"] = np.array([item.scale for item in items])
            group["noise_std"] = np.array([item.noise_std for item in items], np.float32)
            group["name"] = [item.name for item in items]
        everything = [item for items in groups.values() for item in items]
        width = everything[0].kspace.shape[-1]
        file.attrs["acs"] = default_acs(width) if experiment.data.acs is None else experiment.data.acs
        file.attrs["accel"] = experiment.data.accel
        # The mask law is known only where every mask was drawn by it and nothing was taken away.
        counts = {int(item.mask.sum()) for item in everything}
        file.attrs["own_masks"] = any(item.image is None for item in everything) or counts != {
            columns(width, experiment.data.accel)
        }
        file.attrs["maps"] = "acs" if SMALLEST_CALIB <= calib <= file.attrs["acs"] else "full"
        file.attrs["display_max"] = _display_max(everything)
        file.attrs["config"] = str(to_tree(experiment))


def _display_max(items: list[Slice]) -> float:
    """One constant of the data set for showing magnitudes: the 99.9th percentile of the observed ones."""
    shown = torch.cat([combine(item.maps[None], ifft2c(item.kspace[None])).abs().flatten() for item in items])
    rank = max(int(len(shown) * (1 - DISPLAY_QUANTILE)), 1)
    return float(shown.topk(rank).values[-1])


def _references(items: list[Slice], maps: Path, experiment: MRIExperiment) -> list[Slice]:
    """The slices whose clean images are known: of the scans that are learned from, or of others set aside for this."""
    if not experiment.data.references:
        return [item for item in items if item.image is not None]
    files = find_files(experiment.data.references)
    found = [item for file in track(files, "references", len(files), "files") for item in slices(file, maps, experiment, set())]
    if any(item.image is None for item in found):
        raise UserError("data.references: some of these scans are undersampled; clean images need every column")
    _check_one_size([*found, items[0]])
    return found


def _write_references(path: Path, items: list[Slice]) -> None:
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["images"] = torch.stack([item.image for item in items if item.image is not None]).numpy()
        file["name"] = [item.name for item in items if item.image is not None]
