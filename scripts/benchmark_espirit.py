"""ESPIRiT in torch against sigpy and BART: time, residual, agreement, noise, size. One table after the other, in one run.

    python scripts/benchmark_espirit.py [--data $RSDMRI_DATA/mri] [--repeat 3] [--threads 2] [--skip-sigpy]

Real scans are looked for in --data; without them only drawn ones are measured. BART (Debian package `bart`) is left out where its
program is absent. Times are the best of --repeat (sigpy: of one), whole slices, calibration 24, kernel 6; quote the ratios.
"""

import argparse
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsdmri.mri import espirit, ifft2c, phantoms, read
from rsdmri.mri.bart import read_cfl, write_cfl
from rsdmri.mri.coils import calibration_block, residual
from rsdmri.mri.fourier import fft2c
from rsdmri.tensors import make_generator, randn_like

SCANS = ("pvdamp_brain_t2_8ch", "loraks_mprage_4ch", "autoespirit_brain_t1_8ch_clean", "espirit_brain_alias_8ch")
CALIB, KERNEL, THRESHOLD = 24, 6, 0.02


def best(repeat: int, action: Callable[[], object]) -> float:
    """The shortest of some runs, after one that is not counted."""
    action()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def sigpy_maps(kspace: Tensor, iterations: int, crop: float) -> tuple[Tensor, Tensor, float]:
    """sigpy's maps (coils, H, W), eigenvalues (H, W) and seconds, of k-space (coils, H, W) whose block is moved to the middle."""
    from sigpy.mri.app import EspiritCalib

    centred = torch.zeros_like(kspace)
    rows, columns = calibration_block(kspace[None], torch.ones(kspace.shape[-1], dtype=torch.bool), CALIB)
    top, left = (n // 2 - CALIB // 2 for n in kspace.shape[1:])
    centred[:, top : top + CALIB, left : left + CALIB] = kspace[:, rows, columns] / kspace.abs().max()
    began = time.perf_counter()
    app = EspiritCalib(centred.numpy(), calib_width=CALIB, thresh=THRESHOLD, kernel_width=KERNEL, crop=crop, max_iter=iterations,
                       output_eigenvalue=True, show_pbar=False)  # fmt: skip
    maps, values = app.run()
    seconds = time.perf_counter() - began
    eigenvalues = np.abs(values).reshape(kspace.shape[1:])
    return torch.from_numpy(np.ascontiguousarray(maps)), torch.from_numpy(np.ascontiguousarray(eigenvalues)), seconds


def bart_maps(kspace: Tensor, repeat: int, crop: float = 0.8) -> tuple[Tensor, float] | None:
    """BART's maps (coils, H, W) by `ecalib -m1 -r24` (its crop is 0.8 by default) and seconds of its process, or None without BART."""
    program = shutil.which("bart")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        scan, maps = Path(folder) / "k", Path(folder) / "m"
        write_cfl(scan, kspace.permute(1, 2, 0)[:, :, None].numpy())
        command = [program, "ecalib", "-m1", f"-r{CALIB}", f"-c{crop}", str(scan), str(maps)]
        seconds = best(repeat, lambda: subprocess.run(command, check=True, capture_output=True))
        found = read_cfl(maps).reshape(*kspace.shape[1:], len(kspace), order="F").transpose(2, 0, 1)
        return torch.from_numpy(found.copy()), seconds


def real_scans(folder: Path, repeat: int, with_sigpy: bool) -> None:
    """Time and residual of the four real scans, and how near the maps are to sigpy's, converged."""
    print(f"{'scan':<32}{'torch':>8}{'sigpy':>8}{'BART':>8}  {'residual: torch':>16}{'sigpy':>8}{'BART':>8}  maps differ by")
    totals = [0.0, 0.0, 0.0]
    for name in SCANS:
        kspace = read(folder / f"{name}.h5").kspace
        images = ifft2c(kspace)
        estimate = partial(espirit, kspace, calib=CALIB, kernel=KERNEL, threshold=THRESHOLD)
        ours = best(repeat, estimate)
        maps, values, _ = estimate(crop=0)
        second = estimate(sets=2, crop=0)[1][0, 1]
        row, differ, theirs, bart_seconds = [float("nan")] * 2, float("nan"), float("nan"), float("nan")
        support = values[0] > 0.95
        if with_sigpy:
            reference, reference_values, theirs = sigpy_maps(kspace[0], 100, 0)
            support = reference_values > 0.95
            row[0] = float(residual(torch.where(support, reference, 0)[None], images * support))
            exact, _, _ = sigpy_maps(kspace[0], 1000, 0)
            phase = (exact.conj() * maps[0]).sum(0)
            apart = values[0] - second > 0.05
            differ = float((maps[0] * (phase.conj() / phase.abs()) - exact).norm(dim=0)[apart].max())
        found = bart_maps(kspace[0], repeat)
        if found is not None:
            bart_seconds = found[1]
            row[1] = float(residual(torch.where(support, found[0], 0)[None], images * support))
        mine = float(residual(torch.where(support, maps[0], 0)[None], images * support))
        print(
            f"{name:<32}{ours:>8.3f}{theirs:>8.2f}{bart_seconds:>8.2f}  {mine:>16.4f}{row[0]:>8.4f}{row[1]:>8.4f}  {differ:.1e}"
        )
        totals = [total + t for total, t in zip(totals, (ours, theirs, bart_seconds), strict=True)]
        if name == "espirit_brain_alias_8ch":
            two, _, _ = estimate(sets=2, crop=0)
            cropped, _, _ = estimate(sets=2)
            floor = noise_floor(kspace, images * support)
            print(f"  two sets: residual {float(residual(two, images * support)):.4f} uncropped,"
                  f" {float(residual(cropped, images * support)):.4f} cropped; noise alone would leave {floor:.4f}")  # fmt: skip
    print(f"{'sum':<32}{totals[0]:>8.3f}{totals[1]:>8.2f}{totals[2]:>8.2f}"
          f"   sigpy / torch {totals[1] / totals[0]:.1f}, BART / torch {totals[2] / totals[0]:.1f}\n")  # fmt: skip


def noise_floor(kspace: Tensor, images: Tensor) -> float:
    """What two sets of perfect maps would leave of white noise: (coils - 2) / coils of its energy, on the same support."""
    corner = kspace[..., :16, :16].abs().square().mean()
    coils = kspace.shape[1]
    pixels = float((images.abs().sum(1) > 0).sum())
    return math.sqrt(float(corner) * pixels * (coils - 2)) / float(images.norm())


def drawn(size: tuple[int, int], coils: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Known maps (coils, H, W) and a complex image (H, W)."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(phantoms.coil_maps(rng, coils, size))
    image = phantoms.head(rng, 1, size)[0] * np.exp(1j * phantoms.smooth_phase(rng, 1, size)[0])
    return maps, torch.from_numpy(image)


def noisy_scans(seeds: int) -> None:
    """Median map error of drawn scans by SNR: RSS of the coil images over the standard deviation of complex noise."""
    print("median map error in the head, 8 coils, 160 x 160, mean over seeds")
    print(f"{'SNR':<8}{'torch':>10}{'thr. 0.02':>10}{'sigpy':>10}{'BART':>10}")
    for snr in (1, 2, 7, 20):
        rows: list[list[float]] = []
        for seed in range(seeds):
            truth, image = drawn((160, 160), 8, seed)
            inside = image.abs() > 0.1
            std = float(image.abs()[inside].mean()) / snr / math.sqrt(2)
            clean = fft2c(truth * image)
            kspace = (clean + std * randn_like(clean, make_generator(seed))).to(torch.complex64)
            found = [espirit(kspace[None], calib=CALIB, threshold=t, crop=0)[0][0] for t in (None, THRESHOLD)]
            found.append(sigpy_maps(kspace, 100, 0)[0])
            bart = bart_maps(kspace, 1, crop=0)
            found += [bart[0]] if bart is not None else []
            rows.append([map_error(maps, truth, inside) for maps in found])
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(f"{snr:<8}" + "".join(f"{mean:>10.3f}" for mean in means))
    print()


def map_error(maps: Tensor, truth: Tensor, inside: Tensor) -> float:
    """|S - S_true|, but for a phase a pixel; where maps were cropped away the error is one."""
    phase = (truth.conj() * maps).sum(0)
    turned = maps * torch.where(phase.abs() > 0, phase.conj() / phase.abs().clamp(min=1e-12), 0)
    return float((turned - truth).norm(dim=0)[inside].median())


def large_slice() -> None:
    """15 coils, 640 x 368, in a process of its own: time, and the largest memory of the whole process."""
    maps, image = drawn((640, 368), 15)
    kspace = fft2c(maps * image).to(torch.complex64)[None]
    del maps, image
    espirit(kspace[..., ::4, ::4].contiguous(), calib=CALIB)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = best(2, lambda: espirit(kspace, calib=CALIB, threshold=THRESHOLD))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"15 coils, 640 x 368, one slice: {seconds:.2f} s; largest memory {after / 1024:.0f} MiB"
          f" ({before / 1024:.0f} before the estimation, by drawing the scan)")  # fmt: skip
    if torch.cuda.is_available():
        on_gpu = kspace.expand(16, -1, -1, -1).cuda()

        def batch() -> None:
            espirit(on_gpu, calib=CALIB, threshold=THRESHOLD)
            torch.cuda.synchronize()

        print(f"{torch.cuda.get_device_name()}: {1000 * best(3, batch) / 16:.1f} ms a slice in batches of 16")


def main() -> int:
    """Runs all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("RSDMRI_DATA")
    parser.add_argument("--data", type=Path, default=Path(root) / "mri" if root else None, help="folder of the real scans")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of the noisy scans")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-sigpy", action="store_true", help="sigpy takes minutes")
    parser.add_argument(
        "--large", action="store_true", help="the large slice alone (this script starts it as a process of its own)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.large:
        large_slice()
        return 0
    print(f"torch {torch.__version__}, {options.threads} threads, BART {'found' if shutil.which('bart') else 'absent'}\n")
    if options.data is None:
        print("RSDMRI_DATA is not set: no real scans\n")
    else:
        real_scans(options.data, options.repeat, not options.skip_sigpy)
    subprocess.run([sys.executable, __file__, "--large", "--threads", str(options.threads)], check=True)
    print()
    noisy_scans(options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
