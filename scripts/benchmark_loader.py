"""How fast photographs and slices come: read once, from the cache, and as batches of observations in random order.

    python scripts/benchmark_loader.py [--n 4000] [--size 64] [--from-size 178]
    python scripts/benchmark_loader.py --slices 64 [--matrix 384 320] [--coils 4] [--threads 1 2]

Drawn pictures, JPEG files in a folder. The last two lines are what training sees: observations held in memory, and a data set that is
too large for it, read from its file image by image. Slices are drawn heads at R = 4, as a data set that is too large for memory.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture

import rsdmri.mri.domain
import rsdmri_natural.domain
from rsdmri import cli
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.domain import MRIObservations
from rsdmri.mri.fastmri_file import write_fastmri
from rsdmri.mri.phantoms import draw
from rsdmri.steps import batch_of
from rsdmri_natural.config import NaturalData, NaturalExperiment
from rsdmri_natural.domain import Natural, NaturalObservations
from rsdmri_natural.faces import draw_face
from rsdmri_natural.images import load_images

BATCH = 256
BATCH_OF_SLICES = SLICES = 8


def timed(what: str, n: int, action: Callable[[], object]) -> None:
    """Prints images a second."""
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    print(f"{what:<44}{n / seconds:>10.0f} images/s")


def epoch(data: NaturalObservations | MRIObservations, batch: int = BATCH) -> None:
    """Every observation once, in the order of training."""
    for number in range(len(data) // batch):
        data.batch(batch_of(list(data.buckets.values()), 0, number, batch))


def slices(n: int, matrix: tuple[int, int], coils: int, threads: list[int]) -> None:
    """Batches of slices from a file, by HDF5 alone and by threads, in turns, three times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = [f"--data.kspace={folder / 'kspace'}", f"--data.maps={folder / 'maps'}", f"--runs={folder}", "--name=x"]
        for volume in range(-(-n // SLICES)):
            kspace = draw(0, volume, SLICES, coils, matrix)
            kspace = kspace + 0.01 * kspace.abs().max() * torch.randn_like(kspace)  # heads alone would compress too well
            write_fastmri(folder / f"kspace/{volume}.h5", kspace, acquisition="AXT2", noise_std=0.01)
        commands = [["espirit", str(folder / "kspace"), f"--out={folder / 'maps'}"], ["prepare", "--data.accel=4", *where]]
        if any(cli.run(APPLICATION, command) for command in commands):
            raise SystemExit(1)
        rsdmri.mri.domain.fits = lambda size: False
        for _ in range(3):
            for count in (0, *threads):
                pool = ThreadPoolExecutor(count) if count > 1 else None
                rsdmri.mri.domain.readers = partial(_given, pool)
                data = MRIObservations(folder / "x/prepare/observations.h5", 1)
                for rows in (rows for pair in data.stores for rows in pair if not count):
                    rows.direct = False
                timed(
                    f"slices, {count} threads" if count else "slices, HDF5 alone",
                    len(data),
                    partial(epoch, data, BATCH_OF_SLICES),
                )


def _given(pool: ThreadPoolExecutor | None) -> ThreadPoolExecutor | None:
    return pool


def main() -> int:
    """Draws, reads, prepares and loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--from-size", type=int, default=178, help="rows and columns of the files")
    parser.add_argument("--slices", type=int, default=0, help="slices instead of photographs, so many")
    parser.add_argument("--matrix", type=int, nargs=2, default=(384, 320))
    parser.add_argument("--coils", type=int, default=4)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    if options.slices:
        slices(options.slices, tuple(options.matrix), options.coils, options.threads)
        return 0
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
        rsdmri_natural.domain.fits = lambda size: False
        read = NaturalObservations(path, data)
        timed("batches, read from the file", n, lambda: epoch(read))
    return 0


if __name__ == "__main__":
    sys.exit(main())
