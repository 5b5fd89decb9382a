r"""Coil sensitivity maps by ESPIRiT (Uecker et al. 2014, Magn. Reson. Med. 71:990).

Inputs are centred k-space, as in the files. Maps fulfil sum_k |S_k|^2 = 1 on their support and are exactly zero outside. Only a square
block of k-space, fully sampled and around its centre, is ever looked at: what is measured elsewhere cannot change the maps.

ESPIRiT knows the maps up to a phase that is a function of the position, which also is the phase of the combined image. Here it is
chosen so that the first virtual coil, v^H S with v the strongest combination of the coils in the block, is real and positive, and v so
that its signal at the centre of k-space is. Unlike the first coil, the usual choice, a virtual coil is never dead.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .masks import default_acs, find_acs, find_dc, sampled

SMALLEST_CALIB = 12  # lines; with fewer, maps are far off (11-23 % error)
USUAL_CALIB = 24

#: K-space (coils, H, W) that is zero outside its central block, the width of the block -> maps, eigenvalues (H, W).
Estimate: TypeAlias = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def default_calib(width: int) -> int:
    """The width of the calibration block: what an accelerated scan keeps, if that is enough for maps, else the usual 24."""
    kept = default_acs(width)
    return kept if kept >= SMALLEST_CALIB else USUAL_CALIB


def calibration_block(kspace: Tensor, mask: Tensor, calib: int | None = None, kernel: int = 6) -> tuple[slice, slice]:
    """Rows and columns of the block that maps are estimated from: square, ``calib`` wide or as wide as the ACS allow.

    It lies about N // 2, so that it is part of the ACS lines of a sparser mask, unless the centre of k-space is clearly elsewhere.
    Raises :class:`UserError` if it would be narrower than the kernel.
    """
    runs = find_acs(kspace, mask)
    found = min(run.stop - run.start for run in runs)
    if found < kernel:
        raise UserError(
            f"{found} fully sampled ACS lines found, and kernels of width {kernel} need at least {kernel} (for good maps {USUAL_CALIB})."
            " Take maps from a scan with more central lines, or a smaller --kernel."
        )
    width = min(calib or default_calib(kspace.shape[-1]), found)
    if width < kernel:
        raise UserError(f"a calibration block of {width} lines is narrower than the kernel of {kernel}. Use a larger --calib.")
    rows, columns = (
        _central(run, n // 2, centre, width)
        for run, n, centre in zip(runs, kspace.shape[-2:], find_dc(kspace, mask), strict=True)
    )
    return rows, columns


def _central(run: slice, middle: int, centre: int, width: int) -> slice:
    """``width`` lines of a run, about the middle of the matrix or, where that is off, about the centre of k-space."""
    about = middle if abs(centre - middle) <= width // 4 else centre
    start = min(max(about - width // 2, run.start), run.stop - width)
    return slice(start, start + width)


def espirit(
    kspace: Tensor,
    *,
    calib: int | None = None,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    iterations: int = 30,
    backend: str = "sigpy",
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (B, coils, H, W) complex64, eigenvalues (B, H, W) float32 and valid (B,) from k-space (B, coils, H, W) of one scan.

    ``calib``, ``kernel``: widths of the calibration block and of the kernels; ``threshold``: of the singular values, as a part of the
    largest; ``crop``: of the eigenvalues, below which maps are zero; ``iterations`` of the power method; ``mask`` (W,) or (H, W) says
    what was measured, by default all that is not zero. A slice without signal has zero maps and ``valid`` False.

    Raises :class:`UserError` if the fully sampled block is narrower than the kernel.
    """
    if kspace.ndim != 4 or not kspace.is_complex():
        raise ValueError(f"complex k-space (slices, coils, H, W) expected, found {kspace.dtype} {tuple(kspace.shape)}")
    if not torch.isfinite(torch.view_as_real(kspace)).all():
        raise UserError("NaN or infinity in k-space: no maps can be estimated from it")
    if backend != "sigpy":
        raise UserError(f"unknown ESPIRiT backend '{backend}'; there is 'sigpy'")
    estimate = partial(_sigpy, kernel=kernel, threshold=threshold, crop=crop, iterations=iterations)
    kspace = kspace.to("cpu", torch.complex64)
    mask = sampled(kspace) if mask is None else mask.cpu()
    maps, eigenvalues = torch.zeros_like(kspace), torch.zeros_like(kspace[:, 0].real)
    if kspace.any():
        rows, columns = calibration_block(kspace, mask, calib, kernel)
        for number, block in enumerate(kspace[..., rows, columns]):
            if block.any():
                maps[number], eigenvalues[number] = _of_slice(block, kspace.shape[-2:], estimate)
    return maps, eigenvalues, maps.abs().flatten(1).amax(1) > 0


def _of_slice(block: Tensor, size: torch.Size, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Maps (coils, H, W) and eigenvalues (H, W) from the calibration block (coils, n, n) of one slice."""
    # The strongest coil comes first, because backends divide by the phase of the first; and files hold values around 1e-6: brought to
    # the order of one, no tolerance is crossed.
    order = block.abs().square().sum((1, 2)).argsort(descending=True)
    central = torch.zeros(len(block), *size, dtype=torch.complex64)
    top, left = (n // 2 - block.shape[-1] // 2 for n in size)
    # The place of the block only turns phases that are the same for all coils: it may move to where backends look for it.
    central[:, top : top + block.shape[1], left : left + block.shape[2]] = block[order] / block.abs().max()
    found, eigenvalues = (torch.from_numpy(part) for part in estimate(central.numpy(), block.shape[-1]))
    maps = torch.empty_like(found)
    maps[order] = found
    return _unit(_turn(maps, block)), eigenvalues


def _sigpy(
    kspace: np.ndarray, calib: int, *, kernel: int, threshold: float, crop: float, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """sigpy's ESPIRiT."""
    from sigpy.mri.app import EspiritCalib

    with np.errstate(all="ignore"):  # the phase of a zero
        app = EspiritCalib(
            kspace,
            calib_width=calib,
            thresh=threshold,
            kernel_width=kernel,
            crop=crop,
            max_iter=iterations,
            device=-1,
            output_eigenvalue=True,
            show_pbar=False,
        )
        maps, eigenvalues = app.run()
    eigenvalues = np.abs(eigenvalues).reshape(kspace.shape[1:]).astype(np.float32)
    return np.nan_to_num(np.ascontiguousarray(maps, np.complex64), nan=0.0), np.nan_to_num(eigenvalues, nan=0.0)


def _turn(maps: Tensor, block: Tensor) -> Tensor:
    """Maps (coils, H, W) with the phase in which the first virtual coil of the block is real and positive."""
    samples = block.flatten(1).to(torch.complex128)
    first = torch.linalg.eigh(samples @ samples.mH)[1][:, -1]  # of the largest eigenvalue
    signal = first.conj() @ samples
    peak = signal[signal.abs().argmax()]
    first = (first * peak / peak.abs()).to(
        maps.dtype
    )  # an eigenvector's own phase is arbitrary: v^H k becomes positive at the peak
    virtual = torch.einsum("k,khw->hw", first.conj(), maps)
    return maps * torch.exp(-1j * virtual.angle())


def _unit(maps: Tensor) -> Tensor:
    """Maps (coils, H, W) with sum_k |S_k|^2 = 1 to the last bit, which ||A|| <= 1 rests on, or zero."""
    norm = maps.abs().square().sum(0).sqrt()
    return torch.where(norm > 0.5, maps / norm.clamp(min=0.5), 0)


def combine(maps: Tensor, coil_images: Tensor) -> Tensor:
    """sum_k conj(S_k) x_k: coil images (B, coils, H, W) -> image (B, 1, H, W)."""
    return (maps.conj() * coil_images).sum(1, keepdim=True)


def residual(maps: Tensor, coil_images: Tensor) -> Tensor:
    """|x_k - S_k S^H x| / |x| of each slice (B,): how much of the coil images the maps cannot explain; phase included."""
    rest = coil_images - maps * combine(maps, coil_images)
    return rest.flatten(1).norm(dim=1) / coil_images.flatten(1).norm(dim=1).clamp(min=1e-30)
