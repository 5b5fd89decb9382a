"""Mirrored observations: of the mirrored image through the mirrored operator, exactly; and a network that is told."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from cases import OPERATORS

from rsdmri.augmentation import draw_mirrors, mirror_labels, mirrored
from rsdmri.config import DistillConfig, Experiment, NetworkConfig, ObjectiveConfig, PretrainConfig
from rsdmri.denoiser import Generator, build_denoiser
from rsdmri.distillation import Distiller
from rsdmri.mri.masks import thin_columns
from rsdmri.objectives import Ambient, Standard
from rsdmri.observations import Observation
from rsdmri.operators import Identity
from rsdmri.steps import DistillStep, PretrainStep
from rsdmri.tensors import make_generator
from rsdmri_natural.config import NaturalData
from rsdmri_natural.domain import NaturalLaw


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
    both = torch.stack([which, which & False] if axis == -1 else [which & False, which])
    found = mirrored(as_observation(operator, x), both, operator.periodic)
    assert torch.allclose(found.operator.forward(image), found.y, atol=1e-12)
    assert torch.equal(image[~which], x[~which])
    assert not torch.allclose(image[which], x[which])
    again = mirrored(found, both, operator.periodic)
    assert torch.equal(again.y, operator.forward(x))


def test_pixels_that_were_not_seen_stay_unseen(generator):
    from rsdmri_natural.operators import Inpainting

    mask = torch.rand(40, 1, 8, 8, generator=generator) < 0.5
    x = torch.randn(40, 3, 8, 8, generator=generator)
    which = draw_mirrors(40, 0.5, x.device, make_generator(1))
    obs = mirrored(as_observation(Inpainting(mask), x), which, False)
    labels = mirror_labels(which, 9)
    assert torch.equal((obs.y != 0).any(1, keepdim=True), obs.operator.mask)
    assert labels.shape == (40, 9)
    assert (labels[:, 2:] == 0).all()
    for i in range(40):
        axes = [axis for axis, told in zip((-1, -2), labels[i, :2], strict=True) if told]
        assert torch.equal(obs.y[i], (x * mask)[i].flip(axes))


def test_how_many_are_mirrored():
    which = draw_mirrors(4000, 0.15, torch.device("cpu"), make_generator(0))
    assert which.double().mean(1).tolist() == pytest.approx([0.5, 0.15], abs=0.03)


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


def test_masks_are_thinned_before_they_are_mirrored(generator):
    """The ACS lines of an even number lie one column further in a mirrored scan: thinned after it, one of them could be lost."""
    operator = OPERATORS["mri"][0](generator)
    shown = []

    class Shown(torch.nn.Module):
        sigma_data, network = 0.5, SimpleNamespace(augment_channels=2)

        def forward(self, x_t, sigma, mask, labels):
            shown.append((mask, labels))
            return x_t

    def thin(whole, generator):
        return whole.with_mask(thin_columns(whole.mask, 4, 2, generator))

    obs = as_observation(operator, torch.randn(3, 1, 10, 16, dtype=torch.complex128, generator=generator))
    objective = Ambient(ObjectiveConfig(), thin)
    for seed in range(40):
        objective.loss(Shown(), obs, torch.ones(3), make_generator(seed), augment=0.5)
    for mask, labels in shown:
        for row, turned in zip(mask[:, 0, 0], labels[:, 0], strict=True):
            assert row.sum() == 3
            assert row[[8, 9] if turned else [7, 8]].all()
    assert {bool(turned) for _, labels in shown for turned in labels[:, 0]} == {True, False}


def labels_seen(denoiser):
    """What a denoiser's network is told, call by call."""
    seen = []
    denoiser.network.register_forward_pre_hook(lambda module, given: seen.append(given[2] if len(given) > 2 else None))
    return seen


def test_both_phases_mirror_when_asked_to(generator):
    config = NetworkConfig(channels=8, multipliers=(1,), augment=9)

    def network():
        return build_denoiser(config, channels=3, size=(8, 8), complex_images=False, masked=False)

    class Data:
        buckets: ClassVar = {(8, 8): range(40)}

        def batch(self, indices):
            return as_observation(Identity(torch.zeros(len(indices))), torch.zeros(len(indices), 3, 8, 8, dtype=torch.float32))

    for augment in (0.0, 0.5):
        teacher = network()
        seen = labels_seen(teacher)
        PretrainStep(teacher, Standard(ObjectiveConfig()), Data(), PretrainConfig(batch=40, augment=augment), 0)(
            0, [make_generator(0)]
        )
        assert (seen[0] is None) == (augment == 0)
        assert augment == 0 or seen[0].sum() > 20
        fake, g = network(), network()
        of_fake, of_g = labels_seen(fake), labels_seen(g)
        distiller = Distiller(
            network(), fake, Generator(g, 2.5), Standard(ObjectiveConfig()), DistillConfig(batch=40, augment=augment)
        )
        law = NaturalLaw(NaturalData(size=8, corruption="noise"), Identity)
        DistillStep(distiller, law, law.thin, 3, torch.float32, distiller.config)(0, [make_generator(0)])
        assert (of_fake[0] is None) == (augment == 0)
        assert of_fake[1] is None  # it is compared on images as they are
        assert of_g == [None, None]
