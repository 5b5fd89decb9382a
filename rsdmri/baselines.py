r"""Rivals of the method that are trained: EM-Diffusion, and teachers of restored images (L1-EDM).

EM-Diffusion (Bai et al. 2024, arXiv 2407.01014; Rozet et al. 2024, arXiv 2405.13712), with a few clean images to begin with:

    first   theta_0 learns from the clean images
    E-step  x_i ~ p(x | y_i) with the prior of theta_(k-1), for every observation y_i
    M-step  theta_k learns from the x_i as if they were clean, from theta_(k-1) on
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoints import load_model
from .compute import arranged
from .config import EMConfig, Experiment, to_tree
from .domain import Domain, Observations
from .errors import UsageError, UserError
from .files import sha256
from .observations import Observation
from .pipeline import finished, observations_path, restored_of, restored_path, train_teacher
from .posterior import dps, mmps
from .restoring import Images, is_restored, of_one_size, read_images, restore_all
from .runs import claimed, device_of, open_run
from .sampling import ancestral, heun, levels, noises
from .tensors import Image, make_generator

POSTERIOR_STREAM = 14  # the purpose of the generators that draw an observation's image


def restore(experiment: Experiment, domain: Domain) -> Path:
    """Observations -> RUNS/NAME/restore/images.h5, by what the application has without a learned prior (MRI: L1-wavelet)."""
    data = domain.observations(observations_path(experiment), experiment)
    path, of = restored_path(experiment), restored_of(experiment, domain)
    with claimed(path.parent):
        if is_restored(path, of):
            print(f"restore: {path} is there", file=sys.stderr)
        else:
            restorer, chosen = domain.restorer(data, experiment, device_of(experiment))
            restore_all(data, restorer, path, of, "restore", chosen)
    return path


def em(experiment: Experiment, domain: Domain, out: Path | None = None) -> Path:
    """EM-Diffusion; every lap is a run of its own in ``out``, and what is finished is not done again. Returns the last lap's run."""
    check_em(experiment)
    out = out or experiment.folder / "em"
    path = observations_path(experiment)
    data = domain.observations(path, experiment)
    clean = _clean(experiment, domain, data)
    with claimed(out):
        return _laps(experiment, domain, data, clean, path, out)


def check_em(experiment: Experiment) -> None:
    """What EM-Diffusion needs, as far as it is known before the data are opened; a :class:`UserError` says what is missing."""
    if experiment.objective.kind != "standard" or experiment.objective.learns_from != "observations":
        raise UsageError("EM-Diffusion learns from images: objective.kind must be 'standard', and learns_from 'observations'")
    clean = experiment.em.clean
    if clean is None:
        raise UsageError("EM-Diffusion starts from a few clean images: name the references.h5 of other data with --em.clean")
    if not clean.exists():
        raise UserError(f"{clean}: no such file. It is the references.h5 that prepare writes beside clean data.")


def _laps(experiment: Experiment, domain: Domain, data: Observations, clean: Images, path: Path, out: Path) -> Path:
    """The first model and all laps."""
    options = experiment.em
    assert options.clean is not None
    # Before anything is trained: laps that belong to other options are not mixed with new ones.
    sections = ("network", "objective", "pretrain", "data", "em")
    grid = {"sample.sigma_max, sigma_min, rho": _grid(experiment)}
    open_run(out, experiment, sections, {"clean": options.clean, "observations": path}, grid)
    run = _lap(experiment, domain, clean, out / "first", options.first, {"clean": options.clean}, None)
    for lap in range(1, options.laps + 1):
        folder = out / f"lap_{lap}"
        if finished(folder, options.lap):  # its images, which may be large, may be gone
            run = folder
            continue
        images = _expectation(experiment, domain, data, path, run, folder / "images.h5", lap)
        inputs = {"images": folder / "images.h5"}
        run = _lap(experiment, domain, images, folder, options.lap, inputs, run / "model.safetensors")
    return run


def _lap(
    experiment: Experiment, domain: Domain, data: Images, out: Path, images: int, inputs: dict[str, Path], start: Path | None
) -> Path:
    """A teacher of these images, from the weights ``start`` on."""
    warmup = min(experiment.pretrain.warmup, images // 10)
    lap = dataclasses.replace(experiment, pretrain=dataclasses.replace(experiment.pretrain, images=images, warmup=warmup))
    return train_teacher(lap, domain, data, out, inputs, start)


def _clean(experiment: Experiment, domain: Domain, data: Observations) -> Images:
    """The first clean images, of one size with the data, and none of them among the data."""
    options = experiment.em
    assert options.clean is not None
    size = next(iter(data.buckets))
    images, names = domain.references(options.clean, size)
    if len(names) < options.count:
        raise UserError(
            f"{options.clean}: {len(names)} clean images of {size[0]} x {size[1]}, the size of the data, and em.count asks for"
            f" {options.count}. Prepare more, of this size, or lower it."
        )
    domain.check_scale(options.clean, experiment, size)
    chosen = [row * len(names) // options.count for row in range(options.count)]
    used = [names[row] for row in chosen]
    volumes = {domain.volume_of(name) for name in data.names}
    both = [name for name in used if domain.volume_of(name) in volumes]
    if both:
        raise UserError(
            f"{options.clean}: {len(both)} of its clean images have the names of what is learned from ({', '.join(both[:3])}). Take"
            " others: whoever has the clean images of the data needs no method. (If they are other ones, rename their files and prepare"
            " them again.)"
        )
    return of_one_size(images[torch.tensor(chosen)], used, data.law())


def _expectation(
    experiment: Experiment, domain: Domain, data: Observations, path: Path, run: Path, out: Path, lap: int
) -> Images:
    """The images of all observations, drawn with the prior of ``run``."""
    of = {
        "prior": sha256(run / "model.safetensors"),
        "observations": sha256(path),
        "em": _sampling_of(experiment.em),
        "levels": _grid(experiment),
        "seed": [experiment.seed, lap],
    }
    if not out.exists():
        prior, _ = load_model(run)
        device = device_of(experiment)
        arranged(prior, experiment.compute, device)

        def draw(obs: Observation, samples: Sequence[int]) -> Image:
            generators = [make_generator(experiment.seed, POSTERIOR_STREAM, lap, i) for i in samples]
            n = experiment.em.at_once
            parts = [slice(start, start + n) for start in range(0, len(samples), n)]
            drawn = [draw_posterior(prior, obs[part].to(device), generators[part], experiment, domain).cpu() for part in parts]
            return torch.cat(drawn)

        restore_all(data, draw, out, of, f"lap {lap}")
    return read_images(out, data, of)


def _grid(experiment: Experiment) -> list[float]:
    return [experiment.sample.sigma_max, experiment.sample.sigma_min, experiment.sample.rho]


def _sampling_of(options: EMConfig) -> dict[str, Any]:
    """What a drawn image depends on."""
    names = ("method", "sampler", "steps", "noise_floor", "iterations" if options.method == "mmps" else "scale")
    return {name: value for name, value in to_tree(options).items() if name in names}


def draw_posterior(
    prior: Any, obs: Observation, generators: Sequence[torch.Generator], experiment: Experiment, domain: Domain
) -> Image:
    """One image an observation, (B, C, H, W), from x ~ p(x | y); each a function of its generator."""
    options, grid = experiment.em, experiment.sample
    by_moments = options.method == "mmps"
    denoise = mmps(prior, obs, options.iterations, options.noise_floor) if by_moments else dps(prior, obs, options.scale)
    sigmas = levels(options.steps, grid.sigma_min, grid.sigma_max, grid.rho).to(obs.noise_std.device)
    one = obs[:1]
    like = one.operator.adjoint(one.y)
    dtype = torch.complex128 if domain.complex_images else torch.float64
    if options.sampler == "ancestral":
        return ancestral(denoise, generators, like.shape[1:], dtype, sigmas).to(like.dtype)
    return heun(denoise, noises(generators, like.shape[1:], dtype).to(sigmas.device), sigmas).to(like.dtype)
