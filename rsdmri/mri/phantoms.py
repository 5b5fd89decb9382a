"""Drawn heads: random anatomy-like ellipses with soft edges, a smooth phase, and birdcage-like coils.

A phantom is a function of its seed. It is drawn on a grid four times as fine as its k-space, whose centre is then kept: ringing
and partial volumes are those of a scan.
"""

import numpy as np
import torch
from torch import Tensor

from .fourier import crop_kspace, fft2c

FINE = 4  # pixels of the drawing per pixel of the image, in each direction


def grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (y, x) of the pixels, both in [-1, 1)."""
    y, x = (2 * (np.arange(n) - n // 2) / n for n in size)
    return np.meshgrid(y, x, indexing="ij")


def ellipse(
    y: np.ndarray, x: np.ndarray, centre: tuple[float, float], axes: tuple[float, float], angle: float, soft: float
) -> np.ndarray:
    """1 inside, 0 outside, over an edge of relative width ``soft``."""
    dy, dx = y - centre[0], x - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    radius = np.hypot((c * dy + s * dx) / axes[0], (-s * dy + c * dx) / axes[1])
    return 1 / (1 + np.exp(np.clip((radius - 1) / soft, -30, 30)))


def head(rng: np.random.Generator, slices: int, size: tuple[int, int]) -> np.ndarray:
    """Magnitudes (slices, h, w) in about [0, 1] of one head, whose slices change smoothly from the middle to the vertex."""
    y, x = grid(size)
    angle = rng.normal(0, 0.12)
    height, width = rng.uniform(0.68, 0.82), rng.uniform(0.54, 0.68)
    centre = (rng.normal(0, 0.03), rng.normal(0, 0.03))
    skull, brain = rng.uniform(0.75, 1.0), rng.uniform(0.35, 0.55)
    grey = brain + rng.choice([-1, 1]) * rng.uniform(0.1, 0.2)
    fluid = rng.choice([rng.uniform(0.02, 0.12), rng.uniform(0.85, 1.0)])  # dark as in T1 or bright as in T2
    blobs = [_blob(rng) for _ in range(rng.integers(4, 9))]
    folds = rng.uniform(0.03, 0.08, 3), rng.uniform(0, 2 * np.pi, 3), rng.integers(5, 11, 3)
    spread, tall = rng.uniform(0.12, 0.2), rng.uniform(0.28, 0.42)
    images = []
    for z in np.linspace(0.0, rng.uniform(0.5, 0.8), slices):
        shrink = np.sqrt(1 - z**2)
        axes = (height * shrink, width * shrink)

        def inside(
            part: float, *, soft: float = 0.03, axes: tuple[float, float] = axes
        ) -> np.ndarray:  # the head's outline, scaled
            return ellipse(y, x, centre, (axes[0] * part, axes[1] * part), angle, soft)

        # The cortex: the outline of the white matter folds along the angle.
        direction = np.arctan2(y - centre[0], x - centre[1])
        wave = sum(a * np.sin(k * direction + p + 3 * z) for a, p, k in zip(*folds, strict=True))
        image = skull * (inside(1.0) - inside(0.9)) + grey * inside(0.86)
        image += (brain - grey) * ellipse(y / (1 + wave), x / (1 + wave), centre, (axes[0] * 0.68, axes[1] * 0.68), angle, 0.05)
        ventricles = max(0.0, 1 - 1.4 * z)
        for side in (-1, 1):
            place = (centre[0] - 0.02, centre[1] + side * spread * shrink)
            shape = (tall * ventricles * shrink + 1e-3, 0.09 * ventricles + 1e-3)
            image += (fluid - brain) * ellipse(y, x, place, shape, angle + side * 0.25, 0.08) * (ventricles > 0.05)
        for (by, bx), shape, turn, contrast, level, depth in blobs:
            seen = np.exp(-(((z - level) / depth) ** 2))
            spot = ellipse(y, x, (centre[0] + by * axes[0], centre[1] + bx * axes[1]), shape, turn, 0.15)
            image += contrast * seen * spot * inside(0.84)
        images.append(np.clip(image, 0, 1.2))
    return np.stack(images)


def _blob(rng: np.random.Generator) -> tuple[tuple[float, float], tuple[float, float], float, float, float, float]:
    """A structure or lesion: place, axes, angle, contrast, and where along the slices it is."""
    radius, direction = np.sqrt(rng.uniform(0.02, 0.5)), rng.uniform(0, 2 * np.pi)
    place = (radius * np.sin(direction), radius * np.cos(direction))
    axes = (rng.uniform(0.05, 0.16), rng.uniform(0.05, 0.16))
    return place, axes, rng.uniform(0, np.pi), rng.uniform(-0.3, 0.35), rng.uniform(0, 0.8), rng.uniform(0.15, 0.5)


def smooth_phase(rng: np.random.Generator, size: tuple[int, int], strength: float = 1.0) -> np.ndarray:
    """A phase map (h, w) in radians: an offset, a slope, and low-order waves, as B0 and receive chains leave it."""
    y, x = grid(size)
    phase = rng.uniform(-np.pi, np.pi) + rng.normal(0, 0.6, 2) @ np.stack([y.ravel(), x.ravel()])
    phase = phase.reshape(size)
    for _ in range(3):
        ky, kx = rng.uniform(-2, 2, 2)
        phase += rng.normal(0, 0.4) * np.sin(np.pi * (ky * y + kx * x) / 2 + rng.uniform(0, 2 * np.pi))
    return strength * phase


def birdcage(rng: np.random.Generator, coils: int, size: tuple[int, int]) -> np.ndarray:
    """Maps (coils, h, w) of loops around the head, each with its own distance, width and phase; sum_k |S_k|^2 = 1."""
    y, x = grid(size)
    maps = []
    turn = rng.uniform(0, 2 * np.pi)
    for k in range(coils):
        direction = turn + 2 * np.pi * k / coils + rng.normal(0, 0.08)
        distance = rng.uniform(1.15, 1.45)
        dy, dx = y - distance * np.sin(direction), x - distance * np.cos(direction)
        strength = rng.uniform(0.8, 1.2) / (dy**2 + dx**2 + rng.uniform(0.15, 0.3)) ** 0.75
        maps.append(strength * np.exp(1j * (np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi))))
    stack = np.stack(maps)
    return stack / np.sqrt((np.abs(stack) ** 2).sum(0, keepdims=True))


def kspace(images: np.ndarray, maps: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Noise-free k-space (slices, coils, H, W) of finely drawn complex images (slices, h, w) seen by maps (coils, h, w).

    The centre of the fine k-space, scaled so that the image keeps its brightness.
    """
    fine = torch.from_numpy(images)[:, None] * torch.from_numpy(maps)
    scale = np.sqrt(np.prod(size) / np.prod(images.shape[-2:]))
    return (crop_kspace(fft2c(fine), size) * scale).to(torch.complex64)


def draw(seed: int, index: int, slices: int, coils: int, size: tuple[int, int]) -> Tensor:
    """Noise-free k-space (slices, coils, H, W) of phantom number ``index``."""
    rng = np.random.default_rng([seed, index])
    fine = (size[0] * FINE, size[1] * FINE)
    magnitude = head(rng, slices, fine)
    phase = smooth_phase(rng, fine)
    return kspace(magnitude * np.exp(1j * phase), birdcage(rng, coils, fine), size)
