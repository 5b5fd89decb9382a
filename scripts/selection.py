"""Is the proximal distance a good guide? The generators of four rows again, with an average scored every sixteenth of the training.

    python scripts/selection.py --images FACES.npz [--rows blur mri_r4] [--seeds 0 1 2]
    python scripts/selection.py --table

The teachers are those that reproduce_small.py chose (run it first). As RSD Table 6: the true swd of the best average, that of the one
with the lowest proximal swd, the gap; and, as RSD 5.4, after how many images and seconds the generator passed its teacher.
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ablations import teacher_of
from comparison import cell, finished, job_parser, run_jobs, settings_of
from reproduce_small import draw_scans, experiment_of

from rsdmri import pipeline
from rsdmri.files import read_json, write_json
from rsdmri.selection_table import read_selection, selection_table

ROWS = ("blur", "inpainting_0.9", "sr2", "mri_r4")
LOOKS = 16  # averages that are scored
METRIC = "swd"


def followed(row: str, seed: int, options: argparse.Namespace) -> None:
    """One (row, seed)."""
    base, domain, n = experiment_of(row, seed, options.runs, options.images)
    teacher = teacher_of(base, options.results / f"{base.name}.json")
    watched: dict[str, Any] = {"select": METRIC, "select_every": base.distill.images // LOOKS, "select_n": n}
    experiment = dataclasses.replace(base, distill=dataclasses.replace(base.distill, **watched))
    path = options.results / f"selection-{base.name}.json"
    if finished(path, experiment):
        return
    run = pipeline.distill(experiment, domain, base.folder / "distill-selection", teacher)
    measurements = read_selection(run / "selection.jsonl")
    lines = [dataclasses.asdict(line) for line in measurements]
    found = {entry.metric: dataclasses.asdict(entry) for entry in selection_table(measurements)}
    write_json(path, {"name": row, "seed": seed, "settings": settings_of(experiment), "lines": lines, "selected": found})


def table(folder: Path) -> str:
    """What there is, in Markdown."""
    heads = [
        "row",
        "best true",
        "true of the selected",
        "gap",
        "images of the selected, of all",
        "passes its teacher after images",
        "s",
        "seeds",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in ROWS:
        results = [dict(read_json(path)) for path in sorted(folder.glob(f"selection-{row}-seed*.json"))]
        if results:
            lines.append(f"| {' | '.join([row, *_cells([result['selected'][METRIC] for result in results], results)])} |")
    return "\n".join(lines)


def _cells(found: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[str]:
    total = results[0]["settings"]["distill"]["images"]
    crossings = [entry["crossings"][0] for entry in found]
    never = sum(crossing["images"] is None for crossing in crossings)
    passed = [crossing for crossing in crossings if crossing["images"] is not None]
    after = [cell([float(crossing[key]) for crossing in passed], 0) for key in ("images", "seconds")]
    return [
        *(cell([entry[key] for entry in found]) for key in ("best_true", "true", "gap")),
        f"{', '.join(str(entry['images']) for entry in found)} of {total}",
        after[0] + (f" (never: {never})" if never else ""),
        after[1],
        " ".join(str(result["seed"]) for result in results),
    ]


def main() -> int:
    """Runs the jobs that are asked for, then prints the table."""
    parser = job_parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    options = parser.parse_args()
    code = 0
    if not options.table:
        if "mri_r4" in options.rows:
            draw_scans(options.runs)
        code = run_jobs(partial(followed, row, seed, options) for seed in options.seeds for row in options.rows)
    print(table(options.results))
    return code


if __name__ == "__main__":
    sys.exit(main())
