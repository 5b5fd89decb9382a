"""Does the one-step generator beat a fair teacher? The demo's R = 4 row, several seeds, one JSON a seed, one table.

    python scripts/reproduce_demo.py [--seeds 0 1 2] [--runs runs/reproduce-demo] [--variant FIELD=VALUE]

Fair means: the teacher is the best of the snapshots of its training by the true metric (swd against clean references), from a
training longer than phase II; ``teacher+`` is the best of all snapshots of a training that had the time of both phases. RSD is the last
average of its training, not the best. A seed that is done is read, not repeated; one that was stopped goes on.

``--variant`` distils the same teachers once more with one field of ``distill`` changed, such as measured_by=independent; its rows follow.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.evaluation import Evaluator
from rsdmri.files import read_json, write_json
from rsdmri.generation import read_samples
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.settings import load_experiment
from rsdmri.training import read_log


def experiment_of(seed: int, runs: Path, images: int, plus: float) -> MRIExperiment:
    """The demo's experiment with a longer teacher; the learning rate is constant, so that every snapshot is a fair candidate."""
    base = load_experiment(MRIExperiment, ["mri/demo"])
    return dataclasses.replace(
        base,
        name=f"seed{seed}",
        runs=runs,
        seed=seed,
        data=dataclasses.replace(base.data, kspace=(runs / "kspace",), maps=runs / "espirit"),
        pretrain=dataclasses.replace(base.pretrain, images=int(images * plus), snapshots=int(8 * plus)),
        distill=dataclasses.replace(base.distill, snapshots=6),
    )


def seconds(run: Path, images: int) -> float:
    """Training time until ``images`` were seen."""
    return next(line["seconds"] for line in read_log(run / "metrics.jsonl") if line["images"] >= images)


def score(experiment: MRIExperiment, judge: Evaluator, run: Path, weights: Path | None) -> dict[str, object]:
    """True and proximal distances of one network."""
    model = pipeline.load(run, MRI(), experiment, weights)
    images = model.sample(range(judge.n))
    return {"metrics": judge.true(images), "proximal": judge.proximal(images, range(judge.n))}


def curve(experiment: MRIExperiment, judge: Evaluator, run: Path) -> dict[str, dict[str, object]]:
    """The scores of all snapshots of a run, by images seen; kept beside the run, because the teacher's take long."""
    path = run / "curve.json"
    found = read_json(path) if path.exists() else {}
    for images, weights in snapshots(run).items():
        if str(images) not in found:
            found[str(images)] = score(experiment, judge, run, weights)
            write_json(path, found)
            print(f"  {run.parent.name}/{run.name} {images}: swd {found[str(images)]['metrics']['swd']['value']:.1f}", flush=True)
    return found


def one_seed(seed: int, runs: Path, images: int, plus: float, n: int) -> dict[str, object]:
    """Trains, selects the teacher, distils it, and scores all rows."""
    path = runs / f"seed{seed}.json"
    if path.exists():
        return dict(read_json(path))
    experiment = experiment_of(seed, runs, images, plus)
    domain = MRI()
    if not (experiment.folder / "prepare" / "observations.h5").exists():
        pipeline.prepare(experiment, domain)
    teacher_run = pipeline.pretrain(experiment, domain)
    judge = pipeline.evaluator(experiment, domain, n)
    teachers = curve(experiment, judge, teacher_run)
    swd = {int(k): v["metrics"]["swd"]["value"] for k, v in teachers.items()}  # type: ignore[index]
    best = min((k for k in swd if k <= images), key=lambda k: swd[k])
    best_plus = min(swd, key=lambda k: swd[k])
    distill_run = pipeline.distill(experiment, domain, teacher=snapshots(teacher_run)[best])
    generators = curve(experiment, judge, distill_run)
    last = max(generators, key=int)
    true, proximal = judge.observation_scores()
    times = {}
    for name, run in (("teacher", teacher_run), ("rsd", distill_run)):
        pipeline.sample(experiment, domain, run=run)
        times[name] = read_samples(run / "samples.h5")[1]["seconds_per_image"]
    result: dict[str, object] = {
        "seed": seed,
        "n": judge.n,
        "rows": {
            "observation": {"metrics": true, "proximal": proximal},
            "teacher": teachers[str(best)],
            "teacher+": teachers[str(best_plus)],
            "rsd": generators[last],
        },
        "images": {"teacher": best, "teacher+": best_plus, "rsd": int(last)},
        "training_seconds": {
            "teacher": seconds(teacher_run, images),
            "teacher+": seconds(teacher_run, int(images * plus)),
            "rsd": seconds(distill_run, int(last)),
        },
        "seconds_per_image": times,
        "curves": {"teacher": teachers, "rsd": generators},
    }
    write_json(path, result)
    return result


def add_variant(result: dict[str, object], variant: str, runs: Path, images: int, plus: float) -> None:
    """One more row: the seed's selected teacher, distilled with one field changed."""
    path = runs / f"seed{result['seed']}-{variant}.json"
    if not path.exists():
        experiment, domain = experiment_of(int(str(result["seed"])), runs, images, plus), MRI()
        kind = {f.name: type(getattr(experiment.distill, f.name)) for f in dataclasses.fields(experiment.distill)}
        field, _, value = variant.partition("=")
        changed = dataclasses.replace(experiment.distill, **{field: kind[field](value)})
        teacher = snapshots(experiment.folder / "pretrain")[result["images"]["teacher"]]  # type: ignore[index]
        out = experiment.folder / f"distill-{variant}"
        run = pipeline.distill(dataclasses.replace(experiment, distill=changed), domain, out, teacher)
        generators = curve(experiment, pipeline.evaluator(experiment, domain, int(str(result["n"]))), run)
        write_json(path, generators[max(generators, key=int)])
    result["rows"][variant] = read_json(path)  # type: ignore[index]


def table(results: list[dict[str, object]]) -> str:
    """Mean and spread (standard deviation) over the seeds, a line a row."""
    lines = [f"{'row':<24} {'swd':>16} {'psd':>18} {'proximal swd':>16} {'proximal psd':>18}"]
    for row in results[0]["rows"]:  # type: ignore[attr-defined]
        cells = []
        for group in ("metrics", "proximal"):
            for metric, digits in (("swd", 1), ("psd", 3)):
                values = [r["rows"][row][group][metric]["value"] for r in results]  # type: ignore[index]
                spread = statistics.stdev(values) if len(values) > 1 else float("nan")
                cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        lines.append(f"{row:<24} {cells[0]:>16} {cells[1]:>18} {cells[2]:>16} {cells[3]:>18}")
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
    kspace, maps = options.runs / "kspace", options.runs / "espirit"
    rsdmri = [sys.executable, "-m", "rsdmri.mri"]
    drawn = ["--phantoms", "100", "--size", "32", "32", "--phase", "0.3", "--out", str(kspace)]
    subprocess.run([*rsdmri, "simulate", *drawn], check=True)
    subprocess.run([*rsdmri, "espirit", str(kspace), "--out", str(maps)], check=True)
    results = [one_seed(seed, options.runs, options.images, options.plus, options.n) for seed in options.seeds]
    for result in results:
        for variant in options.variant:
            add_variant(result, variant, options.runs, options.images, options.plus)
    print(table(results))
    print(json.dumps({str(r["seed"]): {"images": r["images"], "training_seconds": r["training_seconds"]} for r in results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
