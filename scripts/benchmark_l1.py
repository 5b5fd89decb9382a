"""L1-wavelet reconstruction in torch against sigpy and BART: PSNR and time a slice; and PSNR against lambda. All in one run.

    python scripts/benchmark_l1.py [--data $RSDMRI_DATA/mri] [--threads 2] [--curves] [--skip-sigpy]

Fully sampled multi-coil scans are undersampled at R = 4 with 20 ACS lines (random columns); maps come from those lines. PSNR is that of
magnitudes within the support of the maps, against the image of all samples through the same maps; its range is the largest magnitude.
Ours is a batch of 8 (one scan, eight masks), sigpy and BART one slice; seconds are a slice's, the best of 3 runs (sigpy: of one); quote
the ratios.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from benchmark_espirit import best
from torch import Tensor

from rsdmri.errors import UserError
from rsdmri.mri import espirit, ifft2c, read
from rsdmri.mri.bart import read_cfl, write_cfl, write_maps
from rsdmri.mri.masks import volume_columns
from rsdmri.mri.operators import MultiCoilMRI, combine
from rsdmri.mri.reconstruction import choose_lam, default_lam, l1_wavelet, sense, sigpy_l1_wavelet

SCANS = ("pvdamp_brain_t2_8ch", "loraks_mprage_4ch", "autoespirit_brain_t1_8ch_clean")
LAMBDAS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
BATCH = 8
ITERATIONS = (50, 40)  # the default, and what is enough to be as near as sigpy


def problem(path: Path, accel: float, acs: int, n: int) -> tuple[MultiCoilMRI, Tensor, Tensor]:
    """One slice undersampled n times; the operator, y, and the image of all samples."""
    kspace = read(path).kspace[:1]
    kspace = kspace / ifft2c(kspace).abs().max()
    maps = espirit(kspace, calib=acs)[0]
    width = kspace.shape[-1]
    masks = torch.stack([volume_columns(f"{path.stem}-{i}", width, accel, acs, 0) for i in range(n)])[:, None, None]
    operator = MultiCoilMRI(maps.expand(n, -1, -1, -1).contiguous(), masks)
    return operator, operator.restrict(kspace.expand(n, -1, -1, -1)), combine(maps, ifft2c(kspace))


def psnr(x: Tensor, image: Tensor, operator: MultiCoilMRI) -> float:
    """Of the first of the images ``x``."""
    support = operator.support()[:1]
    error = ((x[:1].abs() - image.abs()) * support).square().sum() / support.sum()
    return float(10 * torch.log10(image.abs().max() ** 2 / error))


def bart(operator: MultiCoilMRI, y: Tensor, lam: float, iterations: int) -> tuple[Tensor, float] | None:
    """BART's `pics -l1` of the first image and the seconds of its process, or None without BART."""
    program = shutil.which("bart")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        scan, maps, image = (Path(folder) / name for name in ("k", "m", "x"))
        write_cfl(scan, y[0].permute(1, 2, 0)[:, :, None].numpy())
        write_maps(maps, operator.maps[:1].numpy())
        command = [program, "pics", "-S", "-l1", f"-r{lam}", f"-i{iterations}", str(scan), str(maps), str(image)]
        seconds = best(3, lambda: subprocess.run(command, check=True, capture_output=True))
        found = read_cfl(image).reshape(y.shape[-2:], order="F")
        return torch.from_numpy(found.copy())[None, None], seconds


def against_rivals(folder: Path, with_sigpy: bool) -> None:
    """R = 4: the same lambda and wavelet for all; BART's lambda is relative to a scale of its own."""
    print(
        "| scan | SENSE | torch, 50 | torch, 40 | sigpy, 100 | BART, 100 | torch, 50: s | torch, 40: s | sigpy: s | BART: s | ratio |"
    )
    print("|---" * 11 + "|")
    for name in SCANS:
        operator, y, image = problem(folder / f"{name}.h5", 4, 20, BATCH)
        lam = default_lam(4)
        run = {iterations: partial(l1_wavelet, operator, y, lam, iterations=iterations) for iterations in ITERATIONS}
        seconds = {iterations: best(3, action) / BATCH for iterations, action in run.items()}
        scores = [psnr(sense(operator, y), image, operator), *(psnr(action(), image, operator) for action in run.values())]
        one = operator[:1]
        times, ratio = ["-", "-"], "-"
        if with_sigpy:
            rival = partial(sigpy_l1_wavelet, one, y[:1], lam)
            took = best(1, rival)
            scores.append(psnr(rival(), image, operator))
            times[0], ratio = f"{took:.2f}", f"{took / seconds[ITERATIONS[0]]:.1f}, {took / seconds[ITERATIONS[1]]:.1f}"
        else:
            scores.append(float("nan"))
        theirs = bart(operator, y, lam, 100)
        if theirs is not None:
            scores.append(psnr(theirs[0] * _scale(theirs[0], image), image, operator))
            times[1] = f"{theirs[1]:.2f}"
        else:
            scores.append(float("nan"))
        cells = [name, *(f"{score:.2f}" for score in scores), *(f"{s:.3f}" for s in seconds.values()), *times, ratio]
        print(f"| {' | '.join(cells)} |", flush=True)


def _scale(x: Tensor, image: Tensor) -> Tensor:
    """BART's image on the scale of ours, by least squares of the magnitudes."""
    return (x.abs() * image.abs()).sum() / x.abs().square().sum()


def curves(folder: Path) -> None:
    """PSNR against lambda, and where the default and ``auto`` lie."""
    print(f"| scan | R | {' | '.join(f'{lam:g}' for lam in LAMBDAS)} | default | best - default | auto | best - auto |")
    print("|---" * (len(LAMBDAS) + 6) + "|")
    for name in SCANS:
        for accel, acs in ((2, 20), (4, 20), (6, 20), (8, 16)):
            operator, y, image = problem(folder / f"{name}.h5", accel, acs, 1)
            scores = {lam: psnr(l1_wavelet(operator, y, lam), image, operator) for lam in LAMBDAS}
            lams = {"default": default_lam(accel), "auto": choose_lam(operator, y)}
            others = {key: psnr(l1_wavelet(operator, y, lam), image, operator) for key, lam in lams.items()}
            top = max(*scores.values(), *others.values())
            last = [text for key, lam in lams.items() for text in (f"{lam:g}", f"{top - others[key]:.2f}")]
            print(
                f"| {name} | {accel} | {' | '.join(f'{score:.2f}' for score in scores.values())} | {' | '.join(last)} |",
                flush=True,
            )


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RSDMRI_DATA", "")) / "mri", help="folder of the scans")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--curves", action="store_true", help="PSNR against lambda instead")
    parser.add_argument("--skip-sigpy", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.curves:
            curves(options.data)
        else:
            against_rivals(options.data, not options.skip_sigpy)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
