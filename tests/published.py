"""The published networks as their programs name, compute and pickle them: written apart from the package, from the papers' descriptions."""

import math
import pickle
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SOURCE = """import numpy as np
import torch
from torch_utils import persistence
from torch.nn.functional import silu

@persistence.persistent_class
class EDMPrecond(torch.nn.Module):
    def __init__(self, model_type="SongUNet", sigma_data=0.5, **model_kwargs):
        super().__init__()
        self.sigma_data = sigma_data
        self.model = globals()[model_type](**model_kwargs)
"""


def song_shapes(inputs, outputs, resolution, channels, multipliers, blocks, attention, gated=False, augment=0):
    """Names and shapes of EDM's SongUNet ("ddpmpp")."""
    shapes = {}
    embedding = 4 * channels

    def convolution(name, source, target, kernel):
        shapes[f"{name}.weight"] = (target, source, kernel, kernel)
        shapes[f"{name}.bias"] = (target,)
        if gated:
            shapes[f"{name}.gate_weight"] = (target, source, kernel, kernel)

    def pair(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name, source, target, attends=False, resampled=False):
        pair(f"{name}.norm0", source)
        convolution(f"{name}.conv0", source, target, 3)
        pair(f"{name}.affine", target, embedding)
        pair(f"{name}.norm1", target)
        convolution(f"{name}.conv1", target, target, 3)
        if source != target or resampled:
            convolution(f"{name}.skip", source, target, 1)
        if attends:
            pair(f"{name}.norm2", target)
            convolution(f"{name}.qkv", target, 3 * target, 1)
            convolution(f"{name}.proj", target, target, 1)

    if augment:
        shapes["map_augment.weight"] = (channels, augment)
    pair("map_layer0", embedding, channels)
    pair("map_layer1", embedding, embedding)
    width, skips = channels, []
    for level, multiplier in enumerate(multipliers):
        at = f"enc.{resolution >> level}x{resolution >> level}"
        if level == 0:
            convolution(f"{at}_conv", inputs, channels, 3)
        else:
            block(f"{at}_down", width, width, resampled=True)
        skips.append(width)
        for index in range(blocks):
            block(f"{at}_block{index}", width, channels * multiplier, resolution >> level in attention)
            width = channels * multiplier
            skips.append(width)
    for level in reversed(range(len(multipliers))):
        at = f"dec.{resolution >> level}x{resolution >> level}"
        if level == len(multipliers) - 1:
            block(f"{at}_in0", width, width, attends=True)
            block(f"{at}_in1", width, width)
        else:
            block(f"{at}_up", width, width, resampled=True)
        for index in range(blocks + 1):
            attends = index == blocks and resolution >> level in attention
            block(f"{at}_block{index}", width + skips.pop(), channels * multipliers[level], attends)
            width = channels * multipliers[level]
    pair(f"dec.{resolution}x{resolution}_aux_norm", width)
    convolution(f"dec.{resolution}x{resolution}_aux_conv", width, outputs, 3)
    return shapes


def song_forward(t, x, c_noise, labels=None):
    """F(x, c_noise) of EDM's SongUNet from its tensors ``t``, in their order."""
    channels = t["map_layer0.weight"].shape[1]
    half = channels // 2
    angles = torch.outer(c_noise, (1 / 10000) ** (torch.arange(half, dtype=x.dtype) / (half - 1)))
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    if labels is not None:
        emb = emb + labels @ t["map_augment.weight"].T
    for layer in ("map_layer0", "map_layer1"):
        emb = F.silu(F.linear(emb, t[f"{layer}.weight"], t[f"{layer}.bias"]))

    def norm(name, x):
        width = x.shape[1]
        return F.group_norm(x, min(32, width // 4), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    def convolution(name, x):
        weight = t[f"{name}.weight"]
        out = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if f"{name}.gate_weight" in t:
            out = out * F.conv2d(x, t[f"{name}.gate_weight"], padding=weight.shape[-1] // 2).sigmoid().sigmoid()
        return out + t[f"{name}.bias"].reshape(1, -1, 1, 1)

    def resample(name, x):
        if name.endswith("_down"):
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2) if name.endswith("_up") else x

    def block(name, x):
        h = convolution(f"{name}.conv0", resample(name, F.silu(norm(f"{name}.norm0", x))))
        h = h + F.linear(emb, t[f"{name}.affine.weight"], t[f"{name}.affine.bias"])[:, :, None, None]
        h = convolution(f"{name}.conv1", F.silu(norm(f"{name}.norm1", h)))
        skip = resample(name, x)
        x = (h + (convolution(f"{name}.skip", skip) if f"{name}.skip.weight" in t else skip)) * 0.5**0.5
        if f"{name}.qkv.weight" in t:
            b, c, height, width = x.shape
            q, k, v = convolution(f"{name}.qkv", norm(f"{name}.norm2", x)).reshape(b, c, 3, -1).unbind(2)
            weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c)), dim=2)
            a = torch.einsum("nqk,nck->ncq", weights, v).reshape(b, c, height, width)
            x = (convolution(f"{name}.proj", a) + x) * 0.5**0.5
        return x

    names = list(dict.fromkeys(name.split(".")[0] + "." + name.split(".")[1] for name in t if name[:4] in ("enc.", "dec.")))
    skips = []
    for name in (name for name in names if name.startswith("enc.")):
        x = convolution(name, x) if name.endswith("_conv") else block(name, x)
        skips.append(x)
    for name in (name for name in names if name.startswith("dec.") and "_aux_" not in name):
        x = block(name, torch.cat([x, skips.pop()], dim=1) if "_block" in name else x)
    aux = next(name for name in names if name.endswith("_aux_norm"))
    return convolution(aux.replace("norm", "conv"), F.silu(norm(aux, x)))


def random_tensors(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) + float(name.endswith("norm0.weight"))).to(
            dtype
        )
        for name, shape in shapes.items()
    }


def _module(name):
    """A module of another program, there for the time of pickling alone."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


class Persistent(nn.Module):
    """A module that is pickled with the source text of its class, as those of EDM are."""

    def __init__(self, class_name, source=SOURCE):
        super().__init__()
        self.__dict__["_names"] = (class_name, source)

    def __reduce__(self):
        class_name, source = self._names
        state = {name: value for name, value in self.__dict__.items() if name != "_names"}
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)

    __reduce_ex__ = lambda self, protocol: self.__reduce__()  # noqa: E731


def modules_of(tensors, source=SOURCE, **constants):
    """EDMPrecond over SongUNet: modules that hold these tensors under their names."""
    outer, network = Persistent("EDMPrecond", source), Persistent("SongUNet", source)
    outer.model = network
    for name, value in {"img_channels": 3, "label_dim": 0, "sigma_data": 0.5, **constants}.items():
        setattr(outer, name, value)
    outer._init_kwargs = {"init_attn": {"init_weight": np.sqrt(0.2)}, "img_resolution": np.int64(16)}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place = network
        for depth, part in enumerate(path):
            if part not in dict(place.named_children()):
                kind = nn.ModuleDict() if part in ("enc", "dec") and depth == 0 else Persistent("Layer", source)
                place.add_module(part, kind)
            place = dict(place.named_children())[part]
        if path[-1] == "conv0":  # what a block of EDM holds beside its layers
            block = dict(network.named_modules())[".".join(path[:-1])]
            block.dropout, block.skip_scale, block.num_heads = 0.13, np.sqrt(0.5), 0
        place.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        if last == "weight" and path[-1] in ("conv0", "skip") and path[-2].endswith(("_up", "_down")):
            place.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))
    return outer


def write_pickle(path, network, protocol=None, **beside):
    """network-snapshot.pkl in EDM's layout."""
    persistence = _module("torch_utils.persistence")
    _module("torch_utils").persistence = persistence

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("never called: the file is read by the package")

    for function in (_reconstruct_persistent_obj,):
        function.__module__, function.__qualname__ = "torch_utils.persistence", function.__name__
        setattr(persistence, function.__name__, function)
    try:
        path.write_bytes(pickle.dumps({"ema": network, **beside}, protocol))
    finally:
        del sys.modules["torch_utils.persistence"], sys.modules["torch_utils"]
    return path
