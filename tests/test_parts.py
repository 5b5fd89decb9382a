"""A batch that is computed in parts is the batch: number for number in what is drawn, to rounding in what is learned."""

import dataclasses

import pytest
import torch

from rsdmri.config import DistillConfig, NetworkConfig, ObjectiveConfig, PretrainConfig
from rsdmri.denoiser import Generator, build_denoiser
from rsdmri.distillation import Distiller
from rsdmri.mri.domain import Bank, MRILaw
from rsdmri.objectives import build_objective
from rsdmri.observations import observe
from rsdmri.steps import DistillStep, PretrainStep
from rsdmri.teachers import copied
from rsdmri.tensors import make_generator, rand, randint, randn, randn_like
from rsdmri_natural.config import NaturalData
from rsdmri_natural.domain import law_of

SIZE = (8, 8)
COUNT = 24  # images of the data


def generators(images, parts):
    return [make_generator(5, images, part=(number, parts)) for number in range(parts)]


DRAWS = {
    "rand": lambda n, g: rand((n, 3), g),
    "uniform double": lambda n, g: rand((n,), g, dtype=torch.float64),
    "randint": lambda n, g: randint(9, (n, 2), g),
    "randn": lambda n, g: randn((n, 2, 5), torch.float64, g),
    "complex": lambda n, g: randn_like(torch.empty(n, 4, dtype=torch.complex64), g),
}


@pytest.mark.parametrize("name", DRAWS)
def test_parts_are_the_whole(name):
    (one,) = generators(0, 1)
    whole = DRAWS[name](12, one)
    for parts in (2, 3):
        some = generators(0, parts)
        assert torch.equal(torch.cat([DRAWS[name](12 // parts, g) for g in some]), whole)
        assert all(torch.equal(g.get_state(), one.get_state()) for g in some)  # and so is what is drawn next


def test_one_part_draws_what_torch_draws():
    ours, theirs = make_generator(7), torch.Generator()
    theirs.set_state(ours.get_state())
    assert torch.equal(rand((4, 3), ours), torch.rand(4, 3, dtype=torch.float32, generator=theirs))
    assert torch.equal(randn((4, 3), torch.float64, ours), torch.randn(4, 3, dtype=torch.float64, generator=theirs))


def mri_law():
    maps = randn((COUNT, 2, *SIZE), torch.complex64, make_generator(0))
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    return MRILaw({SIZE: Bank(maps, torch.full((COUNT,), 0.1), acs=2, slices=COUNT)}, accel=2.0, display_max=1.0)


def natural_law(corruption, **options):
    return law_of(NaturalData(corruption=corruption, size=SIZE[0], **options))


#: law, objective, complex, channels
WORLDS = {
    "mri": (mri_law, ObjectiveConfig(), True, 1),
    "inpainting": (lambda: natural_law("inpainting", missing=0.5), ObjectiveConfig(), False, 3),
    "box": (lambda: natural_law("box", box=3), ObjectiveConfig(), False, 3),
    "noise": (lambda: natural_law("noise", noise_std=0.2), ObjectiveConfig(kind="tweedie"), False, 3),
    "noise, consistency": (
        lambda: natural_law("noise", noise_std=0.2),
        ObjectiveConfig(kind="tweedie", consistency=1.0),
        False,
        3,
    ),
    "noise, consistency of a third": (
        lambda: natural_law("noise", noise_std=0.2),
        ObjectiveConfig(kind="tweedie", consistency=1.0, consistency_samples=4),
        False,
        3,
    ),
    "noise, consistency of two": (  # one part of three has none
        lambda: natural_law("noise", noise_std=0.2),
        ObjectiveConfig(kind="tweedie", consistency=1.0, consistency_samples=2),
        False,
        3,
    ),
    "blur": (lambda: natural_law("blur"), ObjectiveConfig(kind="standard"), False, 3),
}


class Data:
    """As many observations as COUNT, drawn once."""

    def __init__(self, law, channels, dtype):
        operator, noise_std = law.draw(COUNT, SIZE, make_generator(1))
        x = randn((COUNT, channels, *SIZE), dtype, make_generator(2))
        self.all = observe(x, operator, noise_std, make_generator(3))
        self.buckets = {SIZE: range(COUNT)}

    def batch(self, indices):
        return self.all[list(indices)]


def world(name):
    make_law, objective, is_complex, channels = WORLDS[name]
    law = make_law()
    built = build_objective(objective, law.thin)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = NetworkConfig(channels=8, multipliers=(1,), blocks=1, augment=2)
        network = build_denoiser(config, channels=channels, size=SIZE, complex_images=is_complex, masked=built.masked)
    with torch.no_grad():
        for parameter in network.parameters():  # the last layers begin almost at zero, where no draw makes a difference
            parameter += 0.05 * randn(parameter.shape, parameter.dtype, make_generator(4))
    return law, built, network, channels, torch.complex64 if is_complex else torch.float32


def teacher_step(name, parts):
    law, objective, network, channels, dtype = world(name)
    config = PretrainConfig(batch=12, parts=parts, lr=1e-3, augment=0.3)
    return PretrainStep(network, objective, Data(law, channels, dtype), config, seed=0)


def distill_step(name, parts):
    law, objective, network, channels, dtype = world(name)
    config = DistillConfig(batch=12, parts=parts, lr_fake=1e-3, lr_generator=1e-3, augment=0.3)
    distiller = Distiller(network, copied(network, None), Generator(copied(network, None), 2.5), objective, config)
    return DistillStep(distiller, law, law.thin, channels, dtype, config)


@pytest.mark.parametrize("make", [teacher_step, distill_step])
@pytest.mark.parametrize("name", WORLDS)
def test_accumulation_is_the_big_batch(name, make):
    whole, parts = make(name, 1), make(name, 3)
    for number in range(3):
        images = 12 * number
        one, three = whole(images, generators(images, 1)), parts(images, generators(images, 3))
        for key in one.keys() - {"spread"}:  # of a part's images, not of the batch's
            assert three[key].item() == pytest.approx(one[key].item(), rel=2e-3), (number, key)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_parts_that_do_not_divide_the_batch_are_refused():
    for config in (PretrainConfig, DistillConfig):
        with pytest.raises(ValueError, match="batch 10 must be divisible by parts 3"):
            config(batch=10, parts=3)


def test_a_run_may_go_on_in_other_parts():
    step = teacher_step("noise", 1)
    step(0, generators(0, 1))
    other = teacher_step("noise", 4)
    other.load_state_dict(step.state_dict())
    found = [s(12, generators(12, parts))["loss"].item() for s, parts in ((step, 1), (other, 4))]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert dataclasses.replace(PretrainConfig(), parts=4).batch == PretrainConfig().batch
