r"""Coil sensitivity maps by ESPIRiT (Uecker et al. 2014, Magn. Reson. Med. 71:990).

Inputs are centred k-space, as in the files. Maps fulfil sum_k |S_k|^2 = 1 on their support and are zero outside. The phase of a map
is known up to one function of the position, which ESPIRiT must choose; here the first virtual coil, the strongest combination of
the coils in the calibration block, is real and positive. It decides the phase of the complex images, and unlike the first coil
it is never dead.
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .masks import default_acs
from .readers import find_acs

SMALLEST_CALIB = 12  # lines; with fewer, maps are far off (11-23 % error)
USUAL_CALIB = 24


def default_calib(width: int, found: int) -> int:
    """The width of the calibration block: what an accelerated scan keeps, if that is enough for maps, else the usual 24."""
    kept = default_acs(width)
    return min(kept if kept >= SMALLEST_CALIB else USUAL_CALIB, found)


def espirit(
    kspace: Tensor,
    *,
    mask: Tensor | None = None,
    calib: int | None = None,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    iterations: int = 30,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (B, coils, H, W) complex64, eigenvalues (B, H, W) and valid (B,) from k-space (B, coils, H, W).

    ``calib``: width of the central block that is used, in both directions; ``mask`` (W,) or (H, W) says what was measured, by
    default all that is not zero. A slice without signal has zero maps and ``valid`` False. Raises :class:`UserError` if the
    fully sampled block is narrower than the kernel.
    """
    if kspace.ndim != 4:
        raise ValueError(f"k-space of 4 axes (slices, coils, H, W) expected, found {tuple(kspace.shape)}")
    mask = (kspace != 0).any(0).any(0).any(0) if mask is None else mask
    if not mask.any():
        zeros = torch.zeros(kspace.shape, dtype=torch.complex64)
        return zeros, zeros[:, 0].real.clone(), torch.zeros(len(kspace), dtype=torch.bool)
    block = find_acs(kspace, mask)
    width = min(calib or default_calib(kspace.shape[-1], block.stop - block.start), block.stop - block.start, kspace.shape[-2])
    if width < kernel:
        raise UserError(
            f"only {width} ACS lines found and {kernel} needed for kernels of that width. Estimate the maps from a scan with more"
            " central lines, or use a smaller --kernel."
        )
    found = [_espirit_slice(k, width, kernel, threshold, crop, iterations) for k in centred_block(kspace, block)]
    maps, eigenvalues = (torch.stack(part) for part in zip(*found, strict=True))
    valid = maps.abs().flatten(1).amax(1) > 0
    return _reference_phase(maps, kspace, block, width), eigenvalues, valid


def centred_block(kspace: Tensor, block: slice) -> Tensor:
    """K-space with only the columns of the ACS block left: what the estimate may see."""
    only = torch.zeros(kspace.shape[-1], dtype=torch.bool)
    only[block] = True
    return torch.where(only, kspace, 0)


def _espirit_slice(
    kspace: Tensor, calib: int, kernel: int, threshold: float, crop: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """sigpy's ESPIRiT of one slice: maps (coils, H, W), eigenvalues (H, W); zeros for a slice without signal."""
    from sigpy.mri.app import EspiritCalib

    if not kspace.any():
        return torch.zeros_like(kspace), torch.zeros(kspace.shape[1:])
    scale = kspace.abs().max()  # files hold values around 1e-6: normalised, no tolerance is crossed
    app = EspiritCalib(
        np.asarray(kspace / scale),
        calib_width=calib,
        thresh=threshold,
        kernel_width=kernel,
        crop=crop,
        max_iter=iterations,
        output_eigenvalue=True,
        show_pbar=False,
    )
    maps, eigenvalues = app.run()
    eigenvalues = np.abs(np.asarray(eigenvalues)).reshape(kspace.shape[1:])
    return torch.from_numpy(np.ascontiguousarray(maps)), torch.from_numpy(eigenvalues.astype(np.float32))


def _reference_phase(maps: Tensor, kspace: Tensor, block: slice, width: int) -> Tensor:
    """Turns the phase of every pixel so that the first virtual coil is real and positive there."""
    rows = slice(kspace.shape[-2] // 2 - width // 2, kspace.shape[-2] // 2 - width // 2 + width)
    samples = kspace[..., rows, block].flatten(2)  # (B, coils, samples)
    _, vectors = torch.linalg.eigh(samples @ samples.mH)
    first = vectors[..., -1]  # the eigenvector of the largest eigenvalue
    # An eigenvector has a free phase: the strongest coil's component is made real, so that the choice is the same everywhere.
    strongest = first.gather(1, first.abs().argmax(1, keepdim=True))
    first = first * (strongest.conj() / strongest.abs())
    virtual = (first.conj()[:, :, None, None] * maps).sum(1, keepdim=True)
    turned = maps * torch.exp(-1j * virtual.angle())
    # sigpy leaves unit norm up to rounding; A^H A <= 1 is relied upon.
    norm = turned.abs().square().sum(1, keepdim=True).sqrt()
    return torch.where(norm > 0, turned / norm.clamp(min=1e-12), 0)


def combine(maps: Tensor, coil_images: Tensor) -> Tensor:
    """sum_k conj(S_k) x_k: coil images (B, coils, H, W) -> image (B, 1, H, W)."""
    return (maps.conj() * coil_images).sum(1, keepdim=True)


def residual(maps: Tensor, coil_images: Tensor) -> Tensor:
    """|x_k - S_k S^H x| / |x| of each slice (B,): how much of the coil images the maps cannot explain; phase included."""
    rest = coil_images - maps * combine(maps, coil_images)
    return rest.flatten(1).norm(dim=1) / coil_images.flatten(1).norm(dim=1).clamp(min=1e-30)
