r"""Orthonormal wavelets on images of any size, real or complex, and what shrinking their coefficients does.

Periodised as in PyWavelets (mode ``periodization``): the transform of a signal of even length is an orthonormal matrix, here applied as one
along rows and columns, which for images of MRI's sizes is faster than convolutions. Its rows are short filters: of long signals, blocks of
samples are multiplied by what of the matrix is not zero for them, the same for each block. A circular shift of the image costs nothing.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import Image, PerSample, per_sample, squared

COARSEST = 16  # pixels: by default, levels are added until the next one would be narrower
INEXACT = 1e-7  # by which the filters of an orthogonal wavelet may miss being orthonormal
DENSE = 128  # samples up to which one product with the whole matrix is faster than many with blocks of it
BLOCKS = (32, 16)  # samples of a block, of which one must divide the signal
Shift = tuple[int, int]


@dataclass(frozen=True)
class Wavelet:
    """A two-dimensional transform with the filters of PyWavelets' ``name``.

    ``levels`` None: as many as leave the coarsest image at least 16 pixels wide, and at least one. Images whose sides are no multiples of
    2^levels are filled up with zeros, and cut back by the inverse. Raises :class:`UserError` for a name that does not exist or is not
    orthogonal.
    """

    name: str = "db4"
    levels: int | None = None

    def __post_init__(self) -> None:
        _filters(self.name)

    def levels_of(self, size: tuple[int, int]) -> int:
        """The levels of an image of this size; a :class:`UserError` if it is too small for those that are asked for."""
        most = min(size).bit_length() - 1
        levels = max((min(size) // COARSEST).bit_length() - 1, 1) if self.levels is None else self.levels
        if not 1 <= levels <= most:
            raise UserError(f"{levels} wavelet levels of images of {size[0]} x {size[1]}: expected 1 to {most}")
        return levels

    def decompose(self, x: Image, shift: Shift = (0, 0)) -> Tensor:
        """The coefficients of images (..., H, W), shifted circularly by ``shift`` rows and columns before.

        In the usual nested layout: the coarsest image in the corner, each level's details below, to the right, and diagonally.
        """
        return _joined(self._analysed(_planes(x), shift), x)

    def compose(self, coefficients: Tensor, size: tuple[int, int], shift: Shift = (0, 0)) -> Image:
        """The inverse of :meth:`decompose`, which is its adjoint: images (..., *size)."""
        return _joined(self._synthesised(_planes(coefficients).clone(), size, shift), coefficients)

    def shrink(self, x: Image, threshold: PerSample, shift: Shift = (0, 0)) -> Image:
        """Images (B, C, H, W) with all details made smaller by ``threshold`` (B,) in magnitude, those below it zero.

        The proximal map of threshold |W x|_1, W the details; the coarsest image is left alone, because it is not sparse. (Nearly, where
        sides are no multiples of 2^levels: W then is not onto.)
        """
        size = (x.shape[-2], x.shape[-1])
        c = self._analysed(_planes(x), shift)
        power = squared(c) if not x.is_complex() else c[0].square().addcmul_(c[1], c[1])
        factor = 1 - per_sample(threshold, x) * power.clamp_(min=torch.finfo(power.dtype).tiny).rsqrt_()
        height, width = (length >> self.levels_of(size) for length in c.shape[-2:])
        factor[..., :height, :width] = 1
        return _joined(self._synthesised(c.mul_(factor.clamp_(min=0)), size, shift), x)

    def _analysed(self, planes: Tensor, shift: Shift) -> Tensor:
        """Coefficients of real images (..., H, W), a new tensor."""
        height, width = planes.shape[-2:]
        levels = self.levels_of((height, width))
        missing = (-height % (1 << levels), -width % (1 << levels))
        c = torch.nn.functional.pad(planes, (0, missing[1], 0, missing[0])) if any(missing) else planes
        c = self._level(self._level(c, shift[0]).mT, shift[1]).mT
        for level in range(1, levels):
            block = c[..., : c.shape[-2] >> level, : c.shape[-1] >> level]
            block.copy_(self._level(self._level(block).mT).mT)
        return c

    def _synthesised(self, c: Tensor, size: tuple[int, int], shift: Shift) -> Tensor:
        """Real images (..., *size) of coefficients, which are overwritten."""
        for level in range(self.levels_of(size) - 1, 0, -1):
            block = c[..., : c.shape[-2] >> level, : c.shape[-1] >> level]
            block.copy_(self._inverse(self._inverse(block.mT).mT))
        x = self._inverse(self._inverse(c.mT, shift[1]).mT, shift[0])
        return x[..., : size[0], : size[1]]

    def _level(self, x: Tensor, shift: int = 0) -> Tensor:
        """One level along the rows of (..., n, m), shifted by ``shift`` before: n / 2 of low-pass, then as many of high-pass."""
        n = x.shape[-2]
        band = _band(self.name, n, x.dtype, x.device)
        if band is None:
            return _matrix(self.name, n, shift, x) @ x
        windows = x.index_select(-2, (band.samples - shift) % n).unfold(-2, band.analysis.shape[1], band.size).mT
        blocks = band.analysis @ windows  # (..., blocks, size, m), of each block half low-pass, half high-pass
        return blocks.unflatten(-2, (2, band.size // 2)).transpose(-4, -3).flatten(-4, -2)

    def _inverse(self, c: Tensor, shift: int = 0) -> Tensor:
        """The inverse of :meth:`_level`, which is its adjoint."""
        n = c.shape[-2]
        band = _band(self.name, n, c.dtype, c.device)
        if band is None:
            return _matrix(self.name, n, shift, c).T @ c
        halves = c.unflatten(-2, (2, n // 2)).index_select(-2, band.coefficients % (n // 2))
        windows = halves.unfold(-2, band.synthesis.shape[1] // 2, band.size // 2)  # (..., 2, blocks, m, coefficients)
        blocks = band.synthesis @ windows.transpose(-4, -3).mT.flatten(-3, -2)
        return blocks.flatten(-3, -2).roll(-shift, -2)


def _planes(x: Tensor) -> Tensor:
    """Real and imaginary parts as images of their own, (2, ..., H, W); real images as they are."""
    return torch.stack([x.real, x.imag]) if x.is_complex() else x


def _joined(planes: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_planes`."""
    return torch.complex(planes[0], planes[1]) if like.is_complex() else planes


def _filters(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Low-pass and high-pass filter of an orthogonal wavelet."""
    import pywt

    if name not in pywt.wavelist(kind="discrete"):
        raise UserError(f"no wavelet '{name}'; there are haar, db2 to db38, sym2 to sym20, coif1 to coif17")
    wavelet = pywt.Wavelet(name)
    low, high = np.array(wavelet.dec_lo), np.array(wavelet.dec_hi)
    # Not what PyWavelets calls orthogonal, which dmey is to three digits only.
    overlaps = np.correlate(low, low, "full")[len(low) - 1 :: 2] - np.eye(1, len(low) // 2)[0]
    if not wavelet.orthogonal or np.abs(overlaps).max() > INEXACT:
        raise UserError(f"wavelet '{name}' is not orthogonal; take one of haar, db, sym or coif, such as db4")
    return low, high


def _matrix(name: str, n: int, shift: int, like: Tensor) -> Tensor:
    """One level of signals of length n that are shifted by ``shift`` before."""
    return _repeated_matrix(name, n, like.dtype, like.device)[:, shift % n : shift % n + n]


@dataclass(frozen=True)
class _Band:
    """What a block of ``size`` samples has to do with others.

    ``analysis`` (size, samples of a window) gives its low-pass, then its high-pass coefficients; ``synthesis`` (size, 2 x coefficients
    of a window) its samples. ``samples`` and ``coefficients`` number what all windows together see, before they wrap round.
    """

    size: int
    analysis: Tensor
    synthesis: Tensor
    samples: Tensor
    coefficients: Tensor


@lru_cache(maxsize=64)
def _band(name: str, n: int, dtype: torch.dtype, device: torch.device) -> _Band | None:
    """The blocks of signals of length n; None where the whole matrix is as fast, or nothing of it is zero."""
    taps = len(_filters(name)[0])
    size = next((size for size in BLOCKS if n % size == 0), n)
    if n <= DENSE or 2 * (size + taps) > n:
        return None
    half = size // 2
    # Row r of either half sees the samples 2 r + taps / 2 - j, j = 0 ... taps - 1 (:func:`_repeated_matrix`).
    samples = torch.arange(1 - taps // 2, n - 1 + taps // 2)
    coefficients = torch.arange(-(taps // 4), n // 2 + (taps // 2 - 2) // 2 + 1)
    whole = _repeated_matrix(name, n, torch.float64, torch.device("cpu"))[:, :n].unflatten(0, (2, n // 2))
    analysis = whole[:, :half, samples[: size + taps - 2] % n].flatten(0, 1)
    synthesis = whole[:, coefficients[: len(coefficients) - n // 2 + half] % (n // 2), :size].flatten(0, 1).T
    analysis, synthesis = (matrix.to(device, dtype).contiguous() for matrix in (analysis, synthesis))
    return _Band(size, analysis, synthesis, samples.to(device), coefficients.to(device))


@lru_cache(maxsize=64)
def _repeated_matrix(name: str, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal (n, n) of one level, twice side by side (n, 2 n), so that a window of it is the matrix of shifted signals.

    n / 2 rows of low-pass, then as many of high-pass, as PyWavelets places them.
    """
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for half, taps in enumerate(_filters(name)):
        for row in range(n // 2):
            for j, tap in enumerate(taps):
                matrix[half * (n // 2) + row, (2 * row + len(taps) // 2 - j) % n] += tap
    return torch.cat([matrix, matrix], dim=1).to(device, dtype)
