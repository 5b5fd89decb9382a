"""The six-level narrow network against the published shape for MRI, at equal training time: a JSON a seed, one table.

    python scripts/compare_networks.py [--minutes 20] [--size 64] [--channels 32] [--seeds 0 1 2]
    python scripts/compare_networks.py --table

Both shapes of configs/mri (r4.yaml, narrow.yaml), with fewer channels, as Ambient teachers of drawn heads at R = 4. How many images fit into
the time is measured first, in steps of the two that take turns, so that whatever else a machine does slows both alike. Of each training the
best average by the true distance stands in the table, and the last one. Each job goes on where it was stopped; what is done is read.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparison import cell, curve, finished, job_parser, judge_of, settings_of, swd
from reproduce_small import draw_heads, make_maps

from rsdmri import pipeline
from rsdmri.checkpoints import load_model
from rsdmri.config import Experiment, NetworkConfig
from rsdmri.files import read_json, write_json
from rsdmri.logs import read_log
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.runs import observations_path
from rsdmri.settings import load_experiment

SHAPES = ("published", "narrow")
ROUNDS, STEPS = 3, 8  # of the timing
KEPT = 6  # averages of a training


def experiment_of(seed: int, options: argparse.Namespace) -> Experiment:
    """What both have in common."""
    base = load_experiment(MRIExperiment, ["mri/phantoms_small"])
    where: dict[str, Any] = {"kspace": (options.runs / f"kspace_{options.size}",), "maps": options.runs / f"maps_{options.size}"}
    data = dataclasses.replace(base.data, accel=4.0, acs=max(4, options.size // 16), **where)
    pretrain = dataclasses.replace(base.pretrain, decay=False, snapshots=KEPT, lr=5e-4)
    name = f"networks_{options.size}-seed{seed}"
    return dataclasses.replace(base, data=data, pretrain=pretrain, name=name, runs=options.runs, seed=seed)


def network_of(shape: str, options: argparse.Namespace) -> NetworkConfig:
    """The recipe's network at the size of this comparison: fewer channels, attention at the same levels."""
    overlay = [] if shape == "published" else ["mri/narrow"]
    recipe = load_experiment(MRIExperiment, ["mri/r4", *overlay]).network
    rows = load_experiment(MRIExperiment, ["mri/r4"]).data.size[0]  # type: ignore[index]
    channels = recipe.channels * options.channels // 128
    attention = tuple(options.size * at // rows for at in recipe.attention)
    return dataclasses.replace(recipe, channels=channels, attention=attention, dropout=0.0)


def with_network(experiment: Experiment, shape: str, options: argparse.Namespace, images: int) -> Experiment:
    """The experiment of one shape, with the length of its training."""
    pretrain = dataclasses.replace(experiment.pretrain, images=images)
    return dataclasses.replace(experiment, network=network_of(shape, options), pretrain=pretrain)


def seconds_per_step(experiment: Experiment, options: argparse.Namespace) -> dict[str, float]:
    """The median time of a step of each shape, timed in turns and kept beside the data: a training that goes on has the same length."""
    path = options.runs / f"steps_{options.size}_{options.channels}.json"
    if path.exists():
        return dict(read_json(path))
    batch = experiment.pretrain.batch
    found: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(ROUNDS):
        for shape in SHAPES:
            short = with_network(experiment, shape, options, STEPS * batch)
            each = dataclasses.replace(short, pretrain=dataclasses.replace(short.pretrain, log=batch, save=10**9))
            with tempfile.TemporaryDirectory() as folder:
                run = pipeline.pretrain(each, MRI(), Path(folder) / "run")
                times = [line["seconds"] for line in read_log(run / "metrics.jsonl")]
            found[shape] += [after - before for before, after in pairwise(times)]
    medians = {shape: statistics.median(times) for shape, times in found.items()}
    write_json(path, medians)
    return medians


def run_job(seed: int, options: argparse.Namespace) -> None:
    """Both shapes, one seed."""
    experiment = experiment_of(seed, options)
    path = options.results / f"{experiment.name}.json"
    if finished(path, experiment, "common") is not None:
        return
    if not observations_path(experiment).exists():
        pipeline.prepare(experiment, MRI())
    step, batch = seconds_per_step(experiment, options), experiment.pretrain.batch
    judge = judge_of(experiment, MRI(), options.n)
    result: dict[str, Any] = {
        "seed": seed,
        "minutes": options.minutes,
        "n": judge.n,
        "common": settings_of(experiment),
        "shapes": {},
    }
    for shape in SHAPES:
        images = int(60 * options.minutes / step[shape]) * batch
        one = with_network(experiment, shape, options, images)
        run = pipeline.pretrain(one, MRI(), experiment.folder / shape)
        found = curve(one, MRI(), judge, run)
        denoiser, description = load_model(run)
        best = min(found, key=lambda at: swd(found[at]))
        result["shapes"][shape] = {
            "network": settings_of(one)["network"],
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "seconds_per_step": step[shape],
            "images": description.images,
            "best": found[best],
            "last": found[max(found, key=int)],
            "swd": {at: round(swd(scores), 1) for at, scores in found.items()},
        }
    write_json(path, result)


def table(folder: Path) -> str:
    """What there is, in Markdown."""
    lines = ["| size | shape | parameters | ms an image | images | best swd | last swd | best psd | seeds |", "|---" * 9 + "|"]
    found = [dict(read_json(path)) for path in sorted(folder.glob("networks_*-seed*.json"))]
    for name in dict.fromkeys(str(result["common"]["name"]).partition("-")[0] for result in found):
        results = [result for result in found if str(result["common"]["name"]).startswith(f"{name}-")]
        for shape in SHAPES:
            each = [result["shapes"][shape] for result in results]
            batch = results[0]["common"]["pretrain"]["batch"]
            cells = [
                name.partition("_")[2],
                shape,
                f"{each[0]['parameters'] / 1e6:.2f} M",
                f"{1000 * each[0]['seconds_per_step'] / batch:.1f}",
                str(each[0]["images"]),
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
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each network (default: 20)")
    parser.add_argument("--size", type=int, default=64, help="rows and columns, at least 64 (default: 64)")
    parser.add_argument("--channels", type=int, default=32, help="of the published shape, which has 128 (default: 32)")
    parser.add_argument("--n", type=int, default=200, help="images a side that are compared (default: 200)")
    options = parser.parse_args()
    if options.size % 32 or options.size < 64:
        parser.error("--size must be a multiple of 32, at least 64: the narrow network halves five times")
    if not options.table:
        draw_heads(options.runs / f"kspace_{options.size}", 100, size=options.size)
        make_maps(options.runs / f"kspace_{options.size}", options.runs / f"maps_{options.size}")
        for seed in options.seeds:
            run_job(seed, options)
    print(table(options.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
