"""How well the noise is found that nobody recorded: within 5 % at SNR 2, 15 % at SNR 10, and above that an upper bound that says so."""

import dataclasses

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.errors import UserError
from rsdmri.mri.fourier import ifft2c, rss
from rsdmri.mri.masks import draw_columns
from rsdmri.mri.phantoms import draw
from rsdmri.mri.prepare import noise_level
from rsdmri.mri.readers import read
from rsdmri.noise_level import NoiseLevel, of_images, of_samples
from rsdmri.tensors import make_generator, randn, randn_like
from rsdmri_natural.__main__ import APPLICATION as NATURAL
from rsdmri_natural.config import FacesConfig
from rsdmri_natural.domain import Natural
from rsdmri_natural.faces import draw_faces


def test_the_constants_are_those_of_the_normal_law(generator):
    samples = 0.3 * randn((4, 100, 100), torch.complex128, generator)
    assert of_samples({"all": samples}).std == pytest.approx(0.3, rel=0.01)
    images = 0.2 * torch.randn(20, 1, 64, 64, generator=generator)
    assert of_images(images).std == pytest.approx(0.2, rel=0.02)
    colours = 0.2 * torch.randn(20, 3, 64, 64, generator=generator)
    assert of_images(colours).std == pytest.approx(0.2, rel=0.02)


def test_the_place_with_the_least_signal_is_taken_if_it_is_large_enough(generator):
    weak, strong, few = (randn((1, 1, n), torch.complex128, generator) for n in (2000, 2000, 50))
    level = of_samples({"strong": 3 * strong, "weak": weak, "few": 0.1 * few})
    assert (level.source, level.estimated) == ("weak", True)
    assert of_samples({"few": few, "fewer": 0.1 * few[..., :20]}).source == "few"
    assert of_samples({"zeros": torch.cat([torch.zeros(1, 1, 3000), weak], -1)}).std == pytest.approx(1, rel=0.05)
    with pytest.raises(ValueError, match="no samples"):
        of_samples({"zeros": torch.zeros(1, 3, 3, dtype=torch.complex64)})


def test_only_what_was_estimated_among_strong_signal_is_a_bound():
    assert NoiseLevel(0.1, "ends of the readout", estimated=True).bound(1.1)
    assert not NoiseLevel(0.1, "ends of the readout", estimated=True).bound(0.8)
    assert not NoiseLevel(0.1, "noise scans", estimated=False).bound(100)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    path = tmp_path_factory.mktemp("faces") / "faces.npz"
    draw_faces(FacesConfig(n=200, size=64), path)
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["train"]).movedim(-1, 1).double() / 127.5 - 1


@pytest.mark.parametrize(("snr", "within"), [(2, 0.05), (10, 0.15)])
@pytest.mark.parametrize("size", [64, 32])
def test_photographs(faces, snr, within, size, generator):
    clean = torch.nn.functional.avg_pool2d(faces, 64 // size)
    std = float(clean.std()) / snr
    level = of_images(clean + std * torch.randn(clean.shape, generator=generator))
    assert level.std == pytest.approx(std, rel=within)


def test_photographs_that_are_clipped(faces, generator):
    """As a camera or a file of 8 bits leaves them: what touches the ends is left out."""
    std = float(faces.std()) / 2
    noisy = (faces + std * torch.randn(faces.shape, generator=generator)).clamp(-1, 1)
    assert of_images(noisy).std == pytest.approx(std, rel=0.15)


def scan_of(tmp_path, kspace, mask=None):
    """A file of fastMRI's layout that does not say what its noise is."""
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.to(torch.complex64).numpy()
        if mask is not None:
            file["mask"] = mask.numpy()
    return read(path)


@pytest.mark.parametrize(("snr", "within"), [(2, 0.05), (10, 0.15)])
@pytest.mark.parametrize("accel", [1, 4])
@pytest.mark.parametrize("where", ["drawn", "pvdamp_brain_t2_8ch", "autoespirit_brain_t1_8ch_clean", "loraks_mprage_4ch"])
def test_scans(tmp_path, request, where, snr, accel, within, generator):
    if where == "drawn":
        clean = draw(0, 0, 4, 8, (64, 64)).to(torch.complex128)
    else:
        clean = read(request.getfixturevalue("real_data") / "mri" / f"{where}.h5").kspace.to(torch.complex128)
    std = float(torch.quantile(rss(ifft2c(clean), 1).flatten()[: 1 << 22], 0.99)) / snr
    noisy = clean + std * randn_like(clean, generator)
    mask = None
    if accel > 1:
        width = clean.shape[-1]
        mask = draw_columns(1, width, accel, round(width / 16), make_generator(0))[0, 0, 0]
        noisy = torch.where(mask, noisy, 0)
    level = noise_level(scan_of(tmp_path, noisy, mask), "auto")
    assert level.estimated
    assert level.std == pytest.approx(std, rel=within)


def test_what_is_known_is_not_estimated(tmp_path):
    scan = scan_of(tmp_path, draw(0, 0, 2, 4, (32, 32)))
    assert noise_level(scan, 0.25) == NoiseLevel(0.25, "given", estimated=False)
    assert noise_level(dataclasses.replace(scan, noise_std=0.5), "auto").source == "the file"
    covariance = 2 * 0.09 * torch.eye(scan.kspace.shape[1], dtype=torch.complex64)
    level = noise_level(dataclasses.replace(scan, noise_covariance=covariance), "auto")
    assert (level.source, level.estimated) == ("noise scans", False)
    assert level.std == pytest.approx(0.3)


def test_measured_photographs_of_unknown_noise(tmp_path, capsys, faces, generator):
    """The estimate goes with the data and the runs; with little noise it is named an upper bound."""
    for name, snr in (("noisy", 3), ("clear", 60)):
        std = float(faces.std()) / snr
        noisy = faces + std * torch.randn(faces.shape, generator=generator)
        pixels = ((noisy.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()
        np.savez(tmp_path / f"{name}.npz", train=pixels)
        common = ["--name", name, "--runs", tmp_path / "runs", "--data.images", tmp_path / f"{name}.npz", "--data.size", "64"]
        common += ["--data.measured", "--data.corruption", "noise", "--data.noise-std", "auto", "--objective.kind", "tweedie"]
        assert run_command(NATURAL, "prepare", *common) == 0
        said = capsys.readouterr().err
        assert ("upper bound" in said) == (name == "clear")
    assert "at most" in said
    assert run_command(NATURAL, "pretrain", *common, "--pretrain.images", 4, "--pretrain.batch", 2, "--network.channels", 8) == 0
    law = Natural().law(tmp_path / "runs/clear/pretrain/operators.h5")
    with h5py.File(tmp_path / "runs/clear/prepare/observations.h5") as file:
        assert file["noise_std"][0] == pytest.approx(law.data.noise_std)
    assert law.data.noise_std > 0


def test_auto_is_for_measured_photographs(capsys):
    assert run_command(NATURAL, "prepare", "--data.images", "x", "--data.noise-std", "auto") == 2
    assert "data.measured" in capsys.readouterr().err


def test_coils_of_unequal_noise(tmp_path, generator):
    """What the engine models is one level for all coils: the root mean square."""
    clean = draw(0, 0, 4, 8, (64, 64)).to(torch.complex128)
    std = float(torch.quantile(rss(ifft2c(clean), 1).flatten(), 0.99)) / 2
    of_coils = std * torch.tensor([0.3, 0.3, 0.3, 0.3, 1.0, 1.0, 2.0, 2.0])[:, None, None]
    level = noise_level(scan_of(tmp_path, clean + of_coils * randn_like(clean, generator)), "auto")
    assert level.std == pytest.approx(float(of_coils.square().mean().sqrt()), rel=0.05)


def test_grey_photographs_stored_as_colours(faces, generator):
    grey = faces.mean(1, keepdim=True)
    std = float(grey.std()) / 2
    noisy = (grey + std * torch.randn(grey.shape, generator=generator)).expand(-1, 3, -1, -1)
    assert of_images(noisy).std == pytest.approx(std, rel=0.1)


def test_compressed_photographs_are_refused(faces, generator):
    """Half-resolution colours hold no noise at the finest scale: nearly zero would be found."""
    from io import BytesIO

    from PIL import Image

    noisy = (faces + float(faces.std()) / 3 * torch.randn(faces.shape, generator=generator)).clamp(-1, 1)
    pixels = []
    for image in ((noisy[:60] + 1) * 127.5).round().byte().movedim(1, -1).numpy():
        content = BytesIO()
        Image.fromarray(image).save(content, "JPEG", quality=90)
        pixels.append(np.asarray(Image.open(content)))
    with pytest.raises(UserError, match="compressed"):
        of_images(torch.from_numpy(np.stack(pixels)).movedim(-1, 1) / 127.5 - 1)
