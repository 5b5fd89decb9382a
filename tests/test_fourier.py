"""The centred orthonormal Fourier transform, and how images and k-space are cut."""

import numpy as np
import pytest
import torch

from rsdmri.mri.fourier import crop, crop_kspace, fft2c, ifft2c, rss

SIZES = [(4, 6), (5, 7), (6, 5), (1, 8)]


def dft(n):
    """The matrix of k[u] = 1/sqrt(N) sum_n x[n] exp(-2 pi i (u - N//2) (n - N//2) / N)."""
    at = torch.arange(n) - n // 2
    return torch.exp(-2j * np.pi * at[:, None] * at / n) / n**0.5


def image(*shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_is_the_sum_it_says(size):
    x = image(2, 3, *size)
    assert torch.allclose(fft2c(x), dft(size[0]) @ x @ dft(size[1]).T, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_is_unitary(size):
    x, y = image(3, *size), image(1, *size)
    assert torch.allclose(ifft2c(fft2c(x)), x, atol=1e-12)
    assert torch.allclose((fft2c(x).conj() * y).sum(), (x.conj() * ifft2c(y)).sum(), atol=1e-12)
    assert torch.allclose(fft2c(x).norm(), x.norm(), atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_equals_fastmri(size):
    fastmri = pytest.importorskip("fastmri")
    x = image(2, *size)
    assert torch.allclose(torch.view_as_complex(fastmri.fft2c(torch.view_as_real(x))), fft2c(x), atol=1e-12)
    assert torch.allclose(torch.view_as_complex(fastmri.ifft2c(torch.view_as_real(x))), ifft2c(x), atol=1e-12)


def test_autocast_does_not_lower_the_precision():
    x = image(8, 8).to(torch.complex64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fft2c(x), fft2c(x.clone()))
        assert fft2c(x).dtype == torch.complex64


@pytest.mark.parametrize(("whole", "part", "first"), [(512, 213, 149), (8, 4, 2), (8, 3, 2), (7, 4, 1), (7, 7, 0)])
def test_images_are_cut_as_fastmri_cuts_them(whole, part, first):
    x = torch.arange(whole).expand(whole, whole)
    assert crop(x, (part, part))[0].tolist() == list(range(first, first + part))


@pytest.mark.parametrize(("whole", "part"), [(8, 4), (8, 5), (9, 4), (9, 5), (6, 6)])
def test_kspace_keeps_its_centre(whole, part):
    k = torch.zeros(whole, whole)
    k[whole // 2, whole // 2] = 1
    assert crop_kspace(k, (part, part))[part // 2, part // 2] == 1


@pytest.mark.parametrize("cut", [crop, crop_kspace])
def test_nothing_is_cut_from_too_little(cut):
    with pytest.raises(ValueError, match="cannot crop 4 x 6 to 4 x 7"):
        cut(torch.zeros(2, 4, 6), (4, 7))


def test_rss():
    assert torch.allclose(rss(torch.tensor([[3.0 + 0j, 1j], [4j, 0]]), 0), torch.tensor([5.0, 1.0]))
