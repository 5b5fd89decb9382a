"""The photographs' section of an experiment, and the options of the command that exists for photographs alone."""

from dataclasses import field
from pathlib import Path
from typing import Literal

from rsdmri.config import Experiment, ObjectiveConfig, require, section


@section
class NaturalData:
    """Which photographs are learned from, and how they are corrupted."""

    images: Path | None = None
    """A folder of images, a .zip of them, an .npz with uint8 arrays (N, H, W, 3), or a data set as its owners distribute it (CelebA,
    CelebA-HQ, FFHQ, AFHQ-v2, CIFAR-10)."""
    split: str = "train"
    """The part that is learned from: train, val, test, or all (an .npz: the name of its array)."""
    reference_split: str = ""
    """The part whose clean images are the references of the evaluation; by default the one that is learned from."""
    size: int = 32
    """Rows and columns: the photographs are cut to a central square and brought to this by Lanczos, once."""
    skip_bad: bool = False
    """Leave out files that cannot be read or are too small, instead of stopping at them (also --skip-bad)."""
    corruption: Literal["noise", "blur", "motion", "inpainting", "box", "super_resolution"] = "inpainting"
    """What is done to an image before noise is added: nothing (noise), a Gaussian blur, a straight motion in a random direction, pixels
    hidden at random, a square hidden somewhere, or the mean over blocks."""
    missing: float = 0.6
    """inpainting: the probability with which a pixel is not seen, shared by its channels."""
    box: int = 16
    """box: rows and columns that are hidden."""
    kernel: Literal["published", "truncated"] = "published"
    """blur: the Gaussian as the public code makes it (what lies outside is folded back in), or cut off at the edges."""
    kernel_width: int = 9
    """blur, motion: pixels on a side of the kernel; odd."""
    kernel_std: float = 2.0
    """blur: standard deviation of the Gaussian, in pixels."""
    factor: Literal[2, 4] = 2
    """super_resolution: rows and columns of a block."""
    delta: float = 0.1
    """Ambient on inpainting: the probability with which a seen pixel is hidden once more. On box: another box is hidden."""
    thinning: Literal["redrawn", "fixed"] = "redrawn"
    """Whether the further corrupted mask is drawn anew at every step or once a mask (public teachers)."""
    noise_std: float | Literal["auto"] = 0.0
    """Measurement noise on images in [-1, 1]; of measured images of low resolution, the noise that they have there. auto, of measured ones:
    estimated from their finest details, which gives an upper bound where their contrast is more than 10 times as strong."""
    measured: bool = False
    """The images are themselves corrupted as described: they must have this size (super_resolution: size / factor), and nothing is added.
    Not for masks and motion, which nobody would know. Clean references are those of another reference_split, if one is named."""

    def __post_init__(self) -> None:
        require(0 <= self.missing < 1, "data.missing must lie in [0, 1): with 1 nothing is left to learn from")
        require(0 < self.delta < 1, "data.delta must lie in (0, 1)")
        require(self.noise_std == "auto" or self.noise_std >= 0, "data.noise_std must not be negative")
        require(
            self.noise_std != "auto" or self.measured, "data.noise_std: 'auto' is for data.measured; else it is what is added"
        )
        require(self.size >= 8, "data.size must be at least 8")
        require(self.corruption != "box" or 0 < self.box < self.size, "data.box must lie between 0 and data.size")
        require(self.kernel_width % 2 == 1 and self.kernel_std > 0, "data.kernel_width must be odd, data.kernel_std positive")
        blurs = self.corruption in ("blur", "motion")
        require(not blurs or self.kernel_width // 2 < self.size, "data.kernel_width must be less than twice data.size")
        whole = self.size % self.factor == 0
        require(self.corruption != "super_resolution" or whole, "data.size must be a multiple of data.factor")
        known = self.corruption in ("noise", "blur", "super_resolution")
        require(not self.measured or known, f"data.measured: the masks or kernels of '{self.corruption}' would not be known")

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of the images."""
        return self.size, self.size

    @property
    def noise_on_image(self) -> float:
        """The noise on the image grid: that of a measured image of low resolution is made white there, and grows by the factor."""
        assert self.noise_std != "auto", "estimated by prepare"
        return self.noise_std * (self.factor if self.measured and self.corruption == "super_resolution" else 1)


#: The fields that say what was done to the data, by corruption; beside noise_std, size and measured.
FIELDS = {
    "noise": (),
    "blur": ("kernel", "kernel_width", "kernel_std"),
    "motion": ("kernel_width",),
    "inpainting": ("missing", "delta", "thinning"),
    "box": ("box", "thinning"),
    "super_resolution": ("factor",),
}


@section
class NaturalExperiment(Experiment):
    """One experiment on photographs."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: NaturalData = field(default_factory=NaturalData)


@section
class FacesConfig:
    """Options of ``simulate``: faces that are drawn."""

    n: int = 2_000
    """How many faces to learn from; a fifth as many are drawn as references."""
    size: int = 32
    """Rows and columns."""
    seed: int = 0
    """Face i of a split is a function of (seed, split, i)."""

    def __post_init__(self) -> None:
        require(self.n >= 1 and self.size >= 8 and self.seed >= 0, "n must be positive, size at least 8, seed not negative")
