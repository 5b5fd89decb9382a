"""Lines of a training's log for the dashboards that people have; metrics.jsonl is written whatever else is.

TensorBoard reads RUN/tensorboard. Weights & Biases writes RUN/wandb and sends nothing: ``wandb sync`` does, or WANDB_MODE=online.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import Experiment, to_tree
from .errors import UserError

#: Called with the images seen and the values of a line.
Follow = Callable[[int, Mapping[str, float]], None]


def followers(experiment: Experiment, folder: Path, start: int) -> list[Follow]:
    """What ``experiment.track`` asks for, of a run that goes on after ``start`` images.

    Raises:
        UserError: the package of a dashboard is not installed.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [makers[name](experiment, folder, start) for name in experiment.track]


def _tensorboard(experiment: Experiment, folder: Path, start: int) -> Follow:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard", error) from None
    # What an earlier start wrote behind its checkpoint is written again.
    writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def follow(images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, images)
        writer.flush()

    return follow


def _wandb(experiment: Experiment, folder: Path, start: int) -> Follow:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", error) from None
    mode = os.environ.get("WANDB_MODE", "offline")
    name = f"{experiment.name or 'experiment'}-{folder.name}"
    run = wandb.init(project="rsdmri", name=name, dir=str(folder), mode=mode, config=to_tree(experiment))

    def follow(images: int, values: Mapping[str, float]) -> None:
        run.log({"images": images, **values}, step=images)

    return follow


def _missing(package: str, error: ImportError) -> UserError:
    return UserError(f"--track {package}: cannot be imported ({error}). pip install 'rsdmri[{package}]', or leave --track out.")
