"""A fair comparison of one experiment: observations, its best teacher, a longer teacher, and the generator.

Shared by the scripts of small comparisons. Fair means: the teacher is the best of the averages of its training by the true metric (swd
against clean references), from a training longer than phase II; ``teacher+`` is the best of all averages of a training that had the
time of both phases; :func:`remarks` tells where the clock says otherwise. Their learning rate stays, so that every average is a
candidate; RSD is the last average of its training, not the best, at a rate that falls. What is done is read, not repeated; what was stopped
goes on.

Teachers of noisy data stop at the level of the noise (Ambient-Truncated); ``full`` are the same ones, sampled down to zero (Ambient-Full).
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.config import EMConfig, Experiment, to_tree
from rsdmri.domain import Domain
from rsdmri.errors import UserError
from rsdmri.evaluation import Evaluator, evaluator
from rsdmri.files import read_json, write_json
from rsdmri.logs import read_log
from rsdmri.runs import with_new_options
from rsdmri.samples import read_samples
from rsdmri.tensors import Image

PLACES = ("kspace", "maps", "references", "images", "clean")  # fields of the sections data and em
ROWS = ("observation", "full", "teacher", "teacher+", "rsd")


def job_parser(about: str | None) -> argparse.ArgumentParser:
    """The options of every script of resumable jobs."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="photographs of faces, with the splits train and test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce-small"), help="where the trainings lie")
    parser.add_argument("--results", type=Path, default=Path("docs/reproduce_small"), help="where the JSON of each job goes")
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    return parser


def lengthened(experiment: Experiment, plus: float, kept: int) -> Experiment:
    """The experiment with a teacher ``plus`` times as long, of which ``kept`` times ``plus`` averages are kept.

    Its learning rate must be constant, so that every average is a fair candidate.
    """
    images = int(experiment.pretrain.images * plus)
    pretrain = dataclasses.replace(experiment.pretrain, images=images, snapshots=int(kept * plus), decay=False)
    return dataclasses.replace(experiment, pretrain=pretrain)


def seconds(run: Path, images: int) -> float:
    """Training time until ``images`` were seen."""
    return float(next(line["seconds"] for line in read_log(run / "metrics.jsonl") if line["images"] >= images))


def seconds_per_image(experiment: Experiment, domain: Domain, run: Path) -> float:
    """Of sampling, measured by it."""
    pipeline.sample(experiment, domain, run=run)
    return float(read_samples(run / "samples.h5")[1]["seconds_per_image"])


def curve(experiment: Experiment, domain: Domain, judge: Evaluator, run: Path, name: str = "curve") -> dict[str, Any]:
    """The true and proximal distances of all snapshots of a run, by images seen; kept beside it, because a teacher's take long."""
    path = run / f"{name}.json"
    # Other samples have other distances, and so has another choice of references.
    of = {"n": judge.n, "parts": "no scan in both", **to_tree(experiment.sample)}
    kept = read_json(path) if path.exists() else {"of": of, "scores": {}}
    found: dict[str, Any] = kept["scores"] if kept["of"] == of else {}
    for images, weights in snapshots(run).items():
        if str(images) not in found:
            samples = pipeline.load(run, domain, experiment, weights).sample(range(judge.n))
            found[str(images)] = scored(judge, samples)
            write_json(path, {"of": of, "scores": found})
            print(f"  {run.parent.name}/{run.name} {name} {images}: swd {swd(found[str(images)]):.1f}", flush=True)
    return found


def judge_of(experiment: Experiment, domain: Domain, n: int) -> Evaluator:
    """What n images are compared with, by the distances that these tables show."""
    shown = dataclasses.replace(experiment.evaluate, metrics=("swd", "psd"), bootstrap=0)
    return evaluator(dataclasses.replace(experiment, evaluate=shown), domain, n)


def scored(judge: Evaluator, samples: Image) -> dict[str, Any]:
    """Both distances of images that were drawn with the seeds from 0 on."""
    return {"metrics": judge.true(samples), "proximal": judge.proximal(samples, range(judge.n))}


def swd(scores: Any) -> float:
    """The true metric by which a teacher is chosen."""
    return float(scores["metrics"]["swd"]["value"])


def best(curve: dict[str, Any], images: int, batch: int) -> str:
    """The best average of a training up to ``images``, and to the end of the batch that reaches them, by the true metric."""
    return min((k for k in curve if int(k) < images + batch), key=lambda k: swd(curve[k]))


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """What a result depends on; not where the data lie, nor options of EM-Diffusion where there is none."""
    unused = ("runs", "device", *(["em"] if experiment.em == EMConfig() else []))
    tree = {name: part for name, part in to_tree(experiment).items() if name not in unused}
    return {
        name: {key: value for key, value in part.items() if key not in PLACES} if name in ("data", "em") else part
        for name, part in tree.items()
    }


def finished(path: Path, experiment: Experiment, key: str = "settings") -> dict[str, Any] | None:
    """The result of an experiment, if it is there; its settings stand under ``key``."""
    if not path.exists():
        return None
    result = dict(read_json(path))
    if not same_settings(result[key], experiment):
        raise UserError(f"{path}: of other settings. Move it away, or take another folder with --results.")
    return result


def same_settings(kept: dict[str, Any], experiment: Experiment) -> bool:
    """Whether settings that were written are those of an experiment; options that did not exist then count as their defaults."""
    wanted = settings_of(experiment)
    known = {name: part for name, part in kept.items() if name in wanted}
    return with_new_options(known, wanted, settings_of(type(experiment)())) == wanted


def run_jobs(jobs: Iterable[Callable[[], object]]) -> int:
    """Runs all of them, and returns the exit code: what a user can mend of one is said, and does not stop the others."""
    code = 0
    for job in jobs:
        try:
            job()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
    return code


def compare(experiment: Experiment, domain: Domain, plus: float, n: int, path: Path) -> dict[str, Any]:
    """Trains, chooses the teacher, distils it, scores all rows and writes the JSON ``path``; ``experiment`` is a lengthened one."""
    result = finished(path, experiment)
    if result is not None:
        return result
    if not (experiment.folder / "prepare" / "observations.h5").exists():
        pipeline.prepare(experiment, domain)
    run = pipeline.pretrain(experiment, domain)
    judge = judge_of(experiment, domain, n)
    images = round(experiment.pretrain.images / plus)
    curves = {"teacher": curve(experiment, domain, judge, run)}
    down = dataclasses.replace(experiment, sample=dataclasses.replace(experiment.sample, stop=0.0))
    if experiment.sample.stop > 0:
        curves["full"] = curve(down, domain, judge, run, "curve-full")
    batch = experiment.pretrain.batch
    chosen = {name: best(found, images, batch) for name, found in curves.items()}
    chosen["teacher+"] = best(curves["teacher"], experiment.pretrain.images, batch)
    distill_run = pipeline.distill(experiment, domain, teacher=snapshots(run)[int(chosen["teacher"])])
    curves["rsd"] = curve(experiment, domain, judge, distill_run)
    chosen["rsd"] = max(curves["rsd"], key=int)
    rows = {name: curves["teacher" if name == "teacher+" else name][at] for name, at in chosen.items()}
    true, proximal = judge.observation_scores()
    timed = {"full": (down, run), "teacher": (experiment, run), "rsd": (experiment, distill_run)}
    times = {name: seconds_per_image(how, domain, where) for name, (how, where) in timed.items() if name in chosen}
    result = {
        "name": experiment.name,
        "seed": experiment.seed,
        "settings": settings_of(experiment),
        "n": judge.n,
        "rows": {"observation": {"metrics": true, "proximal": proximal}, **rows},
        "images": {name: int(at) for name, at in chosen.items()},
        "training_seconds": {
            "teacher": seconds(run, images),
            "teacher+": seconds(run, experiment.pretrain.images),
            "rsd": seconds(distill_run, int(chosen["rsd"])),
        },
        "seconds_per_image": times,
        "swd": {name: {at: round(swd(scores), 1) for at, scores in found.items()} for name, found in curves.items()},
    }
    write_json(path, result)
    return result


def values(results: Sequence[dict[str, Any]], row: str, metric: str = "swd", group: str = "metrics") -> list[float]:
    """A metric of a row, one value a seed; none where the row does not apply."""
    return [float(result["rows"][row][group][metric]["value"]) for result in results if row in result["rows"]]


def cell(numbers: Sequence[float], digits: int = 1) -> str:
    """Mean and spread (standard deviation) over the seeds."""
    if not numbers:
        return "-"
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


def verdict(results: Sequence[dict[str, Any]]) -> str:
    """Whether RSD lies below the best teacher by more than twice the larger of their spreads over the seeds."""
    if len(results) < 2:
        return "-"
    rsd = values(results, "rsd")
    rivals = [values(results, row) for row in ("full", "teacher", "teacher+") if row in results[0]["rows"]]
    rival = min(rivals, key=statistics.mean)
    gap, spread = statistics.mean(rival) - statistics.mean(rsd), max(statistics.stdev(rival), statistics.stdev(rsd))
    return "yes" if gap > 2 * spread else "no" if gap < -2 * spread else "a draw"


def remarks(results: Sequence[dict[str, Any]]) -> str:
    """What a reader must know of the teachers of a row."""
    found = []
    best_teacher = min(statistics.mean(values(results, row)) for row in ("teacher", "teacher+"))
    if best_teacher > statistics.mean(values(results, "observation")):
        found.append("teachers worse than the observations")
    last = [list(result["swd"]["teacher"].values())[-2:] for result in results]
    if all(after < 0.95 * before for before, after in last):
        found.append("the teacher still falls")
    for result in results:
        took = result["training_seconds"]
        if took["rsd"] > took["teacher"] or took["rsd"] + took["teacher"] > took["teacher+"]:
            found.append(f"seed {result['seed']}: phase II took longer than the teachers were given")
    return "; ".join(found) or "-"
