"""How fast photographs come: read and resized once, from the cache, and as batches of observations in random order.

    python scripts/benchmark_loader.py [--n 4000] [--size 64] [--from-size 178]

Drawn pictures, JPEG files in a folder. The last two lines are what training sees: observations held in memory, and a data set that is
too large for it, read from its file image by image.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as Picture

import rsdmri_natural.domain
from rsdmri.steps import batch_of
from rsdmri_natural.config import NaturalData, NaturalExperiment
from rsdmri_natural.domain import Natural, NaturalObservations
from rsdmri_natural.faces import draw_face
from rsdmri_natural.images import load_images

BATCH = 256


def timed(what: str, n: int, action: Callable[[], object]) -> None:
    """Prints images a second."""
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    print(f"{what:<44}{n / seconds:>10.0f} images/s")


def epoch(data: NaturalObservations) -> None:
    """Every observation once, in the order of training."""
    for number in range(len(data) // BATCH):
        data.batch(batch_of(list(data.buckets.values()), 0, number, BATCH))


def main() -> int:
    """Draws, reads, prepares and loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--from-size", type=int, default=178, help="rows and columns of the files")
    options = parser.parse_args()
    n, size = options.n, options.size
    with tempfile.TemporaryDirectory() as folder:
        files, runs = Path(folder) / "files", Path(folder) / "runs"
        files.mkdir()
        faces = [draw_face(options.from_size, i) for i in range(20)]
        for number in range(n):
            Picture.fromarray(np.roll(faces[number % 20], number, 1)).save(files / f"{number:06d}.jpg", quality=90)
        timed("files, first time", n, lambda: load_images(files, "all", size, runs / "images"))
        timed("files, from the cache", n, lambda: load_images(files, "all", size, runs / "images"))
        data = NaturalData(images=files, split="all", size=size, corruption="inpainting", noise_std=0.2)
        experiment = NaturalExperiment(name="x", runs=runs, data=data)
        timed("prepare (corrupted once, written)", n, lambda: Natural().prepare(experiment, runs))
        path = runs / "observations.h5"
        held = NaturalObservations(path, data)
        timed("batches, held in memory", n, lambda: epoch(held))
        rsdmri_natural.domain.IN_MEMORY = 0
        read = NaturalObservations(path, data)
        timed("batches, read from the file", n, lambda: epoch(read))
    return 0


if __name__ == "__main__":
    sys.exit(main())
