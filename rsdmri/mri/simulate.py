"""Multi-coil k-space for learning and testing: drawn phantoms, or magnitude images with a drawn phase and measured coils.

    k = F (S x) + noise,   x = magnitude exp(i phase),   noise white, of standard deviation p99(|x|) / snr per real component

Images are seen by the coils on their own grid, and the centre of that k-space is kept: on a smaller matrix they have a lower
resolution, as a shorter scan has, and its ringing. The phase is smooth and differs between volumes.

Measured maps S come with the covariance N = L L^H of their coils' noise, if the file has it: they are then prewhitened, L^-1 S, so that
white noise is what the scanner would have, and scaled to sum_k |S_k|^2 = 1. The image does not take up that scale: it stays the
magnitude that was given, and the noise of the combined image is the same everywhere. Coloured noise, L times white, leaves the maps as
they were measured, and is written with its covariance, so that ``prepare`` can whiten it.

What comes from magnitude images is *semi-synthetic*: they were combined, interpolated and rounded by a scanner, and results on
them are optimistic against raw k-space (Shimron et al. 2022, "implicit data crimes").
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import open_npz, read_array
from ..config import to_tree
from ..errors import UserError
from ..files import sha256
from ..jobs import run_files
from ..tensors import make_generator, number_of, randn, randn_like
from . import phantoms
from .config import SimulateConfig
from .fastmri_file import write_fastmri
from .fourier import ifft2c, resized, rss
from .magnitudes import read_volumes

NOISE_STREAM = 4  # the purpose of the generators of measurement noise

Maps: TypeAlias = NDArray[np.complexfloating]
Scan: TypeAlias = Callable[[str], tuple[Tensor, str]]  # a volume's name -> noise-free k-space, contrast


def simulate(config: SimulateConfig, images: Path | None, out: Path) -> None:
    """Writes one fastMRI-layout file a volume into ``out``; files that are there already, with the same options, are left.

    Raises :class:`UserError` if a file of that name was made with other options, or if the images or maps cannot be used.
    """
    if (config.phantoms > 0) == (images is not None):
        raise UserError("simulate needs either magnitude images (a file or a folder) or --phantoms N, and not both")
    if images is None and config.coil_maps is not None:
        raise UserError("phantoms have coils of their own: --coil-maps goes with magnitude images")
    scan: Scan
    if images is None:
        names, scan = [f"phantom_{index:04d}" for index in range(config.phantoms)], partial(_phantom, config=config)
    else:
        volumes = read_volumes(images, config)
        maps = load_coil_maps(config) if config.coil_maps else None
        names, scan = list(volumes), partial(_see, volumes=volumes, maps=maps, config=config)
    made = _made_from(config, images)
    for name in names:
        _check_same(out / f"{name}.h5", made)
    run_files(
        partial(_write, scan=scan, config=config, out=out, made=made),
        names,
        workers=1,
        stage="simulate",
        done=lambda name: (out / f"{name}.h5").exists(),
        unit="volumes",
    )


def _made_from(config: SimulateConfig, images: Path | None) -> str:
    """All that a file depends on but its own name."""
    tree: dict[str, Any] = {name: value for name, value in to_tree(config).items() if name != "phantoms"}
    tree["images"] = _hash(images) if images is not None else None
    tree["coil_maps"] = sha256(config.coil_maps) if config.coil_maps is not None else None
    return json.dumps(tree, sort_keys=True)


def _hash(path: Path) -> str:
    """Of a file its SHA-256, of a folder that of the names and contents of its files."""
    if path.is_file():
        return sha256(path)
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256("\n".join(f"{p.relative_to(path)} {sha256(p)}" for p in inside).encode()).hexdigest()


def _check_same(path: Path, made: str) -> None:
    if not path.exists():
        return
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("simulated", "")
    except OSError as error:
        raise UserError(f"{path}: is there and cannot be read ({error}). Delete it, or choose another --out.") from None
    if found != made:
        theirs, ours = _options(found), json.loads(made)
        other = ", ".join(f"{key} {theirs[key]} (not {ours[key]})" for key in ours if key in theirs and theirs[key] != ours[key])
        raise UserError(
            f"{path}: is there and was made otherwise{': ' + other if other else ''}. Delete it, or choose another --out."
        )


def _options(found: Any) -> dict[str, Any]:
    """The options that a file says it was made with, if it says any."""
    try:
        tree = json.loads(found or "{}")
    except (TypeError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _write(name: str, scan: Scan, config: SimulateConfig, out: Path, made: str) -> str:
    """Adds noise at the wanted ratio and writes the file of one volume, with the covariance of coloured noise beside it."""
    k, contrast = scan(name)
    noise_std = float(torch.quantile(_subset(rss(ifft2c(k), 1).flatten()), 0.99)) / config.snr
    noise = randn_like(k, make_generator(config.seed, NOISE_STREAM, number_of(name)))
    covariance = None
    if config.noise == "coloured":
        found = noise_covariance(config, k.shape[1])
        noise = torch.einsum("nk,skhw->snhw", torch.linalg.cholesky(found).to(k.dtype), noise)
        covariance = 2 * noise_std**2 * found
    write_fastmri(
        out / f"{name}.h5",
        k + noise_std * noise,
        acquisition=contrast,
        noise_std=noise_std,
        noise_covariance=covariance,
        attributes={"simulated": made},
    )
    return name


def noise_covariance(config: SimulateConfig, coils: int) -> Tensor:
    """Of the coils' noise, with a mean variance of one: measured beside the maps, or drawn with correlated, unequal coils."""
    measured = _measured_covariance(config) if config.coil_maps else None
    if measured is None:
        mixing = 0.35 * randn((coils, coils), torch.complex128, make_generator(config.seed, NOISE_STREAM)) / coils**0.5
        gains = 1 + 0.3 * torch.rand(coils, dtype=torch.float64, generator=make_generator(config.seed, NOISE_STREAM, 1))
        mixing = mixing + torch.diag(gains).to(mixing.dtype)
        measured = mixing @ mixing.mH
    if measured.shape != (coils, coils):
        raise UserError(
            f"{config.coil_maps}: the noise covariance is {tuple(measured.shape)}; expected ({coils}, {coils}), one row a coil"
        )
    if torch.linalg.eigvalsh(measured).min() <= 0:
        raise UserError(f"{config.coil_maps}: the noise covariance is not positive definite")
    return measured / measured.diagonal().real.mean()


def _subset(values: Tensor, most: int = 1 << 22) -> Tensor:
    """At most ``most`` of the values, evenly spread: torch.quantile takes no more than 2^24."""
    return values[:: max(1, -(-len(values) // most))]


def _phantom(name: str, config: SimulateConfig) -> tuple[Tensor, str]:
    index = int(name.rpartition("_")[2])
    return phantoms.draw(config.seed, index, config.slices, config.coils, config.size, config.phase), "PHANTOM"


def _see(
    name: str, volumes: dict[str, tuple[NDArray[Any], str]], maps: Maps | None, config: SimulateConfig
) -> tuple[Tensor, str]:
    """Noise-free k-space of magnitude images (slices, h, w): a phase of their own, the measured coils or drawn ones."""
    rng = np.random.default_rng([config.seed, number_of(name)])
    stack, contrast = volumes[name]
    size = (stack.shape[1], stack.shape[2])
    coils = phantoms.coil_maps(rng, config.coils, size) if maps is None else _resize_maps(maps, size)
    phase = phantoms.smooth_phase(rng, len(stack), size, config.phase)
    return phantoms.kspace(_magnitudes(stack) * np.exp(1j * phase), coils, config.size), contrast


def _magnitudes(stack: NDArray[Any]) -> NDArray[np.float64]:
    """8-bit values come to [0, 1]; others stay as they are."""
    return stack.astype(np.float64) / (255 if stack.dtype == np.uint8 else 1)


def load_coil_maps(config: SimulateConfig) -> Maps:
    """Measured maps (coils, h, w), prewhitened for white noise if the noise covariance is beside them."""
    assert config.coil_maps is not None
    path, key = config.coil_maps, config.coil_maps_key
    arrays = open_npz(path)
    if key not in arrays.files:
        raise UserError(f"{path}: no array '{key}'; found {', '.join(arrays.files)}. Choose one of them with --coil-maps-key.")
    maps = read_array(path, arrays, key)
    if maps.ndim != 3 or maps.dtype.kind != "c":
        raise UserError(f"{path}: '{key}' is {maps.dtype} {maps.shape}; expected complex maps (coils, h, w)")
    covariance = _covariance_key(arrays.files, key)
    if covariance is not None and config.noise == "white":
        maps = _whitened(path, maps.astype(np.complex128), read_array(path, arrays, covariance), covariance)
    return phantoms.unit(maps)


def _covariance_key(names: Sequence[str], key: str) -> str | None:
    """The same coils may be there on several grids, as name_128 and name_256; their noise does not depend on it."""
    return next((name for name in (f"{key}_noise_cov", re.sub(r"_\d+$", "", key) + "_noise_cov") if name in names), None)


def _measured_covariance(config: SimulateConfig) -> Tensor | None:
    """The covariance that lies beside the measured maps, if there is one."""
    assert config.coil_maps is not None
    arrays = open_npz(config.coil_maps)
    key = _covariance_key(arrays.files, config.coil_maps_key)
    return None if key is None else torch.from_numpy(read_array(config.coil_maps, arrays, key).astype(np.complex128))


def _whitened(path: Path, maps: Maps, covariance: NDArray[Any], key: str) -> Maps:
    """L^-1 S with N = L L^H."""
    try:
        lower = np.linalg.cholesky(covariance.astype(np.complex128))
        white: Maps = np.linalg.solve(lower, maps.reshape(len(maps), -1)).reshape(maps.shape)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise UserError(f"{path}: '{key}' {covariance.shape} is no covariance of {len(maps)} coils ({error})") from None
    return white


def _resize_maps(maps: Maps, size: tuple[int, int]) -> Maps:
    """Smooth maps on another grid, by linear interpolation."""
    if maps.shape[1:] == size:
        return maps
    return phantoms.unit(resized(torch.from_numpy(maps.astype(np.complex128)), size).numpy())
