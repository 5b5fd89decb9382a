"""What is done to a scan and its maps before it is corrupted: whitening, fewer coils, no oversampled readout, a common matrix.

Each step changes k-space and maps in the same way, so that k = F S x + noise stays true, with maps of unit norm; x may change by a
smooth real factor, as images do between coil arrays.
"""

import dataclasses

import torch
from torch import Tensor

from ..errors import UserError
from .config import MRIData
from .fourier import crop, crop_kspace, fft2c, ifft2c, resized
from .masks import acs_lines, kept_acs
from .readers import KSpace

OVERSAMPLED = 0.75  # a readout is oversampled if its image has at most this part of its rows


def conditioned(scan: KSpace, maps: Tensor, data: MRIData) -> tuple[KSpace, Tensor]:
    """The scan and its maps (slices, coils, H, W) as ``data`` asks; ``scan.noise_std`` must be known and is kept true."""
    if data.whiten and data.noise_std == "auto" and scan.noise_covariance is not None:
        scan, maps = whitened(scan, maps, scan.noise_covariance)
    if data.coils is not None and data.coils < maps.shape[1]:
        scan, maps = compressed(scan, maps, data.coils, kept_acs(scan.kspace.shape[-1], data.acs))
    rows, width = scan.kspace.shape[-2:]
    # Where a size is asked for, that says what is left.
    if data.oversampling == "remove" and data.size is None and scan.recon_size[0] <= OVERSAMPLED * rows:
        scan, maps = cut(scan, maps, (scan.recon_size[0], width))
    if data.matrix is not None and data.matrix != tuple(scan.kspace.shape[-2:]):
        scan, maps = resampled(scan, maps, data.matrix)
    if data.size is not None and data.size != tuple(scan.kspace.shape[-2:]):
        scan, maps = cut(scan, maps, data.size)
    return scan, maps


def _unit(maps: Tensor) -> Tensor:
    """Maps (slices, coils, H, W) scaled to sum_k |S_k|^2 = 1, or zero where they nearly are."""
    norm = maps.norm(dim=1, keepdim=True)
    small = 1e-3 * norm.amax((1, 2, 3), keepdim=True)
    return torch.where(norm > small, maps / norm.clamp(min=1e-30), 0)


def _mixed(scan: KSpace, maps: Tensor, matrix: Tensor, noise_std: float) -> tuple[KSpace, Tensor]:
    """Coils mixed by a matrix (new, old)."""
    matrix = matrix.to(scan.kspace.dtype)
    kspace = torch.einsum("nk,skhw->snhw", matrix, scan.kspace)
    mixed = torch.einsum("nk,skhw->snhw", matrix, maps)
    return dataclasses.replace(scan, kspace=kspace, noise_std=noise_std), _unit(mixed)


def whitened(scan: KSpace, maps: Tensor, covariance: Tensor) -> tuple[KSpace, Tensor]:
    """Coils whose noise is independent and of unit complex variance: L^-1 k and L^-1 S with N = L L^H (Pruessmann et al. 1999)."""
    try:
        lower = torch.linalg.cholesky(covariance)
    except torch.linalg.LinAlgError:
        raise UserError(f"{scan.path}: the noise covariance is not positive definite; set data.whiten to false") from None
    identity = torch.eye(len(lower), dtype=lower.dtype)
    return _mixed(scan, maps, torch.linalg.solve_triangular(lower, identity, upper=False), 0.5**0.5)


def compressed(scan: KSpace, maps: Tensor, coils: int, acs: int) -> tuple[KSpace, Tensor]:
    """The ``coils`` strongest virtual coils of the ``acs`` central lines, the same for all slices (Huang et al. 2008).

    Of these lines alone, because an accelerated scan has no others.
    """
    lines = acs_lines(scan.kspace.shape[-1], max(acs, 1))
    samples = scan.kspace[..., lines].movedim(1, 0).flatten(1).to(torch.complex128)
    vectors = torch.linalg.eigh(samples @ samples.mH)[1][:, -coils:].flip(-1)
    assert scan.noise_std is not None
    return _mixed(scan, maps, vectors.mH, scan.noise_std)


def cut(scan: KSpace, maps: Tensor, size: tuple[int, int]) -> tuple[KSpace, Tensor]:
    """A smaller field of view. Along the columns that needs every column: aliased images cannot be cut."""
    height, width = scan.kspace.shape[-2:]
    if size[0] > height or size[1] > width:
        raise UserError(f"{scan.path}: {height} x {width} found, which data.size {size[0]} {size[1]} cannot be cut from")
    mask, encoded = scan.mask, scan.encoded
    if size[1] != width:
        if not scan.fully_sampled:
            raise UserError(
                f"{scan.path}: undersampled scans keep their {width} columns. Leave the size out (--data.size None) to keep the matrix of"
                f" each scan, or set it to H {width} if all have so many; data.matrix brings them to one."
            )
        # Columns that the scanner filled with zeros lie as far out as before.
        encoded = torch.nn.functional.interpolate(encoded.float()[None, None], size=size[1])[0, 0].bool()
        mask = encoded.clone()
    kspace = fft2c(crop(ifft2c(scan.kspace), size))
    return dataclasses.replace(scan, kspace=kspace, mask=mask, encoded=encoded), crop(maps, size)


def resampled(scan: KSpace, maps: Tensor, matrix: tuple[int, int]) -> tuple[KSpace, Tensor]:
    """The same field of view on another matrix: k-space cut or filled up with zeros about its centre, the image as bright as before."""
    if scan.mask.ndim != 1:
        raise UserError(f"{scan.path}: sampled in two directions; masks of whole columns (1-D Cartesian) are supported")
    height, width = scan.kspace.shape[-2:]
    factor = (matrix[0] * matrix[1] / (height * width)) ** 0.5
    kspace = factor * _centred(scan.kspace, matrix)
    mask, encoded = (_centred(part.float()[None], (1, matrix[1]))[0].bool() for part in (scan.mask, scan.encoded))
    support = resized((maps.abs().sum(1, keepdim=True) > 0).to(maps.real.dtype), matrix) > 0.5
    new = torch.where(support, resized(maps, matrix), 0)
    assert scan.noise_std is not None
    changed = dataclasses.replace(
        scan, kspace=kspace, mask=mask, encoded=encoded, noise_std=scan.noise_std * factor, recon_size=matrix
    )
    return changed, _unit(new)


def _centred(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The last two axes cut, or filled up with zeros, so that index N // 2 comes to n // 2."""
    for axis, length in zip((-2, -1), size, strict=True):
        before = x.shape[axis]
        if length > before:
            left = length // 2 - before // 2
            padding = (0, 0, left, length - before - left) if axis == -2 else (left, length - before - left)
            x = torch.nn.functional.pad(x, padding)
    return crop_kspace(x, size)
