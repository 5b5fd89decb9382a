"""Choosing among the averages of a distillation by a proximal distance, which needs no clean image (RSD 5.3).

The loss does not say how good a generator is. So every so many images its average draws a set, which is corrupted again and compared with the
observations; where there are clean references, the true distance stands beside it, for whoever studies how good the choice is, and chooses
nothing. The teacher's distances at the same number of images come first: from them one sees when the generator passes it.

``selection.jsonl`` has a line for each: {"images", "seconds", "row", "n", "proximal": {name: value}, "true": {name: value}}.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoints import load_tensors, save_tensors
from .config import DistillConfig
from .evaluation import Evaluator, Scores
from .files import read_json, write_json, write_text
from .logs import read_log
from .selection_table import GENERATOR
from .tensors import Image

LOOKS = 20  # averages that are scored unless another number is asked for


class Selection:
    """A watch of a training: scores its averages, keeps the best one, and says when there has been no better one for long.

    Args:
        draw: an average's weights -> as many images as the evaluator compares, of the seeds from 0 on.
        teachers: the rows of the teacher, as functions that draw as many of its images.
    """

    def __init__(
        self,
        folder: Path,
        config: DistillConfig,
        judge: Evaluator,
        draw: Callable[[Mapping[str, Tensor]], Image],
        teachers: Mapping[str, Callable[[], Image]],
    ) -> None:
        self.folder, self.config, self.judge, self.draw, self.teachers = folder, config, judge, draw, teachers
        self.every = config.select_every or max(1, config.images // LOOKS)
        self.lines: list[dict[str, Any]] = []

    @property
    def path(self) -> Path:
        """Where the scores are kept."""
        return self.folder / "selection.jsonl"

    @property
    def over(self) -> bool:
        """Whether there has been no better average for as long as patience asks."""
        looked = any(line["row"] == GENERATOR for line in self.lines)
        return looked and 0 < self.config.patience <= _looks_after(self.lines, self._best()["images"])

    def begin(self, images: int) -> int:
        """Takes up what was scored before a checkpoint at ``images``, and returns the images of the last look; scores the teacher if that
        was not done."""
        self.lines = [line for line in read_log(self.path) if line["images"] <= images] if self.path.exists() else []
        scored = {line["row"] for line in self.lines}
        for row, draw in self.teachers.items():
            if row not in scored:
                self._add(0, 0.0, row, draw())
        self._write()
        return max((int(line["images"]) for line in self.lines), default=0)

    def __call__(self, images: int, seconds: float, average: Mapping[str, Tensor]) -> tuple[bool, dict[str, float]]:
        """Scores an average; returns whether to stop, its proximal distance and the best one."""
        # Of earlier looks, which are all in the checkpoint by now, only the best one's weights can be needed.
        kept = self._weights(self._best()["images"]) if len(self.lines) > len(self.teachers) else None
        for path in self.folder.glob("selected_*.safetensors"):
            if path != kept:
                path.unlink()
        self._add(images, seconds, GENERATOR, self.draw(average))
        best = self._best()
        if best["images"] == images:
            save_tensors(self._weights(images), dict(average))
        self._write()
        name = self.config.select
        last = self.lines[-1]["proximal"][name]
        write_json(
            self.folder / "selection.json",
            {
                "by": f"proximal {name}",
                "images": best["images"],
                "value": best["proximal"][name],
                "stopped": self.over,
                "at": images,
            },
        )
        return self.over, {f"proximal {name}": last, "best": best["proximal"][name]}

    def selected(self) -> dict[str, Tensor]:
        """The weights of the best average."""
        return load_tensors(self._weights(self._best()["images"]))

    def _weights(self, images: int) -> Path:
        return self.folder / f"selected_{images:012d}.safetensors"

    def _best(self) -> dict[str, Any]:
        """The line of the lowest proximal distance, the first one of equal ones."""
        return min(
            (line for line in self.lines if line["row"] == GENERATOR), key=lambda line: line["proximal"][self.config.select]
        )

    def _add(self, images: int, seconds: float, row: str, drawn: Image) -> None:
        proximal, true = self.judge.proximal(drawn, range(len(drawn))), self.judge.true(drawn)
        line = {"images": images, "seconds": round(seconds, 2), "row": row, "n": self.judge.n}
        self.lines.append({**line, "proximal": _values(proximal), "true": _values(true)})

    def _write(self) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))


def _looks_after(lines: Sequence[Mapping[str, Any]], images: int) -> int:
    """How many averages were scored after ``images``."""
    return sum(line["row"] == GENERATOR and line["images"] > images for line in lines)


def _values(scores: Scores) -> dict[str, float]:
    return {name: round(score["value"], 6) for name, score in scores.items()}


def stopped_early(folder: Path, config: DistillConfig) -> bool:
    """Whether a finished run ended because nothing became better, by the patience that it still has."""
    path = folder / "selection.json"
    if not config.select or not path.exists():
        return False
    result = read_json(path)
    later = _looks_after(read_log(folder / "selection.jsonl"), result["images"])
    return bool(result["stopped"]) and 0 < config.patience <= later
