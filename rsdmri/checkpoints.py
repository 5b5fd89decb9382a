"""Models as safetensors + JSON: weights that execute nothing, and a description from which the network is rebuilt.

A run folder holds ``model.safetensors`` (averaged weights) and ``model.json`` (:class:`Description`); ``snapshots/`` holds
earlier averages of the same network; ``resume/step_*/`` holds what is needed to go on. Loading is strict: a missing or an
unexpected tensor is an error.
"""

import dataclasses
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import distributed
from .config import DistillConfig, NetworkConfig, ObjectiveConfig, to_tree
from .denoiser import Denoiser, build_denoiser
from .errors import UserError
from .files import atomic, read_json, write_json

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a stored network is: enough to rebuild it and to sample from it."""

    role: Literal["teacher", "generator"]
    channels: int
    size: tuple[int, int]
    complex_images: bool
    masked: bool
    network: NetworkConfig
    objective: ObjectiveConfig
    distill: DistillConfig | None = None
    images: int = 0
    format_version: int = FORMAT_VERSION

    def build(self) -> Denoiser:
        """The denoiser with fresh weights."""
        return build_denoiser(
            self.network, channels=self.channels, size=self.size, complex_images=self.complex_images, masked=self.masked
        )


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors atomically; each gets memory of its own, as the format wants."""
    with atomic(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; a missing or broken one is a :class:`UserError`."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from None


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads weights strictly: a missing, unexpected or misshapen tensor is an error that names it."""
    try:
        module.load_state_dict(load_tensors(path), strict=True)
    except RuntimeError as error:
        raise UserError(f"{path}: these are not the weights of the network that model.json describes.\n{error}") from None


def save_model(folder: Path, denoiser: nn.Module, description: Description) -> None:
    """Writes ``model.safetensors`` and ``model.json`` into a run folder."""
    save_tensors(folder / "model.safetensors", denoiser.state_dict())
    write_json(folder / "model.json", {f.name: to_tree(getattr(description, f.name)) for f in dataclasses.fields(description)})


def load_description(folder: Path) -> Description:
    """Reads ``model.json`` of a run folder."""
    path = folder / "model.json"
    tree: dict[str, Any] = read_json(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a description of a model")
    if tree.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {tree.get('format_version')!r} found, {FORMAT_VERSION} expected: written by another version of rsdmri"
        )
    try:
        return Description(
            **{
                **tree,
                "size": tuple(tree["size"]),
                "network": _section(NetworkConfig, tree["network"]),
                "objective": _section(ObjectiveConfig, tree["objective"]),
                "distill": _section(DistillConfig, tree["distill"]) if tree["distill"] else None,
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a description of a model ({error})") from None


def _section(kind: type[Any], tree: dict[str, Any]) -> Any:
    """A section from JSON, whose lists were tuples."""
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()})


def load_model(folder: Path, weights: Path | None = None) -> tuple[Denoiser, Description]:
    """The network of a run folder, in evaluation mode; ``weights`` names a snapshot instead of the last average."""
    description = load_description(folder)
    denoiser = description.build()
    load_weights(denoiser, weights or folder / "model.safetensors")
    return denoiser.eval().requires_grad_(False), description


def snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots of a run by images seen, in order."""
    found = sorted((folder / "snapshots").glob("images_*.safetensors"))
    return {int(path.stem.split("_")[1]): path for path in found}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """A nested state dict of tensors as one level, with '/' between the names."""
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = torch.as_tensor(value)
    return flat


def unflatten(flat: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def save_resume(folder: Path, state: dict[str, Any], progress: dict[str, float]) -> None:
    """Writes ``resume/step_<images>/`` whole, by renaming the folder. The one before it stays, should this one be damaged; others go."""
    resume = folder / "resume"
    final = resume / f"step_{int(progress['images']):012d}"
    temporary = resume / f".{final.name}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    save_tensors(temporary / "state.safetensors", flatten(state))
    write_json(temporary / "progress.json", progress)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    earlier = [path for path in sorted(resume.glob("step_*")) if path < final]
    for old in [*resume.glob("step_*"), *resume.glob(".step_*.tmp")]:
        if old not in (final, *earlier[-1:]):
            shutil.rmtree(old)


def load_resume(folder: Path) -> tuple[dict[str, Any], dict[str, float]] | None:
    """The newest checkpoint for resuming that is whole, or None where there is none at all.

    Half-written ones, which never have the final name, and damaged ones are named on standard error.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    resume, broken = folder / "resume", list[tuple[Path, UserError]]()
    for half in sorted(resume.glob(".step_*.tmp")):
        print(f"warning: {half}: half written when its process was ended, or damaged; left out", file=sys.stderr)
    for path in sorted(resume.glob("step_*"), reverse=True):
        try:
            found = unflatten(load_tensors(path / "state.safetensors")), _progress(path / "progress.json")
        except UserError as error:
            print(f"warning: damaged checkpoint, left out: {error}", file=sys.stderr)
            broken.append((path, error))
        else:
            if distributed.first():  # it must not take the place of one that is whole
                for old, _ in broken:
                    os.replace(old, old.with_name(f".{old.name}.tmp"))
            return found
    if broken:
        raise UserError(f"{broken[0][1]}. No earlier checkpoint is whole: delete {resume} to begin again.")
    return None


def _progress(path: Path) -> dict[str, float]:
    found = read_json(path)
    if not isinstance(found, dict) or not {"images", "seconds"} <= found.keys():
        raise UserError(f"{path}: not the progress of a training")
    return found
