"""Seven corruptions of faces at a size for two CPU cores: observation, teacher, longer teacher and generator, one JSON a (row, seed).

    python scripts/reproduce_natural.py --images FACES.npz [--rows blur inpainting_0.9] [--seeds 0 1] [--runs runs/reproduce-natural]
    python scripts/reproduce_natural.py --table

Each (row, seed) takes at most 20 minutes and goes on where it was stopped; what is done is read. ``--table`` prints what there is.
What is fair is said in comparison.py. Teachers of noisy data stop at the level of the noise (Ambient-Truncated), which is better.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from comparison import ROWS, cells, compare, lengthened

from rsdmri.config import Experiment
from rsdmri.files import read_json
from rsdmri.settings import load_experiment
from rsdmri_natural.config import NaturalExperiment
from rsdmri_natural.domain import Natural

#: Corruption and objective of each row.
CORRUPTIONS: dict[str, tuple[dict[str, Any], Literal["standard", "tweedie", "ambient"]]] = {
    "blur": ({"corruption": "blur"}, "standard"),
    "blur_0.2": ({"corruption": "blur", "noise_std": 0.2}, "tweedie"),
    "inpainting_0.6": ({"corruption": "inpainting", "missing": 0.6}, "ambient"),
    "inpainting_0.9": ({"corruption": "inpainting", "missing": 0.9}, "ambient"),
    "sr2": ({"corruption": "super_resolution", "factor": 2}, "standard"),
    "sr2_0.2": ({"corruption": "super_resolution", "factor": 2, "noise_std": 0.2}, "tweedie"),
    "noise_0.2": ({"corruption": "noise", "noise_std": 0.2}, "tweedie"),
}


def experiment_of(row: str, seed: int, options: argparse.Namespace) -> Experiment:
    """The small experiment with the corruption of a row."""
    base = load_experiment(NaturalExperiment, ["natural/faces_small"])
    fields, objective = CORRUPTIONS[row]
    experiment = dataclasses.replace(
        base,
        name=f"{row}-seed{seed}",
        runs=options.runs,
        seed=seed,
        data=dataclasses.replace(base.data, images=options.images, size=options.size, **fields),
        objective=dataclasses.replace(base.objective, kind=objective),
        distill=dataclasses.replace(base.distill, snapshots=4),
        sample=dataclasses.replace(base.sample, stop=fields.get("noise_std", 0.0)),
    )
    return lengthened(experiment, base.pretrain.images, options.plus, 3)


def table(runs: Path) -> str:
    """What there is, in Markdown: mean and spread over the seeds."""
    lines = ["| corruption | row | swd | psd | proximal swd | proximal psd | seeds |", "|---|---|---|---|---|---|---|"]
    for corruption in CORRUPTIONS:
        results = [dict(read_json(path)) for path in sorted(runs.glob(f"{corruption}-seed*.json"))]
        for row in ROWS if results else ():
            lines.append(f"| {' | '.join([corruption, row, *cells(results, row), ' '.join(str(r['seed']) for r in results)])} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="the photographs, with the splits train and test")
    parser.add_argument("--rows", nargs="+", choices=[*CORRUPTIONS], default=[*CORRUPTIONS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce-natural"))
    parser.add_argument("--size", type=int, default=16, help="rows and columns (default: 16)")
    parser.add_argument("--plus", type=float, default=2.0, help="length of teacher+ in lengths of the teacher (default: 2)")
    parser.add_argument("--n", type=int, default=250, help="images a side (default: 250)")
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    options = parser.parse_args()
    if options.images is None and not options.table:
        parser.error("--images FILE is needed to train")
    for seed in options.seeds if not options.table else ():
        for row in options.rows:
            experiment = experiment_of(row, seed, options)
            images = round(experiment.pretrain.images / options.plus)
            compare(experiment, Natural(), images, options.n, options.runs / f"{experiment.name}.json")
    print(table(options.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
