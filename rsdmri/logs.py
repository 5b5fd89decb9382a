"""metrics.jsonl: a line every few steps with the means of what they returned; and whether a run has gone wrong, by its lines."""

import json
from bisect import insort
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from . import distributed
from .errors import UserError
from .files import write_text
from .tracking import Follow

SPREAD, GRADIENT = "spread", "gradient"  # names, and beginnings of names, of values that are watched
MOST_DROPPED = 0.5  # of the steps between two lines of the log; if more are not finite, the run stops
COLLAPSED = 0.02  # of the largest spread of the generator's images so far
EXPLODED, ENOUGH = 1e4, 5  # times the median gradient, once there are so many lines


class Log:
    """metrics.jsonl: one line every few steps with the mean of what the steps returned; it also says when a run has gone wrong."""

    def __init__(self, path: Path, images: int, follow: Sequence[Follow]) -> None:
        self.path, self.follow = path, follow
        self.values: list[dict[str, Tensor]] = []
        self.earlier: dict[str, list[float]] = {}  # of the values that are watched, those of all lines, sorted
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # lines that were written after the checkpoint will be written again
            lines = [line for line in read_log(path) if line["images"] <= images]
            if distributed.first():
                write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
            for line in lines:
                self._remember(line)

    def add(self, values: dict[str, Tensor]) -> None:
        self.values.append({name: value.detach() for name, value in values.items()})

    def write(self, images: int, seconds: float) -> str:
        """Appends one line, and returns it in short for the progress line.

        Steps whose gradient was not finite, which :func:`descend` left out, are counted and not averaged.
        """
        stacks = torch.stack([torch.stack([v[name] for v in self.values]).double() for name in self.values[0]])
        table = dict(zip(self.values[0], distributed.mean(stacks).cpu(), strict=True))
        finite = torch.stack([values.isfinite() for values in table.values()]).all(0)
        self.values.clear()
        dropped = int((~finite).sum())
        if dropped > MOST_DROPPED * len(finite):
            broken = [name for name, values in table.items() if not values.isfinite().all()]
            self._stop(images, f"{', '.join(broken)}: not finite in {dropped} of {len(finite)} steps")
        line: dict[str, float] = {name: float(values[finite].mean()) for name, values in table.items()}
        cause = gone_wrong(self.earlier, line)
        if cause is not None:
            self._stop(images, cause)
        self._remember(line)
        line = {"images": images, "seconds": round(seconds, 2), **line, **({"dropped": dropped} if dropped else {})}
        if distributed.first():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.tell(images, {name: value for name, value in line.items() if name != "images"})
        losses = {name.removeprefix("loss_"): value for name, value in line.items() if name.startswith("loss")}
        return _short(losses) + (f"  {dropped} dropped" if dropped else "")

    def tell(self, images: int, values: Mapping[str, float]) -> str:
        """Values for whoever follows the training; returns them in short."""
        for follow in self.follow:
            follow(images, values)
        return _short(values)

    def _remember(self, line: Mapping[str, float]) -> None:
        for name, value in line.items():
            if name == SPREAD or name.startswith(GRADIENT):
                insort(self.earlier.setdefault(name, []), value)

    def _stop(self, images: int, cause: str) -> NoReturn:
        raise UserError(
            f"training stopped at {images} images: {cause}. The last checkpoint is kept in {self.path.parent / 'resume'}. Lower the"
            " learning rate, or look for broken data."
        )


def _short(values: Mapping[str, float]) -> str:
    """For the progress line, which has 80 columns: "loss 12.3", or "fake 12.3  generator 4.5"."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def gone_wrong(before: Mapping[str, Sequence[float]], line: Mapping[str, float]) -> str | None:
    """Why a run should not go on after ``line``, or None; ``before`` are the sorted values of its earlier lines, by name.

    A generator has collapsed when its images differ from each other hardly more than not at all, compared with what they did before;
    a gradient has exploded when it is far above its usual norm.
    """
    for name, value in line.items():
        earlier = before.get(name, ())
        if not earlier:
            continue
        if name == SPREAD and value < COLLAPSED * earlier[-1]:
            return f"the generator has collapsed: its images differ by {value:.3g} from each other, and did by {earlier[-1]:.3g}"
        usual = earlier[len(earlier) // 2]
        if name.startswith(GRADIENT) and len(earlier) >= ENOUGH and value > EXPLODED * usual:
            return f"{name} has exploded: its norm is {value:.3g}, and usually is {usual:.3g}"
    return None


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a last line that was torn by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not isinstance(found, dict) or not {"images", "seconds"} <= found.keys():
            raise UserError(f"{path}: a line without 'images' and 'seconds': not the log of a training")
        lines.append(found)
    return lines
