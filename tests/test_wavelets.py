"""The wavelet transform against PyWavelets, and as the orthonormal matrix that it is."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdmri.errors import UserError
from rsdmri.mri import wavelets
from rsdmri.mri.wavelets import Wavelet
from rsdmri.tensors import make_generator, randn

pytestmark = pytest.mark.filterwarnings("ignore:Level value of")


def image(height, width, dtype=torch.complex128, n=2):
    return randn((n, 1, height, width), dtype, make_generator(1))


@pytest.mark.parametrize("name", ["haar", "db2", "db4", "db10", "sym5", "sym8", "coif2"])
@pytest.mark.parametrize(("size", "levels"), [((48, 64), 1), ((48, 64), 2), ((48, 64), 3), ((320, 272), 3)], ids=str)
def test_coefficients_are_those_of_pywavelets(name, size, levels):
    x = image(*size)
    expected = pywt.wavedec2(x.numpy(), name, mode="periodization", level=levels, axes=(-2, -1))
    array, _ = pywt.coeffs_to_array(expected, axes=(-2, -1))
    assert np.allclose(Wavelet(name, levels).decompose(x).numpy(), array, rtol=0, atol=1e-12)


@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    shift=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    name=st.sampled_from(["haar", "db4", "sym4", "coif1"]),
    levels=st.integers(1, 3),
    real=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_inverse_gives_any_image_back_exactly(height, width, shift, name, levels, real):
    """Also of sides that are no multiples of 2^levels, which are filled up and cut back."""
    wavelet = Wavelet(name, levels)
    x = image(height, width, torch.float64 if real else torch.complex128)
    c = wavelet.decompose(x, shift)
    assert c.shape[-2] % 2**levels == 0 and c.shape[-1] % 2**levels == 0 and c.dtype == x.dtype
    assert torch.allclose(wavelet.compose(c, (height, width), shift), x, atol=1e-11)
    assert torch.allclose(c.abs().square().sum(), x.abs().square().sum())  # no energy is lost: orthonormal
    assert torch.allclose(
        wavelet.compose(c, (height, width), shift), wavelet.compose(c, (height, width), shift)
    )  # c is left alone


@pytest.mark.parametrize("name", ["haar", "db3", "db4", "coif5", "db20"])
@pytest.mark.parametrize("n", [144, 240, 256, 368, 384])
def test_blocks_of_long_signals_are_the_whole_matrix(name, n):
    x = torch.randn(2, n, 7, dtype=torch.float64)
    assert wavelets._band(name, n, x.dtype, x.device) is not None  # rows of what is not zero, and not the matrix
    for shift in (0, 5, -3, 2 * n + 1):
        matrix = wavelets._matrix(name, n, shift, x)
        assert torch.allclose(Wavelet(name)._level(x, shift), matrix @ x, rtol=0, atol=1e-13)
        assert torch.allclose(Wavelet(name)._inverse(x, shift), matrix.T @ x, rtol=0, atol=1e-13)


def test_a_shift_is_that_of_the_image():
    x = image(32, 48)
    wavelet = Wavelet("db4", 3)
    assert torch.allclose(wavelet.decompose(x, (5, -3)), wavelet.decompose(x.roll((5, -3), (-2, -1))), atol=1e-13)


def test_the_inverse_is_the_adjoint():
    x, c = image(32, 32), randn((2, 1, 32, 32), torch.complex128, make_generator(2))
    wavelet = Wavelet("db4", 2)
    left = (wavelet.decompose(x, (3, 7)).conj() * c).sum()
    assert torch.allclose(left, (x.conj() * wavelet.compose(c, (32, 32), (3, 7))).sum())


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
def test_shrinking_is_the_proximal_map(dtype):
    """It minimises 1/2 |u - x|^2 + threshold |details of u|_1: coefficient by coefficient, the closed form."""
    x = image(32, 32, dtype)
    wavelet, threshold = Wavelet("db4", 2), torch.tensor([0.3, 1.2])
    u = wavelet.shrink(x, threshold, (1, 2))
    c, d = wavelet.decompose(x, (1, 2)), wavelet.decompose(u, (1, 2))
    expected = c * (1 - threshold[:, None, None, None] / c.abs()).clamp(min=0)
    expected[..., :8, :8] = c[..., :8, :8]  # the coarsest image is left alone
    assert torch.allclose(d, expected, atol=1e-12)


def test_zeros_stay_zeros():
    assert not Wavelet().shrink(torch.zeros(1, 1, 32, 32, dtype=torch.complex64), torch.ones(1)).any()


def test_levels_by_default_leave_sixteen_pixels():
    assert [Wavelet().levels_of(size) for size in ((256, 256), (640, 320), (40, 32), (16, 16), (8, 8))] == [4, 4, 1, 1, 1]


@pytest.mark.parametrize("name", ["bior4.4", "rbio2.2", "dmey"])
def test_wavelets_that_are_not_orthogonal_are_refused(name):
    with pytest.raises(UserError, match=f"wavelet '{name}' is not orthogonal"):
        Wavelet(name)


def test_a_wavelet_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no wavelet 'daub4'; there are haar, db2"):
        Wavelet("daub4")


def test_too_many_levels_are_refused():
    with pytest.raises(UserError, match="9 wavelet levels of images of 32 x 48: expected 1 to 5"):
        Wavelet("db4", 9).decompose(image(32, 48))
