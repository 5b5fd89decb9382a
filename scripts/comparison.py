"""A fair comparison of one experiment: observations, its best teacher, a longer teacher, and the generator. Shared by reproduce_*.py.

Fair means: the teacher is the best of the averages of its training by the true metric (swd against clean references), from a
training longer than phase II; ``teacher+`` is the best of all averages of a training that had the time of both phases. RSD is the last
average of its training, not the best. What is done is read, not repeated; what was stopped goes on.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.config import Experiment, to_tree
from rsdmri.domain import Domain
from rsdmri.errors import UserError
from rsdmri.evaluation import Evaluator
from rsdmri.files import read_json, write_json
from rsdmri.generation import read_samples
from rsdmri.training import read_log

ROWS = ("observation", "teacher", "teacher+", "rsd")


def lengthened(experiment: Experiment, images: int, plus: float, kept: int) -> Experiment:
    """The experiment with a teacher of ``images`` times ``plus`` images, of which ``kept`` times ``plus`` averages are kept.

    Its learning rate must be constant, so that every average is a fair candidate.
    """
    pretrain = dataclasses.replace(experiment.pretrain, images=int(images * plus), snapshots=int(kept * plus), decay=False)
    return dataclasses.replace(experiment, pretrain=pretrain)


def seconds(run: Path, images: int) -> float:
    """Training time until ``images`` were seen."""
    return float(next(line["seconds"] for line in read_log(run / "metrics.jsonl") if line["images"] >= images))


def curve(experiment: Experiment, domain: Domain, judge: Evaluator, run: Path) -> dict[str, Any]:
    """The true and proximal distances of all snapshots of a run, by images seen; kept beside it, because a teacher's take long."""
    path = run / "curve.json"
    found = dict(read_json(path)) if path.exists() else {}
    for images, weights in snapshots(run).items():
        if str(images) not in found:
            samples = pipeline.load(run, domain, experiment, weights).sample(range(judge.n))
            found[str(images)] = {"metrics": judge.true(samples), "proximal": judge.proximal(samples, range(judge.n))}
            write_json(path, found)
            print(f"  {run.parent.name}/{run.name} {images}: swd {swd(found[str(images)]):.1f}", flush=True)
    return found


def swd(scores: Any) -> float:
    """The true metric by which a teacher is chosen."""
    return float(scores["metrics"]["swd"]["value"])


def compare(experiment: Experiment, domain: Domain, images: int, n: int, path: Path) -> dict[str, Any]:
    """Trains, chooses the teacher, distils it, scores all rows and writes the JSON ``path``; ``experiment`` is a lengthened one."""
    settings = {name: part for name, part in to_tree(experiment).items() if name not in ("runs", "device")}
    if path.exists():
        result = dict(read_json(path))
        if result["settings"] != settings:
            raise UserError(f"{path}: of other settings. Move it away, or take another folder with --runs.")
        return result
    if not (experiment.folder / "prepare" / "observations.h5").exists():
        pipeline.prepare(experiment, domain)
    teacher_run = pipeline.pretrain(experiment, domain)
    judge = pipeline.evaluator(experiment, domain, n)
    teachers = curve(experiment, domain, judge, teacher_run)
    best = min((k for k in teachers if int(k) <= images), key=lambda k: swd(teachers[k]))
    best_plus = min(teachers, key=lambda k: swd(teachers[k]))
    distill_run = pipeline.distill(experiment, domain, teacher=snapshots(teacher_run)[int(best)])
    generators = curve(experiment, domain, judge, distill_run)
    last = max(generators, key=int)
    true, proximal = judge.observation_scores()
    times = {}
    for name, run in (("teacher", teacher_run), ("rsd", distill_run)):
        pipeline.sample(experiment, domain, run=run)
        times[name] = read_samples(run / "samples.h5")[1]["seconds_per_image"]
    result = {
        "name": experiment.name,
        "seed": experiment.seed,
        "settings": settings,
        "n": judge.n,
        "rows": {
            "observation": {"metrics": true, "proximal": proximal},
            "teacher": teachers[best],
            "teacher+": teachers[best_plus],
            "rsd": generators[last],
        },
        "images": {"teacher": int(best), "teacher+": int(best_plus), "rsd": int(last)},
        "training_seconds": {
            "teacher": seconds(teacher_run, images),
            "teacher+": seconds(teacher_run, experiment.pretrain.images),
            "rsd": seconds(distill_run, int(last)),
        },
        "seconds_per_image": times,
        "curves": {"teacher": teachers, "rsd": generators},
    }
    write_json(path, result)
    return result


def cells(results: Sequence[dict[str, Any]], row: str) -> list[str]:
    """Mean and spread (standard deviation) of a row over the seeds: swd, psd, proximal swd, proximal psd."""
    found = []
    for group in ("metrics", "proximal"):
        for metric, digits in (("swd", 1), ("psd", 3)):
            values = [result["rows"][row][group][metric]["value"] for result in results]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            found.append(f"{statistics.mean(values):.{digits}f}{spread}")
    return found
