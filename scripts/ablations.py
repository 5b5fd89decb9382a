"""What each choice of the method is worth, at a size for two CPU cores: one JSON a (variant, seed), one table.

    python scripts/ablations.py --images FACES.npz [--variants noise-dmd mri-full] [--seeds 0 1 2]
    python scripts/ablations.py --table

A variant is a row of reproduce_small.py with one choice changed. Those that change phase II alone distil the row's own teacher again (run
reproduce_small.py first); the others train a teacher of their own.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from comparison import cell, compare, curve, finished, job_parser, judge_of, run_jobs, settings_of, values
from reproduce_small import draw_scans, experiment_of

from rsdmri import pipeline
from rsdmri.checkpoints import snapshots
from rsdmri.config import Experiment
from rsdmri.domain import Domain
from rsdmri.errors import UserError
from rsdmri.files import read_json, write_json


@dataclass(frozen=True)
class Variant:
    """A row and the fields that are changed in it; ``objective``, ``data`` and ``compute`` need a teacher of their own."""

    row: str
    distill: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)


STANDARD = {"kind": "standard"}
VARIANTS = {
    # DSD Figure 3: the adjusted way (Tweedie) against the standard one, and three divergences.
    "noise-dmd": Variant("noise_0.2", {"divergence": "dmd"}),
    "noise-sds": Variant("noise_0.2", {"divergence": "sds"}),
    "noise-standard-sid": Variant("noise_0.2", {"noise": "none"}, STANDARD),
    "noise-standard-dmd": Variant("noise_0.2", {"noise": "none", "divergence": "dmd"}, STANDARD),
    "noise-standard-sds": Variant("noise_0.2", {"noise": "none", "divergence": "sds"}, STANDARD),
    # The law of Tweedie's levels.
    "noise-clamp": Variant("noise_0.2", {}, {"law": "clamp"}),
    # Where predictions are compared.
    "mri-measured": Variant("mri_r4", {"space": "measured"}),
    "mri-kept": Variant("mri_r4", {"space": "kept"}),
    "mri-fake-kept": Variant("mri_r4", {"fake_space": "kept"}),
    "inpainting-image": Variant("inpainting_0.6", {"space": "image"}),
    "inpainting-measured": Variant("inpainting_0.6", {"space": "measured"}),
    # What the generator is shown, what measures it, and how masks are thinned.
    "mri-full": Variant("mri_r4", {"condition": "full"}),
    "inpainting-full": Variant("inpainting_0.6", {"condition": "full"}),
    "mri-independent": Variant("mri_r4", {"measured_by": "independent"}),
    "mri-fixed": Variant("mri_r4", {}, {}, {"thinning": "fixed"}),
    "inpainting-fixed": Variant("inpainting_0.6", {}, {}, {"thinning": "fixed"}),
    # The weight of the loss, and alpha.
    "noise-level": Variant("noise_0.2", {"weight": "level"}),
    "mri-level": Variant("mri_r4", {"weight": "level"}),
    "mri-alpha-1": Variant("mri_r4", {"alpha": 1.0}),
    "noise-alpha-1": Variant("noise_0.2", {"alpha": 1.0}),
    # Twice the rate of the generator, which D-DMD does best with.
    "mri-rate": Variant("mri_r4", {"lr_generator": 4e-4}),
    # Levels of the comparison above the noise alone, which was published as harmful (FID 18 against 4.8).
    "noise-above": Variant("noise_0.4", {"sigma_min": 0.4}),
    # Twice the length of phase II, where the generator does not win by the rule.
    "mri-r8-longer": Variant("mri_r8", {"images": 25_600}),
    # Both phases with activations in bf16, which is what GPUs take.
    "inpainting-bf16": Variant("inpainting_0.6", compute={"precision": "bf16"}),
}


def changed(experiment: Experiment, variant: Variant, name: str) -> Experiment:
    """The experiment of a row with the variant's fields."""
    parts = {
        part: dataclasses.replace(getattr(experiment, part), **getattr(variant, part))
        for part in ("distill", "objective", "data", "compute")
    }
    return dataclasses.replace(experiment, **parts, name=name)


def distilled(name: str, variant: Variant, seed: int, options: argparse.Namespace) -> None:
    """One (variant, seed)."""
    own = bool(variant.objective or variant.data or variant.compute)
    row, domain, n = experiment_of(variant.row, seed, options.runs, options.images, **({"plus": 1.0} if own else {}))
    path = options.results / f"{name}-seed{seed}.json"
    if own:
        # The standard way has no noise to stop at.
        stop = 0.0 if variant.objective == STANDARD else row.sample.stop
        one = dataclasses.replace(row, sample=dataclasses.replace(row.sample, stop=stop))
        compare(changed(one, variant, f"{name}-seed{seed}"), domain, 1.0, n, path)
        return
    again(changed(row, variant, row.name), domain, n, path, teacher_of(row, options.results / f"{row.name}.json"), name)


def teacher_of(row: Experiment, base: Path) -> Path:
    """The teacher that a row chose, by its result ``base``."""
    result = finished(base, row)
    if result is None:
        raise UserError(f"{base}: not there yet, and its teacher is to be distilled. Run reproduce_small.py for this row first.")
    teachers = snapshots(row.folder / "pretrain")
    chosen = result["images"]["teacher"]
    if chosen not in teachers:
        raise UserError(f"{row.folder / 'pretrain'}: the teacher after {chosen} images is not there. Give the --runs of {base}.")
    return teachers[int(chosen)]


def again(experiment: Experiment, domain: Domain, n: int, path: Path, teacher: Path, name: str) -> None:
    """The row's own teacher, distilled with the variant's options."""
    if finished(path, experiment):
        return
    run = pipeline.distill(experiment, domain, experiment.folder / f"distill-{name}", teacher)
    generators = curve(experiment, domain, judge_of(experiment, domain, n), run)
    last = generators[max(generators, key=int)]
    write_json(path, {"name": name, "seed": experiment.seed, "settings": settings_of(experiment), "rows": {"rsd": last}})


def table(folder: Path) -> str:
    """What there is, in Markdown; the first line of each row is the row itself."""
    lines = ["| row | variant | teacher | rsd | proximal rsd | seeds |", "|---|---|---|---|---|---|"]
    for row in dict.fromkeys(variant.row for variant in VARIANTS.values()):
        for name in ["", *(name for name, variant in VARIANTS.items() if variant.row == row)]:
            results = [dict(read_json(path)) for path in sorted(folder.glob(f"{name or row}-seed*.json"))]
            if results:
                scores = [
                    cell(values(results, "teacher")),
                    cell(values(results, "rsd")),
                    cell(values(results, "rsd", group="proximal")),
                ]
                lines.append(
                    f"| {row} | {' | '.join([name or 'as it is', *scores, ' '.join(str(r['seed']) for r in results)])} |"
                )
    return "\n".join(lines)


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    parser = job_parser(__doc__)
    parser.add_argument(
        "--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS], metavar="NAME", help=f"of {', '.join(VARIANTS)}"
    )
    options = parser.parse_args()
    code = 0
    if not options.table:
        if any(VARIANTS[name].row.startswith("mri") for name in options.variants):
            draw_scans(options.runs)
        code = run_jobs(
            partial(distilled, name, VARIANTS[name], seed, options) for seed in options.seeds for name in options.variants
        )
    print(table(options.results))
    return code


if __name__ == "__main__":
    sys.exit(main())
