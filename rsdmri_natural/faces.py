"""Faces drawn from a seed: photographs for a demonstration where there are none."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsdmri.errors import UserError
from rsdmri.files import atomic
from rsdmri.progress import track
from rsdmri.tensors import number_of

from .config import FacesConfig

SKIN = np.array([[0.98, 0.84, 0.74], [0.90, 0.72, 0.58], [0.76, 0.56, 0.42], [0.55, 0.38, 0.27], [0.36, 0.24, 0.18]])
HAIR = np.array(
    [[0.10, 0.08, 0.07], [0.28, 0.18, 0.12], [0.50, 0.34, 0.20], [0.78, 0.64, 0.40], [0.62, 0.62, 0.62], [0.55, 0.22, 0.12]]
)
FINE = 4  # points a pixel along each axis


def draw_face(size: int, *key: int) -> NDArray[np.uint8]:
    """One face (size, size, 3), a function of ``key``: head, hair, eyes, brows, nose, mouth and shoulders under a light from one side."""
    rng = np.random.default_rng(key)
    fine = size * FINE
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine * 2 - 1
    tilt, (shift_x, shift_y) = rng.normal(0, 0.06), rng.normal(0, 0.04, 2)
    u, v = (
        (x - shift_x) * np.cos(tilt) + (y - shift_y) * np.sin(tilt),
        (y - shift_y) * np.cos(tilt) - (x - shift_x) * np.sin(tilt),
    )
    picture = rng.uniform(0.15, 0.9, 3) + 0.25 * rng.normal(0, 1, 2)[0] * y[..., None] * np.ones(3)

    def paint(where: NDArray[np.bool_], colour: NDArray[np.float64], strength: float = 1.0) -> None:
        picture[where] = (1 - strength) * picture[where] + strength * np.broadcast_to(colour, picture.shape)[where]

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> NDArray[np.bool_]:
        return ((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 < 1

    skin = SKIN[rng.integers(len(SKIN))] * rng.uniform(0.9, 1.1)
    hair = HAIR[rng.integers(len(HAIR))] * rng.uniform(0.8, 1.2)
    light = 1 + rng.uniform(-0.35, 0.35) * u[..., None] - 0.12 * v[..., None]
    width, height = rng.uniform(0.46, 0.56), rng.uniform(0.60, 0.70)
    long, fringe = rng.uniform(0.0, 1.0), rng.uniform(-0.50, -0.30)
    paint(ellipse(0, 1.25, rng.uniform(0.8, 1.0), 0.55), rng.uniform(0.05, 0.9, 3))  # shoulders
    paint(ellipse(0, -0.15 + 0.3 * long, width * 1.22, height * (0.98 + 0.35 * long)), hair * light)
    paint((np.abs(u) < 0.5 * width) & (v > 0.3) & (v < 0.85), skin * 0.85 * light)  # neck
    paint(ellipse(0, 0, width, height), skin * light)
    paint(ellipse(0, 0, width, height) & (v < fringe + 0.25 * (u / width) ** 2), hair * light)
    apart, level, open_ = rng.uniform(0.20, 0.25), rng.uniform(-0.14, -0.06), rng.uniform(0.035, 0.06)
    iris = rng.uniform(0.1, 0.6, 3)
    for side in (-1, 1):
        paint(ellipse(side * apart, level, 0.10, open_), np.full(3, 0.93))
        paint(ellipse(side * apart, level, 0.045, open_), iris)
        paint(ellipse(side * apart, level, 0.02, 0.02), np.full(3, 0.05))
        paint(ellipse(side * apart, level - 0.13, 0.12, 0.022), hair * 0.7, 0.8)
    paint(ellipse(0.03 * np.sign(rng.normal()), 0.12, 0.05, 0.13), skin * 0.8 * light, 0.6)  # the shadow of the nose
    lips, smile = skin * [0.85, 0.55, 0.55], rng.uniform(-0.1, 0.35)
    paint((np.abs(v - 0.34 + smile * u**2 * 4) < rng.uniform(0.025, 0.055)) & (np.abs(u) < rng.uniform(0.14, 0.22)), lips)
    pixels = picture.clip(0, 1).reshape(size, FINE, size, FINE, 3).mean((1, 3))
    return (pixels * 255).round().astype(np.uint8)


def draw_faces(config: FacesConfig, path: Path) -> None:
    """An .npz with the splits train and test."""
    if path.suffix != ".npz":
        raise UserError(f"{path}: the faces are written to an .npz; name it so (--out faces.npz)")
    counts = {"train": config.n, "test": -(-config.n // 5)}
    faces = {
        split: np.stack(
            [draw_face(config.size, config.seed, number_of(split), i) for i in track(range(n), f"faces {split}", n, "faces")]
        )
        for split, n in counts.items()
    }
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **faces)  # type: ignore[arg-type]
