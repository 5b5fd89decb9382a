r"""Images from undersampled multi-coil k-space without a learned prior: SENSE and L1-wavelet compressed sensing.

    sense        min_x 1/2 |A x - y|^2 + lam/2 |x|^2                           conjugate gradients (Pruessmann et al. 2001)
    l1_wavelet   min_x 1/2 |A x - y|^2 + lam max|A^H y| |W x|_1                FISTA (Lustig et al. 2007; Beck and Teboulle 2009)

W are the details of an orthonormal wavelet transform. A^H A has a norm of at most 1, so that a step of 1 needs no search.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from ..solvers import conjugate_gradients
from ..tensors import Image, PerSample, make_generator, squared, sum_samples
from .masks import acs_lines, default_acs
from .operators import MultiCoilMRI
from .wavelets import Wavelet

T = TypeVar("T")

SHIFT_STREAM = 12  # the purpose of the generator of the circular shifts
LOOSE = 0.01  # by which the power of maps may exceed 1, rounding and the files of other programs included
EARLIEST = 10  # iterations before an image may be finished
SPAN, SETTLED = 10, 0.98  # iterations whose changes are compared with those of as many before, and the part that is no fall
WARM, MOMENTUM = 10, 20.0  # iterations of SENSE before, and t of FISTA at the start
HELD_STREAM = 13  # and of the one that holds samples back
HELD = 0.1  # of the samples outside the centre of k-space
CANDIDATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


def default_lam(acceleration: float) -> float:
    """The weight of |W x|_1 where none is asked for: near the best of real scans (docs/results.md): within 0.3 dB at
    R = 4, 6 and 8, within 0.7 at R = 2, where two scans differ."""
    return 5e-4 if acceleration < 5 else 7e-4


def sense(operator: MultiCoilMRI, y: Tensor, lam: float = 0.0, iterations: int = 30, tolerance: float = 1e-3) -> Image:
    """Images (B, 1, H, W) of k-space (B, coils, H, W) by SENSE, regularised by ``lam`` or by the number of iterations alone."""
    return conjugate_gradients(lambda x: operator.gram(x) + lam * x, operator.adjoint(y), iterations, tolerance)


def l1_wavelet(
    operator: MultiCoilMRI,
    y: Tensor,
    lam: float,
    wavelet: Wavelet | None = None,
    iterations: int = 50,
    tolerance: float = 3e-4,
    shifts: bool = True,
) -> Image:
    """Images (B, 1, H, W) of k-space (B, coils, H, W) by L1-wavelet compressed sensing.

    Begins with ten iterations of SENSE and the momentum that FISTA has after forty of its own: from zero and without it, 100 iterations
    come as far as 60 do from there. ``lam`` is relative to the largest magnitude of A^H y of each image. With ``shifts``, W is shifted at
    random at every iteration: that takes away the block pattern of one position (cycle spinning; Figueiredo and Nowak 2003). An image is
    finished when, after the first ten, an iteration changes it by less than ``tolerance`` of its norm, or when its changes no longer
    fall from ten iterations to the next ten: shifts keep moving it by about 2e-3. What it becomes does not depend on the others.
    ``tolerance`` 0 takes all iterations. Raises :class:`UserError` for lam <= 0.
    """
    if not lam > 0:
        raise UserError(f"lam {lam:g}: L1-wavelet needs a weight above 0; without one, reconstruct with SENSE")
    if not len(y):
        return y.new_zeros(0, operator.maps.shape[1] if operator.maps.ndim == 5 else 1, *y.shape[-2:])
    power = float(squared(operator.maps).sum(-3).max())
    if power > 1 + LOOSE:
        raise UserError(f"maps of a power of up to {power:.3g} at a pixel: sum_k |S_k|^2 must be at most 1, as ESPIRiT's is")
    wavelet = wavelet or Wavelet()
    if len(y) > 1 and y.device.type == "cpu":
        # One image stays in the cache, a batch does not: by itself, each takes a third of the time.
        singles = [(operator[i : i + 1], y[i : i + 1]) for i in range(len(y))]
        return torch.cat(_threaded(lambda single: _fista(*single, lam, wavelet, iterations, tolerance, shifts), singles))
    return _fista(operator, y, lam, wavelet, iterations, tolerance, shifts)


def _threaded(function: Callable[[T], Tensor], items: Sequence[T]) -> list[Tensor]:
    """The function of every item, an item a thread: on one image, two threads of a single operation take as long as one."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [function(item) for item in items]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


def _fista(
    operator: MultiCoilMRI, y: Tensor, lam: float, wavelet: Wavelet, iterations: int, tolerance: float, shifts: bool
) -> Image:
    """All images at once."""
    generator = make_generator(0, SHIFT_STREAM)
    width = 1 << wavelet.levels_of((y.shape[-2], y.shape[-1]))
    b = operator.adjoint(y)
    threshold = lam * b.abs().amax((1, 2, 3))
    x, active = torch.zeros_like(b), torch.arange(len(b), device=b.device)
    now = z = sense(operator, y, iterations=WARM, tolerance=0)
    t = MOMENTUM
    before = torch.full_like(threshold, float("inf"))  # the changes of the ten iterations before these
    lately = torch.zeros_like(threshold)
    for iteration in range(iterations):
        down, right = torch.randint(width, (2,), generator=generator).tolist() if shifts else (0, 0)
        new = wavelet.shrink(z + b - operator.gram(z), threshold, (down, right))
        t_next = (1 + (1 + 4 * t**2) ** 0.5) / 2
        z = new + (t - 1) / t_next * (new - now)
        # Momentum gathers first: what changes little in the first iterations is not finished.
        moved, length = _norm(new - now), _norm(new)
        going = (moved > tolerance * length) | (iteration < EARLIEST)
        now, t = new, t_next
        if iteration >= 2 * SPAN:  # the changes of the first ones still rise
            lately = lately + moved / length.clamp(min=1e-30)
        if iteration >= 2 * SPAN and iteration % SPAN == SPAN - 1:
            going = going & ((lately < SETTLED * before) | (tolerance == 0))
            before, lately = lately, torch.zeros_like(lately)
        if not bool(going.all()):  # what is finished takes no more time
            x[active[~going]] = now[~going]
            active, operator = active[going], operator[going]
            b, threshold, now, z, before, lately = (part[going] for part in (b, threshold, now, z, before, lately))
            if not len(active):
                break
    x[active] = now
    return x


def choose_lam(
    operator: MultiCoilMRI,
    y: Tensor,
    wavelet: Wavelet | None = None,
    iterations: int = 50,
    candidates: Sequence[float] = CANDIDATES,
) -> float:
    """The weight that predicts best what was measured and held back: a tenth of the columns outside the centre (cross-validation).

    Of masks in two directions, a tenth of the samples. No fully sampled image is needed.
    """
    held = _held_back(operator.mask)
    kept, back = operator.with_mask(operator.mask & ~held), operator.with_mask(held)
    errors = []
    for lam in candidates:
        x = l1_wavelet(kept, kept.restrict(y), lam, wavelet, iterations)
        errors.append(float(squared(back.forward(x) - back.restrict(y)).sum()))
    return candidates[errors.index(min(errors))]


def _held_back(mask: Tensor) -> Tensor:
    """A tenth of each mask outside the centre, at least one column or sample, the same at every call."""
    outside = torch.ones(mask.shape[-2:], dtype=torch.bool)
    columns = acs_lines(mask.shape[-1], default_acs(mask.shape[-1]))
    rows = acs_lines(mask.shape[-2], default_acs(mask.shape[-2])) if mask.shape[-2] > 1 else slice(None)
    outside[rows, columns] = False
    free = (mask.cpu() & outside).flatten(1)
    if not bool(free.any(1).all()):
        raise UserError("lam auto: no column outside the centre of k-space that could be held back; give a number")
    lots = torch.rand(free.shape, generator=make_generator(0, HELD_STREAM)) * free
    order = lots.argsort(1, descending=True).argsort(1)  # 0 for the first of the lot
    count = (HELD * free.sum(1, keepdim=True)).ceil()
    return (order < count).reshape(mask.shape).to(mask.device)


def sigpy_l1_wavelet(operator: MultiCoilMRI, y: Tensor, lam: float, wavelet: str = "db4", iterations: int = 100) -> Image:
    """The same problem by sigpy's ``L1WaveletRecon``, an image at a time: without shifts, and with the coarsest image shrunk, too."""
    from sigpy.mri.app import L1WaveletRecon

    weights = operator.adjoint(y).abs().amax((1, 2, 3)) * lam
    found = []
    for kspace, maps, mask, weight in zip(y.numpy(), operator.maps.numpy(), operator.mask.numpy(), weights.tolist(), strict=True):
        app = L1WaveletRecon(
            kspace, maps, weight, weights=mask.astype("float32"), wave_name=wavelet, max_iter=iterations, show_pbar=False
        )
        found.append(torch.from_numpy(app.run()))
    return torch.stack(found)[:, None]


def _norm(x: Image) -> PerSample:
    return sum_samples(squared(x)).sqrt()
