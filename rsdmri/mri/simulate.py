"""Multi-coil k-space for learning and testing: drawn phantoms, or magnitude images with a drawn phase and measured coils.

    k = F (S x) + noise,   x = magnitude exp(i phase)

What comes from magnitude images is *semi-synthetic*: they were combined, interpolated and rounded by a scanner, and results on
them are optimistic against raw k-space (Shimron et al. 2022, "implicit data crimes").
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..progress import track
from ..tensors import make_generator, randn_like
from . import phantoms
from .config import SimulateConfig
from .fourier import ifft2c, rss
from .readers import write_fastmri

NOISE_STREAM = 4  # the purpose of the generators of measurement noise


def simulate(config: SimulateConfig, images: Path | None, out: Path) -> None:
    """Writes one fastMRI-layout file a volume into ``out``; files that exist are left as they are."""
    if (config.phantoms > 0) == (images is not None):
        raise UserError("simulate needs either an .npz with magnitude images or --phantoms N, not both")
    if images is None:
        jobs = [(f"phantom_{i:04d}", i) for i in range(config.phantoms)]
        for name, index in track(jobs, "simulate", len(jobs), "volumes"):
            if not (out / f"{name}.h5").exists():
                k = phantoms.draw(config.seed, index, config.slices, config.coils, config.size)
                _write(out, name, k, config, "PHANTOM")
        return
    volumes = group_images(images, config)
    maps = load_coil_maps(config) if config.coil_maps else None
    for name, stack in track(volumes.items(), "simulate", len(volumes), "volumes"):
        if not (out / f"{name}.h5").exists():
            _write(out, name, see(stack, maps, name, config), config, "SEMISYNTHETIC")


def see(stack: np.ndarray, maps: np.ndarray | None, name: str, config: SimulateConfig) -> Tensor:
    """Noise-free k-space of magnitude images (slices, h, w): a phase of their own, the measured coils or drawn ones."""
    rng = np.random.default_rng([config.seed, _number(name)])
    seen = phantoms.birdcage(rng, config.coils, stack.shape[-2:]) if maps is None else _resize_maps(maps, stack.shape[-2:])
    phase = phantoms.smooth_phase(rng, stack.shape[-2:])
    return phantoms.kspace(stack * np.exp(1j * phase), seen, config.size)


def _write(out: Path, name: str, k: Tensor, config: SimulateConfig, acquisition: str) -> None:
    """Adds white noise at the wanted ratio and writes the file."""
    signal = torch.quantile(rss(ifft2c(k), 1).flatten(), 0.99)
    noise_std = float(signal) / config.snr
    generator = make_generator(config.seed, NOISE_STREAM, _number(name))
    write_fastmri(out / f"{name}.h5", k + noise_std * randn_like(k, generator), acquisition=acquisition, noise_std=noise_std)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def group_images(path: Path, config: SimulateConfig) -> dict[str, np.ndarray]:
    """Magnitudes in [0, 1] by volume name: one volume a subject where the file says who, else every ``slices`` images."""
    arrays = _open_npz(path)
    key = config.split or (arrays.files[0] if len(arrays.files) == 1 else "")
    if key not in arrays.files:
        raise UserError(f"{path}: no array '{key or '?'}'; found {', '.join(arrays.files)}. Choose one with --split.")
    stack = arrays[key]
    if stack.ndim != 3 or np.iscomplexobj(stack):
        raise UserError(f"{path}: '{key}' is {stack.dtype} {stack.shape}; expected magnitudes (images, h, w)")
    if min(stack.shape[1:]) < min(config.size) or stack.shape[1] < config.size[0] or stack.shape[2] < config.size[1]:
        raise UserError(
            f"{path}: images of {stack.shape[1]} x {stack.shape[2]} are smaller than --size {config.size[0]} {config.size[1]}"
        )
    subjects = arrays[f"{key}_subject"] if f"{key}_subject" in arrays.files else np.arange(len(stack)) // config.slices
    chosen = np.arange(len(stack))
    if 0 < config.limit < len(stack):
        chosen = np.unique(np.linspace(0, len(stack) - 1, config.limit).round().astype(int))
    top = float(stack.max()) if stack.dtype != np.uint8 else 255.0
    prefix = config.split or path.stem
    names, groups = np.unique(subjects[chosen], return_inverse=True)
    return {f"{prefix}_{name}": stack[chosen[groups == i]].astype(np.float64) / top for i, name in enumerate(names)}


def load_coil_maps(config: SimulateConfig) -> np.ndarray:
    """Measured maps (coils, h, w); with a noise covariance N = L L^H beside them, prewhitened: L^-1 S.

    The files that are written then have white noise of equal level in every coil, as after prewhitening on a scanner.
    """
    assert config.coil_maps is not None
    arrays = _open_npz(config.coil_maps)
    if config.coil_maps_key not in arrays.files:
        raise UserError(
            f"{config.coil_maps}: no array '{config.coil_maps_key}'; found {', '.join(arrays.files)} (--coil-maps-key)"
        )
    maps = arrays[config.coil_maps_key]
    if maps.ndim != 3 or not np.iscomplexobj(maps):
        raise UserError(
            f"{config.coil_maps}: '{config.coil_maps_key}' is {maps.dtype} {maps.shape}; expected complex (coils, h, w)"
        )
    covariance = f"{config.coil_maps_key}_noise_cov"
    if covariance in arrays.files:
        lower = np.linalg.cholesky(arrays[covariance].astype(np.complex128))
        maps = np.einsum("kj,jhw->khw", np.linalg.inv(lower), maps.astype(np.complex128))
    return _unit(maps)


def _open_npz(path: Path) -> "np.lib.npyio.NpzFile":
    try:
        arrays = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: one array found, an .npz with named arrays expected")
    return arrays


def _unit(maps: np.ndarray) -> np.ndarray:
    norm = np.sqrt((np.abs(maps) ** 2).sum(0, keepdims=True))
    unit: np.ndarray = np.where(norm > 0, maps / np.maximum(norm, 1e-12), 0)
    return unit


def _resize_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Smooth maps on another grid, by linear interpolation of real and imaginary parts."""
    if maps.shape[1:] == tuple(size):
        return maps
    parts = torch.from_numpy(np.stack([maps.real, maps.imag])).double()
    resized = torch.nn.functional.interpolate(parts, size=tuple(size), mode="bilinear", align_corners=False).numpy()
    return _unit(resized[0] + 1j * resized[1])
