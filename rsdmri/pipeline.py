"""The verbs: each turns what an earlier one wrote into its own artefacts, for any domain.

    prepare -> observations.h5 (+ references.h5) -> pretrain -> teacher -> distill -> generator -> sample -> evaluate -> report

Evaluate and report have modules of their own. The clean references of the data are opened by rsdmri.evaluation alone: nothing that learns
sees them. (EM-Diffusion, a rival, begins with a few of other data: rsdmri.baselines.)
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import distributed
from .checkpoints import Description, load_description, load_model, load_weights, save_model
from .compute import arranged
from .config import DistillConfig, Experiment, Metric, PretrainConfig, to_tree
from .denoiser import Denoiser, Generator
from .distillation import Distiller
from .domain import Domain, Law, Observations
from .errors import UsageError, UserError
from .evaluation import evaluator
from .files import sha256
from .generation import Model, is_imported, law_inputs, law_of_run, open_model
from .grids import save_grid
from .metrics.compare import BASIC
from .objectives import Objective, build_objective
from .restoring import read_images
from .runs import claimed, device_of, observations_path, open_run, restored_path, write_config
from .samples import read_samples, write_samples
from .selection import Selection, stopped_early
from .steps import DistillStep, PretrainStep
from .teachers import copied, find_teacher, require_noise_free, set_checkpointing, with_network_of
from .tensors import Image, make_generator
from .tracking import followers
from .training import Step, parts_of, train

INIT_STREAM = 8  # the purpose of the generator of fresh weights
FINGERPRINT = 32  # samples by which processes make sure that they see the same data


def prepare(experiment: Experiment, domain: Domain, out: Path | None = None) -> Path:
    """Data -> observations.h5, references.h5."""
    out = out or experiment.folder / "prepare"
    domain.prepare(experiment, out)
    write_config(out / "config.yaml", experiment)
    return out


def pretrain(experiment: Experiment, domain: Domain, out: Path | None = None) -> Path:
    """Phase I: a teacher from observations, or from what was restored of them."""
    out = out or experiment.folder / "pretrain"
    data, inputs = distributed.together(lambda: _learned_from(experiment, domain, out))
    distributed.alike("settings", lambda: to_tree(experiment))
    distributed.apart(distributed.together(lambda: device_of(experiment)))
    distributed.alike("data", lambda: {str(inputs["observations"]): _fingerprint(data)})
    return train_teacher(experiment, domain, data, out, inputs)


def _learned_from(experiment: Experiment, domain: Domain, out: Path) -> tuple[Observations, dict[str, Path]]:
    """The data of a teacher, and the files that they are in."""
    _require_own(out)
    parts_of(experiment.pretrain.batch, experiment.pretrain.parts)
    path = observations_path(experiment)
    data: Observations = domain.observations(path, experiment)
    if distributed.size() > len(data):
        raise UsageError(f"{path}: {len(data)} samples, and {distributed.size()} processes: start at most one a sample")
    if experiment.objective.learns_from != "restored":
        return data, {"observations": path}
    restored = restored_path(experiment)
    images = read_images(restored, data, restored_of(experiment, domain))
    return images, {"observations": path, "restored": restored}


def train_teacher(
    experiment: Experiment, domain: Domain, data: Observations, out: Path, inputs: Mapping[str, Path], start: Path | None = None
) -> Path:
    """A teacher of a data set that was made of ``inputs``; ``start`` are weights to begin with."""
    law = data.law()
    sections = ("network", "objective", "pretrain", "data")
    if start is not None:
        inputs = {**inputs, "start": start}

    def made() -> tuple[Denoiser, Objective, Description]:
        objective = _objective(experiment, law)
        description = Description(
            role="teacher",
            channels=domain.channels,
            size=next(iter(data.buckets)),
            complex_images=domain.complex_images,
            masked=objective.masked,
            network=experiment.network,
            objective=experiment.objective,
        )
        denoiser = arranged(_fresh(description, experiment.seed), experiment.compute, device_of(experiment))
        if start is not None:
            load_weights(denoiser, start)
        return denoiser, objective, description

    denoiser, objective, description = distributed.together(made)
    sharded = experiment.compute.sharded  # replicas talk to each other: all or none
    step = PretrainStep(denoiser, objective, data, experiment.pretrain, experiment.seed, sharded)
    with claimed(out):
        distributed.by_first(lambda: open_run(out, experiment, sections, inputs, _ends("pretrain", experiment.pretrain)))
        if distributed.by_first(lambda: finished(out, experiment.pretrain.images)):
            return out
        distributed.by_first(lambda: law.save(out / "operators.h5"))
        _train(step, experiment.pretrain, out, experiment, description, "pretrain")
    return out


def distill(experiment: Experiment, domain: Domain, out: Path | None = None, teacher: Path | None = None) -> Path:
    """Phase II: a one-step generator from a teacher and the law of the corruption; no image is read."""
    out = out or experiment.folder / "distill"
    work = distributed.together(lambda: _distillation(experiment, domain, out, teacher))
    distributed.alike("settings", lambda: to_tree(experiment))
    distributed.apart(work.device)
    distributed.alike("inputs", lambda: {name: sha256(path) for name, path in work.inputs.items()})
    experiment, config = work.experiment, experiment.distill
    dtype = torch.complex64 if work.description.complex_images else torch.float32
    law, channels = work.law.to(work.device), work.description.channels
    sharded = experiment.compute.sharded  # here, not while one may fail: replicas talk
    step = DistillStep(work.distiller, law, law.thin, channels, dtype, config, sharded)
    derived = _ends("distill", config) | ({"evaluate.features": experiment.evaluate.features} if config.select else {})
    with claimed(out):
        distributed.by_first(lambda: open_run(out, experiment, ("objective", "distill", "data"), work.inputs, derived))
        if distributed.by_first(lambda: finished(out, config.images) or _stopped_early(out, config)):
            return out
        distributed.by_first(lambda: work.law.save(out / "operators.h5"))
        _train(step, config, out, experiment, work.description, "distill", work.watch)
    return out


@dataclasses.dataclass(frozen=True)
class _Distillation:
    """What a distillation is made of; ``experiment`` has the network of its teacher."""

    experiment: Experiment
    distiller: Distiller
    device: torch.device
    law: Law
    description: Description
    inputs: Mapping[str, Path]
    watch: Selection | None


def _distillation(experiment: Experiment, domain: Domain, out: Path, teacher: Path | None) -> _Distillation:
    _require_own(out)
    config = experiment.distill
    parts_of(config.batch, config.parts)
    run, weights = find_teacher(experiment, domain, teacher)
    f_phi, described = load_model(run, weights)
    if described.role != "teacher":
        raise UserError(f"{run}: holds a {described.role}; a teacher is needed to distil from")
    law = law_of_run(run, described, domain, experiment, check=True)
    if experiment.objective != described.objective:
        raise UserError(
            f"{run}: this teacher was trained with {described.objective}, not with {experiment.objective}. The fake score must be"
            " trained on its teacher's own objective."
        )
    if experiment.objective.learns_from == "restored":
        raise UserError(
            f"{run}: a teacher of restored images has no corruption to distil through. Distil one of the observations."
        )
    experiment = with_network_of(run, described, experiment)
    if config.checkpointing and experiment.network.kind != "song":
        raise UserError(
            f"distill.checkpointing exists for network.kind 'song' only, and the teacher's is '{experiment.network.kind}'"
        )
    set_checkpointing(f_phi, experiment.network.checkpointing)
    objective = _objective(experiment, law)
    if config.space == "image":
        require_noise_free(law)
    device = device_of(experiment)
    f_psi, g = (arranged(copied(f_phi, config.dropout), experiment.compute, device) for _ in range(2))
    f_phi = arranged(f_phi, experiment.compute, device)
    distiller = Distiller(f_phi, f_psi, Generator(g, config.sigma_init), objective, config)
    inputs = {"teacher": weights or run / "model.safetensors", **law_inputs(run, domain, experiment)}
    description = Description(**{**vars(described), "role": "generator", "distill": config})
    watch = None
    if config.select:
        teacher_model = Model(run, f_phi, described, law, experiment, device)
        watch = _selection(experiment, domain, out, teacher_model, description)
    return _Distillation(experiment, distiller, device, law, description, inputs, watch)


def _stopped_early(out: Path, config: DistillConfig) -> bool:
    """Whether a finished run ended by its patience."""
    return (out / "model.json").exists() and stopped_early(out, config)


def _selection(experiment: Experiment, domain: Domain, out: Path, teacher: Model, description: Description) -> Selection:
    """What scores the averages of a distillation: images of the seeds from 0 on, of the generator and of its teacher."""
    config = experiment.distill
    names = tuple(dict.fromkeys(cast(tuple[Metric, ...], (config.select, *BASIC))))
    shown = dataclasses.replace(experiment.evaluate, metrics=names, bootstrap=0)
    judge = evaluator(dataclasses.replace(experiment, evaluate=shown), domain, config.select_n, description.size)
    model = dataclasses.replace(teacher, run=out, denoiser=copied(teacher.denoiser, 0.0), description=description)
    seeds = range(judge.n)

    def draw(average: Mapping[str, Tensor]) -> Image:
        model.denoiser.load_state_dict(dict(average))
        return model.sample(seeds)

    options = experiment.sample
    rows = {"teacher": options} | ({"teacher, full": dataclasses.replace(options, stop=0.0)} if options.stop > 0 else {})
    return Selection(out, config, judge, draw, {row: partial(teacher.sample, seeds, options) for row, options in rows.items()})


def sample(experiment: Experiment, domain: Domain, out: Path | None = None, run: Path | None = None) -> Path:
    """Images of a run into samples.h5 and samples.png in its folder."""

    def opened() -> Model:
        found = run or next(
            (f for f in (experiment.folder / "distill", experiment.folder / "pretrain") if (f / "model.json").exists()), None
        )
        if found is None:
            raise UserError(f"{experiment.folder}: no finished run to sample from. Make one: {domain.program}pretrain")
        return open_model(found, domain, experiment, device_of(experiment))

    model = distributed.together(opened)
    distributed.alike("settings", lambda: to_tree(experiment))
    distributed.apart(model.device)
    files = {"model": model.run / "model.safetensors", **law_inputs(model.run, domain, experiment)}
    distributed.alike("models", lambda: {str(path): sha256(path) for path in files.values()})
    out = out or model.run
    write_samples(model, out / "samples.h5", "sample")

    def show() -> None:
        images, _ = read_samples(out / "samples.h5", 64)
        save_grid(out / "samples.png", domain.display(images, model.law).numpy(), 8)

    distributed.by_first(show)
    return out


def load(run: Path | str, domain: Domain, experiment: Experiment, weights: Path | None = None) -> Model:
    """The model of a run folder, for use from Python; ``experiment`` gives how it is sampled."""
    return open_model(Path(run), domain, experiment, device_of(experiment), weights)


def restored_of(experiment: Experiment, domain: Domain) -> dict[str, Any]:
    """What restored images depend on."""
    return {**domain.restoration(experiment), "observations": sha256(observations_path(experiment))}


def _fingerprint(data: Observations) -> str:
    """What tells a data set from another: the names of its samples, and some that are spread over it. (All may be hours of reading.)"""
    digest = hashlib.sha256(b"\0".join(name.encode() for name in data.names))
    for number in sorted({k * (len(data) - 1) // (FINGERPRINT - 1) for k in range(FINGERPRINT)} if len(data) else ()):
        for tensor in data.batch([number]).tensors():
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def finished(out: Path, images: int) -> bool:
    """Whether a run is there and at least this long: then the same command has nothing to do."""
    return (out / "model.json").exists() and load_description(out).images >= images


def _require_own(out: Path) -> None:
    """A run is not begun where an imported network lies."""
    if is_imported(out):
        raise UserError(f"{out}: holds a network that was imported. Choose another place with --out, or delete it.")


def _ends(stage: str, options: PretrainConfig | DistillConfig) -> dict[str, int | None]:
    """Where a falling learning rate ends, which is with the training: another length is another training."""
    return {f"{stage}.images, which {stage}.decay fixes": options.images if options.decay else None}


def _objective(experiment: Experiment, law: Law) -> Objective:
    objective = build_objective(experiment.objective, law.thin)
    objective.check(law.operator)
    return objective


def _fresh(description: Description, seed: int) -> Denoiser:
    """Fresh weights that are a function of the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(make_generator(seed, INIT_STREAM).initial_seed())  # that of the CPU alone
        return description.build()


def _train(
    step: Step,
    options: PretrainConfig | DistillConfig,
    out: Path,
    experiment: Experiment,
    description: Description,
    stage: str,
    watch: Selection | None = None,
) -> None:
    device = device_of(experiment)
    follow = partial(followers, experiment, out) if distributed.first() else (lambda start: ())
    average, images = train(step, options, out, seed=experiment.seed, device=device, stage=stage, watch=watch, follow=follow)

    def save() -> None:
        model: nn.Module = description.build()
        model.load_state_dict(average if watch is None else watch.selected())
        save_model(out, model, Description(**{**vars(description), "images": images}))

    distributed.by_first(save)
