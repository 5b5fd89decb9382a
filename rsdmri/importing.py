r"""Published checkpoints as ours: their tensors are renamed, the network is rebuilt from their shapes, and all must fit.

    EDM, SiD                    pickles of modules; photographs (3 channels) or complex images (2)
    Ambient Diffusion           gated, photographs and three mask channels (6)
    Ambient Diffusion MRI       gated, complex images, the mask and a channel of ones (4)

Sources: Karras et al. 2022 (arXiv 2206.00364), Zhou et al. 2024 (2404.04057), Daras et al. 2023 (2305.19256), Aali et al. 2025
(2403.08728). Their denoisers are preconditioned as ours; a teacher is fed as it was trained: masks in channels that c_in scales, and the
first outputs are the image. The maps of Ambient Diffusion MRI are multiplied by a checkerboard to spare the centring of its FFTs, which
cancels in A^H A for even sizes: ours is the same operator.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .checkpoints import Description, save_model
from .config import DistillConfig, ImportConfig, NetworkConfig, ObjectiveConfig
from .errors import UserError
from .files import sha256, write_json
from .foreign import Checkpoint, read_checkpoint
from .unpickling import plain

#: What the channels of a network's input are: those of the image, whether it is complex, and how it is shown a mask.
INPUTS: dict[int, tuple[int, bool, Literal["one", "each", "pair"] | None]] = {
    2: (1, True, None),
    3: (3, False, None),
    4: (1, True, "pair"),
    6: (3, False, "each"),
}
WRAPPERS = ("", "EDMPrecond", "AmbientPrecond", "SongUNet")  # "": a state dict; others precondition in other ways
OTHER_LOSSES = ("VPLoss", "VELoss")
LARGEST = {"channels": 4096, "multiplier": 64, "levels": 12, "blocks": 32}  # far above any published network
PARTS = {"attention.norm": "norm2", "attention.qkv": "qkv", "attention.proj": "proj", "gate": "gate_weight"}
MRI_SIZE = (384, 320)  # of the published networks, whose resolution is 384 and whose images are cut to 320 columns
SHOWN = 20  # tensors that an error names


def import_checkpoint(path: Path, out: Path, options: ImportConfig) -> Path:
    """Writes the network of a checkpoint as a run folder: model.safetensors, model.json and import.json, which says where it is from."""
    if (out / "provenance.json").exists():
        raise UserError(f"{out}: holds a run that was trained here. Choose another place with --out.")
    checkpoint = read_checkpoint(path, options.max_bytes)
    try:
        description, tensors = convert(checkpoint, options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    with torch.device("meta"):  # its fresh weights would be drawn for nothing
        denoiser = description.build()
    denoiser.network.load_state_dict(tensors, strict=True, assign=True)
    kind, count = checkpoint.class_name or "a state dict", sum(tensor.numel() for tensor in tensors.values())
    # First: a model without it would be taken for one that was trained here.
    write_json(out / "import.json", {"file": str(path), "sha256": sha256(path), "class": kind, "parameters": count})
    save_model(out, denoiser, description)
    print(
        f"import: {count:,} parameters of {kind};"
        f" {description.role}, {description.objective.kind}, {description.size[0]} x {description.size[1]},"
        f" {'complex' if description.complex_images else f'{description.channels} channels'}",
        file=sys.stderr,
    )
    return out


def convert(checkpoint: Checkpoint, options: ImportConfig) -> tuple[Description, dict[str, Tensor]]:
    """The description of a checkpoint's network and its tensors under our names, in float32; all tensors must be known and fit."""
    if checkpoint.class_name not in WRAPPERS or checkpoint.loss_name.endswith(OTHER_LOSSES):
        found = plain(checkpoint.class_name if checkpoint.class_name not in WRAPPERS else checkpoint.loss_name)
        raise UserError(f"{found} found: another preconditioning than EDM's, with which a teacher is trained here")
    given = plain_names(checkpoint.tensors)
    network, resolutions, inputs = architecture(given)
    channels, complex_images, mask_input = INPUTS[inputs]
    if inputs == 4 and not network["gated"]:
        raise UserError(
            "4 input channels without gates: not the published network of MRI, whose other two channels are of the mask"
        )
    square = (resolutions[0], resolutions[0])
    size = options.size or (MRI_SIZE if complex_images and square[0] == MRI_SIZE[0] else square)
    # Levels attend, whatever the images' size; the configuration counts their rows.
    halvings = 2 ** (len(resolutions) - 1)
    rows = -(-size[0] // halvings) * halvings
    attention = tuple(rows >> level for level, r in enumerate(resolutions) if r in network["attention"])
    try:
        description = Description(
            role=options.role,
            channels=channels,
            size=size,
            complex_images=complex_images,
            masked=mask_input is not None,
            network=NetworkConfig(
                **{**network, "attention": attention},
                mask_input=mask_input or "one",
                dropout=checkpoint.dropout or 0.0,
                sigma_data=_number(checkpoint.constants, "sigma_data", 0.5),
            ),
            objective=ObjectiveConfig(
                kind=_objective(options, mask_input is not None),
                mean=_number(checkpoint.loss, "P_mean", -1.2),
                std=_number(checkpoint.loss, "P_std", 1.2),
            ),
            distill=DistillConfig(sigma_init=options.sigma_init) if options.role == "generator" else None,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in description.build().network.state_dict().items()}
    names = {name: published_name(name, resolutions) for name in wanted}
    _require_all(given, {names[name]: shape for name, shape in wanted.items()})
    tensors = {name: given[names[name]].float().contiguous() for name in wanted}
    broken = [names[name] for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"NaN or infinity in {_listed(broken)}")
    return description, tensors


def _number(constants: Mapping[str, Any], name: str, default: float) -> float:
    """A number that a module holds under a name."""
    value = constants.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise UserError(f"{name} is {plain(value)}; a number expected")
    return float(value)


def _objective(options: ImportConfig, masked: bool) -> Literal["standard", "tweedie", "ambient"]:
    kind = options.objective or ("ambient" if masked else "standard")
    if (kind == "ambient") != masked:
        raise UserError(
            f"the network is {'shown a mask' if masked else 'not shown any mask'}, and objective '{kind}' is asked for"
        )
    return kind


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefixes of wrappers (torch.compile, DDP, preconditioning); the box filter, which has no weights, is dropped."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = re.sub(r"(^|\.)(_orig_mod|module)(?=\.)", "", name).lstrip(".").removeprefix("model.")
        if short.endswith("resample_filter"):  # of the box [1, 1]
            if tensor.shape != (1, 1, 2, 2) or not bool((tensor == 0.25).all()):
                raise UserError(f"{plain(name)}: a resampling filter other than the box of DDPM++: another architecture")
            continue
        if short in found:
            raise UserError(f"two tensors of the name {plain(short)}")
        found[short] = tensor
    return found


def architecture(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[int], int]:
    """From the shapes of a DDPM++ network: the fields of its NetworkConfig, its resolutions, finest first, and its input channels."""
    found = {int(m[1]) for name in tensors if (m := re.match(r"enc\.(\d{1,6})x\1_", name))}
    resolutions = sorted(found, reverse=True)[: LARGEST["levels"] + 1]
    first = f"enc.{resolutions[0]}x{resolutions[0]}_conv.weight" if resolutions else ""
    widths = [tensors.get(f"enc.{r}x{r}_block0.conv0.weight") for r in resolutions]
    if first not in tensors or not all(tensor is not None and tensor.ndim == 4 for tensor in widths) or tensors[first].ndim != 4:
        raise UserError("not a DDPM++ network of EDM: it has no tensors enc.RxR_conv and enc.RxR_block0")
    if any(name.startswith("map_label") for name in tensors):
        raise UserError("a network with class labels (map_label), of which there are none here")
    channels, inputs = tensors[first].shape[:2]
    if not 4 <= channels <= LARGEST["channels"] or channels % 4:
        raise UserError(f"{channels} channels in the first level; a positive multiple of 4 expected")
    if inputs not in INPUTS:
        raise UserError(f"{inputs} input channels; known are {', '.join(map(str, INPUTS))}")
    augment = tensors.get("map_augment.weight")
    multipliers = tuple(int(tensor.shape[0]) // int(channels) for tensor in widths if tensor is not None)
    blocks = sum(bool(re.match(rf"enc\.{resolutions[0]}x\d+_block\d+\.conv0\.weight$", name)) for name in tensors)
    if max(multipliers) > LARGEST["multiplier"] or blocks > LARGEST["blocks"] or len(resolutions) > LARGEST["levels"]:
        raise UserError(
            f"{len(resolutions)} levels of {blocks} blocks, up to {max(multipliers)} times {channels} channels: too large"
        )
    fields = {
        "channels": int(channels),
        "multipliers": multipliers,
        "blocks": blocks,
        "attention": tuple(r for r in resolutions if f"enc.{r}x{r}_block0.qkv.weight" in tensors),
        "gated": first.replace(".weight", ".gate_weight") in tensors,
        "augment": int(augment.shape[1]) if augment is not None and augment.ndim == 2 else 0,
    }
    return fields, resolutions, int(inputs)


def published_name(name: str, resolutions: Sequence[int]) -> str:
    """The name that a tensor of :class:`~rsdmri.nn.SongUNet` has in EDM's SongUNet: enc.32x32_block0.conv0.weight."""
    for ours, theirs in PARTS.items():
        name = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.|$)", theirs, name)
    head, _, rest = name.partition(".")
    at = [f"{r}x{r}" for r in resolutions]
    if head == "embedding":
        return re.sub(r"^linear(?=\d)", "map_layer", rest) if rest.startswith("linear") else f"map_{rest}"
    ends = {"input": f"enc.{at[0]}_conv", "output_norm": f"dec.{at[0]}_aux_norm", "output": f"dec.{at[0]}_aux_conv"}
    if head in ends:
        return f"{ends[head]}.{rest}"
    level, _, rest = rest.partition(".")
    if head == "middle":
        return f"dec.{at[-1]}_in{level}.{rest}"
    if head in ("down", "up"):
        return f"enc.{at[int(level) + 1]}_down.{rest}" if head == "down" else f"dec.{at[int(level)]}_up.{rest}"
    number, _, rest = rest.partition(".")
    return f"{head[:3]}.{at[int(level)]}_block{number}.{rest}"


def _require_all(given: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Every tensor there, none left over, all of the right shape: else an error that lists them."""
    problems = []
    for word, names in (("missing", wanted.keys() - given.keys()), ("unexpected", given.keys() - wanted.keys())):
        if names:
            problems.append(f"{word}: {_listed(sorted(names))}")
    misshapen = [
        f"{name} {tuple(given[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    if misshapen:
        problems.append(f"of another shape: {_listed(misshapen)}")
    if problems:
        raise UserError(f"the tensors are not those of a DDPM++ network; {'; '.join(problems)}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(plain, names[:SHOWN])) + more
