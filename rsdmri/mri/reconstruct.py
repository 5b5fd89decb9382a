"""The command ``rsdmri-reconstruct``: the images of many scans without a learned prior, in many processes, until all are there.

What is done is skipped, by the content of the scan and the parameters.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ObjectiveConfig, to_tree
from ..errors import UserError
from ..files import sha256
from ..jobs import FilesFailed, Outcome, default_shard, run_files, say_warnings, shard, short
from ..metrics.pixel import consistency
from ..observations import Observation
from ..tensors import squared
from .config import MRIData, MRIExperiment, ReconstructConfig
from .export import needed
from .fourier import crop
from .maps import Maps, made_from, maps_path, read_maps
from .masks import acs_lines, kept_acs
from .operators import MultiCoilMRI
from .prepare import mask_of
from .readers import KSpace, find_files, read, require_own_names
from .reconstruction import choose_lam, default_lam, l1_wavelet, sense, sigpy_l1_wavelet
from .volume_files import ENDINGS, VolumeFiles
from .wavelets import Wavelet

#: Options that do not change the images; of the maps, their content counts.
FREE = ("workers", "shard", "maps", "nifti", "dicom")
OF_MASKS = ("acs", "mask", "seed")  # without --accel they change nothing, either
ITERATIONS = {"torch": 50, "sigpy": 100}


def reconstruct_files(paths: Sequence[Path], out: Path, config: ReconstructConfig) -> None:
    """Reconstructs every scan whose images are not there yet with these parameters; scans that fail do not stop the others."""
    files = require_own_names(find_files(paths))
    if out.resolve() in {file.parent.resolve() for file in files}:
        raise UserError(f"--out {out}: the scans lie there, and their images have the same names. Choose another folder.")
    # What is missing is said before hours of work.
    if config.method == "l1":
        Wavelet(config.wavelet, config.levels)
    for form in _asked(config):
        needed({"nifti": "nibabel", "dicom": "pydicom"}[form], out)
    mine = shard(files, config.shard or default_shard(os.environ))
    try:
        outcomes = run_files(
            partial(reconstruct_file, out=out, config=config),
            mine,
            workers=config.workers,
            stage="reconstruct",
            done=partial(is_done, out=out, config=config),
            note=short,
        )
    except FilesFailed as error:
        say_warnings("reconstruct", error.results)
        raise
    say_warnings("reconstruct", outcomes)
    before = len(mine) - len(outcomes)
    print(f"reconstruct: {len(outcomes)} scans now, {before} were there; images are in {out}", file=sys.stderr)


def reconstruct_file(path: Path, out: Path, config: ReconstructConfig) -> Outcome:
    """Reconstructs and writes one scan; of images that are there, what is missing of their other forms."""
    files = VolumeFiles(out, path.stem)
    scan = read(path, singlecoil=config.singlecoil)
    maps = read_maps(config.maps, path)
    maps.check_source(path)
    maps.check_shape(path, scan.kspace)
    depends_on, asked = _depends_on(path, config), _asked(config)
    same = files.holds(depends_on)
    kept = [form for form in ENDINGS if same and files.whole(form)]
    files.check(asked, kept)
    if same:
        attributes, volume = files.attributes, files.volume()
    else:
        attributes, volume = _reconstructed(path, scan, maps, config)
        attributes |= depends_on
    voxel = scan.voxel
    if scan.swapped:  # as the file and its target have it
        voxel = voxel and (voxel[1], voxel[0], voxel[2])
    acceleration, lam = attributes["acceleration"], attributes["lam"]
    made = f"{config.method}, R = {acceleration:.3g}, lambda {lam:g}"
    files.write(volume, voxel, attributes, asked, kept, made, json.dumps(depends_on))
    notes = [*scan.notes]
    if files.attributes and files.attributes.get("source_sha256") != depends_on["source_sha256"]:
        notes.append(f"replaced the images of another file of this name in {out}")
    if attributes.get("maps") == "full":
        notes.append(
            f"its maps are of {maps.calib} lines, more than the reconstruction has: better maps than such a scan would give"
        )
    if not maps.valid.all():
        notes.append(f"{int((~maps.valid).sum())} slices without signal are zero")
    return Outcome(f"{path.stem}  R {acceleration:.3g}", tuple(notes))


def _reconstructed(path: Path, scan: KSpace, maps: Maps, config: ReconstructConfig) -> tuple[dict[str, Any], Any]:
    """What the file says of a volume, and the volume (slices, h, w)."""
    try:
        mask = _mask(scan, config)
        images, lam, residual = _images(scan, maps, mask, config)
    except UserError as error:
        raise UserError(f"{path}: {error}".replace(f"{path}: {path}: ", f"{path}: ")) from None
    volume = crop(images, scan.recon_size).numpy()
    seen = _lines_of_maps(scan, maps, mask, config)
    about = {"lam": lam, "residual": residual, "acceleration": _acceleration(scan, mask), "maps": seen}
    return about, volume.swapaxes(-1, -2) if scan.swapped else volume


def _asked(config: ReconstructConfig) -> list[str]:
    """The forms that are asked for beside the volume's own."""
    return [form for form in ENDINGS if getattr(config, form)]


def _lines_of_maps(scan: KSpace, maps: Maps, mask: Tensor, config: ReconstructConfig) -> str:
    """``full``: the maps were estimated from lines that an acceleration which is tried out leaves away; else ``acs`` (docs/data.md)."""
    if not maps.calib:
        return "ones"
    tried = config.accel is not None and not mask[acs_lines(scan.kspace.shape[-1], maps.calib)].all()
    return "full" if tried else "acs"


def _images(scan: KSpace, maps: Maps, mask: Tensor, config: ReconstructConfig) -> tuple[Tensor, float, float]:
    """Magnitudes (slices, H, W), zero where there are no maps; the weight that was taken; and the part of the data that is not explained."""
    valid = maps.valid.nonzero().flatten()
    shown = mask.reshape(1, 1, *((1, -1) if mask.ndim == 1 else mask.shape))
    operator = MultiCoilMRI(maps.maps[valid], shown.expand(len(valid), *shown.shape[1:]))
    y = operator.restrict(scan.kspace[valid])
    images = torch.zeros(len(scan.kspace), *scan.kspace.shape[-2:], dtype=torch.float32)
    if not len(valid):
        return images, 0.0, 0.0
    lam = _lam(operator, y, _acceleration(scan, mask), config)
    x = _solved(operator, y, lam, config) * operator.support()
    images[valid] = squared(x).sum(1).sqrt()  # of two sets of maps, of both images
    left = consistency(x, Observation(y, operator, torch.zeros(len(x))))
    return images, lam, float(left.square().mean().sqrt())


def _lam(operator: MultiCoilMRI, y: Tensor, acceleration: float, config: ReconstructConfig) -> float:
    if config.lam == "auto":
        middle = len(y) // 2
        one = operator[middle : middle + 1], y[middle : middle + 1]
        return choose_lam(*one, Wavelet(config.wavelet, config.levels), config.iterations or ITERATIONS["torch"])
    if config.lam is None:
        return default_lam(acceleration) if config.method == "l1" else 0.0
    return config.lam


def _solved(operator: MultiCoilMRI, y: Tensor, lam: float, config: ReconstructConfig) -> Tensor:
    if config.method == "sense":
        return sense(operator, y, lam, config.iterations or 30, config.tolerance)
    iterations = config.iterations or ITERATIONS[config.backend]
    if config.backend == "sigpy":
        if operator.maps.ndim == 5:
            raise UserError("maps of two sets: the backend sigpy takes one. Take torch, or run rsdmri-espirit with --sets 1.")
        return sigpy_l1_wavelet(operator, y, lam, config.wavelet, iterations)
    return l1_wavelet(operator, y, lam, Wavelet(config.wavelet, config.levels), iterations, config.tolerance)


def _mask(scan: KSpace, config: ReconstructConfig) -> Tensor:
    """What is taken of the scan: all that it has, or the mask of an acceleration that is tried out on a fully sampled one."""
    if config.accel is None:
        return scan.mask
    if not scan.fully_sampled:
        raise UserError("undersampled already; leave --accel out")
    data = MRIData(accel=config.accel, acs=config.acs, mask=config.mask)
    experiment = MRIExperiment(data=data, objective=ObjectiveConfig(kind="standard"), seed=config.seed)
    width = scan.kspace.shape[-1]
    return mask_of(scan, width, kept_acs(width, config.acs), experiment)


def _acceleration(scan: KSpace, mask: Tensor) -> float:
    """Of what the protocol covers, over what was taken."""
    whole = scan.encoded.expand(mask.shape).sum()
    return float(whole / mask.sum())


def is_done(path: Path, out: Path, config: ReconstructConfig) -> bool:
    """Whether the images of this very file and its maps exist with these parameters, in every form that is asked for."""
    try:
        files = VolumeFiles(out, path.stem)
    except UserError:  # said when it would be replaced
        return False
    return files.finished(_asked(config)) and files.holds(_depends_on(path, config))


def _depends_on(path: Path, config: ReconstructConfig) -> dict[str, Any]:
    """What the images depend on: the options as they were asked for, the scan, and its maps."""
    left_out = (*FREE, *(OF_MASKS if config.accel is None else ()))
    asked = {f"asked_{name}": value for name, value in to_tree(config).items() if name not in left_out}
    options = {name: "default" if value is None else value for name, value in asked.items()}
    return options | made_from(path) | {"maps_sha256": sha256(maps_path(config.maps, path))}
