"""Distances of features and of phases: closed forms, invariances, and the making of features."""

import itertools
import json
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from rsdmri.errors import UsageError, UserError
from rsdmri.metrics import (
    METRICS,
    Extractor,
    Moments,
    Options,
    Side,
    compare,
    coverage,
    frechet,
    frechet_of_moments,
    kid,
    moments,
    nearest,
    phase,
    phase_histograms,
    swd,
)
from rsdmri.metrics.bands import bands
from rsdmri.metrics.features import BLOCK
from rsdmri.metrics.phase import BINS, circular_wasserstein
from rsdmri.metrics.sliced import clouds


def cloud(n, width, seed, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) @ rng.uniform(-1, 1, (width, width)) + mean


def pictures(n, seed, size=16):
    """Smooth random pictures of 8 bits, (n, size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    centre, width = rng.uniform(-0.5, 0.5, (2, n, 1, 1)), rng.uniform(0.2, 0.6, (n, 1, 1))
    return (np.rint(255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / width**2)) / 255).astype(np.float32)


# Fréchet


def test_the_frechet_distance_is_its_formula():
    a, b = cloud(300, 6, 0), cloud(200, 6, 1, 0.5)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-10)


def test_the_frechet_distance_of_gaussians_with_one_covariance_is_that_of_their_means():
    a = cloud(300, 6, 0)
    shift = np.arange(6.0)
    assert frechet(a, a + shift) == pytest.approx(shift @ shift, rel=1e-10)
    assert frechet(a, 3 * a) == pytest.approx(4 * np.sum(a.mean(0) ** 2) + 4 * np.trace(np.cov(a, rowvar=False)), rel=1e-10)
    assert frechet(a, a) < 1e-10


def test_both_forms_agree_where_images_are_fewer_than_features():
    a, b = cloud(20, 50, 0), cloud(30, 50, 1, 0.2)
    assert frechet(a, b) == pytest.approx(frechet_of_moments(moments([a]), moments([b])), rel=1e-7)


@pytest.mark.parametrize("n", [30, 400])
def test_a_resample_is_the_distance_of_its_rows(n):
    """Without a copy of them: where there are many, and where there are fewer than features."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, 50))
    i, j = rng.integers(n, size=(2, n))
    assert frechet(a, b, i, j) == pytest.approx(frechet(a[i], b[j]), rel=1e-9)


def test_moments_that_come_in_parts_are_those_of_the_whole():
    a = cloud(1000, 5, 0, mean=1e4)  # a mean that would eat the digits of a sum of squares
    whole = moments([a])
    parts = moments([a[:1], a[1:300], a[300:]]).join(Moments(5)).join(moments([a[:7]]))
    again = moments([np.concatenate([a, a[:7]])])
    assert whole.covariance == pytest.approx(np.cov(a, rowvar=False), rel=1e-8)
    assert parts.n == again.n == 1007
    assert parts.covariance == pytest.approx(again.covariance, rel=1e-8)
    assert parts.mean == pytest.approx(again.mean, rel=1e-12)


def test_moments_of_nothing_or_of_one_image_are_refused():
    with pytest.raises(UserError, match="no features"):
        moments([])
    with pytest.raises(UserError, match="at least two"):
        _ = moments([np.ones((1, 3))]).covariance


# KID


def test_kid_is_its_formula_and_unbiased():
    a, b = cloud(12, 4, 0), cloud(12, 4, 1)

    def k(u, v):
        return (u @ v / 4 + 1) ** 3

    pairs = list(itertools.permutations(range(12), 2))
    same = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / len(pairs)
    cross = np.mean([k(u, v) for u in a for v in b])
    assert kid(a, b).value == pytest.approx(same - 2 * cross, rel=1e-10)
    rng = np.random.default_rng(0)
    draws = [kid(*rng.standard_normal((2, 40, 3))) for _ in range(400)]
    values = np.array([draw.value for draw in draws])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert (values < 0).any()


def test_the_standard_error_of_kid_is_how_far_it_varies():
    rng = np.random.default_rng(0)
    draws = [kid(rng.standard_normal((100, 3)), rng.standard_normal((100, 3)) + 0.7) for _ in range(300)]
    assert np.mean([draw.error for draw in draws]) == pytest.approx(np.std([draw.value for draw in draws]), rel=0.15)


def test_kid_of_many_images_does_not_depend_on_their_order_beyond_its_error():
    """Folders are sorted by class or scan, and blocks must not be."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((10, 3))

    def draw():
        return centres[rng.integers(10, size=4000)] + rng.standard_normal((4000, 3))

    a, b = draw(), draw()
    by_class = [side[np.argsort(side[:, 0])] for side in (a, b)]
    mixed, ordered, one_ordered = kid(a, b), kid(*by_class), kid(a, by_class[1])
    assert abs(ordered.value - mixed.value) < 4 * mixed.error
    assert abs(one_ordered.value) < 4 * mixed.error
    assert mixed.error == pytest.approx(kid(a[:1000], b[:1000]).error / 2, rel=0.4)  # four blocks


def test_kid_wants_as_many_images_on_both_sides():
    with pytest.raises(UserError, match="as many images"):
        kid(cloud(12, 3, 0), cloud(13, 3, 1))


# Precision, recall, density, coverage


def test_coverage_is_its_definitions():
    a, b = cloud(60, 3, 0), cloud(50, 3, 1, 0.5)
    distance = np.linalg.norm(a[:, None] - b, axis=-1)
    radius_a = np.sort(np.linalg.norm(a[:, None] - a, axis=-1), axis=1)[:, 5]
    radius_b = np.sort(np.linalg.norm(b[:, None] - b, axis=-1), axis=1)[:, 5]
    found = coverage(a, b)
    assert found["precision"].value == np.mean((distance <= radius_b).any(1))
    assert found["recall"].value == np.mean((radius_a >= distance.T).any(1))
    assert found["density"].value == pytest.approx((distance <= radius_b).sum() / (5 * 60))
    assert found["coverage"].value == np.mean((distance <= radius_b).any(0))


def test_errors_of_coverage_hold_what_they_say():
    """Over fresh sets: 95 % of the values lie within 1.96 errors of the mean; a jackknife may be too careful, not too bold."""
    rng = np.random.default_rng(0)
    found = [coverage(rng.standard_normal((100, 6)) + 0.4, rng.standard_normal((100, 6)), groups=10) for _ in range(60)]
    for name in ("precision", "recall", "density", "coverage"):
        values, errors = np.array([[draw[name].value, draw[name].error] for draw in found]).T
        assert np.mean(abs(values - values.mean()) < 1.96 * errors) >= 0.9
        assert errors.mean() < 2.2 * values.std()
    assert np.isnan(coverage(cloud(20, 3, 0), cloud(20, 3, 1))["recall"].error)


def test_many_images_are_sampled_and_not_cut(monkeypatch):
    for module in ("coverage", "compare"):  # the package gives these names to functions
        monkeypatch.setattr(sys.modules[f"rsdmri.metrics.{module}"], "MOST", 200)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1000, 3))
    assert coverage(a, b[np.argsort(b[:, 0])])["precision"].value > 0.8
    sides = [Side(pictures(240, k)) for k in range(3)]
    found = compare(*sides, Options(("frechet", "recall"), 0, Extractor("bands")))
    assert (found["frechet"]["n"], found["recall"]["n"]) == (240, 200)


def test_a_collapsed_set_is_precise_and_covers_nothing():
    reference = cloud(400, 3, 0)
    found = coverage(np.repeat(reference[:4], 100, 0), reference)
    assert found["precision"].value == 1 and found["recall"].value < 0.05 and found["coverage"].value < 0.1
    far = coverage(reference + 100, reference)
    assert max(value.value for value in far.values()) == 0


def test_the_nearest_is_found():
    a, b = cloud(30, 4, 0), cloud(2500, 4, 1)
    index, distance = nearest(a, b)
    every = np.linalg.norm(a[:, None] - b, axis=-1)
    assert (index == every.argmin(1)).all()
    assert distance == pytest.approx(every.min(1), rel=1e-6)


@pytest.mark.parametrize("function", [frechet, kid, coverage])
@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.zeros((9, 4)), "one width"),
        (np.zeros(9), "one width"),
        (np.zeros((1, 3)), "at least two"),
        (np.full((9, 3), np.nan), "NaN"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(function, a, message):
    with pytest.raises(UserError, match=message):
        function(a, np.zeros((9, 3)))


# Phase


def waves(n, turns, seed=0, size=24, spread=0.0):
    """Images of magnitude one whose phase rises by ``turns`` degrees a column."""
    rng = np.random.default_rng(seed)
    rate = turns + spread * rng.standard_normal((n, 1, 1))
    start = rng.uniform(0, 360, (n, 1, 1))
    return np.exp(1j * np.deg2rad(rate * np.arange(size) + start)) * np.ones((n, size, 1))


def test_phase_sees_a_slope_and_neither_a_constant_nor_the_background():
    a = phase_histograms(waves(8, 10, 0))
    assert phase(a, phase_histograms(waves(8, 10, 1))) == pytest.approx(0, abs=1e-9)
    # Along rows nothing changes; along columns 5 degrees at lag 1, 10 at 2, 20 at 4; half of all lags are along rows. Both parts see it.
    assert phase(a, phase_histograms(waves(8, 15, 1))) == pytest.approx(2 * (5 + 10 + 20) / 6, rel=1e-6)
    rng = np.random.default_rng(0)
    dark = waves(8, 10, 0)
    dark[:, :, 12:] = 1e-6 * np.exp(2j * np.pi * rng.uniform(size=(8, 24, 12)))
    assert phase(phase_histograms(dark), a) < 0.5


def test_phase_sees_lost_variety_and_noise():
    reference = phase_histograms(waves(200, 10, 0, spread=10))
    same = phase(phase_histograms(waves(200, 10, 1, spread=10)), reference)
    alike = phase(phase_histograms(waves(200, 10, 1)), reference)
    assert alike > 3 * same
    noisy = [
        waves(200, 10, 1, spread=10) + level * np.random.default_rng(2).standard_normal((200, 24, 24))
        for level in (0.1, 0.3, 1.0)
    ]
    values = [phase(phase_histograms(images.astype(complex)), reference) for images in noisy]
    assert same < values[0] < values[1] < values[2]


def test_the_distance_on_the_circle_goes_the_short_way_round():
    one, other = np.eye(BINS)[1], np.eye(BINS)[BINS - 2]
    assert circular_wasserstein(one, other) == pytest.approx(3 * 360 / BINS)
    h, g = np.random.default_rng(0).dirichlet(np.ones(BINS), 2)
    turned = min(wasserstein_distance(range(BINS), range(BINS), np.roll(h, k), np.roll(g, k)) for k in range(BINS))
    assert circular_wasserstein(h, g) == pytest.approx(turned * 360 / BINS, rel=1e-9)


@pytest.mark.parametrize("images", [np.zeros((3, 9, 9)), np.zeros((3, 4, 9), complex), np.full((3, 9, 9), np.nan + 0j)])
def test_what_has_no_phase_is_refused(images):
    with pytest.raises(UserError, match="phase"):
        phase_histograms(images)


# Features


def test_bands_of_a_constant_image_and_of_a_step():
    flat = bands(np.full((1, 16, 16, 1), 51, np.uint8))[0]
    assert flat.shape == (64 + 2 * 16,)
    assert flat[:64] == pytest.approx(0.2) and flat[64:] == pytest.approx(-5)
    step = np.zeros((1, 16, 16, 1), np.uint8)
    step[:, 3:] = 255
    right, below = bands(step)[0, 64:68], bands(step)[0, 68:72]
    assert right == pytest.approx(-5) and below[:2] == pytest.approx(np.log10(1 / 8 + 1e-5)) and below[2:] == pytest.approx(-5)


def test_bands_do_not_depend_on_the_other_images_and_see_colours():
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), np.uint8)
    assert (bands(images)[3] == bands(images[3:4])[0]).all()
    assert bands(images).shape[1] == 3 * 64 + 2 * 16
    with pytest.raises(UserError, match="at least 8 x 8"):
        bands(images[:, :7])


@pytest.fixture
def torchscript(tmp_path):
    """A network whose batches are watched: its second feature is their size."""

    class Net(torch.nn.Module):
        def forward(self, images):
            x = images.to(torch.float32).mean((2, 3))
            return torch.cat([x, torch.full((len(x), 1), float(len(x)))], 1)

    with warnings.catch_warnings(action="ignore"):  # deprecated, and what people have
        torch.jit.script(Net()).save(tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_networks_see_blocks_of_one_size_and_three_channels(torchscript):
    images = pictures(BLOCK + 5, 0)
    found = Extractor(f"torchscript:{torchscript}")(images)
    assert found.shape == (BLOCK + 5, 4)
    assert (found[:, 3] == BLOCK).all()
    assert found[:, :3] == pytest.approx(np.repeat(255 * images.mean((1, 2))[:, None], 3, 1), rel=1e-5)


def test_features_are_kept_by_content_and_a_torn_file_is_made_again(torchscript, tmp_path):
    images = pictures(6, 0)
    first = Extractor(f"torchscript:{torchscript}", cache=tmp_path / "kept")(images)
    (kept,) = (tmp_path / "kept").iterdir()
    np.save(kept, first + 1)
    extractor = Extractor(f"torchscript:{torchscript}", cache=tmp_path / "kept")
    assert (extractor(images) == first + 1).all()  # read
    assert (extractor(images[::-1]) != first[::-1] + 1).any()  # another content
    kept.write_bytes(kept.read_bytes()[:40])
    assert (Extractor(f"torchscript:{torchscript}", cache=tmp_path / "kept")(images) == first).all()


def test_two_processes_give_the_features_of_one():
    images = pictures(2 * BLOCK + 3, 0)
    assert (Extractor("bands", workers=2)(images) == Extractor("bands")(images)).all()


def test_two_processes_give_the_features_of_one_network(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 32, 3), torch.nn.AdaptiveAvgPool2d(1)
    )

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net.float()

        def forward(self, images):
            return self.net(images.float() / 255).flatten(1)

    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Net()).save(tmp_path / "net.pt")
    images, kind = pictures(3 * BLOCK + 7, 0, 24), f"torchscript:{tmp_path / 'net.pt'}"
    one, again, two = Extractor(kind)(images), Extractor(kind)(images), Extractor(kind, workers=2)(images)
    assert (one == again).all() and (one == two).all()
    assert (Extractor(kind)(images[:5]) == one[:5]).all()  # nor does the number of images matter


def test_kinds_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UsageError, match="inception or torchscript"):
        Extractor("vgg")
    with pytest.raises(UserError, match="no such file"):
        Extractor(f"torchscript:{tmp_path / 'none.pt'}")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"text.pt: not a module"):
        Extractor(f"torchscript:{tmp_path / 'text.pt'}")


# Intervals


def test_an_interval_holds_the_value_and_is_as_wide_as_chance_makes_it():
    """The spread of the distance over fresh sets, against that of resampling one."""
    options = Options(metrics=METRICS, bootstrap=60, extractor=Extractor("bands"))
    reference, other = pictures(80, 1), pictures(80, 2)
    shift = 0.8
    fresh = [compare(Side(shift * pictures(80, 10 + k)), Side(pictures(80, 50 + k)), Side(other), options) for k in range(12)]
    one = compare(Side(shift * pictures(80, 3)), Side(reference), Side(other), options)
    assert set(one) == set(METRICS) - {"phase"}
    for name, score in one.items():
        assert score["low"] <= score["value"] <= score["high"]
        if name in ("swd", "psd", "frechet", "kid"):
            spread = np.std([found[name]["value"] for found in fresh])
            assert (score["high"] - score["low"]) / (2 * 1.96) == pytest.approx(spread, rel=0.75)
    json.dumps(one)


def test_resampled_clouds_are_those_of_the_chosen_images():
    a, b = pictures(20, 0), pictures(20, 1)
    found = clouds(a, b, projections=8)
    everything = np.arange(20)
    assert found.resampled(everything, everything) == pytest.approx(found.distance(), rel=1e-4)
    i = np.array([3] * 10 + [7] * 10)
    rows = (i[:, None] * 64 + np.arange(64)).ravel()
    level = found.levels[0]
    expected = np.mean([wasserstein_distance(level.a[rows] @ d, level.b @ d) for d in level.directions])
    assert found.resampled(i, everything) == pytest.approx(1e3 * expected, rel=1e-4)


def test_many_images_give_fewer_patches_each(monkeypatch):
    assert clouds(*np.zeros((2, 3, 16, 16))).patches == 64
    monkeypatch.setattr("rsdmri.metrics.sliced.MOST_PATCHES", 320)
    assert clouds(*np.zeros((2, 20, 16, 16))).patches == 16
    assert swd(*np.stack([pictures(20, 0)] * 2)) == 0


def test_slices_of_one_scan_are_drawn_again_together():
    """With fewer scans than slices the distance is less sure: the interval says so."""
    scans = np.repeat(pictures(4, 0), 24, axis=0)
    reference, other = Side(pictures(96, 1)), Side(pictures(96, 2))
    options = Options(("psd", "swd"), 100)
    alone = compare(Side(scans), reference, other, options)
    together = compare(Side(scans, groups=np.arange(96) // 24), reference, other, options)
    for name in options.metrics:
        assert alone[name]["value"] == together[name]["value"]
        width = {key: found[name]["high"] - found[name]["low"] for key, found in (("alone", alone), ("together", together))}
        assert width["together"] > 1.4 * width["alone"]


def test_sets_in_which_there_is_nothing_to_see_are_refused():
    good, other = Side(pictures(20, 0)), Side(pictures(20, 1))
    with pytest.raises(UserError, match="constant"):
        compare(Side(np.full((20, 16, 16), 0.5)), good, other)
    with pytest.raises(UserError, match="constant"):
        compare(good, Side(np.zeros((20, 16, 16))), other)
    with pytest.raises(UserError, match="at least two"):
        compare(*[Side(pictures(1, 0))] * 3)
    with pytest.raises(UserError, match="no distance is called"):
        compare(good, good, other, Options(metrics=("fid",)))


def test_two_evaluations_give_the_same_numbers():
    sides = [Side(pictures(40, k)) for k in range(3)]
    first, second = (compare(*sides, Options(METRICS, 20, Extractor("bands"))) for _ in range(2))
    assert first == second
