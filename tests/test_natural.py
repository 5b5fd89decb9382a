"""Photographs go through the same engine: the whole path on drawn pictures, and what is particular to them."""

import json

import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.errors import UserError
from rsdmri.tensors import make_generator
from rsdmri_natural.__main__ import APPLICATION
from rsdmri_natural.images import read_images
from rsdmri_natural.masks import draw_pixels, image_generator, thin_pixels


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


@pytest.mark.parametrize("objective", ["ambient", "tweedie"])
def test_the_whole_path(tmp_path, objective):
    np.savez(tmp_path / "pictures.npz", train=pictures(40))
    (tmp_path / "small.yaml").write_text(
        f"data: {{images: {tmp_path}/pictures.npz, size: 16, missing: 0.5, noise_std: 0.1}}\nobjective: {{kind: {objective}}}\n"
        "network: {channels: 8, multipliers: [1, 2]}\npretrain: {images: 32, batch: 8, log: 8}\n"
        "distill: {images: 16, batch: 8, log: 8}\nsample: {n: 16, batch: 8, steps: 3}\n"
    )
    flags = ["--config", tmp_path / "small.yaml", "--runs", tmp_path / "runs"]
    for verb in ("prepare", "pretrain", "distill", "sample", "evaluate", "report"):
        assert run(verb, *flags) == 0, verb
    rows = json.loads((tmp_path / "runs/small/report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["observation", "rsd"]
    assert np.isfinite(rows[1]["metrics"]["swd"]["value"])


def test_masks_have_the_law_of_inpainting():
    mask = draw_pixels(200, (16, 16), 0.6, make_generator(0))
    assert mask.double().mean().item() == pytest.approx(0.4, abs=0.01)
    fewer = thin_pixels(mask, 0.1, make_generator(1))
    assert not (fewer & ~mask).any()
    assert (fewer.sum() / mask.sum()).item() == pytest.approx(0.9, abs=0.01)


def test_the_corruption_of_an_image_is_a_function_of_its_name():
    first, again, other = (draw_pixels(1, (8, 8), 0.5, image_generator(name, 0)) for name in ("train/1", "train/1", "train/2"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_are_scaled_to_minus_one_and_one(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.array([0, 255], np.uint8).reshape(1, 1, 2, 1).repeat(2, 1).repeat(3, 3))
    images = read_images(tmp_path / "a.npz", "train", 2)
    assert images.shape == (1, 3, 2, 2)
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)


def test_what_is_not_photographs_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.zeros((2, 8, 8)), other=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="no array 'val'; found train, other"):
        read_images(tmp_path / "a.npz", "val", 8)
    with pytest.raises(UserError, match="float64"):
        read_images(tmp_path / "a.npz", "train", 8)
    (tmp_path / "b.npz").write_text("hello")
    with pytest.raises(UserError, match="not a readable"):
        read_images(tmp_path / "b.npz", "train", 8)


def test_no_photographs_given(tmp_path, capsys):
    assert run("prepare", "--runs", tmp_path) == 1
    assert "data.images" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["empty", "objects", "none", "torn", "one"])
def test_pictures_that_are_none(tmp_path, kind, capsys):
    path = tmp_path / "pictures.npz"
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "objects":
        np.savez(path, train=np.array([{}, {}], dtype=object))
    if kind == "none":
        np.savez(path, train=np.zeros((0, 16, 16, 3), np.uint8))
    if kind == "torn":
        np.savez(path, train=pictures(4))
        path.write_bytes(path.read_bytes()[:-200])
    if kind == "one":
        with open(path, "wb") as file:
            np.save(file, pictures(2))
    assert run("prepare", "--data.images", path, "--runs", tmp_path / "runs", "--name", "x") == 1
    assert f"error: {path}: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_missing_reference_split_leaves_nothing_behind(tmp_path, capsys):
    np.savez(tmp_path / "p.npz", train=pictures(4))
    flags = ["--data.images", tmp_path / "p.npz", "--data.size", "16", "--data.reference-split", "nope"]
    assert run("prepare", *flags, "--runs", tmp_path / "runs", "--name", "x") == 1
    assert "no array 'nope'" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.h5"))
