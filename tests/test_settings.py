import pytest

from rsdmri.config import to_tree
from rsdmri.errors import UsageError
from rsdmri.mri.config import MRIExperiment
from rsdmri.settings import configs_folder, load_experiment, named_configs, validate
from rsdmri_natural.config import NaturalExperiment

KINDS = {"mri": MRIExperiment, "natural": NaturalExperiment}


@pytest.mark.parametrize("name", named_configs())
def test_every_configuration_of_the_package_is_valid(name):
    experiment = load_experiment(KINDS[name.split("/")[0]], [name])
    assert experiment.name == name.replace("/", "-")
    assert validate(type(experiment), to_tree(experiment), "again") == experiment


def test_there_are_configurations_for_both_applications():
    assert {"mri/demo", "mri/r4", "mri/ixi_small", "natural/demo", "natural/celebahq_sr2_noise_02"} <= set(named_configs())
    assert configs_folder().is_dir()


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_later_files_go_over_earlier_ones(tmp_path):
    experiment = load_experiment(MRIExperiment, ["mri/r4", write(tmp_path, "data: {accel: 6}\n")])
    assert experiment.data.accel == 6
    assert experiment.data.acs == 20
    assert experiment.name == "mri-r4"


def test_scientific_notation_without_a_point_is_a_number(tmp_path):
    assert load_experiment(MRIExperiment, [write(tmp_path, "pretrain: {lr: 1e-4}\n")]).pretrain.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {acel: 4}", r"mine.yaml: unknown key 'data.acel' \(did you mean 'accel'\?\)"),
        ("pretain: {lr: 1}", r"unknown key 'pretain' \(did you mean 'pretrain'\?\)"),
        ("pretrain: {lr: fast}", "pretrain.lr"),
        ("objective: {kind: ambiant}", "objective.kind"),
        ("data: {accel: 0.5}", "data.accel must be at least 1"),
        ("- a\n- b", "a mapping of sections is expected"),
        ("a: [", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
    ],
)
def test_mistakes_are_named_with_their_file(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        load_experiment(MRIExperiment, [write(tmp_path, text)])


def test_unknown_name_of_a_configuration():
    with pytest.raises(UsageError, match="did you mean 'mri/demo'"):
        load_experiment(MRIExperiment, ["mri/demmo"])


@pytest.mark.parametrize("text", ["a: 2001-99-99", "x: 0b_", "a: [1", "- 1"])
def test_yaml_that_is_none(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text + "\n")
    with pytest.raises(UsageError, match=r"x\.yaml"):
        load_experiment(MRIExperiment, [str(tmp_path / "x.yaml")])


@pytest.mark.parametrize(
    ("text", "meant"),
    [("data: {acceleration: 4}", "'data.accel'"), ("lr: 1", "'pretrain.lr'"), ("pretrain: {imagse: 4}", "'images'")],
)
def test_unknown_keys_are_answered_by_the_nearest(tmp_path, text, meant):
    (tmp_path / "x.yaml").write_text(text + "\n")
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        load_experiment(MRIExperiment, [str(tmp_path / "x.yaml")])


@pytest.mark.parametrize("text", ["objective: {mean: .nan}", "data: {noise_std: .inf}", "pretrain: {warmup: -5}"])
def test_numbers_are_finite_and_within_their_limits(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text + "\n")
    with pytest.raises(UsageError, match=r"finite|negative"):
        load_experiment(MRIExperiment, [str(tmp_path / "x.yaml")])


# data set, noise: network, dropout of the teacher, batch, rate, images; then batch, rate, beta1 of G, alpha, images of the distillation.
PUBLISHED = {
    "cifar10": ((2, 2, 2), 0.13, 512, 1e-4, 200e6, 256, 1e-5, 0.0, 1.2, 100e6),
    "ffhq": ((1, 2, 2, 2), 0.05, 256, 2e-4, 100e6, 512, 1e-5, 0.9, 1.2, 15e6),
    "celebahq": ((1, 2, 2, 2), 0.15, 256, 2e-4, 100e6, 512, 1e-5, 0.9, 1.2, 15e6),
    "afhqv2": ((1, 2, 2, 2), 0.25, 256, 2e-4, 100e6, 512, 5e-6, 0.0, 1.0, 15e6),
}


@pytest.mark.parametrize("name", [name for name in named_configs() if name.startswith("natural/") and "_noise_0" in name])
def test_recipes_of_photographs_carry_the_published_numbers(name):
    data, _, rest = name.removeprefix("natural/").partition("_")
    experiment = load_experiment(NaturalExperiment, [name])
    pretrain, distill = experiment.pretrain, experiment.distill
    network, dropout, batch, lr, images, *second = PUBLISHED[data]
    assert (experiment.network.multipliers, experiment.network.dropout) == (network, dropout)
    assert (pretrain.batch, pretrain.lr, pretrain.images, pretrain.warmup) == (batch, lr, images, 10e6)
    if not rest.startswith(("blur", "sr2", "inpainting")):
        found = (distill.batch, distill.lr_generator, distill.betas_generator[0], distill.alpha, distill.images)
        assert (*found, distill.lr_fake) == (*second, second[1])
    noise_std = {"noise_0": 0.0, "noise_01": 0.1, "noise_02": 0.2, "noise_04": 0.4}["noise" + rest.rpartition("noise")[2]]
    assert experiment.data.noise_std == experiment.sample.stop == noise_std
    assert experiment.objective.kind == ("tweedie" if noise_std else "standard")
    assert (distill.sigma_init, distill.t_max, distill.ema) == (2.5, 0.8, 500_000)
