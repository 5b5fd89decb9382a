"""Mirrored observations: of the mirrored image through the mirrored operator, exactly; and a network that is told."""

import dataclasses

import pytest
import torch
from cases import OPERATORS

from rsdmri.augmentation import augmented, mirrored
from rsdmri.config import Experiment, NetworkConfig, ObjectiveConfig, PretrainConfig
from rsdmri.denoiser import build_denoiser
from rsdmri.objectives import Standard
from rsdmri.observations import Observation
from rsdmri.operators import Identity
from rsdmri.tensors import make_generator


def as_observation(operator, x):
    return Observation(operator.forward(x), operator, torch.zeros(len(x), dtype=torch.float64))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("axis", [-1, -2])
def test_what_a_mirrored_operator_measures_of_a_mirrored_image(name, axis, generator):
    make, shape, complex_images = OPERATORS[name]
    operator = make(generator)
    dtype = torch.complex128 if complex_images else torch.float64
    x = torch.randn(shape, dtype=dtype, generator=generator)
    which = torch.arange(len(operator)) % 2 == 0
    length = shape[axis]
    # Of a Fourier transform: sample k goes to -k, counted from N // 2.
    order = (2 * (length // 2) - torch.arange(length)) % length if operator.periodic else length - 1 - torch.arange(length)
    image = torch.where(which[:, None, None, None], x.index_select(axis, order), x)
    found = mirrored(as_observation(operator, x), which, axis)
    assert torch.allclose(found.operator.forward(image), found.y, atol=1e-12)
    assert torch.equal(image[~which], x[~which])
    assert not torch.allclose(image[which], x[which])
    again = mirrored(found, which, axis)
    assert torch.equal(again.y, operator.forward(x))


def test_pixels_that_were_not_seen_stay_unseen(generator):
    from rsdmri_natural.operators import Inpainting

    mask = torch.rand(40, 1, 8, 8, generator=generator) < 0.5
    x = torch.randn(40, 3, 8, 8, generator=generator)
    obs = augmented(as_observation(Inpainting(mask), x), 0.5, 9, make_generator(1))
    assert torch.equal((obs.y != 0).any(1, keepdim=True), obs.operator.mask)
    assert obs.labels.shape == (40, 9)
    assert (obs.labels[:, 2:] == 0).all()
    for i in range(40):
        axes = [axis for axis, told in zip((-1, -2), obs.labels[i, :2], strict=True) if told]
        assert torch.equal(obs.y[i], (x * mask)[i].flip(axes))


def test_how_many_are_mirrored():
    x = torch.zeros(4000, 1, 2, 2)
    obs = augmented(as_observation(Identity(torch.zeros(4000)), x), 0.15, 2, make_generator(0))
    assert obs.labels.mean(0).tolist() == pytest.approx([0.5, 0.15], abs=0.03)


def test_the_network_is_told(generator):
    config = NetworkConfig(channels=8, multipliers=(1,), augment=9)
    denoiser = build_denoiser(config, channels=3, size=(8, 8), complex_images=False, masked=False).double()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 3, 8, 8, generator=generator)
    sigma = torch.tensor([0.5, 1.0])
    obs = as_observation(Identity(torch.zeros(2)), x)
    labels = torch.zeros(2, 9)
    labels[1, 0] = 1
    objective = Standard(ObjectiveConfig())
    losses = [
        objective.loss(denoiser, dataclasses.replace(obs, labels=given), sigma, make_generator(0))
        for given in (None, torch.zeros(2, 9), labels)
    ]
    assert torch.allclose(losses[0], losses[1])
    assert torch.isclose(losses[1][0], losses[2][0])
    assert not torch.isclose(losses[1][1], losses[2][1])


def test_augmentation_needs_a_label():
    with pytest.raises(ValueError, match=r"network\.augment"):
        Experiment(pretrain=PretrainConfig(augment=0.1))
    Experiment(pretrain=PretrainConfig(augment=0.1), network=NetworkConfig(augment=9))
