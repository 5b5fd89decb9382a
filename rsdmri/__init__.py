"""Generative models of MR images from undersampled scans alone (Restoration Score Distillation).

    import rsdmri

    model = rsdmri.load("runs/mri-demo/distill")
    images = model.sample(range(16))                     # (16, 1, H, W) complex, one network call each

An observation is an image seen through an operator; a denoiser learns from observations by an objective; a distiller turns a
denoiser into a one-step generator. The names are imported when they are used: a command's ``--help`` needs no torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .denoiser import Denoiser, Generator
    from .distillation import Distiller, sid_loss
    from .generation import Model
    from .objectives import Ambient, AmbientTweedie, Objective, Standard
    from .observations import Observation, observe
    from .operators import LinearOperator, MaskedOperator

_PLACES = {
    "Ambient": "objectives",
    "AmbientTweedie": "objectives",
    "Denoiser": "denoiser",
    "Distiller": "distillation",
    "Generator": "denoiser",
    "LinearOperator": "operators",
    "MaskedOperator": "operators",
    "Model": "generation",
    "Objective": "objectives",
    "Observation": "observations",
    "Standard": "objectives",
    "observe": "observations",
    "sid_loss": "distillation",
}

__all__ = [
    "Ambient",
    "AmbientTweedie",
    "Denoiser",
    "Distiller",
    "Generator",
    "LinearOperator",
    "MaskedOperator",
    "Model",
    "Objective",
    "Observation",
    "Standard",
    "load",
    "observe",
    "sid_loss",
]


def load(run: Path | str, weights: Path | None = None) -> "Model":
    """The model of an MRI run folder (``runs/NAME/distill`` or ``.../pretrain``); ``model.sample(seeds)`` gives complex images.

    ``weights`` names a snapshot of the run instead of its last average. Raises :class:`rsdmri.errors.UserError` if the folder
    holds no finished run.
    """
    from . import pipeline, settings
    from .errors import UserError
    from .generation import is_imported
    from .mri.config import MRIExperiment
    from .mri.domain import MRI

    config = Path(run) / "config.yaml"
    if is_imported(Path(run)):
        raise UserError(
            f"{run}: an imported network has no data of its own; rsdmri.pipeline.load(run, domain, experiment) takes those of an experiment"
        )
    if not config.exists():
        raise UserError(f"{run}: no run here (no config.yaml)")
    experiment = settings.validate(MRIExperiment, settings.read_yaml(config), str(config))
    return pipeline.load(run, MRI(), experiment, weights)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module 'rsdmri' has no attribute '{name}'")
