"""Reconstruction metrics: equal to fastMRI's where that is installed, and their definitions where it is not."""

import checks
import numpy as np
import pytest
import torch
from cases import OPERATORS

from rsdmri.errors import UserError
from rsdmri.metrics.pixel import VOLUME, complex_nrmse, consistency, inside, nmse, psnr, ssim
from rsdmri.observations import Observation


def volumes(seed=0, shape=(3, 40, 33)):
    rng = np.random.default_rng(seed)
    target = rng.gamma(2.0, 1e-5, shape)
    return target, target + 5e-6 * rng.standard_normal(shape)


def test_volume_metrics_are_those_of_fastmri():
    evaluate = pytest.importorskip("fastmri.evaluate")
    target, image = volumes()
    assert nmse(target, image) == pytest.approx(float(evaluate.nmse(target, image)), rel=1e-10)
    assert psnr(target, image) == pytest.approx(float(evaluate.psnr(target, image)), rel=1e-10)
    assert ssim(target, image) == pytest.approx(float(np.squeeze(evaluate.ssim(target, image))), abs=1e-9)
    dark = target.astype(np.float32)
    dark[1] *= 0.1  # the range is that of the volume, not of the slice
    bright = image.astype(np.float32)
    assert ssim(dark, bright) == pytest.approx(float(np.squeeze(evaluate.ssim(dark, bright))), abs=1e-6)
    assert psnr(dark, bright) == pytest.approx(float(evaluate.psnr(dark, bright)), abs=1e-4)


def test_definitions_and_extremes():
    target, image = volumes()
    assert nmse(target, image) == pytest.approx(np.sum((target - image) ** 2) / np.sum(target**2))
    assert psnr(target, image) == pytest.approx(10 * np.log10(target.max() ** 2 / np.mean((target - image) ** 2)))
    assert nmse(target, target) == 0 and psnr(target, target) == np.inf and ssim(target, target) == pytest.approx(1)
    assert psnr(target, image, 1.0) == pytest.approx(psnr(target, image) - 20 * np.log10(target.max()))
    assert VOLUME["slice_psnr"](target, image) == pytest.approx(
        np.mean([psnr(t[None], i[None]) for t, i in zip(target, image, strict=True)])
    )
    assert VOLUME["slice_ssim"](target, image) != ssim(target, image)


def test_the_phase_of_a_whole_image_is_free_and_its_scale_is_not():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((2, 8, 8)) + 1j * rng.standard_normal((2, 8, 8))
    assert complex_nrmse(target, np.exp(1j) * target) == pytest.approx(0, abs=1e-12)
    assert complex_nrmse(target, 0.9j * target) == pytest.approx(0.1)
    assert complex_nrmse(target, 0 * target) == 1


def test_inside_a_support_only_its_pixels_count():
    target, image = volumes()
    support = np.zeros(target.shape[1:], bool)
    support[5:20, 5:20] = True
    spoilt = np.where(support, image, 1.0)
    assert inside(nmse, target, spoilt, support) == pytest.approx(nmse(target[:, support][None], image[:, support][None]))
    with pytest.raises(UserError, match="support is empty"):
        inside(nmse, target, image, np.zeros_like(support))


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_left_of_the_data(name, generator):
    make, shape, is_complex = OPERATORS[name]
    operator = make(generator)
    x = checks.random_like(shape, torch.complex128 if is_complex else torch.float64, generator)
    y = operator.forward(x)
    assert consistency(x, Observation(y, operator, torch.zeros(len(x)))).abs().max() < 1e-12
    left = consistency(torch.zeros_like(x), Observation(y, operator, torch.zeros(len(x))))
    assert torch.allclose(left, torch.ones_like(left))


@pytest.mark.parametrize(
    ("target", "image", "message"),
    [
        (np.ones((2, 8, 8)), np.ones((2, 8, 9)), r"\(2, 8, 9\) and its target \(2, 8, 8\)"),
        (np.ones((8, 8)), np.ones((8, 8)), "slices"),
        (np.ones((2, 8, 8), complex), np.ones((2, 8, 8)), "complex"),
        (np.full((2, 8, 8), np.nan), np.ones((2, 8, 8)), "NaN"),
        (np.zeros((2, 8, 8)), np.ones((2, 8, 8)), "zero everywhere"),
    ],
)
def test_what_cannot_be_measured_is_said(target, image, message):
    for metric in (nmse, psnr, ssim):
        with pytest.raises(UserError, match=message):
            metric(target, image)


def test_ssim_wants_images_of_a_window():
    with pytest.raises(UserError, match="7 x 7"):
        ssim(np.ones((1, 6, 9)), np.ones((1, 6, 9)))
