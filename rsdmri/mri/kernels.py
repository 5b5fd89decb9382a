r"""ESPIRiT on the grid of its kernels (Uecker et al. 2014, Magn. Reson. Med. 71:990).

The windows of k x k samples of a calibration block, all coils together, are the rows of a matrix. Its right singular vectors v_m of large
singular values span the windows that the coils can produce. With the conjugates of the v_m as kernels, K_m, coil by coil,

    R_ij(d) = sum_m sum_a K_mi(a + d) conj(K_mj(a)),       lags d on the grid of (2k - 1)^2
    G_ij(r) = 1 / k^2 sum_d R_ij(d) exp(2 pi i d r / N)

G(r) is Hermitian, between 0 and 1, and the maps at the pixel r are its eigenvector of the eigenvalue 1. The usual way transforms every kernel
to the size of the image and sums there; here only the lags are transformed, which is the same sum in another order.
"""

import math

import torch
from torch import Tensor

SLICES = 4  # at once: bounds the memory of the kernels
ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}  # of the matrices of the pixels at once: on a CPU they stay in its cache
SQUARINGS = 20  # then what has not converged (eigenvalues that are equal to single precision) is left to eigh
UNSEEN = 3  # squarings before anything can have converged; the eighth power needs no scaling yet
PURITY = 1e-3
SMALL = 1e-30  # of the traces of nothing
TAKEN_OUT = 0.35  # of the matrices at least have converged before they are taken out, which costs as much as a squaring
#: Largest over root mean square singular value: 1.3 to 2.0 for white noise, more where coils are unequally noisy; signal has 5 to 10.
NOISE_LIKE = 4.0


def coil_eigenvectors(
    block: Tensor, size: tuple[int, int], kernel: int, threshold: float, noise: Tensor, sets: int = 1, least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Vectors (B, sets, coils, H, W), of any phase, and eigenvalues (B, sets, H, W) from calibration blocks (B, coils, n, m).

    Singular values count above ``threshold`` as a part of the largest and above ``noise`` (B,), what noise reaches by itself. Eigenvalues
    below ``least`` are not needed, nor their vectors: see :func:`top_eigenvectors`. Memory: a few times coils^2 times the pixels of a chunk.
    """
    vectors, values = [], []
    for part, level in zip(block.split(SLICES), noise.split(SLICES), strict=True):
        found = _eigenvectors(part, size, kernel, threshold, level, sets, least)
        vectors.append(found[0])
        values.append(found[1])
    return torch.cat(vectors), torch.cat(values)


def _eigenvectors(
    block: Tensor, size: tuple[int, int], kernel: int, threshold: float, noise: Tensor, sets: int, least: float
) -> tuple[Tensor, Tensor]:
    n, coils = block.shape[:2]
    height, width = size
    singular, vectors = row_space(windows(block, kernel))
    keep = singular > torch.maximum(threshold * singular[:, :1], noise[:, None])
    most = max(int(keep.sum(1).max()), 1)  # of noise alone nothing is kept: a kernel of zeros then gives eigenvalues of zero
    correlation = _lags(vectors[:, :most], keep, coils, kernel).to(block.dtype)
    along_y, along_x = (_phases(length, kernel, block) for length in size)
    # Lags along x first, so that each chunk of rows is one product of matrices: (W, lags) (lags, rows of all pairs of coils).
    rows = torch.einsum("hd,bdeij->ebhij", along_y, correlation).reshape(2 * kernel - 1, n * height, coils**2)
    elements = ELEMENTS.get(block.device.type, ELEMENTS["cuda"])
    found = []
    for part in rows.split(max(elements // (coils**2 * width), 1), dim=1):
        field = (along_x @ part.flatten(1)).reshape(-1, coils, coils)
        found.append([part.unflatten(0, (width, -1)) for part in top_eigenvectors(field, sets, least)])
    result = torch.cat([pair[0] for pair in found], 1).reshape(width, n, height, sets, coils).permute(1, 3, 4, 2, 0)
    values = torch.cat([pair[1] for pair in found], 1).reshape(width, n, height, sets).permute(1, 3, 2, 0)
    return result.contiguous(), values.contiguous()


def windows(block: Tensor, kernel: int) -> Tensor:
    """All windows (B, count, coils k k) of blocks (B, coils, n, m)."""
    found = block.unfold(2, kernel, 1).unfold(3, kernel, 1)
    return found.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def row_space(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (B, r), descending, and conjugated right singular vectors (B, r, columns), in double precision.

    From the smaller of A A^H and A^H A, which squares the singular values: hence the precision.
    """
    a = matrix.to(torch.complex128)
    wide = a.shape[1] < a.shape[2]
    values, vectors = torch.linalg.eigh(a @ a.mH if wide else a.mH @ a)
    singular, vectors = values.flip(-1).clamp(min=0).sqrt(), vectors.flip(-1)
    if wide:
        vectors = a.mH @ vectors / singular.clamp(min=1e-300)[:, None]
    return singular, vectors.mH


def noise_level(kspace: Tensor, rows: slice, columns: slice, kernel: int) -> Tensor:
    """The largest singular value (B,) that noise alone would give, from k-space (B, coils, H, W); 0 if it cannot tell.

    Noise is what lies at the ends of the readout, in the columns of the calibration block, which an accelerated scan has too. Ends that are
    too near the block, hold unmeasured samples or are not like noise tell nothing.
    """
    measured = (kspace[..., columns] != 0).any(-1).any(1).any(0).nonzero().flatten()
    length = rows.stop - rows.start
    if not len(measured):
        return torch.zeros(len(kspace), dtype=torch.float64, device=kspace.device)
    first, last = int(measured[0]), int(measured[-1]) + 1
    lowest = torch.full((len(kspace),), torch.inf, dtype=torch.float64, device=kspace.device)
    dead = ~(kspace[..., rows, columns] != 0).flatten(2).any(2)[:, :, None, None]
    for end in (slice(first, first + length), slice(last - length, last)):
        if end.start < 0 or (end.start < rows.stop and rows.start < end.stop):
            continue
        ends = kspace[..., end, columns]
        singular = row_space(windows(ends, kernel))[0]
        whole = ((ends != 0) | dead).flatten(1).all(1)
        # The mean is over the windows of live coils: dead ones have no part in it.
        rank = singular.shape[1] * (~dead).double().mean((1, 2, 3))
        mean = (singular.square().sum(1) / rank.clamp(min=1)).sqrt()
        like_noise = (singular[:, 0] < NOISE_LIKE * mean) & whole
        # Signal only adds: the quieter end is the better measure.
        lowest = torch.where(like_noise, torch.minimum(lowest, singular[:, 0]), lowest)
    return torch.where(lowest.isfinite(), lowest, 0)


def _lags(vectors: Tensor, keep: Tensor, coils: int, kernel: int) -> Tensor:
    """R / k^2 (B, g, g, coils, coils) of kernels (B, r, coils k k), the lag d at the index d modulo g = 2 k - 1."""
    kernels = torch.where(keep[:, : vectors.shape[1], None], vectors, 0).unflatten(2, (coils, kernel, kernel))
    spectra = torch.fft.fft2(kernels, s=(2 * kernel - 1, 2 * kernel - 1)).permute(0, 3, 4, 2, 1)
    return torch.fft.ifft2(spectra @ spectra.mH, dim=(1, 2)) / kernel**2


def _phases(n: int, kernel: int, like: Tensor) -> Tensor:
    """exp(2 pi i d r / N), (N, g), of centred pixels r and the lags d in the order of the FFT."""
    lags = torch.fft.fftfreq(2 * kernel - 1, 1 / (2 * kernel - 1), dtype=torch.float64, device=like.device)
    pixels = torch.arange(n, dtype=torch.float64, device=like.device) - n // 2
    return torch.polar(torch.ones((), dtype=torch.float64, device=like.device), 2 * math.pi / n * pixels[:, None] * lags).to(
        like.dtype
    )


def top_eigenvectors(matrices: Tensor, count: int = 1, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """The unit eigenvectors (P, count, n) of the largest eigenvalues (P, count) of positive matrices (P, n, n).

    Where the largest eigenvalue is below ``least``, vector and value are of a few steps, the value too low.
    """
    vectors: list[Tensor] = []
    values: list[Tensor] = []
    left = matrices
    for number in range(count):
        if number:  # what the eigenvectors so far explain is taken away
            left = left - values[-1][:, None, None] * (vectors[-1][:, :, None] * vectors[-1][:, None, :].conj())
        vector = dominant(left, least)
        vectors.append(vector)
        values.append(torch.linalg.vecdot(vector, (matrices @ vector[..., None])[..., 0]).real)
    return torch.stack(vectors, 1), torch.stack(values, 1)


def dominant(matrices: Tensor, least: float = 0.0) -> Tensor:
    """The unit eigenvector (P, n) of the largest eigenvalue of positive matrices (P, n, n); any unit vector for zero.

    Repeated squaring: of the matrices p of trace one that it leads to, tr p^2 tells how far each is from a projector, and is the trace of
    the next square. Those that are near enough drop out; a few that are not after many squarings, whose first two eigenvalues are
    almost equal, are left to eigh. Plain power iteration would need 2^j steps for j squarings.

    Matrices whose largest eigenvalue lies below ``least`` drop out as soon as that is certain, with the vector of that step: as it is at
    most sqrt(tr p^2), the 2^j-th power of the largest eigenvalue is at most sqrt(tr p^2) times the trace by which p was divided.
    """
    result = torch.empty_like(matrices[..., 0])
    trace = _trace(matrices)
    power = _times(matrices, 1 / trace.clamp(min=SMALL))
    for _ in range(UNSEEN):
        power = power @ power
    size = _trace(power).clamp(min=SMALL)
    power = _times(power, 1 / size)
    bound = trace.clamp(min=SMALL) * size ** (1 / 2**UNSEEN)  # the trace of the 2^j-th power, its 2^j-th root taken
    left = torch.arange(len(matrices), device=matrices.device)
    for step in range(UNSEEN, SQUARINGS):
        power = power @ power
        purity = _trace(power).clamp(min=SMALL)
        below = bound * purity ** (0.5 / 2**step) < least
        done = (purity > 1 - PURITY) | below
        if int(done.sum()) > TAKEN_OUT * len(done) or step == SQUARINGS - 1:
            ready, going = done.nonzero()[:, 0], (~done).nonzero()[:, 0]
            result[left[ready]] = _strongest_column(power[ready])
            power, left, purity, bound = power[going], left[going], purity[going], bound[going]
            if not len(left):
                return result
        power = _times(power, 1 / purity)
        bound = bound * purity ** (0.5 / 2**step)
    result[left] = torch.linalg.eigh(matrices[left])[1][..., -1]
    return result


def _strongest_column(power: Tensor) -> Tensor:
    """p times the column of p with the largest diagonal element, normalised: one more step of the power method."""
    strongest = power.diagonal(dim1=1, dim2=2).real.contiguous().argmax(1)
    column = power.gather(2, strongest[:, None, None].expand(-1, power.shape[1], 1))
    vector = power @ column
    return _times(vector, torch.view_as_real(vector).square().sum((1, 2, 3)).clamp(min=1e-30).rsqrt())[..., 0]


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).real.sum(1)


def _times(matrices: Tensor, factors: Tensor) -> Tensor:
    """Real factors (P,): half the work of complex ones."""
    return torch.view_as_complex(torch.view_as_real(matrices) * factors[:, None, None, None])
