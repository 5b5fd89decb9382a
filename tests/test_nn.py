"""The networks: counts of the published models, equations written out, and what users rely on."""

import math
import sys
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdmri.errors import UserError
from rsdmri.nn import MonaiUNet, SongUNet
from rsdmri.nn.shapes import group_count
from rsdmri.nn.song_unet import Block, Convolution, NoiseEmbedding, SelfAttention

DOUBLE = torch.float64
Module = TypeVar("Module", bound=nn.Module)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def perturbed(module: Module, scale: float = 0.2) -> Module:
    """In float64, every parameter moved: a fresh network is nearly zero and would hide defects."""
    module.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            step = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
            parameter.add_(scale * step)
    return module


def small(in_channels: int = 3, out_channels: int = 2, **options: object) -> SongUNet:
    settings = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (12,), "size": 24}
    return SongUNet(in_channels, out_channels, **(settings | options))  # type: ignore[arg-type]


CIFAR = {"size": 32, "multipliers": (2, 2, 2)}
FACES = {"size": 64, "multipliers": (1, 2, 2, 2)}
MRI = {"size": (384, 320), "multipliers": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("channels", "options", "count"),
    [
        pytest.param(3, CIFAR | {"augment_channels": 9}, 55_733_891, id="EDM CIFAR-10"),
        pytest.param(3, FACES | {"augment_channels": 9}, 61_805_571, id="EDM FFHQ-64"),
        pytest.param(3, FACES, 61_804_419, id="EDM FFHQ-64, no augmentation"),
        pytest.param(6, FACES | {"augment_channels": 9}, 61_812_486, id="CelebA, ungated"),
        pytest.param(6, FACES | {"augment_channels": 9, "gated": True}, 118_088_966, id="CelebA"),
        pytest.param(6, CIFAR | {"augment_channels": 9, "gated": True}, 106_752_006, id="CIFAR-10"),
        pytest.param(4, MRI | {"gated": True}, 36_768_644, id="MRI"),
        pytest.param(4, MRI, 20_014_980, id="MRI, ungated"),
        pytest.param(2, MRI | {"gated": True}, 36_759_426, id="MRI, no mask"),
    ],
)
def test_song_counts_of_published_models(channels: int, options: dict, count: int) -> None:
    with torch.device("meta"):
        network = SongUNet(channels, channels, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_song_attends_where_it_should() -> None:
    network = small(blocks=2)
    attending = {name.removesuffix(".attention") for name, module in network.named_modules() if isinstance(module, SelfAttention)}
    assert attending == {"encoder.1.0", "encoder.1.1", "middle.0", "decoder.1.2"}


def test_song_size_counts_rows() -> None:
    def attending(size: int | tuple[int, int]) -> list[bool]:
        return [isinstance(m, SelfAttention) for m in small(size=size).modules()]

    assert attending((24, 20)) == attending(24) != attending((20, 24))


@pytest.mark.parametrize("size", [(24, 20), (8, 16), (4, 4)])
@pytest.mark.parametrize("gated", [False, True])
def test_song_shapes(size: tuple[int, int], gated: bool) -> None:
    network = perturbed(small(gated=gated))
    out = network(normal(2, 3, *size), torch.tensor([-1.0, 0.5], dtype=DOUBLE))
    assert out.shape == (2, 2, *size)
    assert out.dtype == DOUBLE
    assert out.isfinite().all()


@pytest.mark.parametrize("size", [(24, 22), (18, 24), (25, 25)])
def test_song_says_which_sizes_it_takes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*3 levels.*divisible by 4"):
        small()(torch.zeros(1, 3, *size), torch.zeros(1))


def test_song_suggests_the_padded_size() -> None:
    with pytest.raises(ValueError, match="pad to 20x24"):
        small()(torch.zeros(1, 3, 17, 24), torch.zeros(1))


@pytest.mark.parametrize("channels", [2, 7])
def test_song_rejects_widths_without_an_embedding(channels: int) -> None:
    with pytest.raises(ValueError, match="even and at least 4"):
        small(channels=channels)


@pytest.mark.parametrize("gated", [False, True])
def test_song_starts_at_almost_zero(gated: bool) -> None:
    x = normal(2, 3, 16, 16).float()
    out = small(gated=gated).float()(x, torch.zeros(2))
    assert 0 < out.abs().max() < 1e-3


@pytest.mark.parametrize("gated", [False, True])
def test_song_every_parameter_has_a_gradient(gated: bool) -> None:
    network = perturbed(small(gated=gated, augment_channels=9, size=16, attention=(16, 8)))
    network(normal(2, 3, 16, 16), normal(2), normal(2, 9)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_song_batch_is_a_loop() -> None:
    network = perturbed(small(augment_channels=9, gated=True)).eval()
    x, c_noise, labels = normal(3, 3, 16, 12), normal(3, seed=1), normal(3, 9, seed=2)
    with torch.no_grad():
        batch = network(x, c_noise, labels)
        loop = [network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(loop), rtol=1e-10, atol=1e-10)


def test_song_depends_on_the_noise_level() -> None:
    network = perturbed(small())
    x = normal(1, 3, 16, 16).expand(2, -1, -1, -1)
    with torch.no_grad():
        same, other = network(x, torch.tensor([0.3, 0.3])), network(x, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(other[0], same[0])
    assert (other[1] - other[0]).abs().max() > 1e-3


def test_song_weights_are_a_function_of_the_callers_seed() -> None:
    def weights(seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.utils.parameters_to_vector(small().parameters()).detach()

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))  # so nothing inside reseeds


def test_song_dropout_acts_in_training_only() -> None:
    network = perturbed(small(dropout=0.5))
    x, c_noise = normal(1, 3, 8, 8), torch.zeros(1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(network(x, c_noise), network(x, c_noise))
        network.eval()
        assert torch.equal(network(x, c_noise), network(x, c_noise))


def test_song_augmentation_labels() -> None:
    network = perturbed(small(augment_channels=9))
    x, c_noise = normal(1, 3, 8, 8), torch.zeros(1)
    with torch.no_grad():
        plain = network(x, c_noise)
        assert torch.equal(plain, network(x, c_noise, torch.zeros(1, 9)))
        assert not torch.allclose(plain, network(x, c_noise, torch.ones(1, 9)))
    with pytest.raises(ValueError, match="augment_channels = 0"):
        small()(x.float(), c_noise, torch.zeros(1, 9))


def test_song_state_dict_has_the_documented_names() -> None:
    names = {name.rsplit(".", 1)[0] for name in small(augment_channels=9).state_dict()}
    assert {name.split(".")[0] for name in names} == {
        "embedding", "input", "encoder", "down", "middle", "up", "decoder", "output_norm", "output"
    }  # fmt: skip
    assert {f"down.{level}.conv0" for level in (0, 1)} <= names
    assert {f"up.{level}.conv0" for level in (0, 1)} <= names
    assert {f"decoder.{level}.{i}.skip" for level in (0, 1, 2) for i in (0, 1)} <= names
    assert {f"embedding.{name}" for name in ("augment", "linear0", "linear1")} <= names
    assert {f"middle.0.attention.{name}" for name in ("norm", "qkv", "proj")} <= names


def test_resampling_down_is_the_mean_of_four_and_up_repeats() -> None:
    x = normal(2, 4, 6, 8)
    down = Block(4, 4, 8, resample="down").resample(x)
    mean = x.unflatten(2, (3, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(down, mean, rtol=1e-14, atol=1e-14)
    up = Block(4, 4, 8, resample="up").resample(x)
    assert torch.equal(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_resampling_up_is_four_times_the_transpose_of_down() -> None:
    down, up = (Block(4, 4, 8, resample=way).resample for way in ("down", "up"))
    fine, coarse = normal(1, 4, 6, 8), normal(1, 4, 3, 4, seed=1)
    torch.testing.assert_close(4 * (down(fine) * coarse).sum(), (fine * up(coarse)).sum())


@pytest.mark.parametrize("resample", ["none", "down", "up"])
def test_block_is_its_equation(resample: str) -> None:
    block = perturbed(Block(8, 16, 12, resample=resample, gated=True))  # type: ignore[arg-type]
    x, emb = normal(2, 8, 4, 6), normal(2, 12, seed=1)

    def norm(layer: nn.GroupNorm, h: Tensor) -> Tensor:
        groups = h.unflatten(1, (-1, 4))  # 8 or 16 channels: groups of four
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        scaled = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()
        return scaled.flatten(1, 2) * layer.weight[:, None, None] + layer.bias[:, None, None]

    h = block.conv0(block.resample(F.silu(norm(block.norm0, x))))
    h = h + block.affine(emb)[:, :, None, None]
    h = block.conv1(F.silu(norm(block.norm1, h)))
    expected = (block.skip(block.resample(x)) + h) / math.sqrt(2)
    torch.testing.assert_close(block(x, emb), expected)


def test_gate_attenuates_the_values_but_not_the_bias() -> None:
    layer = perturbed(Convolution(3, 5, 3, gated=True))
    x = normal(2, 3, 6, 4)
    patches = F.unfold(x, 3, padding=1)  # (B, 3 * 9, pixels)

    def times(weight: Tensor) -> Tensor:
        return (weight.flatten(1) @ patches).unflatten(-1, (6, 4))

    assert layer.gate is not None
    inner = 1 / (1 + torch.exp(-times(layer.gate)))
    gate = 1 / (1 + torch.exp(-inner))
    assert gate.min() > 0.5 and gate.max() < 0.7311
    expected = times(layer.weight) * gate + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_attention_is_a_softmax_over_pixels() -> None:
    layer = perturbed(SelfAttention(8))
    x = normal(2, 8, 3, 5)
    qkv = layer.qkv(layer.norm(x)).flatten(2)
    q, k, v = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]  # (B, C, pixels)
    logits = q.transpose(1, 2) @ k / math.sqrt(8)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    attended = (v @ weights.transpose(1, 2)).unflatten(-1, (3, 5))
    expected = (x + layer.proj(attended)) / math.sqrt(2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_attention_softmax_keeps_its_precision_under_autocast() -> None:
    """With logits near 1000, a bfloat16 softmax would be off by several units in the exponent."""
    layer = SelfAttention(32).float()
    with torch.no_grad():
        layer.qkv.weight.mul_(20)
        layer.proj.weight.copy_(torch.eye(32)[:, :, None, None])
    x = normal(1, 32, 4, 4).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
        q, k, v = (layer.qkv(layer.norm(x)).double().flatten(2)[:, i::3] for i in range(3))
    logits = q.transpose(1, 2) @ k / math.sqrt(32)
    attended = (v @ logits.softmax(-1).transpose(1, 2)).unflatten(-1, (4, 4))
    assert logits.abs().max() > 100
    error = (half - (x + attended) / math.sqrt(2)).abs().max()
    assert error < 0.01 * attended.abs().max()


def test_embedding_is_its_equation() -> None:
    layer = perturbed(NoiseEmbedding(8, 6))
    c_noise = torch.tensor([-1.2, 0.7], dtype=DOUBLE)
    frequencies = torch.tensor([10000 ** (-j / 3) for j in range(4)], dtype=DOUBLE)
    angles = c_noise[:, None] * frequencies  # from 1 down to 1 / 10000, both included
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    expected = F.silu(layer.linear1(F.silu(layer.linear0(waves))))
    torch.testing.assert_close(layer(c_noise), expected)


@pytest.mark.parametrize(("channels", "groups"), [(2, 1), (4, 1), (8, 2), (64, 16), (128, 32), (144, 24), (384, 32)])
def test_group_count(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


def test_monai_forward_and_gradients() -> None:
    network = MonaiUNet(3, 2, channels=(8, 16), attention=(False, True))
    perturbed(network)
    x = normal(2, 3, 16, 12)
    out = network(x, torch.tensor([-1.0, 0.2], dtype=DOUBLE))
    assert out.shape == (2, 2, 16, 12)
    out.square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []

    with torch.no_grad():
        single = network(x[:1], torch.tensor([-1.0], dtype=DOUBLE))
        torch.testing.assert_close(out[:1].detach(), single, rtol=1e-10, atol=1e-10)
        other = network(x[:1], torch.tensor([-0.99], dtype=DOUBLE))
        assert (other - single).abs().max() > 1e-3  # 4 % in sigma is seen
    with pytest.raises(ValueError, match="divisible by 2"):
        network(normal(1, 3, 16, 15), torch.zeros(1))


@pytest.mark.parametrize("package", ["einops", "monai.networks.nets.diffusion_model_unet"])
def test_monai_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install monai einops"):
        MonaiUNet(2, 2)


def test_checkpointing_computes_blocks_again_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = Block._compute
    monkeypatch.setattr(Block, "_compute", lambda self, x, emb: calls.append(1) or whole(self, x, emb))
    gradients, counts = [], []
    weights = perturbed(small()).state_dict()
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing).double()
        network.load_state_dict(weights)
        calls.clear()
        network(normal(2, 3, 24, 24), normal(2)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)
    with torch.no_grad():
        calls.clear()
        network(normal(2, 3, 24, 24), normal(2))
    assert len(calls) == counts[0]
