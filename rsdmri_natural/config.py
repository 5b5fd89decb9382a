"""The photographs' section of an experiment."""

from dataclasses import field
from pathlib import Path

from rsdmri.config import Experiment, ObjectiveConfig, require, section


@section
class NaturalData:
    """Which photographs are learned from, and how they are corrupted."""

    images: Path | None = None
    """An .npz with uint8 photographs (N, H, W, 3)."""
    split: str = "train"
    """The array of the .npz that is learned from."""
    reference_split: str = ""
    """The array whose clean images are the references of the evaluation; by default the one that is learned from."""
    missing: float = 0.6
    """Random inpainting: the probability with which a pixel is not seen, shared by its channels."""
    delta: float = 0.1
    """Ambient: the probability with which a seen pixel is hidden once more."""
    noise_std: float = 0.0
    """Measurement noise on images in [-1, 1]."""
    size: int = 32
    """Rows and columns to which the photographs are brought."""

    def __post_init__(self) -> None:
        require(0 <= self.missing < 1, "data.missing must lie in [0, 1)")
        require(0 < self.delta < 1, "data.delta must lie in (0, 1)")
        require(self.noise_std >= 0, "data.noise_std must not be negative")
        require(self.size >= 8, "data.size must be at least 8")


@section
class NaturalExperiment(Experiment):
    """One experiment on photographs."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: NaturalData = field(default_factory=NaturalData)
