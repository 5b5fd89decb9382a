"""Does the one-step generator beat a fair teacher? The demo's R = 4 row, several seeds, one JSON a seed, one table.

    python scripts/reproduce_demo.py [--seeds 0 1 2] [--runs runs/reproduce-demo] [--variant FIELD=VALUE]

What is fair is said in comparison.py. ``--variant`` distils the same teachers once more with one field of ``distill`` changed, such as
measured_by=independent; its rows follow.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from comparison import cells, compare, curve, lengthened

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.config import Experiment
from rsdmri.files import read_json, write_json
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.settings import load_experiment


def experiment_of(seed: int, runs: Path, images: int, plus: float) -> Experiment:
    """The demo's experiment with a longer teacher."""
    base = load_experiment(MRIExperiment, ["mri/demo"])
    data = dataclasses.replace(base.data, kspace=(runs / "kspace",), maps=runs / "espirit")
    distill = dataclasses.replace(base.distill, snapshots=6)
    return lengthened(
        dataclasses.replace(base, name=f"seed{seed}", runs=runs, seed=seed, data=data, distill=distill), images, plus, 8
    )


def add_variant(result: dict[str, Any], variant: str, experiment: Experiment, path: Path) -> None:
    """One more row: the seed's selected teacher, distilled with one field changed."""
    if not path.exists():
        domain = MRI()
        kind = {f.name: type(getattr(experiment.distill, f.name)) for f in dataclasses.fields(experiment.distill)}
        field, _, value = variant.partition("=")
        changed = dataclasses.replace(experiment.distill, **{field: kind[field](value)})
        teacher = snapshots(experiment.folder / "pretrain")[result["images"]["teacher"]]
        out = experiment.folder / f"distill-{variant}"
        run = pipeline.distill(dataclasses.replace(experiment, distill=changed), domain, out, teacher)
        generators = curve(experiment, domain, pipeline.evaluator(experiment, domain, result["n"]), run)
        write_json(path, generators[max(generators, key=int)])
    result["rows"][variant] = read_json(path)


def table(results: list[dict[str, Any]]) -> str:
    """A line a row."""
    lines = [f"{'row':<24} {'swd':>16} {'psd':>18} {'proximal swd':>16} {'proximal psd':>18}"]
    for row in results[0]["rows"]:
        swd, psd, proximal_swd, proximal_psd = cells(results, row)
        lines.append(f"{row:<24} {swd:>16} {psd:>18} {proximal_swd:>16} {proximal_psd:>18}")
    return "\n".join(lines)


def main() -> int:
    """Runs the seeds one after the other and prints the table of those that are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce-demo"))
    parser.add_argument("--images", type=int, default=120_000, help="images of the teacher (default: 120000)")
    parser.add_argument("--plus", type=float, default=1.5, help="length of teacher+ in lengths of the teacher (default: 1.5)")
    parser.add_argument("--n", type=int, default=400, help="images a side (default: 400)")
    parser.add_argument("--variant", action="append", default=[], metavar="FIELD=VALUE", help="one more row (may be repeated)")
    options = parser.parse_args()
    runs = options.runs
    rsdmri = [sys.executable, "-m", "rsdmri.mri"]
    drawn = ["--phantoms", "100", "--size", "32", "32", "--phase", "0.3", "--out", str(runs / "kspace")]
    subprocess.run([*rsdmri, "simulate", *drawn], check=True)
    subprocess.run([*rsdmri, "espirit", str(runs / "kspace"), "--out", str(runs / "espirit")], check=True)
    results = []
    for seed in options.seeds:
        experiment = experiment_of(seed, runs, options.images, options.plus)
        result = compare(experiment, MRI(), options.images, options.n, runs / f"seed{seed}.json")
        for variant in options.variant:
            add_variant(result, variant, experiment, runs / f"seed{seed}-{variant}.json")
        results.append(result)
    print(table(results))
    print(json.dumps({str(r["seed"]): {"images": r["images"], "training_seconds": r["training_seconds"]} for r in results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
