"""The rivals of the tables at a size for two CPU cores, beside the rows of reproduce_small.py: one JSON a (row, rival, seed).

    python scripts/rivals.py --images FACES.npz [--rivals mri_r4-l1 noise_0.2-dmd] [--seeds 0 1]
    python scripts/rivals.py --table

    l1           L1-wavelet reconstructions themselves, and EDM trained on them as long as teacher+ (MRI)
    em           EM-Diffusion from 50 clean images that are not among the data; its models see as many images as teacher+ in all
    consistency  Ambient-Consistency with coefficient 0.1, 1, 10 (noise), as many images as teacher+, asked of 4 images of a batch of 32
    dmd, sds     the row's own teacher distilled by another divergence (run reproduce_small.py for the row first)

Ambient-Full and Ambient-Truncated are the rows `full` and `teacher` of reproduce_small.py. No rival is to be handicapped: of each, three
candidate settings are tried in seed 0 at a third of its length, and the best by the true metric is run at full length in every seed; for
Ambient-Consistency these are the three coefficients, all at full length. Each job goes on where it was stopped; what is done is read.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ablations import teacher_of
from comparison import cell, finished, job_parser, lengthened, run_jobs, same_settings, swd, values
from reproduce_small import ACCELERATIONS, NATURAL, draw_scans, experiment_of
from rival_runs import Job, action, prepared, row_result

from rsdmri.config import EMConfig, Experiment
from rsdmri.files import read_json, write_json

COEFFICIENTS = (0.1, 1.0, 10.0)
PAIRS = [
    *((row, "l1") for row in ("mri_r4", "mri_r8")),
    *((row, "em") for row in ("inpainting_0.9", "mri_r4")),
    *(("noise_0.2", f"consistency_{weight:g}") for weight in COEFFICIENTS),
    *((row, way) for row in ("noise_0.2", "inpainting_0.9", "blur", "mri_r4", "mri_r8") for way in ("dmd", "sds")),
]
RATES = {"rate of the row": 1.0, "half the rate": 0.5, "twice the rate": 2.0}  # of the generator
TRIED = 0  # the seed of the candidates
ASKED = 4  # of the 32 images of a batch Ambient-Consistency is asked of: of all of them a step would take eight times as long
LAPS = 4
DISTILLED = ("rsd", "D-DMD", "D-SDS")  # rows that need a teacher first


def candidates_of(row: Experiment, rival: str) -> dict[str, Experiment]:
    """The row as the rival trains on it, by candidate setting; one alone where there is nothing to choose."""
    if rival == "l1":
        edm = _standard(row, learns_from="restored")
        weights = {"lam of the default": None, "lam auto": "auto", "lam 1e-4": 1e-4}
        return {name: _with(edm, "l1", lam=lam) for name, lam in weights.items()}
    if rival == "em":
        images = row.pretrain.images // (LAPS + 1)
        edm = dataclasses.replace(_standard(row), em=EMConfig(laps=LAPS, first=images, lap=images))
        ways: dict[str, dict[str, Any]] = {
            "mmps, 1 step, 18 levels": {"method": "mmps", "iterations": 1, "steps": 18},
            "mmps, 3 steps, 18 levels": {"method": "mmps", "iterations": 3, "steps": 18},
            "dps, 18 levels": {"method": "dps", "steps": 18},
        }
        return {name: _with(edm, "em", **fields) for name, fields in ways.items()}
    if rival.startswith("consistency"):
        fields = {"consistency": float(rival.partition("_")[2]), "consistency_samples": ASKED}
        penalised = _with(row, "objective", **fields)
        return {"": _with(penalised, "sample", stop=0.0)}  # down to zero, which is what the penalty is for
    rate = row.distill.lr_generator
    return {name: _with(row, "distill", divergence=rival, lr_generator=times * rate) for name, times in RATES.items()}


def _with(experiment: Experiment, section: str, **fields: Any) -> Experiment:
    return dataclasses.replace(experiment, **{section: dataclasses.replace(getattr(experiment, section), **fields)})


def _standard(row: Experiment, **fields: Any) -> Experiment:
    """The row with an unconditional teacher of images."""
    return _with(row, "objective", kind="standard", **fields)


def shortened(experiment: Experiment) -> Experiment:
    """A third of the length of whatever a rival trains; of EM-Diffusion half of the laps, and of all models together a third."""
    short = _with(lengthened(experiment, 1 / 3, 8), "distill", images=experiment.distill.images // 3, snapshots=1)
    if experiment.em == EMConfig():
        return short
    laps = experiment.em.laps // 2
    lap = (experiment.em.first + experiment.em.laps * experiment.em.lap) // (3 * (1 + laps))
    return _with(short, "em", laps=laps, first=lap, lap=lap)


def _job(row: Experiment, experiment: Experiment, name: str, domain: Any, n: int, options: argparse.Namespace) -> Job:
    """The job that trains as ``name`` says. Reconstructions have a place of their own in an experiment: L1 is one of its own."""
    if experiment.objective.learns_from == "restored":
        experiment = dataclasses.replace(experiment, name=f"{row.name}-{name}")
    return Job(row, experiment, domain, n, row.folder / name, options)


def chosen_candidate(row: str, rival: str, options: argparse.Namespace) -> str:
    """The candidate of the lowest swd after a third of the length; what was found is kept beside the results, with its settings."""
    experiment, domain, n = experiment_of(row, TRIED, options.runs, options.images)
    found = candidates_of(experiment, rival)
    if len(found) == 1:
        return next(iter(found))
    path = options.results / f"{row}-{rival}-candidates.json"
    kept: dict[str, Any] = dict(read_json(path)) if path.exists() else {}
    prepared(experiment, domain)
    for name, candidate in found.items():
        job = _job(experiment, shortened(candidate), f"{rival}-{slug(name)}", domain, n, options)
        if name not in kept or not same_settings(kept[name]["settings"], job.experiment):
            result = action(rival)(job)
            scores = {shown: swd(scores) for shown, scores in result["rows"].items()}
            about = {key: result[key] for key in ("settings", "lam") if key in result}
            kept = {**kept, name: {"swd": scores, **about}}
            write_json(path, kept)
    return min(found, key=lambda name: last_of(kept[name]["swd"]))


def slug(name: str) -> str:
    """A candidate's name in that of a folder."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def last_of(scores: dict[str, float]) -> float:
    """What a candidate is judged by: L1-EDM stands below the reconstructions themselves."""
    return [*scores.values()][-1]


def run_job(row: str, rival: str, seed: int, options: argparse.Namespace) -> None:
    """One job; a result that is there is left alone."""
    experiment, domain, n = experiment_of(row, seed, options.runs, options.images)
    if rival in ("dmd", "sds"):
        teacher_of(experiment, row_result(experiment, options))  # said before hours of work, if it is not there
    candidate = chosen_candidate(row, rival, options)
    job = _job(experiment, candidates_of(experiment, rival)[candidate], rival, domain, n, options)
    path = options.results / f"{row}-{rival}-seed{seed}.json"
    if finished(path, job.experiment) is not None:
        return
    prepared(experiment, domain)
    result = action(rival)(job)
    write_json(path, {"name": f"{row}-{rival}", "seed": seed, "n": n, "candidate": candidate, **result})


def table(folder: Path) -> str:
    """What there is, in Markdown: the rows of reproduce_small.py and the rivals, mean and spread over the seeds that each has."""
    heads = "corruption | row | swd | proximal swd | s of training (teacher + phase II) | ms an image | seeds"
    lines = [f"| {heads} |", "|---" * 7 + "|"]
    for row in dict.fromkeys(row for row, _ in PAIRS):
        names = [row, *(f"{row}-{rival}" for of, rival in PAIRS if of == row)]
        found = [[dict(read_json(path)) for path in sorted(folder.glob(f"{name}-seed*.json"))] for name in names]
        teachers = {result["seed"]: result["training_seconds"]["teacher"] for result in found[0]}
        for results in found:
            for name in dict.fromkeys(name for result in results for name in result["rows"]):
                took = _times(results, "training_seconds", name)
                each = [1000 * time for time in _times(results, "seconds_per_image", name)]
                proximal = [result for result in results if result["rows"].get(name, {}).get("proximal")]
                training = cell(took, 0)
                if name in DISTILLED:
                    training = f"{cell([teachers[result['seed']] for result in results], 0)} + {training}"
                cells = [row, name, cell(values(results, name)), cell(values(proximal, name, group="proximal")), training]
                lines.append(f"| {' | '.join([*cells, cell(each), ' '.join(str(r['seed']) for r in results)])} |")
    return "\n".join(lines)


def _times(results: Sequence[dict[str, Any]], kind: str, name: str) -> list[float]:
    """Of a row of the table; Ambient-Full is the teacher's training, and the longer teacher samples as the teacher does."""
    same = {"training_seconds": {"full": "teacher"}, "seconds_per_image": {"teacher+": "teacher"}}[kind]
    found = [result[kind].get(same.get(name, name)) for result in results]
    return [time for time in found if time is not None]


def tried_table(folder: Path) -> str:
    """The candidates of every rival, in Markdown; the first one was taken."""
    lines = ["| corruption | rival | candidate: swd after a third of the length |", "|---" * 3 + "|"]
    for row, rival in PAIRS:
        path = folder / f"{row}-{rival}-candidates.json"
        if path.exists():
            found = sorted(((name, last_of(kept["swd"])) for name, kept in read_json(path).items()), key=lambda item: item[1])
            lines.append(f"| {row} | {rival} | {'; '.join(f'{name}: {score:.1f}' for name, score in found)} |")
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
    code = 0
    if not options.table:
        chosen = [pair for pair, name in zip(PAIRS, names, strict=True) if name in options.rivals]
        if options.images is None and {row for row, _ in chosen} & NATURAL.keys():
            parser.error("--images FILE is needed for the rows of photographs")
        if {row for row, _ in chosen} & ACCELERATIONS.keys():
            draw_scans(options.runs)
        code = run_jobs(partial(run_job, row, rival, seed, options) for seed in options.seeds for row, rival in chosen)
    print(f"{table(options.results)}\n\n{tried_table(options.results)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
