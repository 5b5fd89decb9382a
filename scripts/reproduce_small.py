"""The papers' tables at a size for two CPU cores: observation, teachers and generator, one JSON a (row, seed).

    python scripts/reproduce_small.py --images FACES.npz [--rows blur mri_r4] [--seeds 0 1 2]
    python scripts/reproduce_small.py --table

Photographs are 16 x 16, drawn heads 32 x 32 with eight coils. Each (row, seed) takes 15 to 60 minutes of one thread and
goes on where it was stopped; what is done is read. ``--table`` prints what there is. What is fair is said in comparison.py.
"""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from comparison import ROWS, cell, compare, job_parser, lengthened, remarks, run_jobs, values, verdict

from rsdmri.config import Experiment
from rsdmri.domain import Domain
from rsdmri.files import read_json
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.settings import load_experiment
from rsdmri_natural.config import NaturalExperiment
from rsdmri_natural.domain import Natural

#: Corruption and objective of the rows of photographs.
NATURAL: dict[str, tuple[dict[str, Any], Literal["standard", "tweedie", "ambient"]]] = {
    "noise_0.1": ({"corruption": "noise", "noise_std": 0.1}, "tweedie"),
    "noise_0.2": ({"corruption": "noise", "noise_std": 0.2}, "tweedie"),
    "noise_0.4": ({"corruption": "noise", "noise_std": 0.4}, "tweedie"),
    "blur": ({"corruption": "blur"}, "standard"),
    "blur_0.2": ({"corruption": "blur", "noise_std": 0.2}, "tweedie"),
    "inpainting_0.6": ({"corruption": "inpainting", "missing": 0.6}, "ambient"),
    "inpainting_0.9": ({"corruption": "inpainting", "missing": 0.9}, "ambient"),
    "sr2": ({"corruption": "super_resolution", "factor": 2}, "standard"),
}
#: Where predictions are compared; the recipes of the paper's size say the same.
SPACES: dict[str, Literal["measured", "image", "kept"]] = {"inpainting_0.6": "kept", "inpainting_0.9": "kept"}
#: Acceleration and ACS lines of the rows of MRI: of 32 columns, R = 8 keeps four, and its further corrupted mask three.
ACCELERATIONS = {"mri_r2": (2.0, 4), "mri_r4": (4.0, 4), "mri_r8": (8.0, 2)}
PLUS = 2.0  # length of teacher+ in lengths of the teacher


def experiment_of(row: str, seed: int, runs: Path, images: Path | None, plus: float = PLUS) -> tuple[Experiment, Domain, int]:
    """The small experiment of a row, its application, and how many images a side are compared; ``plus`` is the length of teacher+."""
    common: dict[str, Any] = {"name": f"{row}-seed{seed}", "runs": runs, "seed": seed}
    if row in ACCELERATIONS:
        base = load_experiment(MRIExperiment, ["mri/phantoms_small"])
        accel, acs = ACCELERATIONS[row]
        where: dict[str, Any] = {"kspace": (runs / "kspace",), "maps": runs / "espirit"}
        scans = dataclasses.replace(base.data, accel=accel, acs=acs, **where)
        return lengthened(dataclasses.replace(base, data=scans, **common), plus, 4), MRI(), 400
    return lengthened(faces_of("natural/faces_small", row, images, common), plus, 4), Natural(), 500


def faces_of(config: str, row: str, images: Path | None, common: dict[str, Any]) -> NaturalExperiment:
    """A configuration of faces with the corruption of a row, and the objective and samplers that go with it."""
    faces = load_experiment(NaturalExperiment, [config])
    fields, objective = NATURAL[row]
    return dataclasses.replace(
        faces,
        data=dataclasses.replace(faces.data, images=images, **fields),
        objective=dataclasses.replace(faces.objective, kind=objective),
        distill=dataclasses.replace(faces.distill, space=SPACES.get(row, "measured")),
        sample=dataclasses.replace(faces.sample, stop=fields.get("noise_std", 0.0)),
        **common,
    )


def run_job(row: str, seed: int, options: argparse.Namespace) -> None:
    """One (row, seed)."""
    experiment, domain, n = experiment_of(row, seed, options.runs, options.images)
    compare(experiment, domain, PLUS, n, options.results / f"{experiment.name}.json")


def draw_scans(runs: Path) -> None:
    """100 drawn heads, hardly any noise, and their coil maps; what is there is not made again."""
    draw_heads(runs / "kspace", 100)
    make_maps(runs / "kspace", runs / "espirit")


def draw_heads(out: Path, volumes: int, seed: int = 0, size: int = 32) -> None:
    """Drawn heads as scans of eight coils."""
    square = ["--size", str(size), str(size)]
    drawn = ["--phantoms", str(volumes), *square, "--phase", "0.3", "--snr", "1000", "--seed", str(seed)]
    subprocess.run([sys.executable, "-m", "rsdmri.mri", "simulate", *drawn, "--out", str(out)], check=True)


def make_maps(scans: Path, out: Path) -> None:
    """Their coil maps."""
    subprocess.run([sys.executable, "-m", "rsdmri.mri", "espirit", str(scans), "--out", str(out)], check=True)


def table(folder: Path, rows: Sequence[str]) -> str:
    """What there is, in Markdown: mean and spread over the seeds, by both metrics."""
    results = {row: [dict(read_json(path)) for path in sorted(folder.glob(f"{row}-seed*.json"))] for row in rows}
    found = {row: part for row, part in results.items() if part}
    columns = ["observation", "teacher, full", "teacher", "teacher+", "rsd"]
    by_swd = [[*columns, "rsd / teacher", "wins", "proximal: teacher+", "rsd", "seeds", "remarks"]]
    by_psd = [[*columns, "rsd / teacher", "proximal: teacher+", "rsd"]]
    for part in found.values():
        seeds = " ".join(str(result["seed"]) for result in part)
        scores, ratio, proximal = _cells(part, "swd", 1)
        by_swd.append([*scores, ratio, verdict(part), *proximal, seeds, remarks(part)])
        scores, ratio, proximal = _cells(part, "psd", 3)
        by_psd.append([*scores, ratio, *proximal])
    texts = []
    for metric, digits, lines in (("swd", 0, by_swd), ("psd", 3, by_psd)):
        heads = [f"{row} ({part[0]['rows']['rsd']['metrics'][metric]['floor']:.{digits}f})" for row, part in found.items()]
        first = [f"{metric}: corruption (floor)", *heads]
        text = [f"| {' | '.join([head, *cells])} |" for head, cells in zip(first, lines, strict=True)]
        texts.append("\n".join([text[0], "|---" * (len(lines[0]) + 1) + "|", *text[1:]]))
    return "\n\n".join(texts)


def _cells(results: Sequence[dict[str, Any]], metric: str, digits: int) -> tuple[list[str], str, list[str]]:
    """The rows of one corruption, the ratio of generator and teacher, and their proximal distances."""
    ratios = [one / other for one, other in zip(values(results, "rsd", metric), values(results, "teacher", metric), strict=True)]
    return (
        [cell(values(results, row, metric), digits) for row in ROWS],
        cell(ratios, 2),
        [cell(values(results, row, metric, "proximal"), digits) for row in ("teacher+", "rsd")],
    )


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    rows = [*NATURAL, *ACCELERATIONS]
    parser = job_parser(__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help=f"of {', '.join(rows)}; default: all"
    )
    options = parser.parse_args()
    code = 0
    if not options.table:
        if options.images is None and set(options.rows) & NATURAL.keys():
            parser.error("--images FILE is needed for the rows of photographs")
        if set(options.rows) & ACCELERATIONS.keys():
            draw_scans(options.runs)
        code = run_jobs(partial(run_job, row, seed, options) for seed in options.seeds for row in options.rows)
    print(table(options.results, rows))
    return code


if __name__ == "__main__":
    sys.exit(main())
