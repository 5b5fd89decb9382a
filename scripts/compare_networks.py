"""The six-level narrow network against the published shape for MRI, at equal training time: a JSON a seed, one table.

    python scripts/compare_networks.py [--minutes 10] [--size 64] [--channels 16] [--seeds 0 1 2]
    python scripts/compare_networks.py --table

Both shapes for MRI (configs/mri/published.yaml, r4.yaml), with fewer channels, as Ambient teachers of drawn heads at R = 4, in batches of
8. How many images fit into the time is measured first, in steps of the two that take turns, so that whatever else a machine does slows both
alike. Of each shape three learning rates are tried in seed 0 for a third of the time, and the best one by the true distance is taken. Of each
training the best average by that distance stands in the table, and the last one. Each job goes on where it was stopped; what is done is read.

What this cannot show: at 384 x 320 the coarsest level has 12 x 10 places, here 2 x 2; and trainings of minutes say who learns faster, not who
ends lower.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from comparison import cell, curve, finished, job_parser, judge_of, run_jobs, seconds, settings_of, swd
from reproduce_small import draw_heads, make_maps
from rival_runs import prepared

from rsdmri import pipeline
from rsdmri.checkpoints import load_model
from rsdmri.config import Experiment, NetworkConfig
from rsdmri.files import read_json, write_json
from rsdmri.logs import read_log
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.settings import load_experiment

SHAPES = ("published", "narrow")
BATCH = 8
ROUNDS, STEPS = 3, 12  # of the timing
KEPT = 3  # averages of a training
RATES = (5e-4, 1e-3, 2e-3)
TRIED = 0  # the seed of the rates


def experiment_of(seed: int, options: argparse.Namespace) -> Experiment:
    """What both have in common."""
    base = load_experiment(MRIExperiment, ["mri/phantoms_small"])
    where: dict[str, Any] = {"kspace": (options.runs / f"kspace_{options.size}",), "maps": options.runs / f"maps_{options.size}"}
    data = dataclasses.replace(base.data, accel=4.0, acs=max(4, options.size // 16), **where)
    pretrain = dataclasses.replace(base.pretrain, batch=BATCH, decay=False)
    sample = dataclasses.replace(base.sample, steps=10)  # alike for both, and enough to tell them apart
    name = f"networks_{options.size}x{options.channels}-seed{seed}"
    return dataclasses.replace(base, data=data, pretrain=pretrain, sample=sample, name=name, runs=options.runs, seed=seed)


def network_of(shape: str, options: argparse.Namespace) -> NetworkConfig:
    """The recipe's network at the size of this comparison: fewer channels, attention at the same levels."""
    overlay = ["mri/published"] if shape == "published" else []
    recipe = load_experiment(MRIExperiment, ["mri/r4", *overlay]).network
    rows = load_experiment(MRIExperiment, ["mri/r4"]).data.size[0]  # type: ignore[index]
    channels = recipe.channels * options.channels // 128  # of the published shape
    attention = tuple(options.size * at // rows for at in recipe.attention)
    return dataclasses.replace(recipe, channels=channels, attention=attention, dropout=0.0)


def trained_as(experiment: Experiment, shape: str, options: argparse.Namespace, images: int, **fields: Any) -> Experiment:
    """The experiment of one shape, with the length of its training, of which a twentieth is warm-up."""
    log = max(BATCH, images // 20)
    pretrain = dataclasses.replace(
        experiment.pretrain, **{"images": images, "warmup": images // 20, "log": log, "snapshots": KEPT, **fields}
    )
    return dataclasses.replace(experiment, network=network_of(shape, options), pretrain=pretrain)


def seconds_per_step(experiment: Experiment, options: argparse.Namespace) -> dict[str, float]:
    """The median time of a step of each shape, timed in turns and kept beside the data: a training that goes on has the same length."""
    path = options.runs / f"steps_{options.size}x{options.channels}.json"
    if path.exists():
        return dict(read_json(path))
    found: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(ROUNDS):
        for shape in SHAPES:
            short = trained_as(experiment, shape, options, STEPS * BATCH, log=BATCH, snapshots=0, save=10**9)
            with tempfile.TemporaryDirectory() as folder:
                lines = read_log(pipeline.pretrain(short, MRI(), Path(folder) / "run") / "metrics.jsonl")
            found[shape].append((lines[-1]["seconds"] - lines[0]["seconds"]) / (len(lines) - 1))  # the first step pays for set-up
    medians = {shape: statistics.median(times) for shape, times in found.items()}
    write_json(path, medians)
    return medians


def rates_of(shape: str, images: int, options: argparse.Namespace) -> dict[str, float]:
    """swd after a third of the length, by learning rate; kept, with what it depends on."""
    path = options.results / f"networks_{options.size}x{options.channels}-{shape}-rates.json"
    of, experiment = {"images": images // 3 // BATCH * BATCH, "n": options.n}, experiment_of(TRIED, options)
    kept = dict(read_json(path)) if path.exists() else {}
    found: dict[str, float] = kept["swd"] if kept.get("of") == of else {}
    missing = [rate for rate in RATES if f"{rate:g}" not in found]
    if missing:
        prepared(experiment, MRI())
        judge = judge_of(experiment, MRI(), options.n)
        for rate in missing:
            one = trained_as(experiment, shape, options, of["images"], lr=rate, snapshots=1)
            run = pipeline.pretrain(one, MRI(), experiment.folder / f"{shape}-{of['images']}-{rate:g}")
            found[f"{rate:g}"] = swd(list(curve(one, MRI(), judge, run).values())[-1])
            write_json(path, {"of": of, "swd": found})
    return found


def run_job(seed: int, options: argparse.Namespace) -> None:
    """Both shapes, one seed."""
    experiment = experiment_of(seed, options)
    path = options.results / f"{experiment.name}.json"
    done = finished(path, experiment, "common")
    if done is not None and (done["minutes"], done["n"]) == (options.minutes, options.n):
        return
    prepared(experiment, MRI())
    step = seconds_per_step(experiment, options)
    judge = judge_of(experiment, MRI(), options.n)
    result: dict[str, Any] = {
        "seed": seed,
        "minutes": options.minutes,
        "n": judge.n,
        "common": settings_of(experiment),
        "shapes": {},
    }
    for shape in SHAPES:
        images = int(60 * options.minutes / step[shape]) * BATCH
        rates = rates_of(shape, images, options)
        rate = float(min(rates, key=lambda rate: rates[rate]))
        one = trained_as(experiment, shape, options, images, lr=rate)
        run = pipeline.pretrain(one, MRI(), experiment.folder / f"{shape}-{images}")
        found = curve(one, MRI(), judge, run)
        denoiser, description = load_model(run)
        result["shapes"][shape] = {
            "network": settings_of(one)["network"],
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "lr": rate,
            "seconds_per_step": step[shape],
            "images": description.images,
            "training_seconds": seconds(run, images),
            "best": found[min(found, key=lambda at: swd(found[at]))],
            "last": found[max(found, key=int)],
            "swd": {at: round(swd(scores), 1) for at, scores in found.items()},
        }
    write_json(path, result)


def table(folder: Path) -> str:
    """What there is, in Markdown."""
    heads = "size x channels | shape | parameters | ms an image | images | s of training | lr | best swd | last swd | best psd | seeds"
    lines = [f"| {heads} |", "|---" * 11 + "|"]
    found = [dict(read_json(path)) for path in sorted(folder.glob("networks_*-seed*.json"))]
    for name in dict.fromkeys(str(result["common"]["name"]).partition("-")[0] for result in found):
        results = [result for result in found if str(result["common"]["name"]).startswith(f"{name}-")]
        for shape in SHAPES:
            each = [result["shapes"][shape] for result in results]
            cells = [
                name.partition("_")[2],
                shape,
                f"{each[0]['parameters'] / 1e6:.2f} M",
                f"{1000 * each[0]['seconds_per_step'] / BATCH:.1f}",
                str(each[0]["images"]),
                cell([one["training_seconds"] for one in each], 0),
                f"{each[0]['lr']:g}",
                *(cell([one[which]["metrics"]["swd"]["value"] for one in each]) for which in ("best", "last")),
                cell([one["best"]["metrics"]["psd"]["value"] for one in each], 3),
                " ".join(str(result["seed"]) for result in results),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the seeds that are asked for, then prints the table."""
    parser = job_parser(__doc__)
    parser.set_defaults(runs=Path("runs/compare-networks"), results=Path("docs/networks"))
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each network (default: 10)")
    parser.add_argument("--size", type=int, default=64, help="rows and columns, at least 64 (default: 64)")
    parser.add_argument("--channels", type=int, default=16, help="of the published shape, which has 128 (default: 16)")
    parser.add_argument("--n", type=int, default=150, help="images a side that are compared (default: 150)")
    options = parser.parse_args()
    if options.size % 32 or options.size < 64:
        parser.error("--size must be a multiple of 32, at least 64: the narrow network halves five times")
    code = 0
    if not options.table:
        draw_heads(options.runs / f"kspace_{options.size}", 100, size=options.size)
        make_maps(options.runs / f"kspace_{options.size}", options.runs / f"maps_{options.size}")
        code = run_jobs(partial(run_job, seed, options) for seed in options.seeds)
    print(table(options.results))
    return code


if __name__ == "__main__":
    sys.exit(main())
