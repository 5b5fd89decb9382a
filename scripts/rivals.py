"""The rivals of the tables at a size for two CPU cores, beside the rows of reproduce_small.py: one JSON a (row, rival, seed).

    python scripts/rivals.py --images FACES.npz [--rivals mri_r4-l1 noise_0.2-dmd] [--seeds 0 1]
    python scripts/rivals.py --table

    l1           L1-wavelet reconstructions themselves, and EDM trained on them as long as teacher+ (MRI)
    em           EM-Diffusion from 50 clean images that are not among the data
    consistency  Ambient-Consistency with coefficient 0.1, 1, 10 (noise), as long as the teacher
    dmd, sds     the row's own teacher distilled by another divergence (run reproduce_small.py for the row first)

No rival is handicapped: three candidate settings of each (CANDIDATES) are tried in seed 0 at a third of its length, the best by the true
metric is run at full length; for Ambient-Consistency these are the three coefficients, all at full length. What is trained is given the best
average of its training by the true metric, as the teachers are. Each job goes on where it was stopped; what is done is read.
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


#: Settings that are tried, by rival: a section of the experiment and its fields there.
CANDIDATES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "l1": {
        "lam of the default": ("l1", {}),
        "lam auto": ("l1", {"lam": "auto"}),
        "lam 2e-3": ("l1", {"lam": 2e-3}),
    },
    "em": {
        "mmps, 1 step": ("em", {"method": "mmps", "iterations": 1}),
        "mmps, 3 steps": ("em", {"method": "mmps", "iterations": 3}),
        "dps": ("em", {"method": "dps"}),
    },
}
RATES = {"rate of the row": 1.0, "half the rate": 0.5, "twice the rate": 2.0}  # of the generator, for other divergences
TRIED = 0  # the seed of the candidates


@dataclasses.dataclass(frozen=True)
class Job:
    """One (row, rival, seed): the experiment of the row, that of the rival, and the folder that it trains in."""

    row: Experiment
    experiment: Experiment
    domain: Domain
    n: int
    name: str
    folder: Path
    options: argparse.Namespace


def l1(job: Job) -> dict[str, Any]:
    """The reconstructions in the place of the observations, and EDM on them."""
    # A folder of its own: every candidate has other reconstructions.
    experiment = dataclasses.replace(_edm(job, learns_from="restored"), name=f"{job.row.name}-{job.folder.name}")
    _prepared(experiment, job.domain)
    path = baselines.restore(experiment, job.domain)
    data = job.domain.observations(observations_path(experiment), experiment)
    judge = judge_of(experiment, job.domain, job.n)
    images = read_images(path, data, pipeline.restored_of(experiment, job.domain))
    restored = side_of(job.domain, images.batch(list(judge.row_samples)).y, judge.law)
    run = pipeline.pretrain(experiment, job.domain)
    found = _trained(job, experiment, run, "L1-EDM")
    found["rows"] = {"L1": {"metrics": judge.shown(restored), "proximal": {}}, **found["rows"]}
    return found


def em(job: Job) -> dict[str, Any]:
    """EM-Diffusion; its best lap."""
    options = dataclasses.replace(job.experiment.em, clean=_clean_images(job))
    experiment = dataclasses.replace(_edm(job), em=options)
    baselines.em(experiment, job.domain, job.folder)
    judge = judge_of(experiment, job.domain, job.n)
    laps = [f"lap_{lap}" for lap in range(1, options.laps + 1)]
    runs = {name: job.folder / name for name in ("first", *laps)}
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
    run = pipeline.pretrain(experiment, job.domain, job.folder)
    return _trained(job, experiment, run, f"Ambient-Consistency {weight:g}")


def divergence(job: Job) -> dict[str, Any]:
    """The row's teacher, distilled by distribution matching or score distillation sampling; the last average, as RSD's."""
    distill = dataclasses.replace(job.experiment.distill, divergence="dmd" if job.name == "dmd" else "sds")
    experiment = dataclasses.replace(job.experiment, distill=distill)
    teacher = teacher_of(job.row, job.options.results / f"{job.row.name}.json")
    run = pipeline.distill(experiment, job.domain, job.folder, teacher)
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
    objective = dataclasses.replace(job.experiment.objective, kind="standard", **fields)
    return dataclasses.replace(job.experiment, objective=objective)


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


def _prepared(experiment: Experiment, domain: Domain) -> None:
    if not observations_path(experiment).exists():
        pipeline.prepare(experiment, domain)


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


def candidates_of(rival: str, row: Experiment) -> dict[str, tuple[str, dict[str, Any]]]:
    """The settings that are tried; none where there is nothing to choose."""
    if rival in ("dmd", "sds"):
        return {name: ("distill", {"lr_generator": times * row.distill.lr_generator}) for name, times in RATES.items()}
    return CANDIDATES.get(rival, {})


def settled(row: Experiment, rival: str, candidate: str | None) -> Experiment:
    """The row with a candidate's settings."""
    em = EMConfig(laps=4, first=16_000, lap=16_000, steps=10)
    experiment = dataclasses.replace(row, em=em)
    if candidate is None:
        return experiment
    section, fields = candidates_of(rival, row)[candidate]
    return dataclasses.replace(experiment, **{section: dataclasses.replace(getattr(experiment, section), **fields)})


def shortened(experiment: Experiment) -> Experiment:
    """A third of the length of whatever a rival trains; of EM-Diffusion the first model and one lap of four."""
    return dataclasses.replace(
        lengthened(experiment, 1 / 3, 8),
        distill=dataclasses.replace(experiment.distill, images=experiment.distill.images // 3, snapshots=1),
        em=dataclasses.replace(experiment.em, laps=1),
    )


def chosen_candidate(row: str, rival: str, options: argparse.Namespace) -> str | None:
    """The candidate of the lowest swd after a third of the length; what was found is kept beside the results."""
    experiment, domain, n = experiment_of(row, TRIED, options.runs, options.images)
    names = candidates_of(rival, experiment)
    if not names:
        return None
    path = options.results / f"{row}-{rival}-candidates.json"
    _prepared(experiment, domain)
    kept = finished(path, experiment, "row") or {"row": settings_of(experiment), "candidates": {}}
    for number, name in enumerate(names):
        if name not in kept["candidates"]:
            tried = shortened(settled(experiment, rival, name))
            folder = experiment.folder / f"{rival}-candidate-{number}"
            scores = action(rival)(Job(experiment, tried, domain, n, rival, folder, options))["rows"]
            kept["candidates"][name] = swd(scores[[*scores][-1]])  # L1-EDM stands below the reconstructions themselves
            write_json(path, kept)
    return min(names, key=lambda name: float(kept["candidates"][name]))


def run_job(row: str, rival: str, seed: int, options: argparse.Namespace) -> None:
    """One job; a result that is there is left alone."""
    experiment, domain, n = experiment_of(row, seed, options.runs, options.images)
    path = options.results / f"{row}-{rival}-seed{seed}.json"
    if finished(path, experiment, "row") is not None:
        return
    _prepared(experiment, domain)
    candidate = chosen_candidate(row, rival, options)
    full = settled(experiment, rival, candidate)
    result = action(rival)(Job(experiment, full, domain, n, rival, experiment.folder / rival, options))
    head = {"name": f"{row}-{rival}", "seed": seed, "n": n, "candidate": candidate, "row": settings_of(experiment)}
    write_json(path, {**head, **result})


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


def tried_table(folder: Path) -> str:
    """The candidates of every rival, in Markdown; the lowest one was taken."""
    lines = ["| corruption | rival | candidate: swd after a third of the length |", "|---" * 3 + "|"]
    for row, rival in PAIRS:
        path = folder / f"{row}-{rival}-candidates.json"
        if path.exists():
            found = sorted(read_json(path)["candidates"].items(), key=lambda item: float(item[1]))
            lines.append(f"| {row} | {rival} | {', '.join(f'{name}: {score:.1f}' for name, score in found)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the jobs that are asked for, then prints the tables."""
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
    print(f"{table(options.results)}\n\n{tried_table(options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
