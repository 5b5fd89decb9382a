r"""Drawn heads: nested and folded ellipsoids with sharp edges, a smooth phase, and coils around the head.

A phantom is a function of (seed, index). A volume is a solid object that is cut into slices, so that neighbouring slices are alike; its
tissues have the contrast of T1, T2 or FLAIR images. It is drawn on a grid four times as fine as its k-space, whose centre is then kept:
ringing and partial volumes are those of a scan.

A coil is the field of two antiparallel wires at w_1 and w_2 (Biot and Savart in the plane, w = x + i y, softened near a wire by e),

    s(w) = conj(w - w_1) / (|w - w_1|^2 + e^2) - conj(w - w_2) / (|w - w_2|^2 + e^2),   S_k = s_k / sqrt(sum_j |s_j|^2)
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fourier import crop_kspace, fft2c

Array = NDArray[np.floating]

FINE = 4  # pixels of the drawing per pixel of the image, in each direction
EDGE = 0.012  # width of the edges between tissues, in half fields of view
SOFTENING = 0.35  # of the field of a wire, in half fields of view

#: Ranges of brightness: scalp, bone, fluid, grey matter, white matter, lesion.
CONTRASTS = {
    "T1": ((0.75, 1.0), (0.03, 0.1), (0.08, 0.2), (0.4, 0.5), (0.6, 0.75), (0.25, 0.4)),
    "T2": ((0.45, 0.75), (0.03, 0.1), (0.85, 1.0), (0.5, 0.65), (0.32, 0.45), (0.65, 0.9)),
    "FLAIR": ((0.5, 0.75), (0.03, 0.1), (0.05, 0.15), (0.55, 0.68), (0.42, 0.52), (0.8, 1.0)),
}


@dataclass(frozen=True)
class Ellipsoid:
    """Centre (y, x, z), half axes, the angle of the first axis in the plane, and the width of its edge in half fields of view."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    angle: float = 0.0
    edge: float = EDGE

    def radius(self, y: Array, x: Array, z: float) -> Array:
        """1 on the surface."""
        dy, dx = y - self.centre[0], x - self.centre[1]
        c, s = np.cos(self.angle), np.sin(self.angle)
        along, across, up = (
            (c * dy + s * dx) / self.axes[0],
            (c * dx - s * dy) / self.axes[1],
            (z - self.centre[2]) / self.axes[2],
        )
        return np.sqrt(along**2 + across**2 + up**2)


def grid(size: tuple[int, int]) -> tuple[Array, Array]:
    """Coordinates (y, x) of the pixels, both in [-1, 1), zero at n // 2."""
    y, x = (2 * (np.arange(n) - n // 2) / n for n in size)
    first, second = np.meshgrid(y, x, indexing="ij")
    return first, second


def head(rng: np.random.Generator, slices: int, size: tuple[int, int]) -> Array:
    """Magnitudes (slices, h, w) in [0, 1] of one head, cut from the middle to near the vertex."""
    y, x = _turned(grid(size), rng.normal(0, 0.1), rng.normal(0, 0.03, 2))
    skull = Ellipsoid((0.0, 0.0, 0.0), (rng.uniform(0.8, 0.92), rng.uniform(0.62, 0.76), 1.0))
    contrast = CONTRASTS[rng.choice(list(CONTRASTS))]
    scalp, bone, fluid, grey, white, lesion = (rng.uniform(*bounds) for bounds in contrast)
    parts = [(part, {"fluid": fluid, "grey": grey, "lesion": lesion}[kind]) for part, kind in _inside(rng, skull)]
    warp, folds, texture = _waves(rng, size, 1.5), _waves(rng, size, 12.0), _waves(rng, size, 6.0)
    images = []
    for z in np.linspace(rng.uniform(-0.15, 0.1), rng.uniform(0.5, 0.7), slices):
        bent = 0.02 * _at(warp, z)
        radius, fold = skull.radius(y + bent, x - bent, z), _at(folds, z)
        image: Array = np.zeros(size)
        for edge, value in ((1.0, scalp), (0.93, bone), (0.88, fluid)):
            image = _lay(image, value, edge - radius, EDGE)
        image = _lay(image, grey, 0.86 - radius - 0.02 * fold, EDGE)
        image = _lay(image, white, 0.74 - radius - 0.07 * fold, EDGE)
        fissure = 0.012 + 0.01 * np.abs(fold) - np.abs(x + 0.012 * fold - bent)
        image = _lay(image, fluid, np.minimum(fissure, np.minimum(radius - 0.42, 0.86 - radius)), EDGE)
        for part, value in parts:
            image = _lay(image, value, 1 - part.radius(y + bent, x - bent, z), part.edge / min(part.axes[:2]))
        images.append(np.clip(image * (1 + 0.03 * _at(texture, z)), 0, 1))
    return np.stack(images)


def _inside(rng: np.random.Generator, skull: Ellipsoid) -> list[tuple[Ellipsoid, str]]:
    """Deep grey matter, ventricles and lesions, the later over the earlier."""
    tall, wide, _ = skull.axes
    parts: list[tuple[Ellipsoid, str]] = []
    apart, large, tilt = rng.uniform(0.13, 0.17) * wide, rng.uniform(0.7, 1.3), rng.uniform(0.15, 0.35)
    for side in (-1, 1):
        vary = rng.uniform(0.85, 1.15, 6)
        caudate = ((-0.22 * tall, side * 0.24 * wide, 0.15), (0.13 * vary[0], 0.06 * vary[1], 0.3), -side * tilt)
        thalamus = ((0.1 * tall, side * 0.17 * wide, 0.0), (0.13 * vary[2], 0.09 * vary[3], 0.25), side * 0.5)
        front = ((-0.2 * tall, side * apart, 0.2), (0.17 * large * vary[4], 0.05 * large, 0.3), -side * tilt)
        back = ((0.3 * tall, side * 1.5 * apart, 0.15), (0.2 * large * vary[5], 0.055 * large, 0.3), side * tilt)
        parts += [(Ellipsoid(*shape), "grey") for shape in (caudate, thalamus)]
        parts += [(Ellipsoid(*shape), "fluid") for shape in (front, back)]
    for _ in range(rng.integers(0, 6)):
        distance, direction = rng.uniform(0.25, 0.65), rng.uniform(0, 2 * np.pi)
        place = (distance * tall * np.sin(direction), distance * wide * np.cos(direction), rng.uniform(-0.1, 0.6))
        axes = (rng.uniform(0.03, 0.11), rng.uniform(0.03, 0.11), rng.uniform(0.1, 0.3))
        parts.append((Ellipsoid(place, axes, rng.uniform(0, np.pi), rng.uniform(1, 3) * EDGE), "lesion"))
    return parts


def _lay(image: Array, value: float, depth: Array, edge: float) -> Array:
    """``value`` laid over the image where ``depth`` is positive, with an edge of that width."""
    covered = 1 / (1 + np.exp(np.clip(-4 * depth / edge, -60, 60)))
    return image + covered * (value - image)


def _turned(points: tuple[Array, Array], angle: float, shift: Array) -> tuple[Array, Array]:
    y, x = points[0] - shift[0], points[1] - shift[1]
    return np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y


def _waves(rng: np.random.Generator, size: tuple[int, int], frequency: float, count: int = 12) -> tuple[Array, Array]:
    """Two smooth random fields (h, w) of unit variance and about that many half periods across the field of view."""
    y, x = grid(size)
    fields = []
    for _ in range(2):
        angle, speed = rng.uniform(0, 2 * np.pi, count), frequency * rng.uniform(0.6, 1.2, count)
        phase = rng.uniform(0, 2 * np.pi, count)
        waves = (np.cos(np.pi * k * (np.sin(a) * y + np.cos(a) * x) / 2 + p) for a, k, p in zip(angle, speed, phase, strict=True))
        fields.append(sum(waves, np.zeros(size)) * np.sqrt(2 / count))
    return fields[0], fields[1]


def _at(fields: tuple[Array, Array], z: float) -> Array:
    """A smooth field at the height z: the two of :func:`_waves` turn into each other."""
    return np.cos(2 * z) * fields[0] + np.sin(2 * z) * fields[1]


def smooth_phase(rng: np.random.Generator, slices: int, size: tuple[int, int], strength: float = 1.0) -> Array:
    """Phases (slices, h, w) in radians: an offset, a slope, a bowl and slow waves, as B0 and receivers leave them."""
    y, x = grid(size)
    slope, bowl = rng.normal(0, 0.8, 2), rng.normal(0, 0.8, 2)
    phase = strength * (rng.uniform(-np.pi, np.pi) + slope[0] * y + slope[1] * x + bowl[0] * y**2 + bowl[1] * x**2)
    waves = _waves(rng, size, 2.0)
    return np.stack([phase + 0.4 * strength * _at(waves, z) for z in np.linspace(0, 0.5, slices)])


def coil_maps(rng: np.random.Generator, coils: int, size: tuple[int, int]) -> NDArray[np.complexfloating]:
    """Maps (coils, h, w) of loops around the head, each with a place, width, gain and phase of its own; sum_k |S_k|^2 = 1."""
    y, x = grid(size)
    turn = rng.uniform(0, 2 * np.pi)
    maps = []
    for k in range(coils):
        direction = turn + 2 * np.pi * (k + rng.normal(0, 0.08)) / max(coils, 2)
        opening = np.pi / max(coils, 4) * rng.uniform(0.9, 1.3)
        wires = [rng.uniform(1.1, 1.25) * np.exp(1j * (direction + side * opening)) for side in (-1, 1)]
        field = _wire(x + 1j * y, wires[0]) - _wire(x + 1j * y, wires[1])
        maps.append(rng.uniform(0.8, 1.25) * np.exp(1j * rng.uniform(0, 2 * np.pi)) * field)
    return unit(np.stack(maps))


def _wire(w: NDArray[np.complexfloating], place: complex) -> NDArray[np.complexfloating]:
    return np.conj(w - place) / (np.abs(w - place) ** 2 + SOFTENING**2)


def unit(maps: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
    """Maps (coils, h, w) scaled to sum_k |S_k|^2 = 1, where they are not zero."""
    norm = np.sqrt((np.abs(maps) ** 2).sum(0))
    return maps / np.where(norm > 0, norm, 1)


def kspace(images: NDArray[np.complexfloating], maps: NDArray[np.complexfloating], size: tuple[int, int]) -> Tensor:
    """Noise-free k-space (slices, coils, H, W) of finely drawn complex images (slices, h, w) seen by maps (coils, h, w).

    The centre of the fine k-space, scaled so that the image keeps its brightness.
    """
    fine = torch.from_numpy(images)[:, None] * torch.from_numpy(maps)
    scale = np.sqrt(np.prod(size) / np.prod(images.shape[-2:]))
    return (crop_kspace(fft2c(fine), size) * scale).to(torch.complex64)


def draw(seed: int, index: int, slices: int, coils: int, size: tuple[int, int], phase: float = 1.0) -> Tensor:
    """Noise-free k-space (slices, coils, H, W) of phantom number ``index``; ``phase`` scales its smooth phase."""
    rng = np.random.default_rng([seed, index])
    fine = (size[0] * FINE, size[1] * FINE)
    images = head(rng, slices, fine) * np.exp(1j * smooth_phase(rng, slices, fine, phase))
    return kspace(images, coil_maps(rng, coils, fine), size)
