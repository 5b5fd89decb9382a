"""K-space and coil maps become the fixed corrupted data set: observations.h5 and references.h5 (see :mod:`.store`).

K-space is divided by the 99th percentile of the RSS image of its own ACS lines, which a test scan has too.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..jobs import in_order
from ..noise_level import NoiseLevel, of_samples
from ..progress import track
from .conditioning import conditioned
from .config import MRIExperiment
from .fourier import ifft2c, rss
from .maps import read_maps
from .masks import acs_lines, check_acceleration, check_thinning, kept_acs, volume_columns
from .operators import combine
from .patterns import equispaced_columns, fastmri_columns
from .readers import KSpace, find_files, matrix_of, read
from .store import Packed, References, Slice, Store, new_file, pack


def prepare(experiment: MRIExperiment, out: Path) -> None:
    """Writes observations.h5 and, where clean images exist, references.h5.

    A slice at a time, so that nothing has to fit in memory; of several workers each holds a scan.
    """
    data = experiment.data
    files = find_files(data.kspace)
    apart = find_files(data.references) if data.references else []
    maps = data.maps or experiment.folder / "espirit"
    _warn_of_widths(experiment, files)
    with ExitStack() as stack:
        store = Store(stack.enter_context(new_file(out / "observations.h5")))
        clean: References | None = None
        packed = partial(_packed, maps_folder=maps, experiment=experiment)
        for items in track(in_order(packed, files, data.workers), "prepare", len(files), "files"):
            for item in items:
                store.add(item)
                if item.image is not None and not apart:
                    clean = clean or References(stack.enter_context(new_file(out / "references.h5")))
                    clean.add(item)
        if not store.items:
            raise UserError("no slice with signal in any file: nothing to learn from")
        packed = partial(_packed, maps_folder=maps, experiment=experiment, clean=True)
        for items in track(in_order(packed, apart, data.workers), "references", len(apart), "files") if apart else []:
            for item in items:
                clean = clean or References(stack.enter_context(new_file(out / "references.h5")))
                clean.add(item)
        store.finish(experiment)
        if clean is not None:
            clean.finish(experiment)
        else:
            (out / "references.h5").unlink(missing_ok=True)  # of an earlier data set
    for line in store.summary(data.accel):
        print(f"prepare: {line}", file=sys.stderr)


def _packed(file: Path, maps_folder: Path, experiment: MRIExperiment, clean: bool = False) -> Iterator[Packed]:
    """The slices of one file, ready to be copied; ``clean``: they must be fully sampled."""
    for item in slices(file, maps_folder, experiment):
        if clean and item.image is None:
            raise UserError(f"{file}: undersampled, and data.references must be fully sampled: clean images need every column")
        yield pack(item)


def _warn_of_widths(experiment: MRIExperiment, files: Sequence[Path]) -> None:
    """Says before hours of work which scans have too few columns for the acceleration, unless they came undersampled."""
    data = experiment.data
    if data.matrix is not None or data.size is not None:
        return
    found: dict[int, list[Path]] = {}
    for file in files:
        found.setdefault(matrix_of(file, singlecoil=data.singlecoil)[1], []).append(file)
    for width, scans in found.items():
        try:
            check_acceleration(width, data.accel, kept_acs(width, data.acs), experiment.objective.kind == "ambient")
        except UserError as error:
            print(
                f"prepare: warning: {len(scans)} of {len(files)} scans, {scans[0].name} first: {error} If they are fully sampled, leave them"
                " out or bring all to one matrix (data.matrix).",
                file=sys.stderr,
            )


def slices(file: Path, maps_folder: Path, experiment: MRIExperiment) -> Iterator[Slice]:
    """The slices with signal of one file, corrupted as the experiment says."""
    scan = read(file, singlecoil=experiment.data.singlecoil)
    maps = read_maps(maps_folder, file)
    maps.check_source(file)
    if maps.maps.ndim == 5:
        raise UserError(
            f"{file}: its maps have {maps.maps.shape[1]} sets, and training takes one: run rsdmri-espirit with --sets 1"
        )
    maps.check_shape(file, scan.kspace)
    level = noise_level(scan, experiment.data.noise_std)
    scan, sensitivities = conditioned(dataclasses.replace(scan, noise_std=level.std), maps.maps, experiment.data)
    assert scan.noise_std is not None
    kspace, width = scan.kspace, scan.kspace.shape[-1]
    acs = kept_acs(width, experiment.data.acs)
    mask = mask_of(scan, width, acs, experiment)
    for number in range(len(kspace)):
        if not maps.valid[number]:
            continue
        measured = torch.where(mask, kspace[number], 0)
        scale = _scale(measured, acs)
        if not scale > 0:
            raise UserError(f"{file}: slice {number} has no signal in its ACS lines; without them it cannot be scaled")
        coils = sensitivities[number]
        scaled = dataclasses.replace(level, std=scan.noise_std / scale)
        yield Slice(
            name=f"{scan.name}/{number}",
            kspace=measured / scale,
            mask=mask,
            maps=coils,
            scale=scale,
            noise_std=scaled.std,
            noise_bound=scaled.bound(1.0),  # the scale is the signal's
            calib=maps.calib,
            image=combine(coils[None], ifft2c(kspace[number][None]))[0, 0] / scale if scan.fully_sampled else None,
        )


def _scale(measured: Tensor, acs: int) -> float:
    """The 99th percentile of the RSS image of the ACS lines of k-space (coils, H, W)."""
    low = torch.zeros_like(measured)
    block = acs_lines(measured.shape[-1], max(acs, 1))
    low[..., block] = measured[..., block]
    return float(torch.quantile(rss(ifft2c(low), 0), 0.99))


def mask_of(scan: KSpace, width: int, acs: int, experiment: MRIExperiment) -> Tensor:
    """The mask that a fully sampled scan is given, or the one that an undersampled scan came with."""
    if scan.mask.ndim != 1:
        raise UserError(f"{scan.path}: sampled in two directions; masks of whole columns (1-D Cartesian) are supported")
    accel, thinned = experiment.data.accel, experiment.objective.kind == "ambient"
    try:
        if scan.fully_sampled:
            # A column that the scanner filled with zeros was never acquired, and is none of those that are drawn.
            check_acceleration(int(scan.encoded.sum()), accel, acs, thinned)
            mask = _drawn(scan, width, acs, experiment)
        else:
            mask = scan.mask
        if not mask[acs_lines(width, acs)].all():
            raise UserError(f"the {acs} central columns are not all measured; set data.acs to what the scan has")
        if thinned:
            check_thinning(mask, accel, acs)
    except UserError as error:
        raise UserError(f"{scan.path}: {error}") from None
    return mask


def _drawn(scan: KSpace, width: int, acs: int, experiment: MRIExperiment) -> Tensor:
    """The mask of a fully sampled volume, a function of its name."""
    kind, accel, encoded = experiment.data.mask, experiment.data.accel, scan.encoded
    if kind == "random":
        return volume_columns(scan.name, width, accel, acs, experiment.seed, encoded)
    if kind == "equispaced":
        return equispaced_columns(scan.name, width, accel, acs, experiment.seed, encoded)
    return fastmri_columns(scan.path.name, width, accel, acs / width, kind.removeprefix("fastmri_")) & encoded


def noise_level(scan: KSpace, asked: float | Literal["auto"]) -> NoiseLevel:
    """The noise of k-space per real component, in the file's units: given, recorded in the file, or read off where signal is weak.

    That is at the ends of the readout and in the outermost lines. Ends that the scanner filled with zeros are passed over.
    """
    if asked != "auto":
        return NoiseLevel(asked, "given", estimated=False)
    if scan.noise_std is not None:
        return NoiseLevel(scan.noise_std, "the file", estimated=False)
    if scan.noise_covariance is not None:
        variance = scan.noise_covariance.diagonal().real.mean() / 2
        return NoiseLevel(float(variance.sqrt()), "noise scans", estimated=False)
    acquired = scan.kspace[..., scan.mask] if scan.mask.ndim == 1 else scan.kspace
    acquired = acquired[..., (acquired != 0).any(-1).flatten(0, -2).any(0), :]
    ends, outer = (max(length // part, 1) for length, part in zip(acquired.shape[-2:], (32, 16), strict=True))
    regions = {"ends of the readout": torch.cat([acquired[..., :ends, :], acquired[..., -ends:, :]], dim=-2)}
    if scan.mask.ndim == 1:
        regions["outermost lines"] = torch.cat([acquired[..., :outer], acquired[..., -outer:]], dim=-1)
    return of_samples(regions)
