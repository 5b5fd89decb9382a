"""Images from a trained run: sample i is a function of its seed i alone, whatever else is sampled with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoints import Description, load_model
from .compute import arranged
from .config import SampleConfig
from .denoiser import Denoiser, Generator
from .distillation import shown
from .domain import Domain, Law
from .errors import UserError
from .operators import LinearOperator, MaskedOperator
from .runs import observations_path
from .sampling import SAMPLERS, calls, levels, noises, sample_generator
from .tensors import Image


@dataclass(frozen=True)
class Model:
    """A trained network with the law of its data: all that sampling needs."""

    run: Path
    denoiser: Denoiser
    description: Description
    law: Law
    experiment: Any
    device: torch.device

    @property
    def calls(self) -> int:
        """Network calls an image, with the run's own sampler."""
        options = self.experiment.sample
        sigmas = levels(options.steps, options.sigma_min, options.sigma_max, options.rho)
        return 1 if self.description.role == "generator" else calls(options.sampler, sigmas, options.stop)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], options: SampleConfig | None = None) -> Image:
        """One image a seed, (N, C, H, W): complex for MRI, in the scale of the prepared data."""
        options = options or self.experiment.sample
        parts = [self._batch(seeds[i : i + options.batch], options) for i in range(0, len(seeds), options.batch)]
        return torch.cat(parts)

    def _batch(self, seeds: Sequence[int], options: SampleConfig) -> Image:
        generators = [sample_generator(seed) for seed in seeds]
        operator = self._operators(generators).to(self.device)
        shape = (self.description.channels, *self.description.size)
        if self.description.role == "generator":
            assert self.description.distill is not None
            dtype = torch.complex64 if self.description.complex_images else torch.float32
            z = noises(generators, shape, dtype).to(self.device)
            generator = Generator(self.denoiser, self.description.distill.sigma_init)
            images: Image = generator(z, shown(operator, self.description.distill))
            return images.cpu()
        dtype = torch.complex128 if self.description.complex_images else torch.float64
        noise = noises(generators, shape, dtype).to(self.device)
        sigmas = levels(options.steps, options.sigma_min, options.sigma_max, options.rho).to(self.device)
        sampler = SAMPLERS[options.sampler]
        x = sampler(lambda x, sigma: self.denoiser.denoise(x, sigma, operator), noise, sigmas, options.stop)
        return x.to(torch.complex64 if self.description.complex_images else torch.float32).cpu()

    def _operators(self, generators: Sequence[torch.Generator]) -> LinearOperator:
        """One operator a seed: of the further corrupted law if the network is masked, because that is what it was shown."""
        drawn = []
        for generator in generators:
            operator, _ = self.law.draw(1, self.description.size, generator)
            if self.denoiser.masked:
                operator = self.law.thin(operator, generator)  # type: ignore[arg-type]
            drawn.append(operator)
        return type(drawn[0]).cat(drawn)


def open_model(run: Path, domain: Domain, experiment: Any, device: torch.device, weights: Path | None = None) -> Model:
    """The model of a run folder; ``weights`` names one of its snapshots."""
    if not (run / "model.json").exists():
        raise UserError(
            f"{run}: no finished run here (no model.json). Make one: {domain.program}pretrain, then {domain.program}distill"
        )
    denoiser, description = load_model(run, weights)
    law = law_of_run(run, description, domain, experiment)
    return Model(run, arranged(denoiser, experiment.compute, device), description, law, experiment, device)


def law_of_run(run: Path, description: Description, domain: Domain, experiment: Any, check: bool = False) -> Law:
    """The law of a run's data; of an imported network, which has none, that of the experiment. ``check``: they must agree.

    A :class:`UserError` if the network makes images of another kind than the application's.
    """
    _check_images(run, description, domain)
    if not is_imported(run):
        return domain.law(run / "operators.h5", experiment if check else None)
    law = domain.configured_law(experiment)
    if description.masked and not issubclass(law.operator, MaskedOperator):
        raise UserError(f"{run}: this network is shown masks, and the data have none ({law.operator.__name__})")
    if description.size not in law.sizes:
        sizes = ", ".join(f"{h} x {w}" for h, w in law.sizes)
        raise UserError(
            f"{run}: a network for images of {description.size[0]} x {description.size[1]}, and the data have {sizes}. Import it with"
            " --size, or prepare other data."
        )
    return law


def law_inputs(run: Path, domain: Domain, experiment: Any) -> dict[str, Path]:
    """The file that a run's law comes from, for the record; none where the configuration alone says it."""
    if not is_imported(run):
        return {"operators": run / "operators.h5"}
    return {"observations": observations_path(experiment)} if domain.law_needs_data(experiment) else {}


def is_imported(run: Path) -> bool:
    """Whether a run's network was trained by another program."""
    return (run / "import.json").exists()


def _check_images(run: Path, description: Description, domain: Domain) -> None:
    """A :class:`UserError` if a network makes images of another kind than an application's."""
    if (description.channels, description.complex_images) != (domain.channels, domain.complex_images):
        kinds = [
            f"{channels} channel{'s' if channels > 1 else ''}, {'complex' if complex_images else 'real'}"
            for channels, complex_images in (
                (description.channels, description.complex_images),
                (domain.channels, domain.complex_images),
            )
        ]
        raise UserError(f"{run}: a network for images of {kinds[0]}; those of {domain.program.strip()}* are of {kinds[1]}")
