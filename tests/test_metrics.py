"""Distances: what they are worth on images whose faults are known."""

import functools
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from rsdmri.errors import UserError
from rsdmri.metrics import Side, compare, halves, psd, radial_power, swd
from rsdmri.metrics.sliced import laplacian, wasserstein

Images = NDArray[np.float32]
N, SIZE = 256, 32
METRICS = {"swd": functools.partial(swd, projections=64), "psd": psd}


def ellipses(n: int, seed: int, size: int = SIZE) -> Images:
    """Random sums of six ellipses, quantised as display images are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = np.zeros((n, size, size))
    for image in images:
        for _ in range(6):
            (top, left), (a, b) = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.1, 0.6, 2)
            turn = np.exp(-1j * rng.uniform(0, np.pi)) * (x - left + 1j * (y - top))
            image += rng.uniform(0.1, 0.4) * ((turn.real / a) ** 2 + (turn.imag / b) ** 2 < 1)
    return quantised(images)


def quantised(images: NDArray[np.floating]) -> Images:
    return (np.rint(255 * np.clip(images, 0, 1)) / 255).astype(np.float32)


def blur(images: Images, level: int) -> Images:
    return gaussian_filter(images, (0, 0.4 * level, 0.4 * level))


def noise(images: Images, level: int) -> Images:
    return images + 0.04 * level * np.random.default_rng(1).standard_normal(images.shape)


def alias(images: Images, level: int) -> Images:
    """Keeps the central columns of k-space and a falling number of the others."""
    rng = np.random.default_rng(2)
    kspace = np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1))
    outer = np.r_[0 : SIZE // 2 - 2, SIZE // 2 + 2 : SIZE]
    for sample in kspace:
        sample[:, rng.choice(outer, SIZE * level // 4, replace=False)] = 0
    return np.abs(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1))))


def collapse(images: Images, level: int) -> Images:
    return images[np.arange(len(images)) % (len(images), 32, 8, 2)[level]]


@pytest.fixture(scope="module")
def reference() -> Images:
    return ellipses(N, 1)


@pytest.fixture(scope="module")
def samples() -> Images:
    return ellipses(N, 2)


@pytest.mark.parametrize("corrupt", [blur, noise, alias, collapse])
@pytest.mark.parametrize("name", METRICS)
def test_rises_with_every_corruption(name, corrupt, samples, reference):
    values = [METRICS[name](quantised(corrupt(samples, k)), reference) for k in range(4)]
    assert all(lower < higher for lower, higher in itertools.pairwise(values))
    assert values[2] > 2 * values[0]  # the first level of a collapse is too mild for such a bound
    floor = METRICS[name](ellipses(N, 3), reference)
    assert values[0] < 2 * floor and floor < 2 * values[0]


@pytest.mark.parametrize("name", METRICS)
def test_zero_to_itself_and_nearly_symmetric(name, samples, reference):
    metric = METRICS[name]
    assert metric(samples, samples) == 0
    assert metric(samples, reference) == pytest.approx(metric(reference, samples), rel=0.1)


@pytest.mark.parametrize("name", METRICS)
def test_takes_tensors_and_colours(name, samples, reference):
    metric = METRICS[name]
    value = metric(samples[:32], reference[:32])
    assert metric(torch.from_numpy(samples[:32]), torch.from_numpy(reference[:32])) == value
    colours = [np.repeat(images[:32, ..., None], 3, -1) for images in (samples, reference)]
    # Grey in three channels is the same distribution: the three parts of a unit vector add up to
    # a vector of norm one on average.
    assert metric(*colours) == pytest.approx(value, rel=0.1)


def test_swd_is_a_function_of_its_seed(samples, reference):
    first = swd(samples, reference, seed=5, projections=16)
    assert swd(samples, reference, seed=5, projections=16) == first
    assert swd(samples, reference, seed=6, projections=16) != first


def test_swd_hardly_depends_on_the_order_of_the_images(samples, reference):
    value, floor = swd(blur(samples, 2), reference), swd(samples, reference)
    assert abs(swd(blur(samples, 2)[::-1], reference) - value) < 0.5 * floor


def test_swd_counts_a_wrong_contrast(samples, reference):
    assert swd(0.7 * samples, reference) > 2 * swd(samples, reference)


def test_swd_of_a_shift_in_brightness():
    # Constant patches, one level: the projection of a shift c on a unit vector u is c sum(u),
    # and sum(u) has about the law of a standard normal: E|sum(u)| = sqrt(2 / pi).
    rng = np.random.default_rng(0)
    flat = np.repeat(np.repeat(rng.uniform(0, 0.5, (64, 1, 1)), 16, 1), 16, 2)
    expected = 1e3 * 0.2 / flat.std() * np.sqrt(2 / np.pi)
    assert swd(flat + 0.2, flat, projections=4096) == pytest.approx(expected, rel=0.05)


def test_wasserstein_on_lines_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 3)).astype(np.float32) for _ in range(2))
    expected = np.mean([wasserstein_distance(a[:, i], b[:, i]) for i in range(3)])
    assert wasserstein(a, b, np.eye(3, dtype=np.float32)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (65, 33), (16, 40)])
def test_pyramid_ends_at_sixteen_and_keeps_constants_in_its_last_level(shape):
    *bands, last = laplacian(np.full((2, *shape, 1), 0.3, np.float32))
    assert 16 <= min(last.shape[1:3]) < 32
    assert np.allclose(last, 0.3)
    # At an odd border the mirrored zeros do not alternate any more: only the inside is exact.
    assert all(np.allclose(band[:, :-2, :-2], 0, atol=1e-6) for band in bands)


def test_psd_of_a_scaled_set_is_the_logarithm_of_its_power(reference):
    assert psd(0.5 * reference, reference) == pytest.approx(2 * np.log10(2), rel=1e-2)
    # Far below the reference the floor of four decades holds.
    assert psd(0 * reference, reference) == pytest.approx(4, abs=0.5)


def test_psd_of_black_images_is_defined():
    assert psd(np.zeros((4, 16, 16)), np.zeros((4, 16, 16))) == 0


def test_radial_power_of_white_noise_is_its_variance():
    noise_images = 0.3 * np.random.default_rng(0).standard_normal((400, 24, 32))
    power = radial_power(noise_images)
    assert power.shape == (400, 13)
    assert np.allclose(power.mean(0), 0.09, rtol=0.25)


def test_radial_power_of_a_wave_lies_at_its_radius():
    wave = np.cos(2 * np.pi * 6 * np.arange(32) / 32)
    power = radial_power(np.broadcast_to(0.5 + 0.5 * wave, (1, 32, 32)))[0]
    assert power[4:].argmax() + 4 == 6
    assert power[9:].max() < 1e-12


def test_compare_gives_value_floor_and_number(samples, reference):
    other = ellipses(N, 3)
    found = compare(Side(blur(samples, 3)), Side(reference), Side(other))
    assert set(found) == {"swd", "psd"}
    assert found["swd"]["floor"] == swd(other, reference)
    assert found["psd"]["floor"] == psd(other, reference)
    assert all(score["n"] == N and score["value"] > 3 * score["floor"] and score["low"] is None for score in found.values())


def test_halves_are_disjoint_rising_and_seeded():
    n, first, second = halves(101, 70)
    assert n == 50 and len(first) == len(second) == n
    assert not set(first) & set(second) and max(*first, *second) <= 100
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    assert (halves(101, 70)[1] == first).all() and (halves(101, 70, seed=1)[1] != first).any()
    assert halves(101, 30)[0] == 30 and halves(101, 70, 20)[0] == 20


def test_halves_share_no_scan():
    groups = [f"scan {i // 5}" for i in range(60)]
    n, first, second = halves(60, 100, groups=groups)
    assert n == 30 and not {groups[i] for i in first} & {groups[i] for i in second}
    odd = ["a"] * 35 + [str(i) for i in range(30)]  # one scan has more than half
    n, first, second = halves(65, 100, groups=odd)
    assert n >= 16 and not {odd[i] for i in first} & {odd[i] for i in second} and len(first) == len(second) == n
    assert all(
        (one == other).all() for one, other in zip(halves(101, 70)[1:], halves(101, 70, groups=range(101))[1:], strict=True)
    )
    with pytest.raises(UserError, match="of 1 scans leave 0 a side"):
        halves(64, 64, groups=["one"] * 64)


@pytest.mark.parametrize("numbers", [(31, 100, 0), (100, 15, 0), (100, 100, 15)])
def test_halves_refuse_too_few_images(numbers):
    with pytest.raises(UserError, match="at least 16 samples"):
        halves(*numbers)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.zeros((3, 16, 16)), "one number and size"),
        (np.zeros((4, 16, 17)), "one number and size"),
        (np.zeros((4, 16, 16, 3)), "one number and size"),
        (np.zeros((4, 16)), "shape"),
        (np.zeros((4, 16, 16, 2)), "shape"),
        (np.zeros((0, 16, 16)), "shape"),
        (np.zeros((4, 16, 16), complex), "real"),
        (np.zeros((4, 16, 16), np.uint8), "real"),
        (np.full((4, 16, 16), np.nan), "NaN"),
    ],
)
def test_refuses_what_cannot_be_compared(name, a, message):
    with pytest.raises(UserError, match=message):
        METRICS[name](a, np.zeros((4, 16, 16)))


def test_swd_refuses_images_smaller_than_a_patch():
    with pytest.raises(UserError, match="7x7"):
        swd(np.zeros((4, 6, 9)), np.zeros((4, 6, 9)))
