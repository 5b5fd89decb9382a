"""The verb ``report``: a page of one experiment, or of several side by side, from what their other verbs wrote.

Of a training that goes on, a page shows what there is by then.
"""

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .config import Experiment, to_tree
from .domain import Domain
from .errors import UsageError, UserError
from .interrupts import Request, stop_requests
from .page_images import Pictures, pictures_of, pictures_of_samples, small_grids_of
from .page_parts import (
    PHASES,
    Results,
    curves_of,
    curves_of_selection,
    facts_of,
    measurements_of,
    phases_of,
    provenance_of,
    results_of,
    short,
    sizes_of_data,
)
from .reporting import Comparison, Grid, Report, write_comparison, write_report
from .runs import observations_path
from .selection_table import selection_table

T = TypeVar("T")

WHITES = 1.02  # ratio of the magnitudes that are white up to which numbers compare: a few of 255 steps
SAME = ("n", "features", "preprocessing")  # without which numbers do not compare


class Kept:
    """Things that take long to make, by their names: made again when one of their files changed."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[object, Any]] = {}

    def get(self, name: str, files: Sequence[Path], make: Callable[[], T]) -> T:
        """What ``make`` gave for the files as they are."""
        stamp = stamp_of(files)
        if name not in self.made or self.made[name][0] != stamp:
            self.made[name] = stamp, make()
        result: T = self.made[name][1]
        return result


def stamp_of(files: Sequence[Path]) -> list[tuple[Path, int | None]]:
    """Files and when they were written; None for those that are not there."""
    return [(path, path.stat().st_mtime_ns if path.exists() else None) for path in files]


def files_of(experiment: Experiment) -> list[Path]:
    """The files of an experiment that its page is made of, as far as they change."""
    names = ("config.yaml", "metrics.jsonl", "selection.jsonl", "provenance.json", "model.json", "samples.h5")
    runs = [experiment.folder / phase / name for phase in PHASES for name in names]
    return [experiment.folder / "evaluate" / "metrics.json", *runs]


def report(
    experiment: Experiment, domain: Domain, out: Path | None = None, *, refresh: float | None = None, kept: Kept | None = None
) -> Path:
    """report.html and report.json of an experiment, by default in its folder.

    Args:
        refresh: seconds after which a browser reads the page again.
        kept: what an earlier call made, for pages that are written again and again.
    """
    folder, kept = experiment.folder, kept or Kept()
    out = out or folder
    results, phases = results_of(experiment), phases_of(folder)
    if not results.rows and not phases:
        raise UserError(f"{folder}: nothing to report, no training was begun here. Run: {domain.program}pretrain")
    pictures, data = Pictures(), observations_path(experiment)
    if results.rows:
        files = [*results.samples.values(), data]
        if not data.exists():  # a folder that was copied from where it was trained, without its data
            print(f"report: {data} is not there: no observations, references and neighbours on the page", file=sys.stderr)
        drawn = pictures_of if data.exists() else pictures_of_samples
        pictures = kept.get("pictures", files, partial(drawn, experiment, domain, results.samples))
    sizes = kept.get("sizes", [data], partial(sizes_of_data, experiment, domain))
    measurements = measurements_of(folder)
    write_report(
        out,
        Report(
            title=experiment.name,
            facts=facts_of(experiment, domain, sizes, results.circumstances),
            rows=results.rows,
            circumstances=results.circumstances,
            curves=[curve for phase in phases for curve in curves_of(folder / phase, PHASES[phase])],
            selection=selection_table(measurements),
            selection_curves=curves_of_selection(measurements, results.circumstances.get("features")),
            images=pictures.grids,
            neighbours=pictures.neighbours,
            yardstick=pictures.yardstick,
            provenance={phase: provenance_of(folder / phase) for phase in phases},
            config_text=(folder / phases[-1] / "config.yaml").read_text(encoding="utf-8") if phases else "",
            refresh=refresh,
        ),
    )
    return out


def compare(
    experiments: Sequence[Experiment],
    domain: Domain,
    out: Path | None = None,
    *,
    refresh: float | None = None,
    kept: Kept | None = None,
) -> Path:
    """One page of several experiments, in columns; by default in the folder ``report`` beside the first one.

    Raises:
        UserError: one was not evaluated, or their numbers do not compare.
    """
    out, kept = out or experiments[0].folder.parent / "report", kept or Kept()
    columns = _columns(experiments)
    results = {name: results_of(e) for name, e in columns.items()}
    for name, found in results.items():
        if not found.rows:
            path = columns[name].folder / "evaluate" / "metrics.json"
            raise UserError(f"{path}: nothing was evaluated yet. Run: {domain.program}evaluate")
    _require_comparable(results)
    facts, pictures = {}, {}
    grids = sum(1 + len(found.samples) for found in results.values())
    for name, e in columns.items():
        data, samples = observations_path(e), results[name].samples
        sizes = kept.get(f"sizes of {name}", [data], partial(sizes_of_data, e, domain))
        facts[name] = facts_of(e, domain, sizes, results[name].circumstances)
        pictures[name] = kept.get(name, [*samples.values(), data], partial(small_grids_of, e, domain, samples, grids))
    measurements = {name: measurements_of(e.folder) for name, e in columns.items()}
    write_comparison(
        out,
        Comparison(
            title=" · ".join(columns) if len(columns) < 4 else f"{len(columns)} experiments",
            rows={name: found.rows for name, found in results.items()},
            circumstances=next(iter(results.values())).circumstances,
            facts=facts,
            compared=_compared(results),
            differences=_differences({name: _flat(to_tree(e)) for name, e in columns.items()}),
            curves=[
                curve
                for name, e in columns.items()
                for phase in phases_of(e.folder)
                for curve in curves_of(e.folder / phase, name)
            ],
            selection={name: selection_table(found) for name, found in measurements.items() if found},
            images=_by_row(pictures),
            refresh=refresh,
        ),
    )
    return out


def _columns(experiments: Sequence[Experiment]) -> dict[str, Experiment]:
    """The experiments by their names, or by their folders where names are alike."""
    names = Counter(e.name for e in experiments)
    columns = {e.name if names[e.name] == 1 else str(e.folder): e for e in experiments}
    if len(columns) < len(experiments):
        raise UsageError("an experiment was named twice, and each has one column: name it once")
    return columns


def _require_comparable(results: Mapping[str, Results]) -> None:
    """Refuses numbers of another n, other features or another preprocessing."""
    for name, found in results.items():
        missing = [key for key in SAME if key not in found.circumstances]
        if missing:
            raise UserError(
                f"{name}: its evaluate/metrics.json does not say {' and '.join(missing)} (an earlier version wrote it), so that its numbers"
                " cannot be compared with others. Evaluate it again."
            )
    whites = {name: _white(found) for name, found in results.items()}
    if max(whites.values()) > WHITES * min(whites.values()):
        listed = "; ".join(f"{name} {white:.4g}" for name, white in whites.items())
        raise UserError(
            f"numbers of images that are shown in another way are not compared; magnitudes that are white: {listed}. Prepare these data"
            " with one --data.display-max and evaluate them again, or report one experiment."
        )
    for key in SAME:
        values = {name: json.dumps(_without_white(found.circumstances[key]), sort_keys=True) for name, found in results.items()}
        if len(set(values.values())) > 1:
            listed = "; ".join(f"{name} with {value}" for name, value in values.items())
            raise UserError(
                f"numbers of another {key} are not compared: {listed}. Evaluate these experiments alike, or report one."
            )


def _compared(results: Mapping[str, Results]) -> str:
    """Whether the numbers of different columns compare, by the hashes of what they were measured against."""
    said = []
    for key, distances in (("references", "distances to the references"), ("observations", "proximal distances")):
        hashes = {found.compared_with.get(key) for found in results.values()}
        if len(hashes) > 1:
            said.append(f"The {key} are not the same in all: {distances} of different columns do not compare to the digit.")
        elif hashes != {None}:
            said.append(f"The {key} are the same in all.")
    return " ".join(said) or "Their numbers compare where the references are the same pictures."


def _white(results: Results) -> float:
    return float(results.circumstances["preprocessing"].get("white", 1.0))


def _without_white(circumstance: Any) -> Any:
    """White is a measured number, which differs a little between masks of another seed."""
    return {k: v for k, v in circumstance.items() if k != "white"} if isinstance(circumstance, Mapping) else circumstance


def _by_row(pictures: Mapping[str, Mapping[str, Grid]]) -> dict[str, list[Grid]]:
    """The grids of each row, under the names of the experiments."""
    rows = dict.fromkeys(row for grids in pictures.values() for row in grids)
    return {
        row: [dataclasses.replace(grids[row], title=name) for name, grids in pictures.items() if row in grids] for row in rows
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every setting by its dotted name, but for the name and the place of the experiment."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        elif prefix or key not in ("name", "runs"):
            found[prefix + key] = short(value)
    return found


def _differences(trees: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The settings that are not the same everywhere."""
    keys = dict.fromkeys(key for tree in trees.values() for key in tree)
    values = {key: [tree.get(key, "–") for tree in trees.values()] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def watch(make: Callable[[float | None], Path], files: Sequence[Path], seconds: float) -> Path:
    """Makes a page again whenever one of its ``files`` changed, until Ctrl-C or SIGTERM; ``make`` is told after how long a browser reads it
    again.

    What is wrong only for a moment, because a run is being written or not yet begun, is said and tried again.

    Raises:
        UserError: there was nothing to make a page of until the end.
    """
    stamp, out = stamp_of(files), _try(partial(make, seconds))
    does = "looks again" if out is None else f"{out / 'report.html'} follows the run,"
    print(f"report: {does} every {seconds:g} s; Ctrl-C ends this", file=sys.stderr)
    with stop_requests() as request, suppress(KeyboardInterrupt):
        while not request.signal:
            _rest(seconds, request)
            if stamp_of(files) != stamp:
                stamp = stamp_of(files)
                out = _try(partial(make, seconds)) or out
    if out is None:
        return make(None)
    print("\nreport: stopped; the page stays, and is no longer read again by itself", file=sys.stderr)
    _try(partial(make, None))
    return out


def _rest(seconds: float, request: Request) -> None:
    """Waits, or until a signal comes, which does not end a sleep."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not request.signal:
        time.sleep(min(0.2, seconds))


def _try(make: Callable[[], Path]) -> Path | None:
    try:
        return make()
    except UsageError:
        raise  # nothing will mend it
    except UserError as error:
        print(f"report: {error}", file=sys.stderr)
        return None
