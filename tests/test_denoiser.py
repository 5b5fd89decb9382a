import pytest
import torch
from cases import OPERATORS
from torch import nn

from rsdmri.config import NetworkConfig
from rsdmri.denoiser import Denoiser, Generator, build_denoiser
from rsdmri.tensors import to_channels, to_complex


class Recorder(nn.Module):
    """Remembers what it was shown; answers with the first channels."""

    def __init__(self, out):
        super().__init__()
        self.out, self.unused = out, nn.Parameter(torch.zeros(1))

    def forward(self, channels, c_noise):
        self.channels, self.c_noise = channels, c_noise
        return channels[:, : self.out]


def test_preconditioning_is_edm_table_1(generator):
    network = Recorder(2)
    x = torch.randn(2, 1, 4, 4, dtype=torch.complex128, generator=generator)
    sigma = torch.tensor([0.3, 7.0])
    found = Denoiser(network, 0.5)(x, sigma)
    for i in range(2):
        s, sd = sigma[i], 0.5
        c_in, c_skip, c_out = (s**2 + sd**2) ** -0.5, sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2) ** 0.5
        assert torch.allclose(network.channels[i], c_in * to_channels(x)[i])
        assert network.c_noise[i].item() == pytest.approx((s.log() / 4).item())
        assert torch.allclose(found[i], c_skip * x[i] + c_out * c_in * x[i])


def test_channels_are_all_real_parts_then_all_imaginary(generator):
    x = torch.randn(2, 3, 4, 4, dtype=torch.complex128, generator=generator)
    assert torch.equal(to_channels(x)[:, :3], x.real)
    assert torch.equal(to_complex(to_channels(x)), x)


def test_mask_is_one_more_channel_and_not_scaled(generator):
    operator = OPERATORS["mri"][0](generator)
    network = Recorder(2)
    x = torch.randn(3, 1, 10, 16, dtype=torch.complex128, generator=generator)
    Denoiser(network, 0.5, masked=True).denoise(x, torch.full((3,), 80.0), operator)
    assert network.channels.shape == (3, 3, 10, 16)
    assert torch.equal(network.channels[:, 2], operator.mask[:, 0].expand(3, 10, 16).double())
    shown = to_complex(network.channels[:, :2]) * (80.0**2 + 0.25) ** 0.5
    assert torch.allclose(shown, operator.gram(x))


def test_generator_is_one_call_at_sigma_init_inside_the_support(generator):
    operator = OPERATORS["mri"][0](generator)
    network = Recorder(2)
    denoiser = Denoiser(network, 0.5, masked=True)
    z = torch.randn(3, 1, 10, 16, dtype=torch.complex128, generator=generator)
    x_g = Generator(denoiser, 2.5)(z, operator)
    expected = denoiser(operator.gram(2.5 * z), torch.full((3,), 2.5), operator.mask) * operator.support()
    assert torch.equal(x_g, expected)
    assert not x_g[:, :, :2].any()  # the maps are zero in the first two rows


def test_a_mask_where_none_belongs_is_an_error():
    with pytest.raises(ValueError, match="masked=False"):
        Denoiser(Recorder(1))(torch.zeros(1, 1, 4, 4), torch.ones(1), torch.ones(1, 1, 1, 4))


def test_sizes_that_the_network_cannot_halve_are_filled_up(generator):
    """The network sees zeros below and to the right, of the mask too; an image that fits is not touched."""
    config = NetworkConfig(channels=8)
    denoiser = build_denoiser(config, channels=1, size=(30, 33), complex_images=True, masked=True)
    x = torch.randn(2, 1, 30, 33, dtype=torch.complex64, generator=generator)
    sigma, mask = torch.tensor([0.3, 2.0]), torch.ones(2, 1, 1, 33)
    whole = torch.nn.functional.pad(x, (0, 3, 0, 2))
    shown = torch.nn.functional.pad(mask.expand(2, 1, 30, 33), (0, 3, 0, 2))
    assert torch.equal(denoiser(x, sigma, mask), denoiser(whole, sigma, shown)[..., :30, :33])


@pytest.mark.slow
def test_monai_behind_the_same_interface(generator):
    config = NetworkConfig(kind="monai", channels=32, multipliers=(1, 2), attention=(8,))
    denoiser = build_denoiser(config, channels=1, size=(16, 16), complex_images=True, masked=True)
    x = torch.randn(2, 1, 16, 16, dtype=torch.complex128, generator=generator)
    found = denoiser(x, torch.tensor([0.1, 2.0]), torch.ones(2, 1, 1, 16))
    assert found.shape == x.shape
    found.abs().sum().backward()
    assert all(p.grad is not None for p in denoiser.parameters())
