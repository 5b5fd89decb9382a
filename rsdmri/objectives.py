r"""What a denoiser learns from observations: a perturbation, a prediction and a target.

The loss, lambda(s) |prediction - target|^2 summed over real components, is written once. The same object serves the teacher, the
fake score, and the two predictions that the generator's loss compares.

    Standard        (RSD Eq. 7)       x_t = w + s eps                          prediction f                                   target w
    Ambient Tweedie (RSD Eq. 8)       x_t = w + sqrt(s^2 - sigma_y^2) eps      (s^2 - sigma_y^2)/s^2 f + sigma_y^2/s^2 x_t    target w
    Ambient         (RSD Eq. 9, 10)   x_t = Ã^H M̃ y + s Ã^H Ã eps, and M̃       A^H A f                                        target A^H y

Ambient on inpainting is Eq. 9 and on multi-coil MRI Eq. 10: one class, two operators. Nothing but measured data enters. Eq. 10 as
printed, A(f - y), would apply A twice to x, as y already is A x; here it reads A^H A f - A^H y.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, cast, final

import torch
from torch import Tensor

from . import noise
from .augmentation import draw_mirrors, mirror_labels, mirrored
from .config import ObjectiveConfig
from .denoiser import Denoiser, label_length
from .errors import UserError
from .observations import Observation
from .operators import LinearOperator, MaskedOperator
from .tensors import Batch, Image, PerSample, per_sample, randn_like, squared, sum_samples

Space: TypeAlias = Literal["measured", "image", "kept"]
Thin: TypeAlias = Callable[[MaskedOperator, torch.Generator | None], MaskedOperator]


@dataclass(frozen=True, eq=False)
class Perturbed(Batch):
    """What the network is shown: ``x_t`` at level ``sigma`` and, for Ambient, the further corrupted operator Ã."""

    x_t: Image
    sigma: PerSample
    thinned: MaskedOperator | None = None


class Objective(ABC):
    """One way of learning from observations."""

    #: Whether the denoiser is shown a mask.
    masked: ClassVar[bool]
    #: Whether the measurement noise is removed (then the generator is compared without it) or is a part of what is modelled.
    removes_noise: ClassVar[bool]

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    @abstractmethod
    def check(self, operator: type[LinearOperator]) -> None:
        """Raises a :class:`UserError` if this objective cannot learn through such operators."""

    @abstractmethod
    def levels(self, noise_std: PerSample, generator: torch.Generator | None = None) -> PerSample:
        """Levels of training, one a sample."""

    @abstractmethod
    def perturb(self, obs: Observation, sigma: PerSample, generator: torch.Generator | None = None) -> Perturbed:
        """What the network is shown at level sigma."""

    @abstractmethod
    def predict(self, denoiser: Denoiser, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        """The denoiser's prediction of the target."""

    @abstractmethod
    def target(self, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        """What the prediction is compared with; never the image itself, which nobody knows."""

    @final
    def _levels_above(self, lowest: PerSample, generator: torch.Generator | None) -> PerSample:
        """The log-normal law above ``lowest`` and above the configuration's own lowest level."""
        lowest = lowest.clamp(min=self.config.lowest)
        return noise.log_normal_above(lowest, self.config.mean, self.config.std, generator)

    @final
    def loss(
        self,
        denoiser: Denoiser,
        obs: Observation,
        sigma: PerSample,
        generator: torch.Generator | None = None,
        space: Space = "measured",
        augment: float = 0.0,
    ) -> PerSample:
        """lambda(sigma) |prediction - target|^2, summed over real components, (B,).

        ``augment``: above 0, samples are mirrored when they have been perturbed, so that M̃ is of the data's law (``pretrain.augment``).
        """
        perturbed = self.perturb(obs, sigma, generator)
        if augment > 0:
            which = draw_mirrors(len(obs), augment, sigma.device, generator)
            periodic = obs.operator.periodic
            obs, perturbed = mirrored(obs, which, periodic), mirrored(perturbed, which, periodic)
            obs = replace(obs, labels=mirror_labels(which, label_length(denoiser)))
        difference = self.predict(denoiser, perturbed, obs, space) - self.target(perturbed, obs, space)
        return noise.weight(sigma, denoiser.sigma_data) * sum_samples(squared(difference))


@final
class Standard(Objective):
    """Diffusion of w as if it were clean (RSD Eq. 7)."""

    masked = False
    removes_noise = False

    def check(self, operator: type[LinearOperator]) -> None:
        pass

    def levels(self, noise_std: PerSample, generator: torch.Generator | None = None) -> PerSample:
        return self._levels_above(torch.zeros_like(noise_std), generator)

    def perturb(self, obs: Observation, sigma: PerSample, generator: torch.Generator | None = None) -> Perturbed:
        w = obs.operator.to_image(obs.y)
        return Perturbed(w + per_sample(sigma, w) * randn_like(w, generator), sigma)

    def predict(self, denoiser: Denoiser, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        _require_measured(space, self)
        return cast(Image, denoiser(perturbed.x_t, perturbed.sigma, **_told(obs)))

    def target(self, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        return obs.operator.to_image(obs.y)


@final
class AmbientTweedie(Objective):
    """Removes white noise of known level sigma_y by Tweedie's formula (RSD Eq. 8; Daras et al. 2024, arXiv 2404.10177)."""

    masked = False
    removes_noise = True

    def check(self, operator: type[LinearOperator]) -> None:
        if not operator.white_on_image:
            raise UserError(
                f"objective 'tweedie' needs noise that is white on the image grid, which it is not after the adjoint of"
                f" {operator.__name__}. Use objective.kind 'ambient' or 'standard'."
            )

    def levels(self, noise_std: PerSample, generator: torch.Generator | None = None) -> PerSample:
        if self.config.law == "truncated":
            return self._levels_above(noise_std, generator)
        return torch.maximum(self._levels_above(torch.zeros_like(noise_std), generator), noise_std)

    def perturb(self, obs: Observation, sigma: PerSample, generator: torch.Generator | None = None) -> Perturbed:
        w = obs.operator.to_image(obs.y)
        added = (sigma**2 - obs.noise_std**2).clamp(min=0).sqrt()
        return Perturbed(w + per_sample(added, w) * randn_like(w, generator), sigma)

    def predict(self, denoiser: Denoiser, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        _require_measured(space, self)
        share = per_sample((obs.noise_std / perturbed.sigma) ** 2, perturbed.x_t)
        return cast(Image, (1 - share) * denoiser(perturbed.x_t, perturbed.sigma, **_told(obs)) + share * perturbed.x_t)

    def target(self, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        return obs.operator.to_image(obs.y)


@final
class Ambient(Objective):
    """Corrupts masked data further and asks for all that was measured (RSD Eq. 9 and 10; Daras et al. 2023, arXiv 2305.19256).

    ``thin`` draws M̃ within M by the data's further corrupted law. ``space``: "measured" compares A^H A f, "kept" Ã^H Ã f, "image" f.
    """

    masked = True
    removes_noise = False

    def __init__(self, config: ObjectiveConfig, thin: Thin) -> None:
        super().__init__(config)
        self.thin = thin

    def check(self, operator: type[LinearOperator]) -> None:
        if not issubclass(operator, MaskedOperator):
            raise UserError(
                f"objective 'ambient' needs data with a mask, and {operator.__name__} has none."
                " Use objective.kind 'standard', or 'tweedie' for noisy data."
            )

    def levels(self, noise_std: PerSample, generator: torch.Generator | None = None) -> PerSample:
        return self._levels_above(torch.zeros_like(noise_std), generator)

    def perturb(self, obs: Observation, sigma: PerSample, generator: torch.Generator | None = None) -> Perturbed:
        operator = cast(MaskedOperator, obs.operator)
        thinned = self.thin(operator, generator)
        measured = thinned.adjoint(obs.y)
        diffused = thinned.gram(per_sample(sigma, measured) * randn_like(measured, generator))
        return Perturbed(measured + diffused, sigma, thinned)

    def predict(self, denoiser: Denoiser, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        thinned = _thinned(perturbed)
        f: Image = denoiser(perturbed.x_t, perturbed.sigma, thinned.mask, **_told(obs))
        if space == "image":
            return f * obs.operator.support()
        return (obs.operator if space == "measured" else thinned).gram(f)

    def target(self, perturbed: Perturbed, obs: Observation, space: Space = "measured") -> Image:
        if space == "image":
            raise ValueError("an observation does not hold the image; only a generator's loss can compare there")
        return (obs.operator if space == "measured" else _thinned(perturbed)).adjoint(obs.y)


def build_objective(config: ObjectiveConfig, thin: Thin) -> Objective:
    """The objective of a configuration; ``thin`` is used by Ambient alone."""
    if config.kind == "ambient":
        return Ambient(config, thin)
    return AmbientTweedie(config) if config.kind == "tweedie" else Standard(config)


def _told(obs: Observation) -> dict[str, Tensor]:
    """What the network is told of the augmentation, where there was one."""
    return {} if obs.labels is None else {"labels": obs.labels}


def _thinned(perturbed: Perturbed) -> MaskedOperator:
    assert perturbed.thinned is not None, "an Ambient perturbation carries its operator"
    return perturbed.thinned


def _require_measured(space: Space, objective: Objective) -> None:
    if space != "measured":
        raise UserError(f"space '{space}' exists only for objective 'ambient', not for {type(objective).__name__}")


__all__ = ["Ambient", "AmbientTweedie", "Objective", "Perturbed", "Space", "Standard", "Thin", "build_objective"]
