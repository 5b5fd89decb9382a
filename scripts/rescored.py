"""The models of reproduce_small.py again, scored with more images: where its floor is above what is compared, it cannot say who wins.

    python scripts/rescored.py --images FACES.npz [--rows noise_0.1 noise_0.2 noise_0.4] [--n 2000] [--seeds 0 1 2]
    python scripts/rescored.py --table

Nothing is trained or chosen again: the teachers and the generator are those that the table names. One JSON a (row, seed).
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

from comparison import ROWS, cell, finished, job_parser, judge_of, run_jobs, scored, settings_of, values, verdict
from reproduce_small import ACCELERATIONS, NATURAL, experiment_of

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.errors import UserError
from rsdmri.files import read_json, write_json


def run_job(row: str, seed: int, options: argparse.Namespace) -> None:
    """One (row, seed); what is there is left alone."""
    experiment, domain, _ = experiment_of(row, seed, options.runs, options.images)
    path = options.results / f"rescored-{experiment.name}.json"
    if path.exists():
        return
    base = options.results / f"{experiment.name}.json"
    result = finished(base, experiment)
    if result is None:
        raise UserError(f"{base}: not there yet. Run reproduce_small.py for this row first.")
    judge = judge_of(experiment, domain, options.n)
    true, proximal = judge.observation_scores()
    rows = {"observation": {"metrics": true, "proximal": proximal}}
    for name, images in result["images"].items():
        run = experiment.folder / ("distill" if name == "rsd" else "pretrain")
        stop = 0.0 if name == "full" else experiment.sample.stop
        drawn = dataclasses.replace(experiment, sample=dataclasses.replace(experiment.sample, stop=stop))
        samples = pipeline.load(run, domain, drawn, snapshots(run)[images]).sample(range(judge.n))
        rows[name] = scored(judge, samples)
    write_json(path, {"name": row, "seed": seed, "n": judge.n, "settings": settings_of(experiment), "rows": rows})


def table(folder: Path) -> str:
    """What there is, in Markdown: mean and spread over the seeds."""
    lines = [
        f"| swd: corruption (n, floor) | {' | '.join(ROWS)} | wins | rsd, proximal | seeds |",
        "|---" * (len(ROWS) + 4) + "|",
    ]
    for row in [*NATURAL, *ACCELERATIONS]:
        results = [dict(read_json(path)) for path in sorted(folder.glob(f"rescored-{row}-seed*.json"))]
        if not results:
            continue
        floor = results[0]["rows"]["rsd"]["metrics"]["swd"]["floor"]
        scores = [cell(values(results, name)) for name in ROWS]
        proximal = cell(values(results, "rsd", group="proximal"))
        seeds = " ".join(str(result["seed"]) for result in results)
        cells = [f"{row} ({results[0]['n']}, {floor:.0f})", *scores, verdict(results), proximal, seeds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    rows = [*NATURAL, *ACCELERATIONS]
    parser = job_parser(__doc__)
    parser.add_argument("--n", type=int, default=2000, help="images a side (default: 2000, of faces nearly the half of all)")
    parser.add_argument("--rows", nargs="+", choices=rows, default=["noise_0.1", "noise_0.2", "noise_0.4"], metavar="ROW")
    options = parser.parse_args()
    code = 0
    if not options.table:
        code = run_jobs(partial(run_job, row, seed, options) for seed in options.seeds for row in options.rows)
    print(table(options.results))
    return code


if __name__ == "__main__":
    sys.exit(main())
