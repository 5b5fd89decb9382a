"""The rivals of the tables at a size for two CPU cores, beside the rows of reproduce_small.py: one JSON a (row, rival, seed).

    python scripts/rivals.py --images FACES.npz [--rivals mri_r4-l1 noise_0.2-dmd] [--seeds 0 1]
    python scripts/rivals.py --table

    l1           L1-wavelet reconstructions themselves, and EDM trained on them as long as teacher+ (MRI)
    em           EM-Diffusion from 50 clean images that are not among the data
    consistency  Ambient-Consistency with coefficient 0.1, 1, 10 (noise), as long as the teacher
    dmd, sds     the row's own teacher distilled by another divergence (run reproduce_small.py for the row first)

Every rival that is trained is given the best average of its training by the true metric, as the teachers are. Each job goes on where it was
stopped; what is done is read.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import teacher_of
from comparison import best, cell, curve, finished, job_parser, judge_of, lengthened, scored, seconds, settings_of, swd, values
from reproduce_small import ACCELERATIONS, NATURAL, draw_heads, draw_scans, experiment_of, make_maps

from rsdmri import baselines, pipeline
from rsdmri.config import EMConfig, Experiment
from rsdmri.domain import Domain
from rsdmri.evaluation import side_of
from rsdmri.files import read_json, write_json
from rsdmri.generation import read_samples
from rsdmri.logs import read_log
from rsdmri.restoring import read_images
from rsdmri.runs import observations_path

COEFFICIENTS = (0.1, 1.0, 10.0)
PAIRS = [
    *((row, "l1") for row in ("mri_r4", "mri_r8")),
    *((row, "em") for row in ("inpainting_0.9", "mri_r4")),
    *(("noise_0.2", f"consistency_{weight:g}") for weight in COEFFICIENTS),
    *((row, way) for row in ("noise_0.2", "inpainting_0.9", "blur", "mri_r4", "mri_r8") for way in ("dmd", "sds")),
]
CLEAN_VOLUMES = 7  # drawn heads of eight slices: 56 clean images, of which EM-Diffusion takes 50


@dataclasses.dataclass(frozen=True)
class Job:
    """One (row, rival, seed): the experiment of the row."""

    row: Experiment
    domain: Domain
    n: int
    name: str
    options: argparse.Namespace


def l1(job: Job) -> dict[str, Any]:
    """The reconstructions in the place of the observations, and EDM on them."""
    experiment = _edm(job, learns_from="restored")
    path = baselines.restore(experiment, job.domain)
    data = job.domain.observations(observations_path(experiment), experiment)
    judge = judge_of(experiment, job.domain, job.n)
    images = read_images(path, data, pipeline.restored_of(experiment, job.domain))
    restored = side_of(job.domain, images.batch(list(judge.row_samples)).y, judge.law)
    run = pipeline.pretrain(experiment, job.domain, job.row.folder / job.name)
    found = _trained(job, experiment, run, "L1-EDM")
    found["rows"] = {"L1": {"metrics": judge.shown(restored), "proximal": {}}, **found["rows"]}
    return found


def em(job: Job) -> dict[str, Any]:
    """EM-Diffusion; its best lap."""
    clean = _clean_images(job)
    options = EMConfig(clean=clean, laps=4, first=16_000, lap=16_000, steps=10, iterations=1)
    experiment = dataclasses.replace(_edm(job), em=options)
    baselines.em(experiment, job.domain, job.row.folder / job.name)
    judge = judge_of(experiment, job.domain, job.n)
    laps = [f"lap_{lap}" for lap in range(1, options.laps + 1)]
    runs = {name: job.row.folder / job.name / name for name in ("first", *laps)}
    scores = {
        name: scored(judge, pipeline.load(run, job.domain, experiment).sample(range(judge.n))) for name, run in runs.items()
    }
    chosen = min(laps, key=lambda name: swd(scores[name]))
    took = sum(read_log(run / "metrics.jsonl")[-1]["seconds"] for run in runs.values())
    return {
        "rows": {"EM-Diffusion": scores[chosen]},
        "training_seconds": {"EM-Diffusion": took},  # the drawing of images not included
        "seconds_per_image": {"EM-Diffusion": _time(job, experiment, runs[chosen])},
        "swd": {name: round(swd(found), 1) for name, found in scores.items()},
        "settings": settings_of(experiment),
    }


def consistency(job: Job) -> dict[str, Any]:
    """A Tweedie teacher with the penalty, as long as the row's teacher; sampled down to zero, which is what the penalty is for."""
    weight = float(job.name.partition("_")[2])
    objective = dataclasses.replace(job.row.objective, consistency=weight)
    alone = dataclasses.replace(job.row, objective=objective, sample=dataclasses.replace(job.row.sample, stop=0.0))
    experiment = lengthened(alone, 0.5, 8)  # the row's is already twice as long
    run = pipeline.pretrain(experiment, job.domain, job.row.folder / job.name)
    return _trained(job, experiment, run, f"Ambient-Consistency {weight:g}")


def divergence(job: Job) -> dict[str, Any]:
    """The row's teacher, distilled by distribution matching or score distillation sampling; the last average, as RSD's."""
    distill = dataclasses.replace(job.row.distill, divergence="dmd" if job.name == "dmd" else "sds")
    experiment = dataclasses.replace(job.row, distill=distill)
    teacher = teacher_of(job.row, job.options.results / f"{job.row.name}.json")
    run = pipeline.distill(experiment, job.domain, job.row.folder / f"distill-{job.name}", teacher)
    judge = judge_of(experiment, job.domain, job.n)
    found = curve(experiment, job.domain, judge, run)
    last = max(found, key=int)
    name = f"D-{job.name.upper()}"
    return {
        "rows": {name: found[last]},
        "training_seconds": {name: seconds(run, int(last))},
        "seconds_per_image": {name: _time(job, experiment, run)},
        "settings": settings_of(experiment),
    }


def _edm(job: Job, **fields: Any) -> Experiment:
    """The row with an unconditional teacher of images."""
    objective = dataclasses.replace(job.row.objective, kind="standard", **fields)
    return dataclasses.replace(job.row, objective=objective)


def _trained(job: Job, experiment: Experiment, run: Path, name: str) -> dict[str, Any]:
    """The best average of a training."""
    judge = judge_of(experiment, job.domain, job.n)
    found = curve(experiment, job.domain, judge, run)
    chosen = best(found, experiment.pretrain.images, experiment.pretrain.batch)
    return {
        "rows": {name: found[chosen]},
        "training_seconds": {name: seconds(run, int(chosen))},
        "seconds_per_image": {name: _time(job, experiment, run)},
        "swd": {at: round(swd(scores), 1) for at, scores in found.items()},
        "settings": settings_of(experiment),
    }


def _time(job: Job, experiment: Experiment, run: Path) -> float:
    pipeline.sample(experiment, job.domain, run=run)
    return float(read_samples(run / "samples.h5")[1]["seconds_per_image"])


def _clean_images(job: Job) -> Path:
    """references.h5 of images that are in no data set of the rows: photographs of the test split, heads of another seed."""
    runs = job.options.runs
    path = runs / f"clean-{'mri' if job.row.name.startswith('mri') else 'faces'}" / "prepare" / "references.h5"
    if path.exists():
        return path
    data: Any = job.row.data  # type: ignore[attr-defined]
    if job.row.name.startswith("mri"):
        draw_heads(runs / "clean", CLEAN_VOLUMES, seed=1000)
        for scan in sorted((runs / "clean").glob("phantom_*.h5")):
            scan.rename(scan.with_name(scan.name.replace("phantom", "clean")))  # volumes are known by their names
        make_maps(runs / "clean", runs / "clean_maps")
        data = dataclasses.replace(data, kspace=(runs / "clean",), maps=runs / "clean_maps", accel=1.0)
    else:
        data = dataclasses.replace(data, split="test", corruption="noise", noise_std=0.0)
    objective = dataclasses.replace(job.row.objective, kind="standard")
    clean = dataclasses.replace(job.row, data=data, objective=objective, name=path.parent.parent.name)  # type: ignore[call-arg]
    pipeline.prepare(clean, job.domain)
    return path


def action(rival: str) -> Callable[[Job], dict[str, Any]]:
    """What makes the result of a rival."""
    if rival.startswith("consistency"):
        return consistency
    return {"l1": l1, "em": em, "dmd": divergence, "sds": divergence}[rival]


def run_job(row: str, rival: str, seed: int, options: argparse.Namespace) -> None:
    """One job; a result that is there is left alone."""
    experiment, domain, n = experiment_of(row, seed, options.runs, options.images)
    path = options.results / f"{row}-{rival}-seed{seed}.json"
    if finished(path, experiment, "row") is not None:
        return
    if not observations_path(experiment).exists():
        pipeline.prepare(experiment, domain)
    result = action(rival)(Job(experiment, domain, n, rival, options))
    write_json(path, {"name": f"{row}-{rival}", "seed": seed, "n": n, "row": settings_of(experiment), **result})


def table(folder: Path) -> str:
    """What there is, in Markdown: the rows of reproduce_small.py and the rivals, mean and spread over the seeds that each has."""
    lines = ["| corruption | row | swd | proximal swd | s of training | ms an image | seeds |", "|---" * 7 + "|"]
    for row in dict.fromkeys(row for row, _ in PAIRS):
        ours = [dict(read_json(path)) for path in sorted(folder.glob(f"{row}-seed*.json"))]
        theirs = [
            [dict(read_json(path)) for path in sorted(folder.glob(f"{row}-{rival}-seed*.json"))]
            for of, rival in PAIRS
            if of == row
        ]
        for results in [ours, *theirs]:
            for name in dict.fromkeys(name for result in results for name in result["rows"]):
                seeds = " ".join(str(result["seed"]) for result in results)
                times = [result[key].get(name) for key in ("training_seconds", "seconds_per_image") for result in results]
                took = [time for time in times[: len(results)] if time is not None]
                each = [1000 * time for time in times[len(results) :] if time is not None]
                proximal = [r for r in results if r["rows"].get(name, {}).get("proximal")]
                cells = [row, name, cell(values(results, name)), cell(values(proximal, name, group="proximal")), cell(took, 0)]
                lines.append(f"| {' | '.join([*cells, cell(each), seeds])} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    names = [f"{row}-{rival}" for row, rival in PAIRS]
    parser = job_parser(__doc__)
    parser.set_defaults(seeds=[0, 1])
    parser.add_argument(
        "--rivals", nargs="+", choices=names, default=names, metavar="ROW-RIVAL", help=f"of {', '.join(names)}; default: all"
    )
    options = parser.parse_args()
    if not options.table:
        chosen = [pair for pair, name in zip(PAIRS, names, strict=True) if name in options.rivals]
        if options.images is None and {row for row, _ in chosen} & NATURAL.keys():
            parser.error("--images FILE is needed for the rows of photographs")
        if {row for row, _ in chosen} & ACCELERATIONS.keys():
            draw_scans(options.runs)
        for seed in options.seeds:
            for row, rival in chosen:
                run_job(row, rival, seed, options)
    print(table(options.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
