"""Rows of the papers' tables at 64 x 64 (faces) and 128 x 128 (clinical slices), for minutes on one GPU: a JSON and two PNG a (row, seed).

    python scripts/reproduce_gpu.py --images FACES.npz --slices SLICES.npz --coil-maps MAPS.npz [--rows faces_noise_0.2] [--seeds 0]
    python scripts/reproduce_gpu.py --prepare-only ...
    python scripts/reproduce_gpu.py --table

What is compared, and how teachers are chosen, is as in reproduce_small.py (comparison.py says what is fair). The slices are seen by eight
measured coils: FILE.npz of magnitudes with <split>_subject, _contrast and _study, whose every scan is a volume with a mask of its own.
Each job goes on where it was stopped; what is done is read.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from comparison import compare, job_parser, lengthened
from reproduce_small import faces_of, make_maps, table

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.config import Experiment
from rsdmri.domain import Domain
from rsdmri.grids import save_grid
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.settings import load_experiment
from rsdmri_natural.domain import Natural

FACES = ("noise_0.2", "inpainting_0.9")
SCANS = {"scans_r4": 4.0, "scans_r8": 8.0}
ROWS = [*(f"faces_{name}" for name in FACES), *SCANS]
PLUS = 1.75  # length of teacher+ in lengths of the teacher
SHOWN = {"faces": (24, 8), "scans": (12, 6)}  # images of a grid, and its columns


def experiment_of(row: str, seed: int, options: argparse.Namespace) -> tuple[Experiment, Domain, int]:
    """The experiment of a row, its application, and how many images a side are compared at most."""
    common: dict[str, Any] = {"name": f"{row}-seed{seed}", "runs": options.runs, "seed": seed}
    experiment: Experiment
    if row in SCANS:
        base = load_experiment(MRIExperiment, ["mri/scans_128"])
        where: dict[str, Any] = {"kspace": (options.runs / "scans",), "maps": options.runs / "maps"}
        data = dataclasses.replace(base.data, accel=SCANS[row], **where)
        experiment, domain = dataclasses.replace(base, data=data, **common), MRI()
    else:
        experiment = faces_of("natural/faces_64", row.removeprefix("faces_"), options.images, common)
        domain = Natural()  # type: ignore[assignment]
    return lengthened(experiment, PLUS, 4), domain, 500


def make_scans(options: argparse.Namespace) -> None:
    """K-space of the slices seen by measured coils, a file a scan, and the coil maps; what is there is not made again."""
    made = [len(list((options.runs / name).glob("*.h5"))) for name in ("scans", "maps")]
    if made[0] == made[1] > 0:
        return
    arrays = np.load(options.slices)
    parts = [arrays[f"train_{name}"].astype(str) for name in ("subject", "study", "contrast")]
    scan = np.array(["_".join(names) for names in zip(*parts, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        volumes = Path(folder) / "scans.npz"
        np.savez(volumes, train=arrays["train"], train_subject=scan, train_contrast=arrays["train_contrast"])
        command = [sys.executable, "-m", "rsdmri.mri", "simulate", str(volumes), "--split", "train", "--size", "128", "128"]
        coils = ["--coil-maps", str(options.coil_maps), "--coil-maps-key", "sigpy_8_128"]
        subprocess.run([*command, *coils, "--snr", "1000", "--out", str(options.runs / "scans")], check=True)
    make_maps(options.runs / "scans", options.runs / "maps")


def save_pictures(experiment: Experiment, domain: Domain, chosen: dict[str, int], out: Path) -> None:
    """Images of the teacher and of the generator, of the same seeds."""
    n, columns = SHOWN[experiment.name.partition("_")[0]]
    teacher = experiment.folder / "pretrain"
    for name, run, weights in (
        ("teacher", teacher, snapshots(teacher)[chosen["teacher"]]),
        ("rsd", experiment.folder / "distill", None),
    ):
        model = pipeline.load(run, domain, experiment, weights)
        images = model.sample(range(n))
        save_grid(out / f"{experiment.name}-{name}.png", domain.display(images, model.law).numpy(), columns)


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    parser = job_parser(__doc__)
    parser.set_defaults(seeds=[0], runs=Path("runs/reproduce-gpu"), results=Path("docs/reproduce_gpu"))
    parser.add_argument("--slices", type=Path, help="magnitudes of clinical scans, 256 x 256")
    parser.add_argument("--coil-maps", type=Path, help="measured coil maps, of which sigpy_8_128 is taken")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}; default: all"
    )
    parser.add_argument("--prepare-only", action="store_true", help="make the data sets, which needs no GPU, and train nothing")
    options = parser.parse_args()
    if options.table:
        print(table(options.results, ROWS))
        return 0
    if set(options.rows) & SCANS.keys():
        make_scans(options)
    for seed in options.seeds:
        for row in options.rows:
            experiment, domain, n = experiment_of(row, seed, options)
            if options.prepare_only:
                pipeline.prepare(experiment, domain)
                continue
            path = options.results / f"{experiment.name}.json"
            result = compare(experiment, domain, PLUS, n, path)
            save_pictures(experiment, domain, result["images"], options.results)
    print(table(options.results, ROWS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
