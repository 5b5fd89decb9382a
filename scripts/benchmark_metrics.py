"""What each distance sees, and what it costs.

    python scripts/benchmark_metrics.py --mri SLICES.npz --faces FACES.npz     rising blur, noise, aliasing, collapse: a table each
    python scripts/benchmark_metrics.py --speed                               50,000 images of 64 x 64, 2,048 features

A distance sees a corruption if it rises over four strengths, none included, and never falls (of precision to coverage: the other way round),
where a change counts that exceeds twice the spread of its value between three clean sets; else it is blind to it. A distance that has reached
its end stays there. MR slices get a smooth phase, so that the phase has something to say.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rsdmri.arrays import open_npz, read_array
from rsdmri.metrics import HIGHER, METRICS, Extractor, Options, Side, compare, phase_histograms
from rsdmri.metrics.frechet import frechet
from rsdmri.mri.phantoms import smooth_phase

Array = NDArray[Any]
STRENGTHS = 4
N = 300  # images a side
SIZE = 64
SPREAD = 2.0  # a change must exceed so many standard deviations of the value of clean sets


def blur(x: Array, k: int, rng: np.random.Generator) -> Array:
    """0, 0.5, 1, 1.5 pixels."""
    return _plane(lambda part: gaussian_filter(part, (0, 0.5 * k, 0.5 * k) + (0,) * (part.ndim - 3)), x)


def noise(x: Array, k: int, rng: np.random.Generator) -> Array:
    """0, 0.03, 0.06, 0.09 of white, a real component."""
    added = 0.03 * k * rng.standard_normal((*x.shape, 2))
    return x + (added[..., 0] + 1j * added[..., 1] if np.iscomplexobj(x) else added[..., 0])


def alias(x: Array, k: int, rng: np.random.Generator) -> Array:
    """0, 20, 40, 60 % of the outer columns of k-space are missing, the eight in the middle never."""
    kspace = np.fft.fftshift(np.fft.fft2(x, axes=(1, 2)), axes=(1, 2))
    outer = np.setdiff1d(np.arange(x.shape[2]), np.arange(x.shape[2] // 2 - 4, x.shape[2] // 2 + 4))
    for image in kspace:
        image[:, rng.choice(outer, len(outer) * k // 5, replace=False)] = 0
    found = np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2)), axes=(1, 2))
    return found if np.iscomplexobj(x) else np.abs(found)


def collapse(x: Array, k: int, rng: np.random.Generator) -> Array:
    """All, 32, 8, 2 images, repeated."""
    return x[np.arange(len(x)) % (len(x), 32, 8, 2)[k]]


CORRUPTIONS: tuple[Callable[[Array, int, np.random.Generator], Array], ...] = (blur, noise, alias, collapse)


def _plane(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x.real) + 1j * function(x.imag) if np.iscomplexobj(x) else function(x)


def side(x: Array) -> Side:
    """Images as they are displayed, with the histograms of their phases if they are complex."""
    shown = (np.rint(255 * np.clip(np.abs(x), 0, 1)) / 255).astype(np.float32)
    return Side(shown, phase_histograms(x) if np.iscomplexobj(x) else None)


def sensitivity(images: Array) -> str:
    """A table of one kind of images, which are cut into sets of N."""
    options = Options(METRICS, 0, Extractor("bands"))
    order = np.random.default_rng(0).permutation(len(images))
    reference, other, *fresh = (images[order[i * N : (i + 1) * N]] for i in range(5))
    true, spare = side(reference), side(other)
    floors = [compare(side(part), true, spare, options) for part in fresh]
    names = list(floors[0])
    spread = {name: float(np.std([found[name]["value"] for found in floors], ddof=1)) for name in names}
    lines = [f"| distance (floor) | {' | '.join(c.__name__ for c in CORRUPTIONS)} |", "|---" * (1 + len(CORRUPTIONS)) + "|"]
    columns = {c.__name__: _column(c, fresh[0], true, spare, options) for c in CORRUPTIONS}
    for name in names:
        cells = [_cell([found[name]["value"] for found in column], spread[name], name) for column in columns.values()]
        lines.append(f"| {name} ({floors[0][name]['floor']:.3g} ± {spread[name]:.2g}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _column(corrupt: Callable[..., Array], x: Array, true: Side, spare: Side, options: Options) -> list[Any]:
    return [compare(side(corrupt(x, k, np.random.default_rng(1))), true, spare, options) for k in range(STRENGTHS)]


def _cell(values: list[float], spread: float, name: str) -> str:
    steps = np.diff(values) * (-1 if name in HIGHER else 1)
    seen = steps.sum() > SPREAD * spread and (steps > -SPREAD * spread).all()
    return " ".join(f"{value:.3g}" for value in values) + ("" if seen else " **blind**")


def slices(path: Path) -> Array:
    """MR slices that are not mostly background, in [0, 1], with a smooth phase."""
    stack = _resized(read_array(path, open_npz(path), "train"))
    stack = stack[stack.mean((1, 2)) > 0.1]
    rng = np.random.default_rng(0)
    return stack * np.exp(1j * smooth_phase(rng, len(stack), stack.shape[1:], 0.5))


def faces(path: Path) -> Array:
    """Photographs in [0, 1]."""
    return read_array(path, open_npz(path), "train") / 255


def _resized(stack: Array) -> Array:
    """uint8 to [0, 1], averaged down to SIZE."""
    factor = stack.shape[1] // SIZE
    return stack.reshape(len(stack), SIZE, factor, SIZE, factor).mean((2, 4)) / 255


def speed(count: int = 50_000, width: int = 2048) -> str:
    """The Fréchet distance of two sets of features and one resample of it, as evaluate takes them; nothing of the network."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 1, width).astype(np.float32)
    sides = []
    for mean in (0.0, 0.1):
        features = np.empty((count, width), np.float32)
        for start in range(0, count, 5000):
            features[start : start + 5000] = scale * rng.standard_normal((5000, width), np.float32) + np.float32(mean)
        sides.append(features)
    a, b = sides
    began = time.perf_counter()
    value = frechet(a, b)
    took = time.perf_counter() - began
    frechet(a, b, rng.integers(count, size=count), rng.integers(count, size=count))
    again = time.perf_counter() - began - took
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    expected = width * 0.1**2
    return (
        f"{count} images a side, {width} features: distance {took:.1f} s, a resample {again:.1f} s; memory of the process, features and all"
        f" libraries included, at most {peak:.2f} GiB; distance {value:.3f} (of the means alone {expected:.3f})"
    )


def main() -> int:
    """Prints what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mri", type=Path, help="an .npz with an array train (n, H, W) of uint8, H = W a multiple of 64")
    parser.add_argument("--faces", type=Path, help="an .npz with an array train (n, 64, 64, 3) of uint8")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    if options.mri:
        print(f"MR slices, {N} a side, {SIZE} x {SIZE}\n\n{sensitivity(slices(options.mri))}\n", flush=True)
    if options.faces:
        print(f"Faces, {N} a side, {SIZE} x {SIZE}\n\n{sensitivity(faces(options.faces))}\n", flush=True)
    if options.speed:
        print(speed())
    return 0


if __name__ == "__main__":
    sys.exit(main())
