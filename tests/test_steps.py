"""What the two steps draw: the order of the data, and whose coils and masks measure a generated image."""

import dataclasses

import numpy as np
import pytest
import torch

from rsdmri.config import DistillConfig, NetworkConfig, ObjectiveConfig, PretrainConfig
from rsdmri.denoiser import Denoiser, Generator, build_denoiser
from rsdmri.distillation import Distiller
from rsdmri.evaluation import PROXIMAL_STREAM, Evaluator
from rsdmri.metrics import Options, Side
from rsdmri.mri.domain import MRI, Bank, MRILaw
from rsdmri.nn.song_unet import Block
from rsdmri.objectives import build_objective
from rsdmri.sampling import sample_generator
from rsdmri.steps import DistillStep, batch_of, draw_size, fall, indices, rise
from rsdmri.teachers import copied
from rsdmri.tensors import make_generator
from rsdmri.training import Average


def law(n=20, coils=2, size=16, noise_std=None):
    maps = torch.randn(n, coils, size, size, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    bank = Bank(maps, torch.arange(n) / n if noise_std is None else noise_std, acs=2, slices=n)
    return MRILaw({(size, size): bank}, accel=2.0, display_max=1.0)


class Pointwise(torch.nn.Conv2d):
    """The smallest network: it does not look at the level."""

    def forward(self, x, c_noise):
        return super().forward(x)


def step(**options):
    config = dataclasses.replace(DistillConfig(), **options)
    the_law = law()
    networks = [Denoiser(Pointwise(3, 2, 1), masked=True) for _ in range(3)]
    objective = build_objective(ObjectiveConfig(), the_law.thin)
    distiller = Distiller(networks[0], networks[1], Generator(networks[2], 2.5), objective, config)
    return DistillStep(distiller, the_law, the_law.thin, 1, torch.complex64, config)


def test_an_image_is_measured_by_its_own_coils_and_another_mask():
    _, condition, operator, noise_std = step(measured_by="rescan").draw(40, make_generator(3))
    assert torch.equal(condition.maps, operator.maps)
    bank = law().banks[16, 16]
    for maps, std in zip(operator.maps, noise_std, strict=True):  # the noise belongs to the scan of these coils
        (index,) = [i for i in range(len(bank.maps)) if torch.equal(bank.maps[i], maps)]
        assert std == bank.noise_std[index]
    assert (condition.mask.sum(-1) == 5).all()  # floor(16 / 3): shown is what the teacher saw
    assert (operator.mask.sum(-1) == 8).all()
    inside = (condition.mask & ~operator.mask).any(-1).double().mean()
    assert inside > 0.8  # were they drawn within each other, this would be 0


def test_the_published_way_draws_other_coils():
    _, condition, operator, _ = step(measured_by="independent").draw(40, make_generator(3))
    assert (condition.maps == operator.maps).flatten(1).all(1).double().mean() < 0.3


def test_every_sample_comes_once_a_pass_in_an_order_of_its_own():
    drawn = indices(7, 0, 0, 21)
    passes = [drawn[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert passes[0] != passes[1]
    assert indices(7, 0, 5, 9) == drawn[5:14]
    assert indices(7, 1, 0, 21) != drawn


def test_a_batch_is_of_one_bucket_and_buckets_have_their_share():
    buckets = [list(range(10)), list(range(10, 15)), [15]]
    batches = [batch_of(buckets, 0, number, 3) for number in range(3 * 16)]
    counts = np.zeros(16, int)
    for batch in batches:
        assert sum(set(batch) <= set(bucket) for bucket in buckets) == 1
        np.add.at(counts, batch, 1)
    # 3 * 16 batches of 3 are 9 passes over 16 samples, whatever their buckets are.
    assert (counts == 9).all()
    assert batch_of(buckets, 0, 17, 3) == batches[17]
    assert [batch_of(buckets, 1, number, 3) for number in range(48)] != batches
    assert len({tuple(sorted(set(np.searchsorted([10, 15], batch, "right")))) for batch in batches[:16]}) == 3


def test_one_bucket_is_the_endless_sequence_itself():
    batches = [batch_of([list(range(7))], 4, number, 3) for number in range(7)]
    assert [sample for batch in batches for sample in batch] == indices(7, 4, 0, 21)


def test_sizes_are_drawn_as_often_as_the_data_have_them():
    drawn = [draw_size({(8, 8): 30, (8, 16): 10}, make_generator(0, step)) for step in range(2000)]
    assert drawn.count((8, 16)) / 2000 == pytest.approx(0.25, abs=0.03)
    generator = make_generator(0)
    before = generator.get_state()
    assert draw_size({(8, 8): 30}, generator) == (8, 8)
    draw_size({(8, 8): 30, (8, 16): 10}, generator)
    assert torch.equal(generator.get_state(), before)  # of images alone


def test_learning_rate_rises_and_falls():
    assert (rise(50, 100), rise(500, 100), rise(1, 0)) == (0.5, 1.0, 1.0)
    config = PretrainConfig(images=1000, decay=True)
    assert fall(0, config) == 1.0
    assert fall(500, config) == pytest.approx(0.5)
    assert fall(1000, config) == pytest.approx(0.0)
    assert fall(900, dataclasses.replace(config, decay=False)) == 1.0


def test_both_rates_of_a_distillation_fall():
    made = step(lr_fake=3e-4, lr_generator=1e-4, decay=True, images=8, batch=4)
    made(0, [make_generator(0)])
    assert [adam.param_groups[0]["lr"] for adam in (made.adam_fake, made.adam_generator)] == pytest.approx([1.5e-4, 5e-5])


def test_the_standard_way_of_dsd_measures_without_noise():
    assert step(noise="data").draw(9, make_generator(0))[3].max() > 0
    assert step(noise="none").draw(9, make_generator(0))[3].max() == 0


def test_the_average_of_the_weights_has_the_half_life_that_is_asked_for():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Average(model, half_life=100, ramp=10.0)
    model.weight.data.fill_(1.0)
    for step in range(10):
        average.update(model, 1000 + 10 * step, 10)
    assert average.values["weight"].item() == pytest.approx(0.5)  # after one half-life half of the way is done
    ramped = Average(model, half_life=100, ramp=0.05)
    model.weight.data.fill_(0.0)
    ramped.update(model, 200, 10)  # a half-life of 0.05 * 200 images
    assert ramped.values["weight"].item() == pytest.approx(0.5)


def test_the_proximal_distance_measures_with_a_mask_drawn_anew():
    """Through the coils that the seed drew, and not with its mask."""
    the_law, seeds = law(), [3, 4, 5, 6]
    images = torch.randn(4, 1, 16, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    judge = Evaluator(4, (16, 16), *[Side(torch.zeros(4, 16, 16))] * 5, range(4), MRI(), the_law, Options())
    shown = torch.as_tensor(judge.corrupt(images, seeds, law(noise_std=torch.zeros(20))).shown)
    for index, seed in enumerate(seeds):
        drawn, _ = the_law.draw(1, (16, 16), sample_generator(seed))
        operator = the_law.rescan(drawn, make_generator(seed, PROXIMAL_STREAM))
        assert not torch.equal(operator.mask, drawn.mask)
        expected = MRI().display(operator.gram(images[index : index + 1]), the_law)
        assert torch.allclose(shown[index], expected[0].to(shown.dtype), atol=0.005)


def test_fake_and_generator_have_optimisers_of_their_own():
    made = step(lr_fake=3e-4, lr_generator=1e-4, betas_fake=(0.1, 0.9), betas_generator=(0.5, 0.99))
    for adam, lr, betas in ((made.adam_fake, 3e-4, (0.1, 0.9)), (made.adam_generator, 1e-4, (0.5, 0.99))):
        assert (adam.param_groups[0]["lr"], adam.param_groups[0]["betas"]) == (lr, betas)


def test_each_gradient_has_a_limit_of_its_own():
    """Adam divides a gradient by its size plus 1e-8: what was cut to 1e-12 hardly moves, whatever the learning rate."""
    for cut, moves in ((1e-12, False), (0, True)):
        made = step(clip_fake=cut, clip_generator=1e-12 if moves else 0, lr_fake=0.1, lr_generator=0.1, batch=4)
        before = {name: p.clone() for name, p in made.distiller.named_parameters()}
        made(0, [make_generator(0)])
        moved = {name.split(".")[0]: 0.0 for name in before}
        for name, p in made.distiller.named_parameters():
            moved[name.split(".")[0]] = max(moved[name.split(".")[0]], float((p - before[name]).detach().abs().max()))
        assert moved["teacher"] == 0
        assert (moved["fake"] > 0.05) == moves
        assert (moved["generator"] > 0.05) == (not moves)


def test_scores_may_compute_their_activations_again(monkeypatch):
    """In the generator's step alone, and of the scores alone: the step learns the same, and calls the blocks of two networks twice."""
    calls, whole = [], Block._compute
    monkeypatch.setattr(Block, "_compute", lambda self, x, emb: calls.append(self) or whole(self, x, emb))
    learnt, counts = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        teacher = build_denoiser(NetworkConfig(channels=8), channels=1, size=(16, 16), complex_images=True, masked=True)
        with torch.no_grad():
            for parameter in teacher.parameters():  # the last layers begin almost at zero
                parameter += 0.05 * torch.randn(parameter.shape)
        the_law, config = law(), DistillConfig(batch=4, checkpointing=checkpointing, lr_generator=1e-3)
        objective = build_objective(ObjectiveConfig(), the_law.thin)
        distiller = Distiller(teacher, copied(teacher, None), Generator(copied(teacher, None), 2.5), objective, config)
        calls.clear()
        made = DistillStep(distiller, the_law, the_law.thin, 1, torch.complex64, config)
        made(0, [make_generator(0)])
        learnt.append(list(made.model.parameters()))
        networks = (teacher, distiller.fake, made.model)
        counts.append([sum(block in set(network.modules()) for block in calls) for network in networks])
        assert not any(block.checkpointing for network in networks for block in network.modules() if isinstance(block, Block))
    assert all(torch.equal(a, b) for a, b in zip(*learnt, strict=True))
    one = counts[0][0]  # called in the generator's step alone; the fake in both, the generator in both
    assert counts == [[one, 2 * one, 2 * one], [2 * one, 3 * one, 2 * one]]


def test_distillation_may_have_another_dropout():
    teacher = build_denoiser(NetworkConfig(channels=8, dropout=0.3), channels=1, size=(16, 16), complex_images=True, masked=True)
    for asked, expected in ((None, 0.3), (0.05, 0.05)):
        student = copied(teacher, asked)
        rates = {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {expected}
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    assert {module.p for module in teacher.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
