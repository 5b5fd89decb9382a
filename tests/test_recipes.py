"""The full-size recipes for MRI: their numbers, what their networks are and cost, and that each starts on a CPU."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rsdmri import pipeline
from rsdmri.checkpoints import load_description
from rsdmri.denoiser import build_denoiser
from rsdmri.logs import read_log
from rsdmri.mri.config import EspiritConfig, MRIExperiment, SimulateConfig
from rsdmri.mri.domain import MRI
from rsdmri.mri.estimate import estimate_files
from rsdmri.mri.masks import columns, default_acs
from rsdmri.mri.simulate import simulate
from rsdmri.settings import configs_folder, load_experiment

ACCELERATIONS = [2, 4, 6, 8]
UNMASKED = Path(__file__).parent / "unmasked.yaml"  # --network.mask-input one
RECIPES = [*(f"mri/r{accel}" for accel in ACCELERATIONS), "mri/full"]


def published(name):
    """The recipe with the published network."""
    return [name, "mri/published", *([str(UNMASKED)] if name == "mri/full" else [])]


def network_of(*configs):
    """On no device: shapes and operations alone."""
    experiment = load_experiment(MRIExperiment, configs)
    with torch.device("meta"):
        masked = experiment.objective.kind == "ambient"
        return build_denoiser(experiment.network, channels=1, size=(384, 320), complex_images=True, masked=masked)


def cost(denoiser):
    """Floating-point operations of one call at 384 x 320."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.empty(1, 1, 384, 320, dtype=torch.complex64)
        mask = torch.empty(1, 1, 1, 320) if denoiser.masked else None
        denoiser(x, torch.empty(1, dtype=torch.float32), mask)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_are_the_published_ones(name):
    experiment = load_experiment(MRIExperiment, [name])
    pretrain, distill, network = experiment.pretrain, experiment.distill, load_experiment(MRIExperiment, published(name)).network
    assert (network.channels, network.multipliers, network.blocks, network.dropout) == (128, (1, 1, 1, 1), 4, 0.1)
    assert (pretrain.batch, pretrain.lr, pretrain.clip, pretrain.warmup, pretrain.images) == (8, 2e-4, 1.0, 10e6, 100e6)
    rates = (distill.batch, distill.lr_fake, distill.lr_generator, distill.clip_fake, distill.clip_generator)
    assert rates == (24, 5e-6, 1e-6, 1.0, 0)
    assert (distill.alpha, distill.sigma_init, distill.t_max, distill.ema, distill.ema_ramp) == (1.2, 2.5, 0.8, 500_000, 0.05)
    assert (distill.betas_fake, distill.betas_generator) == ((0.0, 0.999), (0.0, 0.999))
    assert (experiment.data.size, experiment.data.acs) == ((384, 320), default_acs(320))
    parameters = sum(p.numel() for p in network_of(*published(name)).parameters())
    assert parameters == (36_759_426 if name == "mri/full" else 36_768_644)


def test_masks_have_the_published_numbers_of_columns():
    assert [columns(320, r) for r in ACCELERATIONS] == [160, 80, 53, 40]
    assert [columns(320, r + 1) for r in ACCELERATIONS] == [106, 64, 45, 35]


def test_every_number_names_its_source():
    for name in RECIPES:
        lines = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        numbers = [line for line in lines if line.startswith("  ") and any(c.isdigit() for c in line.partition("#")[0])]
        assert len(numbers) > 20
        for line in numbers:
            if not line.startswith(("  accel:", "  size:")):
                assert "#" in line, f"{name}: {line}"


def test_the_network_costs_at_most_a_sixth_of_the_published_one():
    networks = {name: load_experiment(MRIExperiment, [name]).network for name in RECIPES}
    assert len(set(networks.values())) == 1 and len(networks["mri/r4"].multipliers) == 6
    ours = network_of("mri/r4")
    assert cost(ours) <= cost(network_of(*published("mri/r4"))) / 6
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(40e6, rel=0.02)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """One drawn head at 384 x 320, with its maps."""
    folder = tmp_path_factory.mktemp("scans")
    simulate(SimulateConfig(phantoms=1, slices=2, coils=4, size=(384, 320)), None, folder / "kspace")
    estimate_files([folder / "kspace"], folder / "espirit", EspiritConfig(workers=1))
    return folder


def started(scans, tmp_path, *configs):
    """The recipe with a batch of one, three steps long."""
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(2)
    recipe = load_experiment(MRIExperiment, configs)
    short = {"images": 3, "batch": 1, "save": 3, "log": 1}
    return dataclasses.replace(
        recipe,
        runs=tmp_path,
        data=dataclasses.replace(recipe.data, kspace=(scans / "kspace",), maps=scans / "espirit", bank=2),
        # Activations at this size do not fit into the memory of a laptop.
        network=dataclasses.replace(recipe.network, checkpointing=True),
        pretrain=dataclasses.replace(recipe.pretrain, **short),
        distill=dataclasses.replace(recipe.distill, **short),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", ["ours", "published"])
def test_each_recipe_takes_three_steps(scans, tmp_path, name, shape):
    """The teacher of each; the generator, three networks at once, with our network and once with the published one."""
    experiment = started(scans, tmp_path, *(published(name) if shape == "published" else [name]))
    pipeline.prepare(experiment, MRI())
    run = pipeline.pretrain(experiment, MRI())
    assert load_description(run).images == 3
    assert [line["images"] for line in read_log(run / "metrics.jsonl")] == [1, 2, 3]
    if shape == "ours" or name == "mri/r4":
        run = pipeline.distill(experiment, MRI())
        assert [line["images"] for line in read_log(run / "metrics.jsonl")] == [1, 2, 3]
        assert load_description(run).role == "generator"
