r"""Coil sensitivity maps by ESPIRiT (Uecker et al. 2014, Magn. Reson. Med. 71:990).

Inputs are centred k-space, as in the files. Maps fulfil sum_k |S_k|^2 = 1 on their support and are exactly zero outside. Only a square
block of k-space, fully sampled and around its centre, is looked at, and, for its noise, the ends of the readout in the same columns: what
is measured in other columns cannot change the maps.

ESPIRiT knows the maps up to a phase that is a function of the position, which also is the phase of the combined image. Here it is
chosen so that the first virtual coil, v^H S with v the strongest combination of the coils in the block, is real and positive, and v so
that its signal at the centre of k-space is. Unlike the first coil, the usual choice, a virtual coil is never dead.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import squared
from .fourier import ifft2c, resized
from .kernels import coil_eigenvectors, dominant, noise_level, row_space, windows
from .masks import default_acs, find_acs, find_dc, sampled
from .operators import combine, expand

SMALLEST_CALIB = 12  # lines; with fewer, maps are far off (11-23 % error)
USUAL_CALIB = 24
SMALLEST_KERNEL, USUAL_KERNEL = 4, 6

SMALLEST_THRESHOLD = 0.02  # singular values below this part of the largest are noise in any scan
DEFAULT_CROP = {1: 0.95, 2: 0.9}  # by number of sets: where two share a pixel, each explains less of it

Backend = Literal["torch", "sigpy", "walsh"]
BACKENDS = get_args(Backend)
FEWEST_WALSH = 3  # lines
WALSH_SIGNAL = 0.1  # of the strongest, above which a pixel has signal


def default_calib(width: int) -> int:
    """The width of the calibration block: what an accelerated scan keeps, if that is enough for maps, else the usual 24."""
    kept = default_acs(width)
    return kept if kept >= SMALLEST_CALIB else USUAL_CALIB


def default_kernel(lines: int) -> int:
    """The width of kernels for a calibration block of so many lines: 6, the usual one, from 18 on, and down to 4 below 15.

    Of a narrow block, wide kernels see too few windows: with 12 lines, kernels of 6 lose a fifth to a half of the support.
    """
    return min(max(lines // 3, SMALLEST_KERNEL), USUAL_KERNEL)


def narrowest_block(backend: Backend, kernel: int | None) -> int:
    """The lines without which a backend has nothing to work with."""
    return FEWEST_WALSH if backend == "walsh" else kernel or SMALLEST_KERNEL


def calibration_block(kspace: Tensor, mask: Tensor, calib: int | None = None, kernel: int = 4) -> tuple[slice, slice]:
    """Rows and columns of the block that maps are estimated from: square, ``calib`` wide or as wide as the ACS allow.

    It lies about N // 2, so that it is part of the ACS lines of a sparser mask, unless the centre of k-space is clearly elsewhere.
    Raises :class:`UserError` if it would be narrower than the kernel.
    """
    runs = find_acs(kspace, mask)
    found = min(run.stop - run.start for run in runs)
    if found < kernel:
        raise UserError(
            f"{found} fully sampled ACS lines found, and kernels of width {kernel} need at least {kernel} (for good maps {USUAL_CALIB})."
            " Take maps from a scan with more central lines, a smaller --kernel, or --backend walsh."
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
    kernel: int | None = None,
    threshold: float | None = None,
    crop: float | None = None,
    sets: int = 1,
    backend: Backend = "torch",
    iterations: int = 100,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (B, coils, H, W) complex64, eigenvalues (B, H, W) float32 and valid (B,) from k-space (B, coils, H, W) of one scan.

    ``calib``, ``kernel``: widths of the calibration block and of the kernels, see :func:`default_calib` and :func:`default_kernel`;
    ``threshold``: of the singular values, as a part of the largest, by default 0.02 or what the noise of the scan alone reaches, if that is
    more; ``crop``: of the eigenvalues, below which maps are zero and eigenvalues are lower estimates, by default 0.95 (0.9 for two
    sets); ``sets`` 2: a second set of maps, for a field of view smaller than the object: maps (B, 2, coils, H, W), eigenvalues (B, 2, H, W);
    ``backend`` "sigpy": sigpy's implementation, with ``iterations`` of its power method; "walsh": adaptive combination instead of ESPIRiT
    (:func:`_walsh`), for scans with too few ACS lines; ``mask`` (W,) or (H, W) says what was measured, by default all that is not zero. A
    slice without signal has zero maps and ``valid`` False. Results are on the device of ``kspace``.

    Raises :class:`UserError` if the fully sampled block is narrower than the kernel.
    """
    if kspace.ndim != 4 or not kspace.is_complex():
        raise ValueError(f"complex k-space (slices, coils, H, W) expected, found {kspace.dtype} {tuple(kspace.shape)}")
    if not kspace.isfinite().all():
        raise UserError("NaN or infinity in k-space: no maps can be estimated from it")
    if backend not in BACKENDS:
        raise UserError(f"unknown backend '{backend}' for coil maps; there are {', '.join(BACKENDS)}")
    if sets not in DEFAULT_CROP or (sets > 1 and (backend != "torch" or kspace.shape[1] < sets)):
        raise UserError(f"{sets} sets of maps asked for: there are 1 and, of two coils or more with the backend 'torch', 2")
    kspace = kspace.to(torch.complex64)
    slices, coils, height, width = kspace.shape
    maps = kspace.new_zeros(slices, sets, coils, height, width)
    eigenvalues = maps.real.new_zeros(slices, sets, height, width)
    valid = torch.zeros(slices, dtype=torch.bool, device=kspace.device)
    if kspace.any():
        pattern = sampled(kspace) if mask is None else mask
        rows, columns = calibration_block(kspace, pattern, calib, narrowest_block(backend, kernel))
        kernel = kernel or default_kernel(columns.stop - columns.start)
        valid = kspace[..., rows, columns].flatten(1).any(1)
        scan = kspace[valid]
        # Files hold values around 1e-6: brought to the order of one, no tolerance is crossed.
        scan = scan / scan[..., rows, columns].abs().amax((1, 2, 3), keepdim=True)
        block = scan[..., rows, columns]
        crop = DEFAULT_CROP[sets] if crop is None else crop
        if backend == "walsh":
            found, values = _walsh(block, (height, width))
        else:
            if threshold is None:
                limit, noise = SMALLEST_THRESHOLD, noise_level(scan, rows, columns, kernel)
            else:
                limit, noise = threshold, torch.zeros(len(scan), dtype=torch.float64, device=scan.device)
            if backend == "torch":
                found, values = coil_eigenvectors(block, (height, width), kernel, limit, noise, sets, crop)
            else:
                found, values = _sigpy(block, (height, width), kernel, limit, noise, iterations)
        turned = torch.stack([_turn(vectors, samples) for vectors, samples in zip(found, block, strict=True)])
        # Exactly zero: where the eigenvalue says so, and for coils that are dead.
        inside = (values > crop)[:, :, None]
        alive = (block != 0).flatten(2).any(2)[:, None, :, None, None]
        maps[valid], eigenvalues[valid] = _unit(torch.where(inside & alive, turned, 0)), values
        if valid.any() and not maps.any():
            raise UserError(
                f"no pixel of any slice has an eigenvalue above the crop: a calibration block of {block.shape[-1]} lines is too small for"
                f" kernels of width {kernel}, or there is no signal. Use a smaller --kernel, a lower --crop, or --backend walsh."
            )
    if sets == 1:
        maps, eigenvalues = maps[:, 0], eigenvalues[:, 0]
    return maps, eigenvalues, maps.flatten(1).any(1)


def _sigpy(
    block: Tensor, size: tuple[int, int], kernel: int, threshold: float, noise: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """sigpy's ESPIRiT, slice by slice on the CPU: vectors (B, 1, coils, H, W) and eigenvalues (B, 1, H, W) as the other backend's."""
    from sigpy.mri.app import EspiritCalib

    vectors, values = [], []
    for samples, level in zip(block.cpu(), noise.tolist(), strict=True):
        largest = float(row_space(windows(samples[None], kernel))[0][0, 0])
        # The strongest coil comes first, because sigpy divides by the phase of the first.
        order = samples.abs().square().sum((1, 2)).argsort(descending=True)
        kspace = torch.zeros(len(samples), *size, dtype=torch.complex64)
        # The place of the block only turns phases that are the same for all coils: it may move to where sigpy looks for it.
        top, left = (n // 2 - width // 2 for n, width in zip(size, samples.shape[1:], strict=True))
        kspace[:, top : top + samples.shape[1], left : left + samples.shape[2]] = samples[order]
        with np.errstate(all="ignore"):  # the phase of a zero
            found, eigenvalues = EspiritCalib(
                kspace.numpy(),
                calib_width=samples.shape[-1],
                thresh=max(threshold, level / largest),
                kernel_width=kernel,
                crop=0,
                max_iter=iterations,
                output_eigenvalue=True,
                show_pbar=False,
            ).run()
        maps = torch.empty_like(kspace)
        maps[order] = torch.from_numpy(np.nan_to_num(np.ascontiguousarray(found, np.complex64), nan=0.0))
        vectors.append(maps)
        values.append(torch.from_numpy(np.nan_to_num(np.abs(eigenvalues).reshape(size).astype(np.float32), nan=0.0)))
    return torch.stack(vectors)[:, None].to(block.device), torch.stack(values)[:, None].to(block.device)


def _walsh(block: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Vectors (B, 1, coils, H, W) and 1 or 0 for signal (B, 1, H, W): the strongest local combination of the coils (Walsh et al. 2000).

    The block is windowed and transformed on twice its own grid, the products of its coil images are averaged over neighbours, and the
    eigenvectors brought to the size of the image. Rougher than ESPIRiT, but three lines are enough.
    """
    n, m = block.shape[-2:]
    window = torch.hann_window(n + 2, periodic=False, dtype=block.real.dtype, device=block.device)[1:-1, None]
    window = window * torch.hann_window(m + 2, periodic=False, dtype=block.real.dtype, device=block.device)[1:-1]
    padded = torch.nn.functional.pad(block * window, (m - m // 2, m // 2, n - n // 2, n // 2))
    images = ifft2c(padded)
    products = (images[:, :, None] * images[:, None].conj()).flatten(1, 2)
    parts = torch.cat([products.real, products.imag], 1)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(parts, (1, 1, 1, 1), mode="circular"), 3, 1)
    coils = block.shape[1]
    real, imag = smooth.chunk(2, 1)
    matrices = torch.complex(real, imag).unflatten(1, (coils, coils)).permute(0, 3, 4, 1, 2)
    vectors = dominant(matrices.reshape(-1, coils, coils)).reshape(*matrices.shape[:-1]).permute(0, 3, 1, 2)
    vectors = torch.stack([_turn(part[None], samples)[0] for part, samples in zip(vectors, block, strict=True)])
    strength = squared(images).sum(1, keepdim=True).sqrt()
    top = strength.flatten(1).quantile(0.99, dim=1)[:, None, None, None]
    signal = resized(strength, size) > WALSH_SIGNAL * top
    return resized(vectors, size)[:, None], signal.to(block.real.dtype)


def _turn(maps: Tensor, block: Tensor) -> Tensor:
    """Maps (sets, coils, H, W) with the phase in which the first virtual coil of the block (coils, n, m) is real and positive."""
    samples = block.flatten(1).to(torch.complex128)
    first = torch.linalg.eigh(samples @ samples.mH)[1][:, -1]  # of the largest eigenvalue
    signal = first.conj() @ samples
    peak = signal[signal.abs().argmax()]
    first = first * peak / peak.abs()  # an eigenvector's own phase is arbitrary: v^H k becomes positive at the peak
    virtual = torch.einsum("k,skhw->shw", first.conj().to(maps.dtype), maps)
    size = virtual.abs()
    return maps * torch.where(size > 0, virtual.conj() / size.clamp(min=1e-30), 1)[:, None]


def _unit(maps: Tensor) -> Tensor:
    """Maps (B, sets, coils, H, W) with sum_k |S_k|^2 = 1 to the last bit, which ||A|| <= 1 rests on, or zero."""
    norm = squared(maps).sum(2, keepdim=True).sqrt()
    return torch.where(norm > 0.5, maps / norm.clamp(min=0.5), 0)


def residual(maps: Tensor, coil_images: Tensor) -> Tensor:
    """|x_k - S_k S^H x| / |x| of each slice (B,): how much of the coil images the maps cannot explain; phase included."""
    explained = expand(maps, combine(maps, coil_images))
    return (coil_images - explained).flatten(1).norm(dim=1) / coil_images.flatten(1).norm(dim=1).clamp(min=1e-30)
