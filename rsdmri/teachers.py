"""The teacher of a distillation: where it lies, the networks that are copied from it, and whether the options fit it."""

import copy
import dataclasses
import sys
from pathlib import Path

from torch import nn

from .checkpoints import Description
from .config import Experiment
from .denoiser import Denoiser
from .domain import Domain, Law
from .errors import UsageError, UserError
from .settings import named_configs
from .tensors import make_generator


def find_teacher(experiment: Experiment, domain: Domain, teacher: Path | None) -> tuple[Path, Path | None]:
    """The run folder of the teacher, and its snapshot if one was named; exits with the command that makes a missing one."""
    path = teacher or experiment.folder / "pretrain"
    run, weights = (path.parent.parent, path) if path.suffix == ".safetensors" else (path, None)
    if not (run / "model.json").exists():
        named = [config for config in named_configs() if config.replace("/", "-") == experiment.name]
        options = f" --config {named[0]}" if named else ", with the configuration and the flags of this command"
        raise UsageError(
            f"{run}: no finished teacher. Make it first:\n  {domain.program}pretrain{options}\nor name one with --teacher RUN"
        )
    return run, weights


def with_network_of(run: Path, teacher: Description, experiment: Experiment) -> Experiment:
    """The experiment with its teacher's network, from which the fake and the generator are copied."""
    if experiment.distill.augment > 0 and teacher.network.augment < 2:
        raise UserError(f"{run}: this teacher takes no augmentation label. Set distill.augment to 0.")
    network = teacher.network
    if network.kind == "song":  # how it is computed is the experiment's to say
        network = dataclasses.replace(network, checkpointing=experiment.network.checkpointing)
    if experiment.network == network:
        return experiment
    print(f"distill: the networks are the teacher's, {network}", file=sys.stderr)
    pretrain = experiment.pretrain if network.augment >= 2 else dataclasses.replace(experiment.pretrain, augment=0.0)
    return dataclasses.replace(experiment, network=network, pretrain=pretrain)


def set_checkpointing(denoiser: Denoiser, checkpointing: bool) -> None:
    for module in denoiser.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = checkpointing  # type: ignore[assignment]


def copied(f_phi: Denoiser, dropout: float | None) -> Denoiser:
    """A copy that is trained, with another dropout if one is asked for."""
    student = copy.deepcopy(f_phi).requires_grad_(True)
    for module in student.modules():
        if isinstance(module, nn.Dropout) and dropout is not None:
            module.p = dropout
    return student


def require_noise_free(law: Law) -> None:
    highest = max(float(law.draw(64, size, make_generator(0))[1].max()) for size in law.sizes)
    if highest > 0:
        raise UserError(
            "distill.space 'image' compares images themselves, which is right only for data without measurement noise; these have"
            f" noise_std up to {highest:.3g}. Use 'measured', or set data.noise_std to 0 where the noise is negligible."
        )
