"""How networks are computed changes nothing but rounding; and what a step costs the host."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rsdmri.ahead import Ahead
from rsdmri.compute import adam, arranged, in_bf16
from rsdmri.config import ComputeConfig, DistillConfig, Experiment, NetworkConfig
from rsdmri.denoiser import build_denoiser
from rsdmri.errors import UserError
from rsdmri.observations import Observation
from rsdmri.operators import Identity
from rsdmri.tensors import make_generator
from rsdmri.training import adam_state, descend, load_adam_state

CPU = torch.device("cpu")


def denoiser(kind="song", gated=False):
    """A network whose output is not the near-zero one of its start."""
    torch.manual_seed(0)
    config = NetworkConfig(kind=kind, channels=16, attention=(8,) if kind == "song" else (), gated=gated)
    found = build_denoiser(config, channels=1, size=(16, 16), complex_images=True, masked=False).float()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 1, 16, 16, dtype=torch.complex64, generator=generator), torch.tensor([0.05, 0.5, 2.0, 20.0])


def gradient(network, x, sigma):
    network.zero_grad()
    f = network(x, sigma)
    f.abs().square().mean().backward()
    return f.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "gated"), [("song", False), ("song", True), ("monai", False)])
def test_bf16_rounds_activations_and_nothing_else(images, kind, gated):
    network = denoiser(kind, gated)
    half = arranged(copy.deepcopy(network), ComputeConfig(precision="bf16"), CPU)
    expected, of_weights = gradient(network, *images)
    found, of_half = gradient(half, *images)
    # The part of f that is not the network's is not rounded: at sigma 0.05 nearly all of it.
    assert 0 < error(found, expected) < 1e-2 and error(found[:1], expected[:1]) < 2e-3
    assert error(of_half, of_weights) < 0.1
    assert found.dtype == torch.complex64 and {p.dtype for p in half.parameters()} == {torch.float32}


def test_bf16_keeps_levels_apart(images):
    """Levels are told in single precision: in bf16 those of neighbouring steps of a sampler would be one."""
    network = arranged(denoiser(), ComputeConfig(precision="bf16"), CPU)
    seen = []
    network.network.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(images[0], images[1])
    assert torch.allclose(seen[0].double(), images[1].double().log() / 4, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of PyTorch's own compiler
def test_channels_last_and_compilation_keep_names_and_numbers(images):
    network = denoiser()
    expected, of_weights = gradient(network, *images)
    other = arranged(copy.deepcopy(network), ComputeConfig(channels_last=True), CPU)
    found, of_other = gradient(other, *images)
    assert error(found, expected) < 1e-5 and error(of_other, of_weights) < 1e-4
    assert list(other.state_dict()) == list(network.state_dict())
    weight = other.network.input.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    compiled = arranged(copy.deepcopy(network), ComputeConfig(compile="default"), CPU)
    assert list(compiled.state_dict()) == list(network.state_dict())
    assert compiled.network._compiled_call_impl is not None
    assert copy.deepcopy(compiled).network._compiled_call_impl is None


def test_auto_is_bf16_on_gpus_that_compute_in_it_alone(monkeypatch):
    auto = ComputeConfig()
    assert not in_bf16(auto, CPU)
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert in_bf16(auto, torch.device("cuda")) is able
    assert in_bf16(ComputeConfig(precision="bf16"), CPU) and not in_bf16(ComputeConfig(precision="fp32"), torch.device("cuda"))


def test_graphs_of_a_batch_in_parts_are_refused():
    with pytest.raises(ValueError, match="one part"):
        Experiment(compute=ComputeConfig(compile="graphs"), distill=DistillConfig(batch=8, parts=2))


def test_graphs_without_a_gpu_are_refused():
    with pytest.raises(UserError, match="needs a GPU"):
        arranged(denoiser(), ComputeConfig(compile="graphs"), CPU)


def test_a_broken_step_leaves_weights_and_moments_as_they_were():
    model = nn.Linear(3, 1)
    optimizer = adam(model.parameters(), 0.1, (0.9, 0.999))

    def loss(factor):
        return lambda generator: (factor * model(torch.ones(2, 3)).square().mean(), {})

    def state():
        moments = [v for s in optimizer.state.values() for v in s.values()]
        return [t.detach().clone() for t in [*model.parameters(), *moments]]

    descend(optimizer, loss(1.0), [make_generator(0)], 1.0, "gradient")
    before = state()
    found = descend(optimizer, loss(float("nan")), [make_generator(0)], 1.0, "gradient")
    assert not found["gradient"].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    descend(optimizer, loss(1.0), [make_generator(0)], 1.0, "gradient")
    assert not any(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_are_loaded_in_the_layout_of_their_weights(channels_last):
    """A fused kernel walks over memory: with another layout it would pair weights with the moments of others."""
    model = nn.Conv2d(4, 12, 3)
    if channels_last:
        model.to(memory_format=torch.channels_last)

    def run(optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            x = torch.randn(2, 4, 8, 8, generator=make_generator(step))
            model(x).square().mean().backward()
            optimizer.step()
        return model.weight.detach().clone()

    first = adam(model.parameters(), 0.01, (0.9, 0.999))
    run(first, range(3))
    # As a checkpoint holds them: contiguous.
    before = {k: {n: v.clone(memory_format=torch.contiguous_format) for n, v in m.items()} for k, m in adam_state(first).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected = run(first, range(3, 6))
    model.load_state_dict(weights)
    again = adam(model.parameters(), 0.01, (0.9, 0.999))
    load_adam_state(again, before)
    assert torch.allclose(run(again, range(3, 6)), expected, rtol=1e-12, atol=0)


def test_fused_adam_is_adam():
    one, other = (nn.Linear(5, 2).double() for _ in range(2))
    other.load_state_dict(one.state_dict())
    pair = [(one, adam(one.parameters(), 0.01, (0.0, 0.999))), (other, torch.optim.Adam(other.parameters(), 0.01, (0.0, 0.999)))]
    for step in range(5):
        x = torch.randn(7, 5, dtype=torch.float64, generator=make_generator(step))
        for model, optimizer in pair:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert torch.allclose(one.weight, other.weight, rtol=1e-12, atol=0)


class Numbered:
    """Observations whose value is their number, and what was read of them."""

    def __init__(self):
        self.read = []

    def batch(self, indices):
        self.read.append(list(indices))
        y = torch.tensor(indices, dtype=torch.float32)[:, None, None, None]
        return Observation(y, Identity(torch.zeros(len(indices))), torch.zeros(len(indices)))


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_are_read_ahead_once_and_in_order(threaded):
    data = Numbered()
    ahead = Ahead(data, CPU, threaded)
    batches = np.arange(12).reshape(6, 2).tolist()  # three batches of two parts
    for k in range(3):
        ahead.order(batches[2 * k : 2 * k + 4])
        for part in range(2):
            assert ahead.next().y.flatten().tolist() == batches[2 * k + part]
    assert data.read == batches


def test_another_order_is_followed():
    """A run that goes on elsewhere than was foreseen gets what it asks for."""
    ahead = Ahead(Numbered(), CPU, True)
    ahead.order([[0, 1], [2, 3]])
    ahead.next()
    ahead.order([[6, 7], [8, 9]])
    assert ahead.next().y.flatten().tolist() == [6, 7]


def test_what_cannot_be_read_says_so_when_it_is_asked_for():
    class Broken(Numbered):
        def batch(self, indices):
            raise OSError("torn file")

    ahead = Ahead(Broken(), CPU, True)
    ahead.order([[0]])
    with pytest.raises(OSError, match="torn file"):
        ahead.next()
