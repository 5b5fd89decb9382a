"""What an experiment is: plain dataclasses, one section a part of the engine.

Standard library only: the command line reads these classes before it imports anything slow, and a cluster without pydantic or
tyro can still build an experiment in Python. The text under a field is its help; ``__post_init__`` holds its limits. An
application adds its own ``data`` section (``rsdmri.mri.config``, ``rsdmri_natural.config``).

Numbers of images count what training has seen, whatever the batch.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")

Metric = Literal["swd", "psd", "frechet", "kid", "precision", "recall", "density", "coverage", "phase"]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose YAML form may hold no key that is not a field, and whose numbers are finite."""
    limits: Callable[[Any], None] | None = getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, float)]
            require(all(map(math.isfinite, numbers)), f"{f.name} must be finite")
        if limits is not None:
            limits(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def require(condition: bool, message: str) -> None:
    """Raises ``ValueError(message)`` unless ``condition``: the one way in which sections state their limits."""
    if not condition:
        raise ValueError(message)


@section
class NetworkConfig:
    """The network inside the denoiser."""

    kind: Literal["song", "monai"] = "song"
    """song: DDPM++ U-Net (Song et al. 2021, Karras et al. 2022); monai: MONAI's DiffusionModelUNet."""
    channels: int = 32
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each level, as multiples of the first; every level after the first halves the image."""
    blocks: int = 1
    """Residual blocks a level."""
    attention: tuple[int, ...] = ()
    """Resolutions (in rows) whose levels use self-attention."""
    dropout: float = 0.0
    """song: dropout inside the residual blocks."""
    gated: bool = False
    """song: every convolution is multiplied by a gate, as in the published Ambient Diffusion models; doubles the weights."""
    augment: int = 0
    """song: length of the augmentation label, 9 in EDM's models; 0: none."""
    mask_input: Literal["one", "each", "pair"] = "one"
    """How a masked network is shown its mask: one channel of it; one for each of the image's, scaled as the image is (published Ambient
    Diffusion); itself and a channel of ones, scaled as well (published Ambient Diffusion MRI)."""
    checkpointing: bool = False
    """song: compute activations again in the backward pass instead of keeping them: a third slower, in a fraction of the memory."""
    sigma_data: float = 0.5
    """Standard deviation of the images per real component, for the preconditioning of EDM."""

    def __post_init__(self) -> None:
        require(self.channels >= 4 and self.channels % 4 == 0, "network.channels must be a positive multiple of 4")
        require(bool(self.multipliers) and min(self.multipliers) >= 1, "network.multipliers needs at least one number >= 1")
        require(self.blocks >= 1, "network.blocks must be at least 1")
        require(0 <= self.dropout < 1, "network.dropout must lie in [0, 1)")
        require(self.sigma_data > 0, "network.sigma_data must be positive")
        require(self.augment >= 0, "network.augment must not be negative")
        song_only = self.gated or self.augment > 0 or self.checkpointing
        message = "network: gated, augment and checkpointing exist for kind 'song' only: switch them off (--network.no-gated), or take it"
        require(self.kind == "song" or not song_only, message)


@section
class ComputeConfig:
    """How the networks are computed. What they learn does not depend on it, but for rounding: it may change from one start to the next."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the activations; weights, averages, Fourier transforms, preconditioning and losses are in single precision always. auto: bf16 on
    GPUs that compute in it, fp32 elsewhere. (PyTorch's convolutions in fp32 use TF32 on GPUs that have it.)"""
    channels_last: bool = False
    """Channels are the last axis in memory."""
    compile: Literal["none", "default", "graphs"] = "none"
    """torch.compile of each network, which takes minutes at the start; graphs: captured as CUDA graphs too (one GPU)."""
    sharded: bool = False
    """Several processes split weights, gradients and moments of what is trained between them (FSDP2), for networks whose moments do not fit
    on one GPU; slower where they do. Not with channels_last or compile."""

    def __post_init__(self) -> None:
        together = self.channels_last or self.compile != "none"
        require(not (self.sharded and together), "compute.sharded cannot be had together with compute.channels_last or compile")


@section
class ObjectiveConfig:
    """What the denoiser learns from corrupted observations (RSD Eq. 7 to 10)."""

    kind: Literal["standard", "tweedie", "ambient"] = "ambient"
    """standard: diffuses w as it is; tweedie: removes white noise of known level; ambient: corrupts masked data further."""
    law: Literal["truncated", "clamp"] = "truncated"
    """tweedie only: levels are drawn above the measurement noise (truncated), or raised to it (clamp, as published)."""
    mean: float = -1.2
    """Mean of ln sigma in training."""
    std: float = 1.2
    """Standard deviation of ln sigma in training."""
    lowest: float = 0.0
    """Levels of training are drawn above this. Below about 0.02 the weight 1 / sigma^2 makes rare, huge losses, which a short
    training of a small network does not average out."""
    learns_from: Literal["observations", "restored"] = "observations"
    """restored: a teacher of the images that the verb restore made of the observations, taken for clean ones (L1-EDM); standard only."""
    consistency: float = 0.0
    """tweedie: weight of Ambient-Consistency (Daras et al. 2024), which teaches the levels below the measurement noise; DSD: 0.1, 1, 10."""
    consistency_steps: int = 8
    """Steps from the level of training down to a lower one, along which the network must agree with itself."""
    consistency_samples: int = 32
    """Images a batch that this is asked of."""

    def __post_init__(self) -> None:
        require(self.std > 0, "objective.std must be positive")
        require(self.lowest >= 0, "objective.lowest must not be negative")
        require(
            self.learns_from == "observations" or self.kind == "standard",
            "objective.learns_from 'restored' needs kind 'standard'",
        )
        require(self.consistency >= 0, "objective.consistency must not be negative")
        require(self.consistency == 0 or self.kind == "tweedie", "objective.consistency is for kind 'tweedie'")
        require(self.consistency_steps >= 1 and self.consistency_samples >= 1, "objective.consistency_* must be at least 1")


@section
class PretrainConfig:
    """Phase I: the diffusion teacher."""

    images: int = 200_000
    """Length of the training, in images seen."""
    batch: int = 32
    """Images a step."""
    parts: int = 1
    """The batch is computed in so many parts, one after the other, and is the same batch: for networks that do not fit memory otherwise."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of Adam."""
    warmup: int = 2_000
    """Images over which the learning rate rises from zero."""
    decay: bool = False
    """Whether the learning rate falls to zero along a half cosine; without it, it stays (as published). The length is then fixed."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for none."""
    augment: float = 0.0
    """Above 0: half of the observations are mirrored left to right, with their masks and maps, and with this probability top to bottom; the
    network is told by its label (network.augment)."""
    ema: float = 500_000
    """Half-life of the average of the weights, in images."""
    ema_ramp: float = 0.05
    """The half-life is at most this part of the images seen."""
    save: int = 50_000
    """Images between two checkpoints for resuming."""
    save_minutes: float = 30.0
    """And the most minutes between them."""
    snapshots: int = 0
    """How many evenly spaced averages of the weights are kept beside the last one, for choosing among them."""
    log: int = 2_000
    """Images between two lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        require(self.images >= 1 and self.batch >= 1, "images and batch must be at least 1")
        require(self.parts >= 1 and self.batch % self.parts == 0, f"batch {self.batch} must be divisible by parts {self.parts}")
        require(self.lr > 0, "pretrain.lr must be positive")
        require(min(self.warmup, self.clip, self.snapshots) >= 0, "pretrain: warmup, clip and snapshots must not be negative")
        require(all(0 <= beta < 1 for beta in self.betas), "pretrain.betas must lie in [0, 1)")
        require(self.ema >= 0 and self.ema_ramp >= 0, "ema and ema_ramp must not be negative")
        require(0 <= self.augment <= 1, "pretrain.augment must lie in [0, 1]")
        require(self.save >= 1 and self.log >= 1 and self.save_minutes > 0, "save, save_minutes and log must be positive")


@section
class DistillConfig:
    """Phase II: the one-step generator (RSD Algorithm 6)."""

    images: int = 50_000
    """Length of the distillation, in images of the generator."""
    batch: int = 32
    """Images a step."""
    parts: int = 1
    """The batch is computed in so many parts, one after the other, and is the same batch: for networks that do not fit memory otherwise."""
    checkpointing: bool = False
    """song: in the generator's step, where three networks keep their activations, teacher and fake score compute them again in the backward
    pass; no other step is slower (network.checkpointing: every network in every step)."""
    lr_fake: float = 2e-4
    """Learning rate of the fake score."""
    lr_generator: float = 2e-4
    """Learning rate of the generator."""
    betas_fake: tuple[float, float] = (0.0, 0.999)
    """Betas of the fake score's Adam."""
    betas_generator: tuple[float, float] = (0.0, 0.999)
    """Betas of the generator's Adam."""
    decay: bool = False
    """Whether both learning rates fall to zero along a half cosine; without it, they stay (as published), and the generator keeps moving
    about its best. The length is then fixed."""
    clip_fake: float = 1.0
    """Largest norm of the fake score's gradient; 0 for no limit."""
    clip_generator: float = 1.0
    """Largest norm of the generator's gradient; 0 for no limit."""
    dropout: float | None = None
    """Dropout of fake score and generator; by default the teacher's."""
    augment: float = 0.0
    """As pretrain.augment, for the observations that the fake score learns from."""
    divergence: Literal["sid", "dmd", "sds"] = "sid"
    """What teacher and fake are compared by: score identity (RSD Eq. 11), the gradient of the KL divergence (distribution matching), or
    the teacher alone (score distillation sampling; there is no fake)."""
    weight: Literal["residual", "level"] = "residual"
    """What the generator's loss is divided by: how far the teacher's prediction is from each image (SiD), or what that comes to at the level
    of the comparison, for all images alike, as the theorems have it."""
    alpha: float = 1.2
    """Weight of the squared difference in the SiD loss (RSD Eq. 11)."""
    sigma_init: float = 2.5
    """The level at which the generator reads its noise."""
    t_max: float = 0.8
    """The level of the comparison is sigma(u), u uniform in [0, t_max]."""
    sigma_min: float = 0.002
    """sigma(0)."""
    sigma_max: float = 80.0
    """sigma(1)."""
    space: Literal["measured", "image", "kept"] = "measured"
    """Where the two predictions are compared; image only for data without measurement noise."""
    fake_space: Literal["measured", "kept"] = "measured"
    """Where the fake score's loss is taken: measured, as the teacher's; kept, on the further corrupted mask (published for ambient)."""
    condition: Literal["drawn", "full"] = "drawn"
    """What an ambient generator is shown: a mask of the data's further corrupted law (published), or everything."""
    noise: Literal["data", "none"] = "data"
    """Whether generated observations have the data's measurement noise; none, with objective 'standard', is DSD's standard way, in which the
    generator has to choose what of the noisy data it can draw."""
    measured_by: Literal["rescan", "independent"] = "rescan"
    """What measures an image of the generator: rescan, its own coils with a mask drawn anew, because an image and its coils belong
    together in the data; independent, coils and mask of another scan (published)."""
    ema: float = 500_000
    """Half-life of the average of the generator's weights, in images."""
    ema_ramp: float = 0.05
    """The half-life is at most this part of the images seen."""
    save: int = 10_000
    """Images between two checkpoints for resuming."""
    save_minutes: float = 30.0
    """And the most minutes between them."""
    snapshots: int = 0
    """How many evenly spaced averages of the weights are kept beside the last one, for choosing among them."""
    log: int = 500
    """Images between two lines of metrics.jsonl."""
    select: Literal["", "swd", "psd", "frechet", "kid"] = ""
    """The result is the average of the lowest proximal distance of this name, which needs no clean image (RSD 5.3); empty: the last one."""
    select_every: int = 0
    """Images between two averages that are scored; each time select_n images are drawn. 0: twenty times in the training."""
    select_n: int = 400
    """Images that are compared, if there are twice as many observations."""
    patience: int = 0
    """The training ends when so many averages in a row were no better than an earlier one; 0: it does not."""

    def __post_init__(self) -> None:
        require(self.images >= 1 and self.batch >= 1, "images and batch must be at least 1")
        require(self.parts >= 1 and self.batch % self.parts == 0, f"batch {self.batch} must be divisible by parts {self.parts}")
        require(self.select_every >= 0 and self.select_n >= 16, "distill.select_every must not be negative, select_n at least 16")
        require(self.patience >= 0, "distill.patience must not be negative")
        require(self.patience == 0 or self.select != "", "distill.patience needs distill.select")
        require(self.lr_fake > 0 and self.lr_generator > 0, "lr_fake and lr_generator must be positive")
        least = min(self.clip_fake, self.clip_generator, self.snapshots)
        require(least >= 0, "distill: clip_fake, clip_generator and snapshots must not be negative")
        require(self.dropout is None or 0 <= self.dropout < 1, "distill.dropout must lie in [0, 1)")
        require(self.ema >= 0 and self.ema_ramp >= 0, "ema and ema_ramp must not be negative")
        betas = (*self.betas_fake, *self.betas_generator)
        require(all(0 <= beta < 1 for beta in betas), "distill.betas_fake and betas_generator must lie in [0, 1)")
        require(0 <= self.augment <= 1, "distill.augment must lie in [0, 1]")
        require(0 < self.t_max <= 1, "distill.t_max must lie in (0, 1]")
        require(0 < self.sigma_min < self.sigma_max, "distill needs 0 < sigma_min < sigma_max")
        require(self.sigma_init > 0, "distill.sigma_init must be positive")
        require(self.save >= 1 and self.log >= 1 and self.save_minutes > 0, "save, save_minutes and log must be positive")


@section
class SampleConfig:
    """Images from a teacher (Heun's method, EDM Algorithm 1) or a generator (one call)."""

    n: int = 400
    """How many images."""
    first_seed: int = 0
    """Sample i has the seed first_seed + i, and depends on nothing else."""
    batch: int = 50
    """Images at a time; does not change them."""
    sampler: Literal["heun", "euler"] = "heun"
    """heun: of second order, 2 steps - 1 calls of the network; euler: of first order, one call a step."""
    steps: int = 18
    """Levels of the teacher's sampler."""
    sigma_min: float = 0.002
    """The lowest level before zero."""
    sigma_max: float = 80.0
    """The level of the start."""
    rho: float = 7.0
    """Spacing of the levels."""
    stop: float = 0.0
    """The teacher returns its estimate once the next level is below this (Ambient-Truncated); 0: goes on to zero."""

    def __post_init__(self) -> None:
        require(self.n >= 1 and self.batch >= 1, "sample.n and sample.batch must be at least 1")
        require(self.first_seed >= 0, "sample.first_seed must not be negative")
        require(self.steps >= 2, "sample.steps must be at least 2")
        require(0 < self.sigma_min < self.sigma_max, "sample needs 0 < sigma_min < sigma_max")
        require(self.rho > 0 and self.stop >= 0, "sample.rho must be positive, sample.stop not negative")


@section
class EvaluateConfig:
    """Distances between sets of images."""

    n: int = 0
    """Images a side; 0: as many as there are samples, and at most half of the references (the floor needs the other half)."""
    metrics: tuple[Metric, ...] = typing.get_args(Metric)
    """Which distances. swd and psd see patches and spectra; frechet, kid, precision, recall, density and coverage compare features; phase is
    for complex images alone."""
    features: str = "bands"
    """bands: layout, and detail by scale and direction, no file needed; inception: the network of FID, then frechet is FID and kid is KID;
    torchscript:PATH: a module of torch.jit.save, uint8 (N, 3, H, W) -> (N, D). It is a program: name only what you trust."""
    weights: Path | None = None
    """inception: its file, pt_inception-2015-12-05-6726825d.pth; else RSDMRI_WEIGHTS names it, or its folder."""
    bootstrap: int = 100
    """Resamples for the intervals of 95 %; 0: no intervals."""
    workers: int = 1
    """Processes that share the making of features."""

    def __post_init__(self) -> None:
        require(self.n >= 0, "evaluate.n must not be negative")
        require(len(self.metrics) > 0, "evaluate.metrics must name at least one distance")
        require(
            self.bootstrap == 0 or self.bootstrap >= 20, "evaluate.bootstrap must be 0 or at least 20: fewer have no ends of 95 %"
        )
        require(self.workers >= 1, "evaluate.workers must be at least 1")


@section
class EMConfig:
    """EM-Diffusion (Bai et al. 2024): a few clean images, then laps of drawing images given their observations and learning from them."""

    clean: Path | None = None
    """references.h5 of other data, prepared from scans or photographs that are clean: where the first model comes from."""
    count: int = 50
    """How many of these images are used, evenly spread over the file: neighbouring slices are alike."""
    laps: int = 4
    """Laps after the first model."""
    first: int = 30_000
    """Images seen by the first model; the options are those of pretrain, with a warm-up of at most a tenth of it."""
    lap: int = 30_000
    """Images seen in the training of every lap, which goes on from the model before."""
    method: Literal["mmps", "dps"] = "mmps"
    """How images are drawn given their observation: mmps, moment matching (Rozet et al. 2024); dps, diffusion posterior sampling (Chung et
    al. 2023)."""
    sampler: Literal["heun", "ancestral"] = "heun"
    """heun: as for teachers; ancestral: a fresh noise a level, as published with dps, whose draws vary too little unless levels are many."""
    steps: int = 18
    """Levels of the sampler, from sample.sigma_max to sample.sigma_min."""
    iterations: int = 3
    """mmps: conjugate-gradient steps a level."""
    scale: float = 0.3
    """dps: how far a level moves its estimate towards the observation at the most, in root mean square over the pixels and relative to
    sigma_data; never beyond it."""
    noise_floor: float = 0.01
    """mmps: observations count as at least so noisy."""
    at_once: int = 32
    """Images drawn at a time, with the graph of the network in memory."""

    def __post_init__(self) -> None:
        require(self.count >= 2 and self.laps >= 1, "em.count must be at least 2, em.laps at least 1")
        require(self.first >= 1 and self.lap >= 1, "em.first and em.lap must be at least 1")
        require(self.steps >= 2 and self.iterations >= 1, "em.steps must be at least 2, em.iterations at least 1")
        require(self.at_once >= 1, "em.at_once must be at least 1")
        require(self.scale > 0 and self.noise_floor > 0, "em.scale and em.noise_floor must be positive")


@section
class ImportConfig:
    """A network that another program trained."""

    role: Literal["teacher", "generator"] = "teacher"
    """What it is: a diffusion teacher, or a one-step generator such as SiD's."""
    objective: Literal["standard", "tweedie", "ambient"] | None = None
    """What it was trained with; by default ambient where it is shown masks, else standard."""
    sigma_init: float = 2.5
    """Of a generator: the level at which it reads its noise."""
    size: tuple[int, int] | None = None
    """Rows and columns of its images; by default the square of its resolution, and of the published MRI networks 384 x 320."""
    max_bytes: int = 4 << 30
    """The longest file that is read."""

    def __post_init__(self) -> None:
        require(self.sigma_init > 0, "sigma_init must be positive")
        require(self.size is None or min(self.size) >= 8, "size must be at least 8 in both directions")
        require(self.max_bytes >= 1, "max_bytes must be positive")


@section
class Experiment:
    """The sections that every application shares."""

    name: str = ""
    """Name of the experiment; its runs lie in RUNS/NAME. By default that of the first configuration."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    seed: int = 0
    """Seed of everything that is drawn in training."""
    device: str = "auto"
    """auto: the first GPU if there is one, else the CPU; or a torch device."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Dashboards that are told of every line of metrics.jsonl: tensorboard (RUN/tensorboard), wandb (RUN/wandb, offline). Each is an extra to
    install."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    em: EMConfig = field(default_factory=EMConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed must not be negative")
        labelled = self.pretrain.augment == 0 or self.network.augment >= 2
        require(labelled, "pretrain.augment needs a label of at least 2: set network.augment (EDM: 9)")
        masked = self.objective.kind == "ambient" or self.network.mask_input == "one"
        said = f"network.mask_input '{self.network.mask_input}' is for objective 'ambient': others show no mask"
        require(masked, f"{said}. Set it to 'one' (--network.mask-input one).")
        # A captured graph leaves its gradients where the next part overwrites them.
        whole = self.compute.compile != "graphs" or max(self.pretrain.parts, self.distill.parts) == 1
        require(whole, "compute.compile 'graphs' is for batches in one part: leave out parts, or use 'default'")

    @property
    def folder(self) -> Path:
        """Where the runs of this experiment lie."""
        return self.runs / (self.name or "experiment")


def to_tree(config: Any) -> Any:
    """A configuration as plain mappings, lists and scalars: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_tree(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two trees differ: the names that lead there and both values, None where there is none."""
    for name in sorted(one.keys() | other.keys()):
        mine, its = one.get(name), other.get(name)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            yield from differences(mine, its, (*above, name))
        elif mine != its:
            yield (*above, name), mine, its
