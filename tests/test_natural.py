"""Photographs go through the same engine: their operators, laws, data sets, and the whole path on drawn pictures."""

import json

import h5py
import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image as Picture
from scipy.ndimage import correlate, gaussian_filter

from rsdmri.domain import Law
from rsdmri.errors import UserError
from rsdmri.operators import MaskedOperator
from rsdmri.tensors import make_generator
from rsdmri_natural.__main__ import APPLICATION
from rsdmri_natural.config import FacesConfig, NaturalData
from rsdmri_natural.domain import Natural, NaturalObservations, draw_operator, law_of
from rsdmri_natural.faces import draw_face, draw_faces
from rsdmri_natural.masks import draw_boxes, draw_pixels, image_generator
from rsdmri_natural.operators import (
    Blur,
    Inpainting,
    SuperResolution,
    enlarged,
    gaussian_kernel,
    motion_kernels,
    replicated,
)

CORRUPTIONS = {
    "noise": {"noise_std": 0.2},
    "blur": {"noise_std": 0.1},
    "motion": {"kernel_width": 5},
    "inpainting": {"missing": 0.5},
    "box": {"box": 6},
    "super_resolution": {"factor": 4, "noise_std": 0.1},
}


def pictures(n, size=16):
    """Coloured discs on coloured ground, uint8 (n, size, size, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    found = []
    for _ in range(n):
        centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.35)
        disc = (np.hypot(y - centre[0], x - centre[1]) < radius)[..., None]
        found.append(np.where(disc, rng.integers(0, 256, 3), rng.integers(0, 256, 3)))
    return np.stack(found).astype(np.uint8)


def run(*arguments):
    return run_command(APPLICATION, *arguments)


def prepared(tmp_path, n=6, **fields):
    """The observations of n pictures with these fields of ``data``, and the path of the file."""
    np.savez(tmp_path / "pictures.npz", train=pictures(n))
    flags = [part for name, value in fields.items() for part in (f"--data.{name.replace('_', '-')}", value)]
    where = ["--data.images", tmp_path / "pictures.npz", "--data.size", "16", "--runs", tmp_path / "runs", "--name", "x"]
    assert run("prepare", *where, *flags) == 0
    path = tmp_path / "runs/x/prepare/observations.h5"
    return NaturalObservations(path, NaturalData(size=16, **fields)), path


# ------------------------------------------------------------------ operators


@pytest.mark.parametrize("kernel", ["published", "truncated", "motion"])
def test_blur_is_that_of_scipy(kernel, generator):
    kernels = (
        motion_kernels(2, 9, generator)
        if kernel == "motion"
        else gaussian_kernel(published=kernel == "published").expand(2, -1, -1)
    )
    x = torch.randn(2, 3, 20, 17, dtype=torch.float64, generator=generator)
    expected = np.stack(
        [[correlate(channel, k, mode="mirror") for channel in image] for image, k in zip(x.numpy(), kernels.numpy(), strict=True)]
    )
    assert np.abs(Blur(kernels).forward(x).numpy() - expected).max() < 1e-12
    assert np.abs(Blur(kernels.float()).forward(x.float()).numpy() - expected).max() < 1e-5


def test_inpainting_is_a_product_with_its_mask(generator):
    mask = draw_pixels(2, (9, 8), 0.6, generator)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=generator)
    assert np.array_equal(Inpainting(mask).forward(x).numpy(), x.numpy() * mask.numpy())


def test_the_published_kernel_is_scipys_filter_of_a_delta():
    delta = np.zeros((9, 9))
    delta[4, 4] = 1
    assert np.abs(gaussian_kernel().numpy() - gaussian_filter(delta, 2)).max() < 1e-15
    assert gaussian_kernel()[4, 4].item() == pytest.approx(0.03979, abs=1e-5)


@pytest.mark.parametrize(("width", "std"), [(9, 2), (5, 2), (3, 2), (9, 4), (1, 2), (15, 1.5)])
def test_published_kernels_of_other_sizes(width, std):
    delta = np.zeros((width, width))
    delta[width // 2, width // 2] = 1
    assert np.abs(gaussian_kernel(width, std).numpy() - gaussian_filter(delta, std)).max() < 1e-15


def test_the_truncated_kernel_is_a_gaussian():
    kernel = gaussian_kernel(published=False)
    y, x = np.mgrid[-4:5, -4:5]
    expected = np.exp(-(x**2 + y**2) / 8)
    assert np.allclose(kernel.numpy(), expected / expected.sum(), atol=1e-15)


def test_motion_keeps_the_brightness_and_has_a_direction(generator):
    kernels = motion_kernels(200, 9, generator)
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(200, dtype=torch.float64))
    assert (kernels >= 0).all()
    offset = torch.arange(-4, 5, dtype=torch.float64)
    spread = offset**2
    along_y, along_x = torch.einsum("nhw,h->n", kernels, spread), torch.einsum("nhw,w->n", kernels, spread)
    # Points spread evenly over a line of 8 pixels, with the bilinear weights' own width.
    assert torch.allclose(along_y + along_x, torch.full((200,), 8.0**2 / 12, dtype=torch.float64), atol=1.0)
    assert (along_y > 4 * along_x).any()
    assert (along_x > 4 * along_y).any()
    falling = torch.einsum("nhw,h,w->n", kernels, spread.sqrt() * offset.sign(), spread.sqrt() * offset.sign())
    assert (falling > 1).any()  # both diagonals
    assert (falling < -1).any()


@pytest.mark.parametrize("factor", [2, 4])
def test_super_resolution_is_the_projection_on_block_constant_images(factor, generator):
    operator = SuperResolution(torch.zeros(2), factor)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=generator)
    y = operator.forward(x)
    assert torch.allclose(operator.forward(y), y)
    blocks = y.unfold(2, factor, factor).unfold(3, factor, factor)
    assert torch.allclose(blocks, blocks[..., :1, :1])
    assert torch.allclose(blocks[..., 0, 0], x.unfold(2, factor, factor).unfold(3, factor, factor).mean((-2, -1)))


@pytest.mark.parametrize("factor", [2, 4])
def test_a_measured_image_of_low_resolution_enters_white(factor, generator):
    """Of noise of std s there, y has white noise of std factor s, and P y is what was measured."""
    noise_std = torch.full((20000,), 0.3, dtype=torch.float64)
    low = 0.3 * torch.randn(20000, 1, 2, 2, dtype=torch.float64, generator=generator)
    y, on_grid = enlarged(low, noise_std, factor, generator)
    assert torch.allclose(on_grid, factor * noise_std)
    assert torch.allclose(SuperResolution(torch.zeros(20000), factor).forward(y), replicated(low, factor))
    covariance = torch.cov(y.flatten(1).T)
    expected = (0.3 * factor) ** 2 * torch.eye(covariance.shape[0], dtype=torch.float64)
    assert (covariance - expected).abs().max() < 6 * (0.3 * factor) ** 2 / 20000**0.5


def test_pixels_are_hidden_by_themselves_and_boxes_as_a_whole():
    mask = draw_pixels(200, (16, 16), 0.6, make_generator(0))
    assert mask.double().mean().item() == pytest.approx(0.4, abs=0.01)
    hidden = ~draw_boxes(4000, (16, 20), 5, make_generator(0))[:, 0]
    assert (hidden.flatten(1).sum(1) == 25).all()
    assert (hidden.any(2).sum(1) == 5).all()
    assert hidden.any(0).all()  # everywhere


def test_the_corruption_of_an_image_is_a_function_of_its_name():
    first, again, other = (draw_pixels(1, (8, 8), 0.5, image_generator(name, 0)) for name in ("train/1", "train/1", "train/2"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------ laws and data


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_data_are_corrupted_as_the_law_says(tmp_path, corruption):
    """y is A x with the operator that is kept, and noise of the level that is kept, drawn once."""
    fields = CORRUPTIONS[corruption]
    data, path = prepared(tmp_path, n=40, corruption=corruption, **fields)
    clean, names = Natural().references(path.with_name("references.h5"), (16, 16))
    assert names == data.names
    obs = data.batch(range(40))
    noise = obs.y - obs.operator.forward(clean)
    assert noise.std().item() == pytest.approx(fields.get("noise_std", 0.0), rel=0.05, abs=1e-6)
    assert torch.allclose(obs.noise_std, torch.full((40,), fields.get("noise_std", 0.0), dtype=torch.float32))
    law: Law = data.law()
    assert isinstance(obs.operator, law.operator)
    law.save(tmp_path / "operators.h5")
    again = Natural().law(tmp_path / "operators.h5")
    x = torch.randn(3, 3, 16, 16, dtype=torch.float32)
    for one in (law, again):
        operator, noise_std = one.draw(3, (16, 16), make_generator(5))
        assert torch.equal(operator.forward(x), law.draw(3, (16, 16), make_generator(5))[0].forward(x))
        assert torch.equal(noise_std, obs.noise_std[:3])
        assert type(one.rescan(operator, make_generator(6))) is type(operator)


def test_preparing_again_gives_the_same_observations(tmp_path):
    """The noise of an image is drawn once, from its name: it does not grow with every look at it."""
    first = prepared(tmp_path, noise_std=0.3)[0].batch(range(6))
    again, path = prepared(tmp_path, noise_std=0.3)
    assert torch.equal(again.batch(range(6)).y, first.y)
    assert torch.equal(again.batch(range(6)).y, first.y)
    other = NaturalObservations(path, NaturalData(size=16, noise_std=0.3, delta=0.5))  # delta is the teacher's
    assert torch.equal(other.batch([3]).y, first.y[3:4])


@pytest.mark.parametrize("corruption", ["inpainting", "box"])
def test_thinning_hides_more(corruption):
    law = law_of(NaturalData(size=16, corruption=corruption, missing=0.6, box=6, delta=0.1))
    operator, _ = law.draw(300, (16, 16), make_generator(0))
    assert isinstance(operator, MaskedOperator)
    fewer = law.thin(operator, make_generator(1))
    assert not (fewer.mask & ~operator.mask).any()
    if corruption == "inpainting":
        assert (fewer.mask.sum() / operator.mask.sum()).item() == pytest.approx(0.9, abs=0.01)
    else:
        assert (~fewer.mask).flatten(1).sum(1).float().mean() > 50  # of 36 before
        assert ((operator.mask & ~fewer.mask).sum(0) > 0).all()  # any seen pixel may be hidden


@pytest.mark.parametrize("corruption", ["inpainting", "box"])
def test_fixed_thinning_is_a_function_of_the_mask(corruption):
    """As the public teachers were trained; another mask has another part of it hidden."""
    fixed = law_of(NaturalData(size=16, corruption=corruption, missing=0.6, box=6, delta=0.3, thinning="fixed"))
    operator, _ = fixed.draw(20, (16, 16), make_generator(0))
    assert isinstance(operator, MaskedOperator)
    once, again = fixed.thin(operator, make_generator(1)).mask, fixed.thin(operator, make_generator(2)).mask
    assert torch.equal(once, again)
    assert torch.equal(fixed.thin(operator[[3]], None).mask, once[3:4])
    hidden = operator.mask & ~once
    assert hidden.flatten(1).any(1).float().mean() > 0.9
    assert len({tuple(row.flatten().tolist()) for row in hidden}) > 15
    redrawn = law_of(NaturalData(size=16, corruption=corruption, missing=0.6, box=6, delta=0.3))
    assert not torch.equal(redrawn.thin(operator, make_generator(1)).mask, redrawn.thin(operator, make_generator(2)).mask)


def test_a_data_set_that_does_not_fit_in_memory_reads_the_same(tmp_path, monkeypatch):
    whole, path = prepared(tmp_path, corruption="motion", kernel_width=5)
    monkeypatch.setattr("rsdmri_natural.domain.fits", lambda size: False)
    parts = NaturalObservations(path, whole.data)
    assert isinstance(parts.y, h5py.Dataset)
    for indices in ([0, 3], [2, 1, 0]):
        assert torch.equal(whole.batch(indices).y, parts.batch(indices).y)
        assert torch.equal(whole.batch(indices).operator.kernel, parts.batch(indices).operator.kernel)


def test_the_corruption_belongs_to_the_name_and_the_seed(tmp_path):
    """Not to the place in the set: the same picture under another number keeps its mask."""
    rows = pictures(5)
    for part in ("all", "less"):
        for number in range(5) if part == "all" else (2, 4):
            (tmp_path / part).mkdir(exist_ok=True)
            Picture.fromarray(rows[number]).save(tmp_path / part / f"{number}.png")
    flags = ["--data.split", "all", "--data.size", "16", "--runs", tmp_path / "runs", "--data.noise-std", "0.1"]
    found = {}
    for name, seed in (("all", "0"), ("less", "0"), ("all", "1")):
        assert run("prepare", "--data.images", tmp_path / name, "--name", name + seed, "--seed", seed, *flags) == 0
        found[name + seed] = NaturalObservations(
            tmp_path / f"runs/{name}{seed}/prepare/observations.h5", NaturalData(size=16, noise_std=0.1)
        )
    first, second = found["all0"].batch([2, 4]), found["less0"].batch([0, 1])
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.operator.mask, second.operator.mask)
    assert not torch.equal(found["all1"].batch([2, 4]).operator.mask, first.operator.mask)


def test_noise_lies_on_every_pixel(tmp_path):
    data, _ = prepared(tmp_path, n=40, corruption="inpainting", noise_std=0.2)
    obs = data.batch(range(40))
    hidden = obs.y[(~obs.operator.mask).expand_as(obs.y)]
    assert hidden.std().item() == pytest.approx(0.2, rel=0.05)


def test_the_kernel_is_the_one_that_is_asked_for():
    for kind in ("published", "truncated"):
        operator, _ = law_of(NaturalData(corruption="blur", kernel=kind)).draw(1, (32, 32), make_generator(0))
        assert torch.allclose(operator.kernel[0], gaussian_kernel(published=kind == "published").float())


def test_another_look_draws_another_mask():
    law = law_of(NaturalData(size=16))
    operator, _ = law.draw(4, (16, 16), make_generator(0))
    assert not torch.equal(law.rescan(operator, make_generator(1)).mask, operator.mask)


@pytest.mark.parametrize("corruption", ["noise", "blur"])
def test_nothing_is_done_to_measured_images(tmp_path, corruption, capsys):
    fields = {"corruption": corruption, "noise_std": 0.2}
    np.savez(tmp_path / "pictures.npz", train=pictures(4))
    flags = [
        "--data.images",
        tmp_path / "pictures.npz",
        "--data.corruption",
        corruption,
        "--data.noise-std",
        "0.2",
        "--data.measured",
    ]
    where = ["--runs", tmp_path / "runs", "--name", "x"]
    assert run("prepare", *flags, *where, "--data.size", "16", "--data.reference-split", "train") == 0
    data = NaturalObservations(tmp_path / "runs/x/prepare/observations.h5", NaturalData(size=16, measured=True, **fields))
    assert torch.allclose(data.batch(range(4)).y, torch.from_numpy(pictures(4)).movedim(-1, 1).float() / 127.5 - 1)
    assert not (tmp_path / "runs/x/prepare/references.h5").exists()  # what was measured is no clean image
    assert run("prepare", *flags, *where, "--data.size", "8") == 1
    assert "16 x 16, and measured pictures are taken as they are: 8 x 8 expected" in capsys.readouterr().err


def test_measured_images_are_taken_as_they_are(tmp_path):
    low = pictures(5, 8)
    np.savez(tmp_path / "low.npz", train=low)
    flags = [
        "--data.images",
        tmp_path / "low.npz",
        "--data.size",
        "16",
        "--data.corruption",
        "super_resolution",
        "--data.measured",
    ]
    assert run("prepare", *flags, "--data.noise-std", "0.1", "--runs", tmp_path / "runs", "--name", "x") == 0
    data = NaturalData(size=16, corruption="super_resolution", measured=True, noise_std=0.1)
    _, noise_std = law_of(data).draw(2, (16, 16), make_generator(0))
    assert torch.allclose(noise_std, torch.full((2,), 0.2, dtype=torch.float32))
    obs = NaturalObservations(tmp_path / "runs/x/prepare/observations.h5", data).batch(range(5))
    expected = torch.from_numpy(low).movedim(-1, 1).float() / 127.5 - 1
    assert torch.allclose(obs.operator.forward(obs.y), replicated(expected, 2), atol=1e-6)
    assert torch.allclose(obs.noise_std, torch.full((5,), 0.2, dtype=torch.float32))
    assert not (tmp_path / "runs/x/prepare/references.h5").exists()
    with pytest.raises(ValueError, match="would not be known"):
        NaturalData(corruption="box", measured=True)


def test_other_data_than_were_prepared_are_refused(tmp_path):
    _, path = prepared(tmp_path, corruption="super_resolution")
    with pytest.raises(UserError, match=r"data.factor 2 \(not 4\)"):
        NaturalObservations(path, NaturalData(size=16, corruption="super_resolution", factor=4))
    with pytest.raises(UserError, match=r"data.corruption super_resolution \(not blur\)"):
        NaturalObservations(path, NaturalData(size=16, corruption="blur"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"missing": 1.0}, "nothing is left"),
        ({"corruption": "box", "box": 32}, "data.box"),
        ({"kernel_width": 8}, "odd"),
        ({"corruption": "super_resolution", "size": 34, "factor": 4}, "multiple"),
        ({"corruption": "blur", "size": 8, "kernel_width": 17}, "data.kernel_width"),
    ],
)
def test_corruptions_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        NaturalData(**fields)


@pytest.mark.parametrize("corruption", ["blur", "super_resolution", "noise"])
def test_an_objective_that_does_not_fit_is_refused_before_training(tmp_path, corruption, capsys):
    prepared(tmp_path, corruption=corruption)
    flags = ["--data.size", "16", "--data.corruption", corruption, "--runs", tmp_path / "runs", "--name", "x"]
    assert run("pretrain", *flags, "--objective.kind", "ambient") == 1
    error = capsys.readouterr().err
    assert "needs data with a mask" in error
    assert "Use objective.kind 'standard', or 'tweedie'" in error
    assert not (tmp_path / "runs/x/pretrain").exists()


# ------------------------------------------------------------------ the whole path


@pytest.mark.parametrize(
    ("objective", "corruption"),
    [("ambient", "inpainting"), ("ambient", "box"), ("tweedie", "super_resolution"), ("standard", "motion"), ("tweedie", "blur")],
)
def test_the_whole_path(tmp_path, objective, corruption):
    np.savez(tmp_path / "pictures.npz", train=pictures(40))
    (tmp_path / "small.yaml").write_text(
        f"data: {{images: {tmp_path}/pictures.npz, size: 16, missing: 0.5, noise_std: 0.1, corruption: {corruption}, box: 6}}\n"
        f"objective: {{kind: {objective}}}\n"
        "network: {channels: 8, multipliers: [1, 2]}\npretrain: {images: 32, batch: 8, log: 8}\n"
        "distill: {images: 16, batch: 8, log: 8}\nsample: {n: 16, batch: 8, steps: 3}\n"
    )
    flags = ["--config", tmp_path / "small.yaml", "--runs", tmp_path / "runs"]
    for verb in ("prepare", "pretrain", "distill", "sample", "evaluate", "report"):
        assert run(verb, *flags) == 0, verb
    rows = json.loads((tmp_path / "runs/small/report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["observation", "rsd"]
    assert np.isfinite(rows[1]["metrics"]["swd"]["value"])


def test_draw_operator_gives_what_the_law_says():
    kinds = {"inpainting": Inpainting, "box": Inpainting, "blur": Blur, "motion": Blur, "super_resolution": SuperResolution}
    for corruption, kind in kinds.items():
        operator = draw_operator(NaturalData(corruption=corruption), 3, (32, 32), make_generator(0))
        assert type(operator) is kind
        assert len(operator) == 3
        assert operator.white_on_image


# ------------------------------------------------------------------ faces


def test_faces_are_functions_of_their_seed(tmp_path):
    assert np.array_equal(draw_face(16, 0, 1), draw_face(16, 0, 1))
    assert not np.array_equal(draw_face(16, 0, 1), draw_face(16, 0, 2))
    draw_faces(FacesConfig(n=6, size=16), tmp_path / "faces.npz")
    faces = np.load(tmp_path / "faces.npz")
    assert faces["train"].shape == (6, 16, 16, 3)
    assert faces["test"].shape == (2, 16, 16, 3)
    assert run("simulate", "--n", "2", "--size", "16", "--out", tmp_path / "more.npz") == 0
    assert np.array_equal(np.load(tmp_path / "more.npz")["train"], faces["train"][:2])
