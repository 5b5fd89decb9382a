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
    assert {"mri/demo", "mri/r4", "mri/ixi_small", "natural/inpainting"} <= set(named_configs())
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
