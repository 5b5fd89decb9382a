"""The weights of the Inception network of FID: where their file is, whether it is the published one, and the network with them.

Nothing that a file holds is ever executed, and every tensor must fit.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..files import sha256
from ..unpickling import plain
from .inception import Inception

ENVIRONMENT = "RSDMRI_WEIGHTS"  # names the file, or the folder that holds it
#: The names of the file, and where it is published under each.
WEIGHTS = {
    "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
    "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
}
SHA256 = "6726825d"  # the first digits, which the names carry
PUBLISHED = " or ".join(f"{name} ({place})" for name, place in WEIGHTS.items())
SHOWN = 10  # tensors of a kind that an error names


def load_inception(path: Path | None, *, expected: str | None = SHA256) -> tuple[Inception, str]:
    """The network with its weights in float32 on the CPU, in evaluation mode, and the SHA-256 of their file.

    Args:
        path: a file of ``torch.save`` or a ``.safetensors``; None: the one that ``RSDMRI_WEIGHTS`` names, as a file or as a folder that
            holds it under one of its published names.
        expected: what the SHA-256 must begin with; None for weights of one's own.

    Raises:
        UserError: there is no such file, it is another one or damaged, or its tensors are not those of this network. Nothing that a file
            holds is ever executed.
    """
    file = find_weights(path)
    try:
        digest = sha256(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    if expected and not digest.startswith(expected.lower()):
        raise UserError(
            f"{file}: SHA-256 {digest[:16]}... found, one that begins with {expected} expected: another file than the published weights,"
            f" or one that was damaged on its way. Download it again, as {PUBLISHED}."
        )
    try:
        return _network(_read(file)), digest
    except UserError as error:
        raise UserError(f"{file}: {error} Expected the weights of the Inception of FID, as {PUBLISHED}.") from None


def find_weights(path: Path | None) -> Path:
    """The file that ``path``, or else ``RSDMRI_WEIGHTS``, names; :class:`UserError` if there is none."""
    named = os.environ.get(ENVIRONMENT)
    if path is None and not named:
        raise UserError(
            f"no weights of the Inception network were named, and they are not part of this package. Download {PUBLISHED}: the same file."
            f" Name it with --evaluate.weights FILE, or let {ENVIRONMENT} name it or its folder."
        )
    source = "" if path is not None else f" ({ENVIRONMENT})"
    found = Path(path if path is not None else named or "")
    if found.is_dir():
        inside = [found / name for name in WEIGHTS if (found / name).is_file()]
        if source and inside:
            return inside[0]
        expected = f"a folder without {' or '.join(WEIGHTS)}" if source else "a folder; the file of the weights expected"
        raise UserError(f"{found}{source}: {expected}. Download {PUBLISHED}, and name the file.")
    if not found.is_file():
        problem = "not a file" if found.exists() else "no such file"
        raise UserError(f"{found}{source}: {problem}. The weights of the Inception network expected: {PUBLISHED}.")
    return found


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names."""
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"not a complete safetensors file ({plain(error)}).") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # an error says it all
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, when a file is damaged or is something else
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise UserError(f"refused: it asks for {plain(found[1])}, which tensors do not need; nothing was run.") from None
        reason = plain(f"{type(error).__name__} {error}".partition("\n")[0].strip())
        raise UserError(f"not a complete file of torch.save ({reason}).") from None
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        keys = f" with {_listed(list(content))}" if isinstance(content, dict) else ""
        raise UserError(f"a {type(content).__name__}{keys} found, a dictionary of tensors expected.")
    return content


def _network(given: Mapping[str, Tensor]) -> Inception:
    """The network of these tensors, which must be all there, and no others."""
    with torch.device("meta"):  # its fresh weights would be drawn for nothing
        network = Inception()
    wanted = network.state_dict()
    # The number of batches seen in training, which inference does not need and not every file holds.
    counters = {name: torch.zeros((), dtype=torch.long) for name in wanted if name.endswith("num_batches_tracked")}
    _require_all({**counters, **given}, wanted)
    weights = {name: given[name].float().contiguous() for name in wanted if name not in counters}
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"NaN or infinity in {_listed(broken)}.")
    network.load_state_dict({**weights, **counters}, strict=True, assign=True)
    return network.requires_grad_(False)


def _require_all(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Every tensor there, none left over, all of the right shape and kind: else an error that lists them."""
    both = [name for name in wanted if name in given]
    kinds = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in both
            if given[name].shape != wanted[name].shape
        ],
        "not dense numbers": [
            f"{name} ({str(given[name].dtype).removeprefix('torch.')})" for name in both if not _fits(given[name], wanted[name])
        ],
    }
    problems = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise UserError(f"its tensors are not those of this network; {'; '.join(problems)}.")


def _fits(tensor: Tensor, wanted: Tensor) -> bool:
    """Plain numbers in memory, with or without a fraction as they should be."""
    plain_layout = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain_layout and not tensor.is_complex() and tensor.is_floating_point() == wanted.is_floating_point()


def _listed(names: Sequence[object]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(plain, names[:SHOWN])) + more
