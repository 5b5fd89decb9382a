"""How the rivals of rivals.py are trained and scored: each is a function of a job, and gives rows of the tables.

What is trained is given the best average of its training by the true metric, as the teachers are; EM-Diffusion its best lap. Times are
those of the whole training, the images that it draws or reconstructs on its way included; of another divergence those of the distillation.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import teacher_of
from comparison import best, curve, judge_of, scored, seconds, seconds_per_image, settings_of, swd
from reproduce_small import draw_heads, make_maps

from rsdmri import baselines, pipeline
from rsdmri.config import Experiment
from rsdmri.domain import Domain
from rsdmri.evaluation import side_of
from rsdmri.logs import read_log
from rsdmri.restoring import about, read_images
from rsdmri.runs import observations_path

CLEAN_VOLUMES = 50  # drawn heads of eight slices, of each of which EM-Diffusion takes one


@dataclasses.dataclass(frozen=True)
class Job:
    """One (row, rival, seed): the experiment of the row, that of the rival, and the folder that it trains in."""

    row: Experiment
    experiment: Experiment
    domain: Domain
    n: int
    folder: Path
    options: argparse.Namespace


def l1(job: Job) -> dict[str, Any]:
    """The reconstructions in the place of the observations, and EDM on them."""
    experiment = job.experiment
    prepared(experiment, job.domain)
    path = baselines.restore(experiment, job.domain)
    data = job.domain.observations(observations_path(experiment), experiment)
    judge = judge_of(experiment, job.domain, job.n)
    images = read_images(path, data, pipeline.restored_of(experiment, job.domain))
    restored = side_of(job.domain, images.batch(list(judge.row_samples)).y, judge.law)
    found = _trained(job, experiment, pipeline.pretrain(experiment, job.domain), "L1-EDM")
    made = about(path)
    took = float(made["seconds"])
    found["rows"] = {"L1": {"metrics": judge.shown(restored), "proximal": {}}, **found["rows"]}
    found["seconds_per_image"] = {"L1": took / len(data), **found["seconds_per_image"]}
    found["training_seconds"]["L1-EDM"] += took
    return {**found, "lam": made["lam"]}


def em(job: Job) -> dict[str, Any]:
    """EM-Diffusion; its best lap."""
    options = dataclasses.replace(job.experiment.em, clean=_clean_images(job))
    experiment = dataclasses.replace(job.experiment, em=options)
    baselines.em(experiment, job.domain, job.folder)
    judge = judge_of(experiment, job.domain, job.n)
    laps = [f"lap_{lap}" for lap in range(1, options.laps + 1)]
    runs = {name: job.folder / name for name in ("first", *laps)}
    scores = {
        name: scored(judge, pipeline.load(run, job.domain, experiment).sample(range(judge.n))) for name, run in runs.items()
    }
    chosen = min(laps, key=lambda name: swd(scores[name]))
    trained = sum(read_log(run / "metrics.jsonl")[-1]["seconds"] for run in runs.values())
    drawn = sum(float(about(job.folder / lap / "images.h5")["seconds"]) for lap in laps)
    return {
        "rows": {"EM-Diffusion": scores[chosen]},
        "training_seconds": {"EM-Diffusion": trained + drawn},
        "seconds_per_image": {"EM-Diffusion": seconds_per_image(experiment, job.domain, runs[chosen])},
        "swd": {name: round(swd(found), 1) for name, found in scores.items()},
        "settings": settings_of(experiment),
    }


def consistency(job: Job) -> dict[str, Any]:
    """A Tweedie teacher with the penalty."""
    run = pipeline.pretrain(job.experiment, job.domain, job.folder)
    return _trained(job, job.experiment, run, f"Ambient-Consistency {job.experiment.objective.consistency:g}")


def divergence(job: Job) -> dict[str, Any]:
    """The row's teacher, distilled by another divergence; the last average, as RSD's."""
    experiment = job.experiment
    run = pipeline.distill(experiment, job.domain, job.folder, teacher_of(job.row, row_result(job.row, job.options)))
    found = curve(experiment, job.domain, judge_of(experiment, job.domain, job.n), run)
    last = max(found, key=int)
    name = f"D-{experiment.distill.divergence.upper()}"
    return {
        "rows": {name: found[last]},
        "training_seconds": {name: seconds(run, int(last))},
        "seconds_per_image": {name: seconds_per_image(experiment, job.domain, run)},
        "swd": {at: round(swd(scores), 1) for at, scores in found.items()},
        "settings": settings_of(experiment),
    }


def action(rival: str) -> Callable[[Job], dict[str, Any]]:
    """What makes the result of a rival."""
    if rival.startswith("consistency"):
        return consistency
    return {"l1": l1, "em": em, "dmd": divergence, "sds": divergence}[rival]


def row_result(row: Experiment, options: argparse.Namespace) -> Path:
    """The result of the row itself, which names its teacher."""
    return Path(options.results) / f"{row.name}.json"


def prepared(experiment: Experiment, domain: Domain) -> None:
    """The data of an experiment, made if they are not there."""
    if not observations_path(experiment).exists():
        pipeline.prepare(experiment, domain)


def _trained(job: Job, experiment: Experiment, run: Path, name: str) -> dict[str, Any]:
    """The best average of a training."""
    found = curve(experiment, job.domain, judge_of(experiment, job.domain, job.n), run)
    chosen = best(found, experiment.pretrain.images, experiment.pretrain.batch)
    return {
        "rows": {name: found[chosen]},
        "training_seconds": {name: seconds(run, experiment.pretrain.images)},
        "seconds_per_image": {name: seconds_per_image(experiment, job.domain, run)},
        "swd": {at: round(swd(scores), 1) for at, scores in found.items()},
        "settings": settings_of(experiment),
    }


def _clean_images(job: Job) -> Path:
    """references.h5 of images that are in no data set of the rows: photographs of the test split, heads of another seed.

    Of scans, for each number of ACS lines: what these hold decides how bright an image is.
    """
    runs, data = job.options.runs, job.row.data  # type: ignore[attr-defined]
    scans = job.row.name.startswith("mri")
    path = runs / (f"clean-mri-acs{data.acs}" if scans else "clean-faces") / "prepare" / "references.h5"
    if path.exists():
        return path
    if scans:
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
