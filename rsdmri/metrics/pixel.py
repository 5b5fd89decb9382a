"""How far a reconstruction is from the image that it should be, as fastMRI measures it and otherwise.

fastMRI (Zbontar et al. 2018, section 5.2) measures *volumes*: the range of values is that of the whole target volume. The same slice by
slice, which other papers report, is another number and has another name (``slice_``). All are computed in float64.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..observations import Observation
from ..tensors import Image, PerSample, squared, sum_samples

Volume = NDArray[np.floating]  # (slices, H, W)
Mask = NDArray[np.bool_]

WINDOW = 7  # pixels of a side of SSIM's window
K1, K2 = 0.01, 0.03


def nmse(target: Volume, image: Volume) -> float:
    """|target - image|^2 / |target|^2."""
    target, image = _pair(target, image)
    return float(np.square(target - image).sum() / np.square(target).sum())


def psnr(target: Volume, image: Volume, largest: float | None = None) -> float:
    """10 log10(largest^2 / mean |target - image|^2) in dB; ``largest`` is by default the target's largest value."""
    target, image = _pair(target, image)
    mean = np.square(target - image).mean()
    largest = float(target.max()) if largest is None else largest
    return float(10 * np.log10(largest**2 / mean)) if mean > 0 else float("inf")


def ssim(target: Volume, image: Volume, largest: float | None = None) -> float:
    """Structural similarity (Wang et al. 2004) with windows of 7 x 7 and equal weights, the mean over slices."""
    target, image = _pair(target, image)
    if min(target.shape[1:]) < WINDOW:
        raise UserError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, not {target.shape[1]} x {target.shape[2]}")
    largest = float(target.max()) if largest is None else largest
    # One slice at a time: a volume in float64 and its five products would be many times the file.
    return float(np.mean([_ssim(x, y, largest) for x, y in zip(target, image, strict=True)]))


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64], largest: float) -> float:
    stack = torch.from_numpy(np.stack([x, y, x * x, y * y, x * y]))[:, None]
    mean_x, mean_y, xx, yy, xy = F.avg_pool2d(stack, WINDOW, stride=1)[:, 0].numpy()
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x, var_y, cov = (unbiased * v for v in (xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y))
    c1, c2 = (K1 * largest) ** 2, (K2 * largest) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def complex_nrmse(target: NDArray[np.complexfloating], image: NDArray[np.complexfloating]) -> float:
    """|target - image| / |target| of complex images, after the one phase that fits best: that of an image as a whole is arbitrary."""
    if target.shape != image.shape:
        raise UserError(f"the images differ in shape: {image.shape}, and the target {target.shape}")
    a, b = target.astype(np.complex128), image.astype(np.complex128)
    inner = np.vdot(b, a)
    turn = inner / abs(inner) if abs(inner) > 0 else 1.0
    return float(np.linalg.norm(a - turn * b) / np.linalg.norm(a))


def inside(metric: Callable[[Volume, Volume], float], target: Volume, image: Volume, support: Mask) -> float:
    """``nmse`` or ``psnr`` of the pixels of a support alone, such as that of the coil maps; ``support`` (slices, H, W) or (H, W)."""
    chosen = np.broadcast_to(support, target.shape)
    if not chosen.any():
        raise UserError("the support is empty: nothing can be measured inside it")
    return metric(target[chosen][None, None], image[chosen][None, None])


def consistency(x: Image, obs: Observation) -> PerSample:
    """What an image x (B, C, H, W) leaves of its data: |A x - y| / |y| of each sample. Noise alone leaves about its own part of y."""
    residual: Tensor = sum_samples(squared(obs.operator.forward(x) - obs.y)) / sum_samples(squared(obs.y))
    return residual.sqrt()


def slicewise(metric: Callable[[Volume, Volume], float], target: Volume, image: Volume) -> float:
    """The mean over slices of a metric with the range of each; slices of which there is nothing in the target are left out."""
    pairs = [(t[None], i[None]) for t, i in zip(target, image, strict=True) if t.any()]
    return float(np.mean([metric(t, i) for t, i in pairs])) if pairs else float("nan")


#: What is reported of a pair of volumes, in the order of the table.
VOLUME: Mapping[str, Callable[[Volume, Volume], float]] = {
    "nmse": nmse,
    "psnr": psnr,
    "ssim": ssim,
    "slice_psnr": lambda target, image: slicewise(psnr, target, image),
    "slice_ssim": lambda target, image: slicewise(ssim, target, image),
}


def _pair(target: Volume, image: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in float64; a :class:`UserError` for what cannot be compared."""
    if target.shape != image.shape or target.ndim != 3:
        raise UserError(f"the reconstruction is {image.shape} and its target {target.shape}; both must be one (slices, H, W)")
    if np.iscomplexobj(target) or np.iscomplexobj(image):
        raise UserError("magnitudes are expected here, and the images are complex; take abs(), or compare them as complex images")
    first, second = target.astype(np.float64), image.astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("the images hold NaN or infinity")
    if not first.any():
        raise UserError("the target is zero everywhere")
    return first, second
